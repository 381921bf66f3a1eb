"""RMSE and MAE: in all, of single members, and of groups of beads or frames."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq.calibration.figures import Estimate, Figure, Resampling
from ensq.calibration.results import Group, Member

Array = NDArray[Any]


AT_ONCE = 500  # groups, whose draws are in memory together


class Errors(NamedTuple):
    """Of n samples, which are of a frame each; more axes than one are components of a sample."""

    error: Array  # [n] or [n,3], prediction minus label
    sigma: Array | None  # the same shape
    frame: Array  # [n]

    @property
    def components(self) -> int:
        """Numbers of one sample."""
        return int(np.prod(self.error.shape[1:], dtype=int))


def rmse_and_mae(resampling: Resampling, squares: Array, sizes: Array, counts: Array) -> Any:
    """(RMSE, MAE) as estimates of sums of squares, of absolute values, and of samples [...,K]."""
    return resampling.ratio(squares, counts).map(np.sqrt), resampling.ratio(sizes, counts)


def sums_of(
    resampling: Resampling, errors: Errors, group: Array | None = None, groups: int = 1
) -> tuple[Array, Array, Array, Array | None]:
    """Sums of squares, of absolute values, of samples and of sigma^2: [K], or [groups,K]."""
    frame = errors.frame

    def total(values: Array | None) -> Array:
        return resampling.sums(values, frame, group, groups)

    spread = None if errors.sigma is None else total(per_sample(errors.sigma, square))
    counts = total(None) * errors.components
    return (
        total(per_sample(errors.error, square)),
        total(per_sample(errors.error, np.abs)),
        counts,
        spread,
    )


def square(values: Array) -> Array:
    """The squares in float64."""
    wide = np.asarray(values, np.float64)
    return np.asarray(wide * wide)


def per_sample(values: Array, function: Any) -> Array:
    """[n] the function's values added over the components of each sample, in float64."""
    found = np.asarray(function(values), np.float64)
    return found if found.ndim == 1 else np.asarray(found.sum(axis=1))


def overall(resampling: Resampling, errors: Errors) -> tuple[Estimate, Estimate, Estimate | None]:
    """RMSE, MAE and rms of sigma of all samples."""
    squares, sizes, counts, spread = sums_of(resampling, errors)
    rmse, mae = rmse_and_mae(resampling, squares, sizes, counts)
    sharp = None if spread is None else resampling.ratio(spread, counts).map(np.sqrt)
    return rmse, mae, sharp


def members(
    resampling: Resampling, seeds: tuple[int, ...], squares: Array, sizes: Array, counts: Array
) -> tuple[Member, ...]:
    """Errors of single members.

    Args:
        resampling: The blocks.
        seeds: [M].
        squares: [M,T] sums of squared errors over the samples of each frame.
        sizes: [M,T] sums of absolute errors.
        counts: [T] numbers of samples.
    """
    frame = np.arange(len(counts))
    places = range(len(seeds))
    over = np.stack([resampling.sums(squares[place], frame) for place in places])
    absolute = np.stack([resampling.sums(sizes[place], frame) for place in places])
    rmse, mae = rmse_and_mae(resampling, over, absolute, resampling.sums(counts, frame))
    return tuple(
        Member(seed=seed, rmse=one, mae=other)
        for seed, one, other in zip(seeds, rmse.figures(), mae.figures(), strict=True)
    )


class Label(NamedTuple):
    """What a group is called."""

    name: str
    protein: str | None = None
    position: int | None = None


def by_group(
    resampling: Resampling, errors: Errors, group: Array, labels: list[Label]
) -> tuple[Group, ...]:
    """Errors of each group that has samples; ``group`` [n] is a place in ``labels``."""
    squares, sizes, counts, spread = sums_of(resampling, errors, group, len(labels))
    there = np.flatnonzero(counts.sum(axis=1) > 0)
    found: list[Group] = []
    for start in range(0, len(there), AT_ONCE):
        part = there[start : start + AT_ONCE]
        rmse, mae = rmse_and_mae(resampling, squares[part], sizes[part], counts[part])
        sharp: list[Figure | None] = [None] * len(part)
        if spread is not None:
            sharp = [*resampling.ratio(spread[part], counts[part]).map(np.sqrt).figures()]
        found += [
            Group(
                name=labels[place].name,
                protein=labels[place].protein,
                position=labels[place].position,
                count=int(counts[place].sum()),
                rmse=one,
                mae=other,
                sharpness=third,
            )
            for place, one, other, third in zip(
                part, rmse.figures(), mae.figures(), sharp, strict=True
            )
        ]
    return tuple(found)
