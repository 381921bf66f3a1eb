"""Frames grouped by size, so that little is computed on padding with few compiled shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WORTHWHILE = 0.9  # one more group must leave at most this share of the beads: it costs a compile


def frame_sizes(mask: NDArray[Any]) -> NDArray[np.int64]:
    """[T] places that a frame needs: up to its last real bead. ``mask`` [T,N]."""
    return np.asarray(mask.shape[1] - np.argmax(mask[:, ::-1].astype(bool), axis=1))


def choose_bounds(
    training: NDArray[Any], every: NDArray[Any], *, groups: int, fewest: int
) -> tuple[int, ...]:
    """Sizes of the groups, rising; a frame belongs to the first group that it fits into.

    Args:
        training: [n] sizes of the training frames.
        every: Sizes of all frames; the last group holds the largest of them.
        groups: The most groups.
        fewest: Training frames that a group must have: about one batch.
    """
    top = int(every.max())
    sizes, counts = np.unique(np.minimum(training, top), return_counts=True)
    best: tuple[int, ...] = (top,)
    cost = float(top * counts.sum())
    for number in range(2, min(groups, len(sizes)) + 1):
        found = _partition(sizes, counts, number, top, fewest)
        if found is None or found[0] > WORTHWHILE * cost:
            break
        cost, best = found
    return best


def _partition(
    sizes: NDArray[Any], counts: NDArray[Any], number: int, top: int, fewest: int
) -> tuple[float, tuple[int, ...]] | None:
    """The cheapest split of the sizes into ``number`` groups, by dynamic programming.

    The cost is the number of places, padding included.
    """
    n = len(sizes)
    total = np.concatenate([[0], np.cumsum(counts)])
    # cost[g][j]: the first j sizes in g groups, and where the last of them begins
    table: list[list[tuple[float, int] | None]] = [[None] * (n + 1) for _ in range(number + 1)]
    table[0][0] = (0.0, 0)
    for group in range(1, number + 1):
        for stop in range(1, n + 1):
            bound = top if stop == n else int(sizes[stop - 1])
            options = []
            for start in range(stop):
                before, frames = table[group - 1][start], total[stop] - total[start]
                if before is not None and frames >= fewest:
                    options.append((before[0] + float(bound * frames), start))
            table[group][stop] = min(options, default=None)
    if table[number][n] is None:
        return None
    bounds, stop = [], n
    for group in range(number, 0, -1):
        bounds.append(top if stop == n else int(sizes[stop - 1]))
        cell = table[group][stop]
        assert cell is not None
        stop = cell[1]
    last = table[number][n]
    assert last is not None
    return last[0], tuple(reversed(bounds))


def members_of(sizes: NDArray[Any], bounds: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """For each group the frames that belong to it, in their order."""
    group = np.searchsorted(np.asarray(bounds), sizes)
    return [np.flatnonzero(group == number) for number in range(len(bounds))]
