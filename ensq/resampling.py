"""Blocks of correlated frames, and the block bootstrap over them; pure functions.

Frames of one trajectory are correlated, so that an error taken over single frames is too small.
Blocks are drawn in their place: whole trajectories, or long parts of them (Kuensch, Ann. Stat. 17,
1217 (1989)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCKS = 32  # wanted in all; more trajectories than that are blocks themselves, joined to so many
SHORTEST = 5  # frames of a trajectory in a block; shorter ones are hardly less correlated
DRAWS = 2000


def blocks_of(
    frames: int,
    *,
    index: Array | None = None,
    replica: Array | None = None,
    protein: Array | None = None,
    wanted: int = BLOCKS,
) -> Array:
    """[T] the block of each frame, numbers from 0 without gaps.

    A block is a part of one trajectory, without gaps in time among the frames that there are; a
    trajectory gets blocks by its share of the frames, at least one, and never more than leave
    each ``SHORTEST`` frames. Where there are more trajectories than blocks, whole trajectories are
    joined in their order.

    Args:
        frames: How many there are (T).
        index: [T] their order in time; None: as they are.
        replica: [T] number of the trajectory; None: all are of one.
        protein: [T] which protein; trajectories of different ones are different.
        wanted: Blocks in all, about.

    Raises ValueError for no frames.
    """
    if frames < 1:
        raise ValueError("no frames to make blocks of")
    order = np.arange(frames) if index is None else np.asarray(index)
    trajectory = _trajectories(frames, replica, protein)
    count = int(trajectory.max()) + 1
    if count >= wanted:
        return np.asarray(trajectory * wanted // count)
    block, first = np.zeros(frames, np.int64), 0
    for number in range(count):
        members = np.flatnonzero(trajectory == number)
        members = members[np.argsort(order[members], kind="stable")]
        parts = max(1, min(len(members) // SHORTEST, round(wanted * len(members) / frames)))
        block[members] = first + np.arange(len(members)) * parts // len(members)
        first += parts
    return block


def _trajectories(frames: int, replica: Array | None, protein: Array | None) -> Array:
    """[T] numbers from 0, one for each pair of protein and replica."""
    none = np.zeros(frames, np.int64)
    pairs = np.stack([none if protein is None else protein, none if replica is None else replica])
    _, number = np.unique(pairs, axis=1, return_inverse=True)
    return np.asarray(number).reshape(-1)


def follows(
    block: Array, *, replica: Array | None = None, protein: Array | None = None
) -> list[bool]:
    """[K-1] whether each block is followed by one of the same trajectory; see ``blocks_of``."""
    trajectory = np.zeros(int(block.max()) + 1, np.int64)
    trajectory[block] = _trajectories(len(block), replica, protein)
    return [bool(same) for same in trajectory[1:] == trajectory[:-1]]


def block_sums(values: Array, block: Array) -> Array:
    """[..., K] sums of values [..., T] over the frames of each block."""
    belongs = block[:, None] == np.arange(int(block.max()) + 1)
    return np.asarray(values @ belongs.astype(np.float64))


def draws_of(blocks: int, draws: int = DRAWS, seed: int = 0) -> Array:
    """[draws, K] how often each block is drawn: K of K with replacement, the same for one seed."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=draws))


def bootstrap(
    statistic: Callable[[Array], Any],
    frames_of_block: list[Array],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Array:
    """[draws, ...] a statistic of the frames of drawn blocks.

    ``statistic`` is called with the indices of the frames that a draw holds, some more than once.
    For plain means ``draws_of`` with ``block_sums`` is the fast way to the same numbers.
    """
    counts = draws_of(len(frames_of_block), draws, seed)
    found = []
    for row in counts:
        chosen = [
            frames for frames, times in zip(frames_of_block, row, strict=True) for _ in range(times)
        ]
        found.append(statistic(np.concatenate(chosen)))
    return np.asarray(found)


def interval(
    values: Array, level: float = 0.95, *, blocks: int | None = None
) -> tuple[float, float]:
    """The percentile interval of bootstrap values [draws].

    With few blocks it is too narrow, as a normal distribution is in the place of Student's. Told
    how many ``blocks`` were drawn, the percentiles lie as much farther out as makes up for it
    (Hesterberg, Am. Stat. 69, 371 (2015), "expanded percentile interval").

    Raises ValueError for fewer than 2 blocks, of which no interval can be had.
    """
    tail = (1 - level) / 2
    if blocks is not None:
        if blocks < 2:
            raise ValueError(f"{blocks} block: no interval can be had of fewer than 2")
        reach = math.sqrt(blocks / (blocks - 1)) * _student(tail, blocks - 1)
        tail = 0.5 * math.erfc(reach / math.sqrt(2))
    low, high = np.percentile(values, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def _student(tail: float, freedom: int) -> float:
    """The number that Student's t exceeds with the probability ``tail``."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(freedom, 1 - tail))
