"""(b) Member-epochs by size of pack, against members of chemtrain one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.pairs import FUNCTIONS, ensq_side, other_side
from benchmarks.rows import Aim, Row, pair
from benchmarks.run import Run, measured

SIZES = {"cpu": (1, 2, 4, 8), "gpu": (1, 2, 4, 8, 16, 32)}
FURTHER = 10.0  # percent that a further member may cost: on a GPU of the first, else over its own


def rows(run: Run) -> Iterator[Row]:
    """A row for each size, measured in turns; seconds of one epoch of one member."""
    with ensq_side(run) as ours, other_side(run) as theirs:
        kind = ours.about["kind"]
        compiled: dict[int, float] = {}
        theirs.seconds("warm", function="own")
        for size in run.packs or ((1, 2) if run.short else SIZES[kind]):
            if compiled and run.left() < 3 * max(compiled.values()):
                run.say(f"  no time left for packs of {size} and more")
                break
            compiled[size] = ours.seconds("warm", pack=size)
        each: list[dict[int, float]] = []

        def one(number: int) -> tuple[float, float]:
            sizes = list(compiled)[:: 1 if number % 2 == 0 else -1]
            each.append({size: ours.seconds("epochs", count=1, pack=size) for size in sizes})
            return 1.0, theirs.seconds("epochs", function="own", count=1)

        others = [other for _, other in measured(run.rounds(5, 1), run, one)]
        for size in compiled:
            found = [
                (seconds[size] / size, other) for seconds, other in zip(each, others, strict=True)
            ]
            yield _row(
                run.short,
                size,
                found,
                [(seconds[1], seconds[size]) for seconds in each],
                ours.about,
            )


def _row(
    short: bool,
    size: int,
    compiled: float,
    found: list[tuple[float, float]],
    alone: list[tuple[float, float]],
    about: dict[str, Any],
) -> Row:
    """``alone``: seconds of an epoch of one member and of the pack, in each round."""
    on_gpu = about["kind"] == "gpu"
    further = (
        sorted(
            100 * (pack - one) / ((size - 1) * one) if on_gpu else 100 * (pack / (size * one) - 1)
            for one, pack in alone
        )
        if size > 1
        else []
    )
    measure = further[len(further) // 2] if further else None
    detail = {
        "pack": size,
        "member_epochs_per_second": size / sorted(pack for _, pack in alone)[len(alone) // 2],
    }
    detail["first_use_seconds"] = compiled
    if further:
        name = "further_member_percent_of_first" if on_gpu else "overhead_percent_per_member"
        detail |= {name: measure, f"{name}_spread": [further[0], further[-1]]}
    return pair(
        found,
        aim=Aim(FURTHER, least=False, unit=" %") if further and not short else None,
        measure=measure,
        row="b",
        only="pack",
        what=f"member-epoch, packs of {size}" + (f" ({measure:+.0f} %)" if further else ""),
        names=(f"ensq, packs of {size}", f"ForceMatching in turn, {FUNCTIONS['own']}"),
        device=about["device"],
        detail=detail,
    )
