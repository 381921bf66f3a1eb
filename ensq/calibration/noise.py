"""sigma_total^2 = alpha^2 sigma^2 + noise^2 by maximum likelihood, for errors against noisy labels.

Errors are taken as normal with mean 0. Samples come as a table: classes of nearly equal sigma, and
for each class and block how many there are and the sum of their squared errors. That is all that
the likelihood needs, and a draw of the bootstrap is a sum over blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]

from ensq.calibration.figures import Estimate, Resampling

Array = NDArray[Any]

WIDTH = 0.01  # of a class, in ln(sigma^2): changes a likelihood by some 1e-5 of a nat
DRAWS = 400
SPECIES_DRAWS = 100
_RANGE, _STEP, _SHRINKS = 25.0, 0.5, 30


@dataclass(frozen=True)
class Table:
    """Samples in B classes of sigma^2, by block (and group)."""

    variance: Array  # [B] mean sigma^2 of each class, above 0
    counts: Array  # [...,B,K]
    squares: Array  # [...,B,K] sums of squared errors


def table_of(
    resampling: Resampling,
    error: Array,
    sigma: Array,
    frame: Array,
    group: Array | None = None,
    groups: int = 1,
) -> Table:
    """The table of n samples with sigma above 0; with ``group`` [n], one for each group [G,B,K]."""
    variance = np.asarray(sigma, np.float64) ** 2
    logs = np.log(variance)
    place = ((logs - logs.min()) / WIDTH).astype(np.int64)
    place = np.unique(place, return_inverse=True)[1].reshape(-1)
    classes = int(place.max()) + 1
    mean = np.bincount(place, variance) / np.bincount(place)
    shape: tuple[int, ...] = (classes, resampling.count)
    if group is not None:
        place, shape = place + group * classes, (groups, *shape)
    total = classes * groups
    squares = np.asarray(error, np.float64) ** 2
    return Table(
        mean,
        resampling.sums(None, frame, place, total).reshape(shape),
        resampling.sums(squares, frame, place, total).reshape(shape),
    )


def fit(resampling: Resampling, table: Table) -> tuple[Estimate, Estimate]:
    """(alpha, noise), both at least 0, of a table [B,K].

    With m the mean of sigma^2, the variance is c (t sigma^2 + (1-t) m); the best c for a t is a
    mean, and t between 0 and 1 is found by a grid and a golden section, for all draws at once.
    """
    weights = np.concatenate([np.ones((1, resampling.count)), resampling.weights[:DRAWS]])
    counts, squares = table.counts @ weights.T, table.squares @ weights.T  # [B,D]
    mean = float(table.counts.sum(axis=1) @ table.variance / table.counts.sum())
    share, scale = _best(table.variance / mean, counts.T, squares.T)
    alpha, noise = np.sqrt(scale * share / mean), np.sqrt(scale * (1 - share))
    blocks = np.asarray(resampling.count)
    return (
        Estimate(alpha[0], alpha[1:], blocks),
        Estimate(noise[0], noise[1:], blocks),
    )


def _best(ratio: Array, counts: Array, squares: Array) -> tuple[Array, Array]:
    """[D] the share t and the scale c of the largest likelihood.

    Args:
        ratio: [B] sigma^2 by its mean.
        counts: [D,B].
        squares: [D,B].
    """
    total = counts.sum(axis=1)
    # t = 1/(1 + exp(-u)): near both ends much smaller steps of t matter
    grid = np.concatenate([[-np.inf], np.arange(-_RANGE, _RANGE + _STEP, _STEP), [np.inf]])
    shape = expit(grid)[:, None] * ratio + expit(-grid)[:, None]  # [U,B]
    scales = (squares @ (1 / shape).T) / total[:, None]
    minus = (counts @ np.log(shape).T) / total[:, None] + np.log(scales)  # [D,U]
    inner = 1 + np.argmin(minus[:, 1:-1], axis=1)
    u, least = _golden(ratio, counts, squares, grid[inner] - _STEP, grid[inner] + _STEP)
    for end in (0, -1):
        better = minus[:, end] <= least
        u, least = np.where(better, grid[end], u), np.where(better, minus[:, end], least)
    return expit(u), _scale(ratio, counts, squares, u)


def _scale(ratio: Array, counts: Array, squares: Array, u: Array) -> Array:
    shape = expit(u)[:, None] * ratio + expit(-u)[:, None]
    return np.asarray((squares / shape).sum(axis=1) / counts.sum(axis=1))


def _golden(
    ratio: Array, counts: Array, squares: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """[D] the least -2 log likelihood per sample between two u, and where it is."""

    def minus(u: Array) -> Array:
        shape = expit(u)[:, None] * ratio + expit(-u)[:, None]
        total = counts.sum(axis=1)
        logs = (counts * np.log(shape)).sum(axis=1) / total
        return np.asarray(logs + np.log((squares / shape).sum(axis=1) / total))

    golden = (np.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = minus(left), minus(right)
    for _ in range(_SHRINKS):
        go_left = at_left < at_right
        low, high = np.where(go_left, low, left), np.where(go_left, right, high)
        kept, at_kept = np.where(go_left, left, right), np.where(go_left, at_left, at_right)
        new = np.where(go_left, high - golden * (high - low), low + golden * (high - low))
        at_new = minus(new)
        left, right = np.where(go_left, new, kept), np.where(go_left, kept, new)
        at_left = np.where(go_left, at_new, at_kept)
        at_right = np.where(go_left, at_kept, at_new)
    better = at_left < at_right
    return np.where(better, left, right), np.where(better, at_left, at_right)


def fit_by_group(
    resampling: Resampling, table: Table, alpha: float, noise: float
) -> tuple[Estimate, Estimate]:
    """(alpha, noise [G]) with one alpha and a noise for each group, of a table [G,B,K].

    ``alpha`` and ``noise`` are where the search begins: those of all groups together.
    """
    start = np.concatenate([[max(alpha, 1e-3) ** 2], np.full(len(table.counts), noise**2)])
    total = table.counts.sum()
    unit = float(table.squares.sum() / total)  # of the noise, so that all are near 1
    mean = float(table.counts.sum(axis=(0, 2)) @ table.variance / total)
    scale = np.concatenate([[unit / mean], np.full(len(table.counts), unit)])
    every = [np.ones(resampling.count), *resampling.weights[:SPECIES_DRAWS]]
    found = []
    for weights in every:
        counts, squares = table.counts @ weights, table.squares @ weights
        start = _search(table.variance, counts, squares, start / scale, scale)
        found.append(start)
        start = found[0]
    roots = np.sqrt(np.asarray(found))
    blocks = (table.counts.sum(axis=1) > 0).sum(axis=1)
    return (
        Estimate(roots[0, 0], roots[1:, 0], np.asarray(resampling.count)),
        Estimate(roots[0, 1:], roots[1:, 1:], blocks),
    )


def _search(variance: Array, counts: Array, squares: Array, start: Array, scale: Array) -> Array:
    """[1+G] alpha^2 and the groups' noise^2 of the largest likelihood, by L-BFGS with bounds."""
    total = counts.sum()
    least = 1e-12 * float(squares.sum() / total)  # a variance of 0 has no likelihood

    def minus(scaled: Array) -> tuple[float, Array]:
        alpha, noise = scaled[0] * scale[0], scaled[1:] * scale[1:]
        full = alpha * variance + noise[:, None] + least  # [G,B]
        value = (counts * np.log(full) + squares / full).sum() / total
        slope = (counts / full - squares / full**2) / total
        gradient = np.concatenate([[(slope * variance).sum()], slope.sum(axis=1)])
        return float(value), gradient * scale

    done = minimize(
        minus,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(start),
        options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9},
    )
    return np.asarray(done.x * scale)
