"""(c) One member's step against chemtrain's ForceMatching."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.pairs import ensq_side, functions, other_side
from benchmarks.rows import Aim, Row, pair
from benchmarks.run import Run, in_turns, measured

# By function and kind of device; FACTS: what a prototype reached.
AIMS = {("own", "cpu"): 2.5, ("own", "gpu"): 5.0, ("same", "cpu"): 1.4, ("same", "gpu"): 1.4}
ROUND = 0.5  # seconds of each side in a round


def rows(run: Run) -> Iterator[Row]:
    """A row for each kind of energy function on chemtrain's side."""
    with ensq_side(run) as ours, other_side(run) as theirs:
        compiling, first = ours.seconds("warm"), 0.0
        own_steps = _count(run, ours.seconds("steps", count=5) / 5)
        for function, words in functions(run):
            if run.left() < 1.5 * first:
                run.say(f"  no time left for {words}")
                break
            first = theirs.seconds("warm", function=function)
            steps = _count(run, theirs.seconds("steps", function=function, count=5) / 5)

            def one(
                number: int, function: str = function, steps: int = steps
            ) -> tuple[float, float]:
                return in_turns(
                    number,
                    lambda: ours.seconds("steps", count=own_steps) / own_steps,
                    lambda: theirs.seconds("steps", function=function, count=steps) / steps,
                )

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
                    "steps_per_round": [own_steps, steps],
                    "first_use_seconds": [compiling, first],
                    "batch": ours.about["batch"],
                    "beads": ours.about["beads"],
                    "neighbours": ours.about["neighbours"],
                },
            )


def _count(run: Run, seconds: float) -> int:
    """Steps that take long enough for a clock."""
    return int(min(500, max(5, (0.1 if run.short else ROUND) / seconds)))
