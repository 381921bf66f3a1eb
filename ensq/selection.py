"""Statistics over the members of an ensemble and the choice of the best; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class EnsembleStatistics:
    """Over the validation losses of the exported parameters of all members.

    Standard deviation and variance are the population's (ddof = 0).
    """

    n: int
    mean: float
    std: float
    variance: float
    best: int  # place of the lowest loss; the first one of equals


def ensemble_statistics(losses: Sequence[float]) -> EnsembleStatistics:
    """Mean, standard deviation and variance (ddof = 0), and the place of the lowest loss.

    Raises ValueError for no losses or one that is not finite.
    """
    values = np.asarray(losses, np.float64)
    if values.size == 0:
        raise ValueError("no losses to take statistics of")
    if not np.isfinite(values).all():
        raise ValueError(f"a loss is not finite: {list(losses)}")
    return EnsembleStatistics(
        n=int(values.size),
        mean=float(values.mean()),
        std=float(values.std(ddof=0)),
        variance=float(values.var(ddof=0)),
        best=int(np.argmin(values)),
    )
