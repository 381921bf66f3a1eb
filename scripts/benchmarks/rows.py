"""Rows of the table: a pair of times, measured in one run in turns."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WIDTHS = (2, 36, 9, 9, 6, 13)  # of the table's columns: 80 with the spaces between them
HEAD = ("", "ensq / the other side", "ensq", "other", "ratio", "aim")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pair. ``ratio`` is the other side's time over ensq's: above 1, ensq is faster."""

    row: str  # letter: a to g
    only: str  # the part of the benchmark that measures it
    what: str
    names: tuple[str, str]  # of the sides; ensq first
    seconds: tuple[float, float] | None = None  # medians over the rounds
    spread: tuple[tuple[float, float], tuple[float, float]] | None = None  # least and most
    ratio: float | None = None  # median of the rounds' own ratios
    ratio_spread: tuple[float, float] | None = None
    repeats: int = 0  # rounds
    aim: str | None = None
    met: bool | None = None  # whether the aim is reached; None: there is none for this device
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    short: bool = False
    detail: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Aim:
    """What a row should reach: a number that is at least or at most so much."""

    value: float
    least: bool = True
    unit: str = ""

    def text(self) -> str:
        return f"{'>=' if self.least else '<='} {self.value:g}{self.unit}"

    def met(self, found: float) -> bool:
        return found >= self.value if self.least else found <= self.value


def pair(
    rounds: Sequence[tuple[float, float]],
    *,
    aim: Aim | None = None,
    measure: float | None = None,
    **about: Any,
) -> Row:
    """The row of these rounds, each (seconds of ensq, seconds of the other side).

    ``measure``: what the aim is about, if not the ratio.
    """
    if not rounds:
        raise ValueError("no round was measured")
    sides = [[one[side] for one in rounds] for side in (0, 1)]
    ratios = [other / own for own, other in rounds]
    ratio = statistics.median(ratios)
    found = ratio if measure is None else measure
    return Row(
        seconds=(statistics.median(sides[0]), statistics.median(sides[1])),
        spread=((min(sides[0]), max(sides[0])), (min(sides[1]), max(sides[1]))),
        ratio=ratio,
        ratio_spread=(min(ratios), max(ratios)),
        repeats=len(rounds),
        aim=None if aim is None else aim.text(),
        met=None if aim is None else aim.met(found),
        **about,
    )


def write(path: Path, rows: Sequence[Row]) -> None:
    """All rows so far: an array of objects. The file is whole at any time."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps([row.as_plain() for row in rows], indent=1) + "\n")
    beside.replace(path)


def table_head() -> list[str]:
    return [_line(HEAD), " ".join("-" * width for width in WIDTHS)]


def table_lines(row: Row) -> list[str]:
    """The row in at most 80 columns: what it is of, the times, the ratio, the aim."""
    if row.error is not None:
        reason = " ".join(row.error.split()) or "no reason given"
        return [_line((row.row, _cut(row.what), "failed", "", "", "")), f"   {reason[:76]}"]
    assert row.seconds is not None and row.ratio is not None
    verdict = {None: "", True: " yes", False: " NO"}[row.met]
    cells = (
        row.row,
        _cut(row.what),
        in_words(row.seconds[0]),
        in_words(row.seconds[1]),
        f"{row.ratio:.2f}",
        f"{row.aim or ''}{verdict}",
    )
    return [_line(cells)]


def in_words(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds >= 100:
        return f"{seconds:.0f} s"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} us"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTHS[1] else text[: WIDTHS[1] - 1] + "…"


def _line(cells: Sequence[str]) -> str:
    """Texts to the left, numbers to the right."""
    left = (0, 1, 5)
    return " ".join(
        cell.ljust(width) if place in left else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    ).rstrip()
