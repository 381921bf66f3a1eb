"""Whether sigma grows with the error: rank correlation, and errors in bins of equal sigma."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata  # type: ignore[import-untyped]

from ensq.calibration.figures import Estimate, Resampling

Array = NDArray[Any]

BINS = 20  # of the curve of error against sigma
CLASSES = 100  # of ranks, in the draws of the rank correlation
SPEARMAN_DRAWS = 500


class Ranked(NamedTuple):
    """Ranks of sigma and of |error|, ties at their mean, from 1 to n."""

    sigma: Array
    error: Array
    frame: Array


def ranked(error: Array, sigma: Array, frame: Array) -> Ranked:
    """The ranks of n samples."""
    return Ranked(rankdata(sigma), rankdata(np.abs(error)), np.asarray(frame))


def spearman(resampling: Resampling, ranks: Ranked) -> Estimate | None:
    """Spearman's correlation of sigma and |error|: exact for all samples.

    In the draws, ranks are those of ``CLASSES`` classes of equal numbers, made of all samples and
    ranked anew in each draw; that costs a table per block, and no sorting.

    None where there are fewer than 2 samples, or all are equal.
    """
    n = len(ranks.frame)
    if n < 2 or np.ptp(ranks.sigma) == 0 or np.ptp(ranks.error) == 0:
        return None
    value = _pearson(ranks.sigma, ranks.error)
    classes = min(CLASSES, n)
    one, other = _classes(ranks.sigma, classes), _classes(ranks.error, classes)
    table = resampling.sums(None, ranks.frame, one * classes + other, classes * classes)
    draws = [
        _of_table((table @ weights).reshape(classes, classes))
        for weights in resampling.weights[:SPEARMAN_DRAWS]
    ]
    blocks = int((table.sum(axis=0) > 0).sum())
    return Estimate(np.asarray(value), np.asarray(draws), np.asarray(blocks))


def _pearson(one: Array, other: Array) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one @ other) / np.sqrt((one @ one) * (other @ other)))


def _classes(ranks: Array, classes: int) -> Array:
    """[n] the class of each rank, numbers from 0."""
    return np.minimum(((ranks - 0.5) * classes / len(ranks)).astype(np.int64), classes - 1)


def _of_table(table: Array) -> float:
    """Spearman's correlation of a table of counts; NaN where all are in one row or column."""
    centred = []
    for counts in (table.sum(axis=1), table.sum(axis=0)):
        ranks = np.cumsum(counts) - counts / 2  # the middle one of a class
        centred.append((counts, ranks - (counts @ ranks) / counts.sum()))
    (rows, row), (columns, column) = centred
    scale = np.sqrt((rows @ row**2) * (columns @ column**2))
    return float(row @ table @ column / scale) if scale > 0 else float("nan")


class Binned(NamedTuple):
    """Errors against sigma, in bins of equal numbers of samples: [B] each."""

    sigma: Estimate  # rms
    error: Estimate  # rms
    counts: Array


def binned(resampling: Resampling, error: Array, sigma: Array, ranks: Ranked) -> Binned:
    """The reliability diagram of n samples, from small to large sigma."""
    bins = min(BINS, len(ranks.frame))
    place = _classes(ranks.sigma, bins)
    place = np.unique(place, return_inverse=True)[1].reshape(-1)  # equal sigma leave bins empty
    bins = int(place.max()) + 1

    def total(values: Array | None) -> Array:
        return resampling.sums(values, ranks.frame, place, bins)

    counts = total(None)
    return Binned(
        resampling.ratio(total(np.asarray(sigma, np.float64) ** 2), counts).map(np.sqrt),
        resampling.ratio(total(np.asarray(error, np.float64) ** 2), counts).map(np.sqrt),
        counts.sum(axis=1).astype(np.int64),
    )
