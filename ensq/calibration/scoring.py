"""How well standard deviations describe errors: likelihood, coverage, calibration curve, sharpness.

Errors are taken as normal with mean 0 and standard deviation sigma. Samples have a sigma above 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, erfinv, stdtr  # type: ignore[import-untyped]

from ensq.calibration.figures import Estimate, Resampling
from ensq.calibration.results import Coverage, Scores

Array = NDArray[Any]

STEPS = 100  # of the calibration curve
EXPECTED = np.linspace(0, 1, STEPS + 1)
# (nominal share, half width in sigma): one and two sigma, and the round shares
LEVELS = (
    (float(erf(1 / np.sqrt(2))), 1.0),
    (float(erf(2 / np.sqrt(2))), 2.0),
    (0.68, float(np.sqrt(2) * erfinv(0.68))),
    (0.95, float(np.sqrt(2) * erfinv(0.95))),
)
# sigma up to this part of the rms of all predictions is rounding: the members agree there
ROUNDING = 1e-6


@dataclass(frozen=True)
class Estimates:
    """The estimates behind ``Scores``, which differences are taken of."""

    nll: Estimate
    area: Estimate
    coverage: tuple[Estimate, ...]
    sharpness: Estimate
    ratio: Estimate
    curve: Estimate  # [STEPS+1] share of errors inside the central interval of EXPECTED

    def scores(self, members: int | None = None, ddof: int = 0) -> Scores:
        """``members``: of sigma as it is, whose spread with this ``ddof`` it is."""
        return Scores(
            nll=self.nll.figure(),
            miscalibration_area=self.area.figure(),
            coverage=tuple(
                Coverage(
                    nominal=nominal,
                    sigmas=sigmas,
                    observed=found.figure(),
                    like_members=None if members is None else like_members(sigmas, members, ddof),
                )
                for (nominal, sigmas), found in zip(LEVELS, self.coverage, strict=True)
            ),
            sharpness=self.sharpness.figure(),
            ratio=self.ratio.figure(),
        )


def like_members(sigmas: float, members: int, ddof: int) -> float:
    """P(|error| <= sigmas * sigma) where the truth is drawn as the members are, and all are normal.

    (mean - truth) / sqrt(1 + 1/M) by sigma of ddof 1 has Student's t-distribution with M-1 degrees
    of freedom.
    """
    wider = np.sqrt((members - ddof) / (members - 1) * (1 + 1 / members))
    return float(1 - 2 * stdtr(members - 1, -sigmas / wider))


def has_spread(sigma: Array, scale: float) -> Array:
    """Where the members differ by more than rounding; ``scale``: rms of what they predict."""
    return np.asarray(sigma > ROUNDING * scale)


def estimate(resampling: Resampling, error: Array, sigma: Array, frame: Array) -> Estimates:
    """All figures of n samples.

    Args:
        resampling: The blocks.
        error: [n].
        sigma: [n], above 0.
        frame: [n] of each sample.
    """
    error, sigma = np.asarray(error, np.float64), np.asarray(sigma, np.float64)
    count = resampling.sums(None, frame)
    squares = resampling.sums(error * error, frame)
    spread = resampling.sums(sigma * sigma, frame)
    z = np.abs(error) / sigma
    likelihood = 0.5 * np.log(2 * np.pi) + np.log(sigma) + 0.5 * z * z
    curve = _curve(resampling, z, frame, count)
    return Estimates(
        nll=resampling.ratio(resampling.sums(likelihood, frame), count),
        area=curve.map(area, axes=1),
        coverage=tuple(
            resampling.ratio(resampling.sums((z <= sigmas).astype(np.float64), frame), count)
            for _, sigmas in LEVELS
        ),
        sharpness=resampling.ratio(spread, count).map(np.sqrt),
        ratio=resampling.ratio(squares, spread).map(np.sqrt),
        curve=curve,
    )


def _curve(resampling: Resampling, z: Array, frame: Array, count: Array) -> Estimate:
    """The share of samples inside the central interval that should hold the share EXPECTED."""
    inside = np.ceil(erf(z / np.sqrt(2)) * STEPS).astype(np.int64)  # first step that holds it
    found = resampling.sums(None, frame, inside, STEPS + 1)
    return resampling.ratio(np.cumsum(found, axis=0), count)


def area(curve: Array) -> Array:
    """[...] the area between curves [...,STEPS+1] and the diagonal, exact for their straight lines.

    A perfect sigma gives 0; a sigma far too small or far too large nearly 0.5.
    """
    away = curve - EXPECTED
    left, right = away[..., :-1], away[..., 1:]
    size = np.abs(left) + np.abs(right)
    crossing = left * right < 0
    crossed = (left**2 + right**2) / np.where(crossing, size, 1.0)
    return np.asarray(np.where(crossing, crossed, size).sum(axis=-1) / (2 * STEPS))
