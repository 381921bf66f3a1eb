"""Figures with confidence intervals: sums per block of frames, and the block bootstrap over them.

A statistic is a ratio of sums over frames, or a function of such ratios; sums are taken once for
each block, so that a draw costs a few products whatever the number of frames. All estimates of one
``Resampling`` are of the same draws: the difference of two is a paired one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.resampling import DRAWS, draws_of, interval

Array = NDArray[Any]
LEVEL = 0.95  # of all intervals
MOST_EMPTY = 0.05  # share of draws without a sample, above which there is no interval


@dataclass(frozen=True)
class Figure:
    """A number with its interval at ``LEVEL``; None where one block, or less, has what it needs."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Values [...] of all frames, their bootstrap draws [D,...], and the blocks [...] behind them.

    A draw that holds nothing to average is NaN; ``figures`` says what becomes of those.
    """

    value: Array
    draws: Array
    blocks: Array

    def map(self, function: Callable[[Array], Array], axes: int = 0) -> Estimate:
        """A function of the values; it acts on the last ``axes`` axes as a whole and removes them,
        and else elementwise."""
        kept = self.blocks.ndim - axes
        blocks = self.blocks.reshape(*self.blocks.shape[:kept], -1).min(axis=-1)
        return Estimate(
            np.asarray(function(self.value)),
            np.asarray(function(self.draws)),
            blocks if axes else self.blocks,
        )

    def minus(self, other: Estimate) -> Estimate:
        """The difference to another estimate of the same draws, draw by draw."""
        return Estimate(
            self.value - other.value,
            self.draws - other.draws,
            np.minimum(self.blocks, other.blocks),
        )

    def figure(self) -> Figure:
        """Of a single value."""
        return _figure(float(self.value), self.draws.reshape(-1), int(self.blocks))

    def figures(self) -> list[Figure]:
        """Of values [G]."""
        return [
            _figure(float(value), self.draws[:, place], int(self.blocks[place]))
            for place, value in enumerate(self.value)
        ]


def _figure(value: float, draws: Array, blocks: int) -> Figure:
    there = draws[np.isfinite(draws)]
    if blocks < 2 or len(there) < (1 - MOST_EMPTY) * len(draws):
        return Figure(value)
    return Figure(value, *interval(there, LEVEL, blocks=blocks))


class Resampling:
    """Blocks of frames, drawn with replacement; the same draws for the same seed."""

    def __init__(self, block: Array, draws: int = DRAWS, seed: int = 0) -> None:
        """``block`` [T]: of each frame, numbers from 0 without gaps."""
        self.block = np.asarray(block, np.int64)
        self.count = int(self.block.max()) + 1
        self.seed = seed
        self.weights = draws_of(self.count, draws, seed).astype(np.float64)  # [D,K]

    @property
    def frames_per_block(self) -> tuple[int, int]:
        """The fewest and the most."""
        sizes = np.bincount(self.block, minlength=self.count)
        return int(sizes.min()), int(sizes.max())

    def sums(
        self, values: Array | None, frame: Array, group: Array | None = None, groups: int = 1
    ) -> Array:
        """[K], or [G,K] with groups: sums over samples, each of a frame and a group.

        Args:
            values: [n] what is added up; None: how many there are.
            frame: [n] of each sample.
            group: [n] of each sample, numbers from 0.
            groups: How many there are.
        """
        place = self.block[frame]
        if group is not None:
            place = place + group.astype(np.int64) * self.count
        size = self.count * (1 if group is None else groups)
        found = np.bincount(place, values, minlength=size).astype(np.float64)
        return found if group is None else found.reshape(groups, self.count)

    def ratio(self, over: Array, under: Array) -> Estimate:
        """Sum of ``over`` [...,K] by the sum of ``under`` [...,K] (or [K])."""
        over, under = np.broadcast_arrays(over, under)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = over.sum(axis=-1) / under.sum(axis=-1)
            draws = np.moveaxis(over @ self.weights.T, -1, 0) / np.moveaxis(
                under @ self.weights.T, -1, 0
            )
        return Estimate(value, draws, (under > 0).sum(axis=-1))
