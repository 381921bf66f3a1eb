"""(c) One member's step against chemtrain's ForceMatching."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.pairs import ensq_side, functions, other_side
from benchmarks.rows import Aim, Row, pair
from benchmarks.run import Run, in_turns, measured

# By function and kind of device; FACTS: what a prototype reached.
AIMS = {("own", "cpu"): 2.5, ("own", "gpu"): 5.0, ("same", "cpu"): 1.4, ("same", "gpu"): 1.4}


def rows(run: Run) -> Iterator[Row]:
    """A row for each kind of energy function on chemtrain's side."""
    steps = 10 if run.short else 40
    with ensq_side(run) as ours, other_side(run) as theirs:
        compiling = ours.seconds("warm")
        for function, words in functions(run):
            first = theirs.seconds("warm", function=function)

            def one(number: int, function: str = function) -> tuple[float, float]:
                own, other = in_turns(
                    number,
                    lambda: ours.seconds("steps", count=steps),
                    lambda: theirs.seconds("steps", function=function, count=steps),
                )
                return own / steps, other / steps

            found = measured(run.rounds(15, 2), run, one)
            aim = None if run.short else AIMS.get((function, ours.about["kind"]))
            yield pair(
                found,
                aim=None if aim is None else Aim(aim, unit=" x"),
                row="c",
                only="step",
                what=f"one step / {words}",
                names=("ensq, a pack of one", f"ForceMatching, {words}"),
                device=ours.about["device"],
                detail={
                    "steps_per_round": steps,
                    "first_use_seconds": [compiling, first],
                    "batch": ours.about["batch"],
                    "beads": ours.about["beads"],
                    "neighbours": ours.about["neighbours"],
                },
            )
