"""(g) How the cost of a step grows with frames, beads, members and batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.pairs import ensq_side
from benchmarks.rows import Row, pair
from benchmarks.run import Run, measured
from benchmarks.side import Side

SPACING, JITTER = 4.8, 0.4  # Angstrom: about 110 Angstrom^3 a bead, as residues in a protein
MADE = 160  # frames of a made data set
ROUND = 0.3  # seconds that a value takes in a round, or more


class Case(NamedTuple):
    """What is varied, from its least value to its largest."""

    values: tuple[int, ...]
    on_gpu: tuple[int, ...]  # bound by launches until it is full: that takes more of everything
    short: tuple[int, ...]


CASES = {
    "members": Case((1, 2, 4, 8), (1, 8, 64), (1, 2)),
    "batch": Case((8, 16, 32, 64), (32, 256, 2048), (8, 16)),
    "frames": Case((310, 775, 1550, 3100), (310, 3100), (310, 620)),
    "beads": Case((10, 20, 40, 80), (10, 40, 160), (8, 16)),
}


def rows(run: Run) -> Iterator[Row]:
    """A row for each case; the time of the least value stands first, that of the largest second."""
    with ensq_side(run) as side:
        for name, case in CASES.items():
            values = case.on_gpu if side.about["kind"] == "gpu" else case.values
            yield _row(run, side, name, case.short if run.short else values)


def _row(run: Run, side: Side, name: str, values: Sequence[int]) -> Row:
    programs, edges = [_open(run, side, name, value) for value in values], []
    counts = []
    for arguments, about in programs:
        side.ask("warm", **arguments)
        seconds = side.seconds("steps", count=2, **arguments) / 2
        counts.append(int(min(100, max(2, ROUND / seconds))))
        edges.append(about["beads"] * about["neighbours"])
    each: list[list[float]] = []

    def one(number: int) -> tuple[float, float]:
        found = [0.0] * len(values)
        for place in list(range(len(values)))[:: 1 if number % 2 == 0 else -1]:
            count = counts[place]
            found[place] = side.seconds("steps", count=count, **programs[place][0]) / count
        each.append(found)
        return found[0], found[-1]

    found = measured(run.rounds(7, 2), run, one)
    for arguments, _ in programs:
        if arguments["name"]:
            side.ask("drop", name=arguments["name"])
    medians = np.median(np.asarray(each), axis=0)
    exponent = _exponent(values, medians)
    detail: dict[str, Any] = {
        "values": list(values),
        "seconds_per_step": medians.tolist(),
        "exponent": exponent,
        "exponents_between": [
            _exponent(values[at : at + 2], medians[at : at + 2]) for at in range(len(values) - 1)
        ],
    }
    if name == "beads":
        detail |= {"edges": edges, "exponent_of_edges": _exponent(edges, medians)}
    return pair(
        found,
        row="g",
        only="growth",
        what=f"a step, {name} {values[0]} to {values[-1]}: n^{exponent:.2f}",
        names=(f"{name} {values[0]}", f"{name} {values[-1]}"),
        device=side.about["device"],
        detail=detail,
    )


def _exponent(values: Sequence[float], seconds: Any) -> float:
    """Slope of log(seconds) over log(values), by least squares."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def _open(run: Run, side: Side, name: str, value: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What names the program of this value, and what is known of it."""
    if name == "members":
        return {"name": "", "pack": value}, side.about
    sets = {
        "frames": lambda: [f"data.max_frames={value}"],
        "batch": lambda: [f"training.batch_per_device={value}"],
        "beads": lambda: _chains(run, value),
    }[name]()
    key = f"{name} {value}"
    return {"name": key, "pack": 1}, side.ask("open", name=key, sets=sets)


def _chains(run: Run, beads: int) -> list[str]:
    """Settings that train on compact chains of so many beads: a lattice walked row by row, shaken.
    Forces are noise, since only the time matters."""
    rng = np.random.default_rng(beads)
    edge = round(beads ** (1 / 3) + 0.499)
    walk = []
    for x in range(edge):
        for y in range(edge)[:: 1 if x % 2 == 0 else -1]:
            forward = (x * edge + y) % 2 == 0
            walk += [(x, y, z) for z in range(edge)[:: 1 if forward else -1]]
    lattice = SPACING * np.asarray(walk[:beads], float)
    folder = run.place(f"chains-{beads}")
    np.savez(
        folder / "chains.npz",
        R=(lattice + rng.normal(0, JITTER, (MADE, beads, 3))).astype(np.float32),
        F=rng.normal(0, 10, (MADE, beads, 3)).astype(np.float32),
        species=np.tile(np.arange(beads) % 4, (MADE, 1)).astype(np.int32),
        mask=np.ones((MADE, beads), np.float32),
    )
    return [f"data.path={folder / 'chains.npz'}"]
