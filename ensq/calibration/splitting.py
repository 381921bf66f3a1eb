"""Frames to fit scale factors on, and frames to judge them on; correlated ones are on one side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ENOUGH = 5  # trajectories of a protein, from which on whole ones are taken
GAP = 0.02  # of a trajectory, between the part for the fit and the rest
FEWEST = 2  # frames on each side


@dataclass(frozen=True, kw_only=True)
class CalibrationSplit:
    """Sorted numbers of frames; none is in both."""

    fitted: Array
    judged: Array
    gap: int  # frames in neither
    how: str


def split(frames: int, fraction: float, trajectory: Array, protein: Array) -> CalibrationSplit:
    """Divide frames that are in the order of time within each trajectory.

    Of a protein with ``ENOUGH`` trajectories, whole ones are taken, spread evenly over them; of one
    with fewer, the beginning of each, and a gap of ``GAP`` follows, since neighbours in time are
    nearly copies.

    Args:
        frames: How many (T).
        fraction: Of each protein's frames that factors are fitted on.
        trajectory: [T] a number for each; different proteins have different ones.
        protein: [T]

    Raises ValueError if a side gets fewer than ``FEWEST`` frames.
    """
    side = np.zeros(frames, np.int8)  # 1: fitted, 2: in the gap
    ways = []
    for one in np.unique(protein):
        numbers = np.unique(trajectory[protein == one])
        if len(numbers) >= ENOUGH:
            wanted = min(len(numbers) - 1, max(1, round(fraction * len(numbers))))
            chosen = numbers[(np.arange(wanted) * len(numbers)) // wanted]
            side[np.isin(trajectory, chosen)] = 1
            ways.append(f"{wanted} of {len(numbers)} trajectories")
        else:
            for number in numbers:
                _beginning(side, np.flatnonzero(trajectory == number), fraction)
            ways.append(f"the first {100 * fraction:g} % of each trajectory")
    fitted, judged = np.flatnonzero(side == 1), np.flatnonzero(side == 0)
    if len(fitted) < FEWEST or len(judged) < FEWEST:
        raise ValueError(
            f"{len(fitted)} frames to fit factors on and {len(judged)} to judge them on; at least "
            f"{FEWEST} of each are needed"
        )
    return CalibrationSplit(
        fitted=fitted,
        judged=judged,
        gap=int((side == 2).sum()),
        how=" and ".join(dict.fromkeys(ways)),
    )


def _beginning(side: Array, members: Array, fraction: float) -> None:
    """Mark the beginning of one trajectory, and the gap after it."""
    count = len(members)
    end = min(count, max(1, round(fraction * count)))
    gap = min(count - end, max(1, round(GAP * count)))
    side[members[:end]] = 1
    side[members[end : end + gap]] = 2
