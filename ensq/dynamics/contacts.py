"""Contacts: how near beads come that no bond and no angle holds, in the data and in a simulation.

All pairs but those of bonds (1-2) and angles (1-3) count, with every periodic image, in one: not by
species. A kind of pair occurs in a few places of a molecule only, so that its smallest distance
tells which shapes the data have, not how large the beads are.

The smallest distance of all falls with the number of frames that are looked at. So frames are held
against frames: the smallest distance of a frame has a distribution, and 1 % of the data's frames
are below its first percentile, however many there are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.resampling import draws_of, interval
from ensq.simulation import NEAR

Array = NDArray[Any]

PAIRS = 200_000_000  # distances of the data that are computed at most, some seconds
AT_ONCE = 1 << 22  # of them together
ABSURD = 0.5  # of the data's smallest distance, or of a bond: nearer is an overlap


@dataclass(frozen=True)
class Nearest:
    """The smallest distance of each frame, at most the reach that was asked for."""

    distance: Array  # [T] Angstrom
    pair: Array  # [T,2] of which beads


def free_pairs(real: Array, bonded: Array) -> Array:
    """[N,N] bool: pairs of real beads [N] that are neither bonded nor have a bonded bead in common
    (``bonded`` [N,N])."""
    number = bonded.astype(np.int64)
    held = bonded | (number @ number > 0) | np.eye(len(real), dtype=bool)
    return np.asarray(real[:, None] & real & ~held)


def nearest(R: Array, free: Array, reach: float, cell: Array | None = None) -> Nearest:
    """The nearest free pair of each frame [T,N,3]; ``reach`` where none is nearer than that."""
    if cell is not None and cell.any():
        return _nearest_image(R, free, reach, cell)
    i, j = np.nonzero(np.triu(free))
    distance, place = np.empty(len(R)), np.zeros(len(R), np.int64)
    step = max(1, AT_ONCE // max(1, len(i)))
    for first in range(0, len(R), step):
        part = R[first : first + step].astype(np.float64)
        squared = sum(np.square(part[:, i, axis] - part[:, j, axis]) for axis in range(3))
        place[first : first + step] = np.argmin(squared, axis=1)
        distance[first : first + step] = np.sqrt(np.min(squared, axis=1))
    return Nearest(np.minimum(distance, reach), np.stack([i[place], j[place]], axis=1))


def _nearest_image(R: Array, free: Array, reach: float, cell: Array) -> Nearest:
    from ensq.train.neighbours import build_neighbours

    beads = len(free)
    distance, pair = np.full(len(R), reach), np.zeros((len(R), 2), np.int64)
    step = max(1, AT_ONCE // (8 * beads * beads))
    for first in range(0, len(R), step):
        part = slice(first, first + step)
        x = R[part].astype(np.float64)
        real = np.broadcast_to(free.any(axis=1), x.shape[:2])
        found = build_neighbours(x, real, reach, cell[part], periodic=True)
        assert found.offset is not None
        ends = x[np.arange(len(x))[:, None, None], found.index] + found.offset
        length = np.linalg.norm(ends - x[:, :, None], axis=-1)
        counted = found.mask & free[np.arange(beads)[:, None], found.index]
        length = np.where(counted, length, reach).reshape(len(x), -1)
        place = length.argmin(axis=1)
        bead = place // found.index.shape[2]
        other = found.index.reshape(len(x), -1)[np.arange(len(x)), place]
        distance[part] = length[np.arange(len(x)), place]
        pair[part] = np.sort(np.stack([bead, other], axis=1), axis=1)
    return Nearest(distance, pair)


def limit(smallest: float, bond: float | None) -> float:
    """Nearer is an overlap: half of the data's smallest distance, or of the mean bond if that is
    less, since a molecule that the data show stretched only may fold."""
    return ABSURD * (smallest if bond is None else min(smallest, bond))


def level_of(theirs: Array) -> float:
    """What is near: nearer than in ``NEAR`` of the data's frames [T]."""
    return float(np.quantile(theirs, NEAR))


def compared(
    near: Array, replica: Array, theirs: Array, block: Array, draws: int = 1000
) -> dict[str, Any]:
    """What frames of the simulation are nearer than the data's, as ``Contacts`` has it.

    ``near`` [S] smallest distances of frames of replicas [S] (numbers from 0); ``theirs`` [T] those
    of the data, of blocks [T].
    """
    level = level_of(theirs)
    closer, number = near < level, np.bincount(replica)
    each = np.bincount(replica, weights=closer)
    drawn = draws_of(len(number), draws)
    return {
        "data_level": level,
        "closer": float(closer.mean()),
        "closer_interval": interval((drawn @ each) / np.maximum(drawn @ number, 1)),
        "closer_noise": _halves(theirs, block),
        "never": float((near < theirs.min()).mean()),
        "replicas": len(number),
        "replicas_closer": int((each > 0).sum()),
    }


def _halves(values: Array, block: Array) -> tuple[float, float] | None:
    """Shares of one half of the data's blocks below the level of the other: median, largest."""
    number = int(block.max()) + 1
    if number < 2:
        return None
    shares = []
    for size in {number // 2, number - number // 2}:
        for way in combinations(range(number), size):
            own = np.isin(block, way)
            shares.append(float((values[~own] < level_of(values[own])).mean()))
    return float(np.median(shares)), max(shares)


def commonest(pairs: Array) -> tuple[int, int] | None:
    """The pair that most of these [n,2] are; None for no pairs."""
    if not len(pairs):
        return None
    pair, _ = Counter(map(tuple, pairs.tolist())).most_common(1)[0]
    return int(pair[0]), int(pair[1])
