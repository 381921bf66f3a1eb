"""Beads of a frame that lie in one place, which no molecule has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ensq.data.structs import Array

# Angstrom. The model has no direction between beads nearer than 1e-5 and would leave the pair out.
TOGETHER = 1e-3
# Of no lattice: beads whose projections on it are far apart are far apart.
_DIRECTION = np.array([0.5773, 0.6899, 0.4368]) / np.linalg.norm([0.5773, 0.6899, 0.4368])
_BEADS_AT_A_TIME = 1 << 20


class Together(NamedTuple):
    """Two beads in one place, of the first frame that has such, and how many frames have."""

    frame: int
    beads: tuple[int, int]
    frames: int

    def __str__(self) -> str:
        first, second = self.beads
        such = "" if self.frames == 1 else f" ({self.frames} such frames)"
        return (
            f"frame {self.frame}, beads {first} and {second} are in the same place{such}: damaged, "
            "or padding that no mask tells of"
        )


def together(R: Array, mask: Array, *, nearer: float = TOGETHER, first: int = 0) -> Together | None:
    """Two real beads of a frame nearer than ``nearer``; None if there are none.

    Args:
        R: [T,N,3] positions, finite.
        mask: [T,N] bool, true for real beads.
        nearer: In the unit of R.
        first: The number of the first frame, to be told.

    Periodic images are not looked at. Takes T N log N: sorted by their projections on a line, only
    neighbours there can be neighbours in space.
    """
    T, N = mask.shape
    frame, beads, count = -1, (0, 0), 0
    step = max(1, _BEADS_AT_A_TIME // N)
    for begin in range(0, T, step):
        span = slice(begin, begin + step)
        pairs = _pairs(R[span].astype(np.float64), mask[span], nearer)
        hits = np.flatnonzero(pairs[:, 0] >= 0)
        if hits.size and frame < 0:
            frame = first + begin + int(hits[0])
            beads = (int(pairs[hits[0], 0]), int(pairs[hits[0], 1]))
        count += hits.size
    return Together(frame, beads, count) if count else None


def _pairs(R: Array, mask: Array, nearer: float) -> Array:
    """[T,2] a pair of beads in one place in each frame; -1 where there is none."""
    T, N = mask.shape
    along = np.where(mask, R @ _DIRECTION, np.nan)  # these come last, and no comparison holds
    order = np.argsort(along, axis=1)
    along = np.take_along_axis(along, order, axis=1)
    found = np.full((T, 2), -1)
    open_frames = np.arange(T)
    for apart in range(1, N):
        near = along[open_frames, apart:] - along[open_frames, :-apart] < nearer
        possible = near.any(axis=1)  # if none is at this distance, none is at a larger one
        open_frames, near = open_frames[possible], near[possible]
        if not open_frames.size:
            break
        row, place = np.nonzero(near)
        frames = open_frames[row]
        pair = np.sort(np.stack([order[frames, place], order[frames, place + apart]], axis=1))
        distance = np.linalg.norm(R[frames, pair[:, 0]] - R[frames, pair[:, 1]], axis=1)
        hit = distance < nearer
        found[frames[hit][::-1]] = pair[hit][::-1]  # of several the first stays
        open_frames = open_frames[found[open_frames, 0] < 0]
    return found
