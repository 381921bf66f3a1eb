"""(c) One member's step against chemtrain's ForceMatching."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.pairs import ensq_side, functions, other_side
from benchmarks.rows import Aim, Row, pair
from benchmarks.run import Run, in_turns, measured
from benchmarks.side import Meter, Side

# By function and kind of device.
AIMS = {("own", "cpu"): 2.5, ("own", "gpu"): 5.0, ("same", "cpu"): 1.4, ("same", "gpu"): 1.4}
ROUND = 0.5  # seconds of each side in a round


def rows(run: Run) -> Iterator[Row]:
    """A row for each kind of energy function on chemtrain's side."""
    with ensq_side(run) as ours, other_side(run) as theirs:
        compiling, first = ours.seconds("warm"), 0.0
        for function, words in functions(run):
            if run.left() < 1.5 * first:
                run.say(f"  no time left for {words}")
                break
            first = theirs.seconds("warm", function=function)
            own, other = _steps(run, ours), _steps(run, theirs, function=function)
            turns = partial(in_turns, own=own, other=other)
            found = measured(run.rounds(15, 2), run, turns)
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
                    "steps_per_round": [own.count, other.count],
                    "cpu_seconds": [own.cpu_seconds, other.cpu_seconds],
                    "cpu_ratio": other.cpu_seconds / own.cpu_seconds,
                    "first_use_seconds": [compiling, first],
                    **{key: ours.about[key] for key in ("batch", "beads", "neighbours")},
                },
            )


def _steps(run: Run, side: Side, **arguments: Any) -> Meter:
    """As many steps at a time as a clock needs."""
    seconds = side.seconds("steps", count=5, **arguments) / 5
    count = int(min(500, max(5, (0.1 if run.short else ROUND) / seconds)))
    return Meter(side, "steps", count, **arguments)
