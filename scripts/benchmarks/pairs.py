"""What the rows that train share: both sides, and the kinds of energy function in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.run import Run
from benchmarks.side import Side
from ensq.worker.child import child_environment

FUNCTIONS = {
    "own": "edge list, scatter",
    "same": "the same function",
    "listed": "ensq's on an edge list",
}


def functions(run: Run) -> Iterator[tuple[str, str]]:
    """Kinds of energy function of chemtrain's side, with their names: the last one, which no aim is
    about, only where there is time."""
    for function in run.functions or list(FUNCTIONS)[: 2 if run.short else None]:
        yield function, FUNCTIONS[function]


@contextmanager
def ensq_side(run: Run) -> Iterator[Side]:
    """ensq's side in the environment that a worker gives its trainer."""
    with _kept(run, "ensq", child_environment(run.environment())) as side:
        yield side


@contextmanager
def other_side(run: Run) -> Iterator[Side]:
    """chemtrain's side in the environment as it is: threads as JAX wants them."""
    folder = str(run.folder / "chemtrain")
    with _kept(run, "chemtrain", run.environment(), folder=folder) as side:
        yield side


@contextmanager
def _kept(run: Run, kind: str, environment: Mapping[str, str], **spec: Any) -> Iterator[Side]:
    """A side that stays for the next part, with what it has imported and compiled.

    After an error nobody knows what it is still at, so then it ends.
    """
    side = run.sides.get(kind)
    if side is None:
        log = run.folder / f"{kind}.log"
        environment = _together(environment)
        sets = list(run.sets)
        side = Side(kind, environment, log, run.deadline, config=str(run.config), sets=sets, **spec)
        run.sides[kind] = side
    side.deadline = run.deadline
    try:
        yield side
    except BaseException:
        del run.sides[kind]
        side.close()
        raise


def end_sides(run: Run) -> None:
    """Before what must have the machine alone, and at the end."""
    for kind in list(run.sides):
        run.sides.pop(kind).close()


def _together(environment: Mapping[str, str]) -> dict[str, str]:
    """Both sides may hold one GPU: none of them takes all of its memory."""
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **environment}
