"""(b) Member-epochs by size of pack, against members of chemtrain one after another."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.pairs import FUNCTIONS, ensq_side, other_side
from benchmarks.rows import Aim, Row, pair
from benchmarks.run import Run, measured
from benchmarks.side import Meter, Side

SIZES = {"cpu": (1, 2, 4, 8), "gpu": (1, 2, 4, 8, 16, 32)}
FURTHER = 10.0  # percent that a further member may cost: on a GPU of the first, else over its own


def rows(run: Run) -> Iterator[Row]:
    """A row for each size, measured in turns; seconds of one epoch of one member."""
    with ensq_side(run) as ours, other_side(run) as theirs:
        theirs.seconds("warm", function="own")
        packs, first = _compiled(run, ours)
        other = Meter(theirs, "epochs", 1, function="own")

        def one(number: int) -> tuple[float, float]:
            for pack in list(packs.values())[:: 1 if number % 2 == 0 else -1]:
                pack()
            return packs[1].wall[-1], other()

        measured(run.rounds(5, 1), run, one)
        for size, pack in packs.items():
            yield _row(run, size, pack, packs[1], other, first[size], ours.about)


def _compiled(run: Run, ours: Side) -> tuple[dict[int, Meter], dict[int, float]]:
    """Packs of all sizes that there is time for, and what their first use took."""
    packs: dict[int, Meter] = {}
    first: dict[int, float] = {}
    kind = ours.about["kind"]
    for size in run.packs or ((1, 2) if run.short else SIZES[kind]):
        if first and run.left() < 3 * max(first.values()):
            run.say(f"  no time left for packs of {size} and more")
            break
        first[size] = ours.seconds("warm", pack=size)
        packs[size] = Meter(ours, "epochs", 1, pack=size)
    return packs, first


def _row(
    run: Run,
    size: int,
    pack: Meter,
    alone: Meter,
    other: Meter,
    first: float,
    about: dict[str, Any],
) -> Row:
    detail = {
        "pack": size,
        "member_epochs_per_second": size / statistics.median(pack.wall),
        "cpu_seconds_per_member_epoch": [pack.cpu_seconds / size, other.cpu_seconds],
        "first_use_seconds": first,
    }
    measure: float | None = None
    if size > 1:
        on_gpu = about["kind"] == "gpu"

        def percent(one: float, together: float) -> float:
            if on_gpu:
                return 100 * (together - one) / ((size - 1) * one)
            return 100 * (together / (size * one) - 1)

        further = [percent(*times) for times in zip(alone.wall, pack.wall, strict=True)]
        measure = statistics.median(further)
        name = "further_member_percent_of_first" if on_gpu else "overhead_percent_per_member"
        detail |= {
            name: measure,
            f"{name}_spread": [min(further), max(further)],
            f"{name}_of_cpu_seconds": percent(alone.cpu_seconds, pack.cpu_seconds),
        }
    return pair(
        [(wall / size, seconds) for wall, seconds in zip(pack.wall, other.wall, strict=True)],
        aim=None if run.short or measure is None else Aim(FURTHER, least=False, unit=" %"),
        measure=measure,
        row="b",
        only="pack",
        what=f"member-epoch, packs of {size}" + ("" if measure is None else f" ({measure:+.0f} %)"),
        names=(f"ensq, packs of {size}", f"ForceMatching in turn, {FUNCTIONS['own']}"),
        device=about["device"],
        detail=detail,
    )
