"""What the rows that train share: both sides, and the kinds of energy function in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
    for function, words in FUNCTIONS.items():
        if not (run.short and function == "listed"):
            yield function, words


def ensq_side(run: Run, sets: Sequence[str] = (), config: str = "") -> Side:
    """ensq's side in the environment that a worker gives its trainer."""
    environment = child_environment(run.environment())
    return Side(
        "ensq",
        _together(environment),
        run.folder / "ensq.log",
        run.deadline,
        config=config or str(run.config),
        sets=[*run.sets, *sets],
    )


def other_side(run: Run) -> Side:
    """chemtrain's side in the environment as it is: threads as JAX wants them."""
    return Side(
        "chemtrain",
        _together(run.environment()),
        run.folder / "chemtrain.log",
        run.deadline,
        config=str(run.config),
        sets=list(run.sets),
        folder=str(run.place("chemtrain")),
    )


def _together(environment: Mapping[str, str]) -> dict[str, str]:
    """Both sides may hold one GPU: none of them takes all of its memory."""
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **environment}
