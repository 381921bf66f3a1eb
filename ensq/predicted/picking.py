"""The frames that are worth a label: the most uncertain ones, not too near in time."""

from __future__ import annotations

import numpy as np

from ensq.data import Source
from ensq.predicted.perframe import Array


def pick(uncertainty: Array, count: int, trajectory: Array, apart: int = 1) -> Array:
    """The ``count`` most uncertain frames, in the order of their numbers.

    Args:
        uncertainty: [T]. Of equal ones the first counts.
        count: Fewer are taken if there are no more.
        trajectory: [T] which trajectory each frame is of.
        apart: Frames of one trajectory are taken at least so many of its frames apart: neighbours
            in time say the same. The most uncertain is taken first, then the next that is not too
            near one that was taken, and so on.
    """
    place, size = _places(trajectory)
    free = {name: np.ones(length, bool) for name, length in size.items()}
    chosen: list[int] = []
    for frame in np.argsort(-uncertainty, kind="stable").tolist():
        if len(chosen) == count:
            break
        own, at = free[trajectory[frame]], int(place[frame])
        if own[at]:
            chosen.append(frame)
            own[max(0, at - apart + 1) : at + apart] = False
    return np.array(sorted(chosen), np.int64)


def trajectories(source: Source) -> Array:
    """[T] a number for each trajectory of each protein; one for all if the data don't tell."""
    keys = [values for values in (source.replica, source.protein) if values is not None]
    if not keys:
        return np.zeros(source.n_frames, np.int64)
    _, number = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    return np.asarray(number, np.int64).reshape(-1)


def _places(trajectory: Array) -> tuple[Array, dict[int, int]]:
    """The place [T] of each frame in its trajectory, and how long these are."""
    place = np.zeros(len(trajectory), np.int64)
    size: dict[int, int] = {}
    for number in np.unique(trajectory).tolist():
        own = np.flatnonzero(trajectory == number)
        place[own] = np.arange(len(own))
        size[number] = len(own)
    return place, size
