"""Scale factors that turn the spread over the members into an uncertainty.

sigma_calibrated^2 = alpha^2 sigma^2 + noise^2, where alpha and noise are of one of three fits:

global      alpha^2 = mean(error^2 / sigma^2), noise 0: the largest likelihood for normal errors
imbalzano   alpha^2 = -1/M + (M-3)/(M-1) mean(error^2 / sigma^2), noise 0, for M > 3 members
            (Imbalzano et al., J. Chem. Phys. 154, 074102 (2021)). sigma^2 has ddof 1: for normal
            members with variance s^2 and truths with variance alpha^2 s^2 about their common mean,
            error^2 has the mean (alpha^2 + 1/M) s^2, and 1/sigma^2 the mean (M-1)/(M-3)/s^2
noise       alpha and noise of the largest likelihood: labels that are noisy themselves, as mapped
            forces are
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq.calibration import noise as label_noise
from ensq.calibration.figures import Estimate, Resampling
from ensq.calibration.results import BySpecies, Factor, Judged
from ensq.calibration.scoring import estimate

Array = NDArray[Any]

HOW = ("global", "imbalzano", "noise")
NONE = "none"


@dataclass(frozen=True)
class Sample:
    """n errors with their spreads, all above 0."""

    error: Array  # [n]
    sigma: Array  # [n], with ``ddof`` taken off the number of members
    frame: Array  # [n]
    members: int
    ddof: int
    species: Array | None = None  # [n] places in ``species_names``
    species_names: tuple[str, ...] = ()


def fit(resampling: Resampling, sample: Sample, *, by_species: bool = False) -> tuple[Factor, ...]:
    """All three factors; ``by_species``: a noise for each species as well."""
    error, sigma = np.asarray(sample.error, np.float64), np.asarray(sample.sigma, np.float64)
    squares = resampling.sums((error / sigma) ** 2, sample.frame)
    mean = resampling.ratio(squares, resampling.sums(None, sample.frame))
    plain = Factor(how="global", ddof=sample.ddof, alpha=mean.map(np.sqrt).figure())
    noisy = _noise(resampling, sample, by_species)
    return plain, imbalzano(mean, sample.members, sample.ddof), noisy


def imbalzano(mean: Estimate, members: int, ddof: int) -> Factor:
    """Their factor, for sigma of ddof 1; ``mean`` is of error^2/sigma^2 with this ``ddof``."""
    refused = Factor(how="imbalzano", ddof=1)
    if members <= 3:
        why = f"its formula needs more than 3 members, and there are {members}"
        return replace(refused, refused=why)
    of_one = (members - 1) / (members - ddof)  # sigma^2 of ddof 1 is the larger one

    def squared(values: Array) -> Array:
        return np.asarray(-1 / members + (members - 3) / (members - 1) * of_one * values)

    found = mean.map(squared)
    if float(found.value) <= 0:
        why = (
            f"alpha^2 would be {float(found.value):.3g}: the errors are smaller than what the "
            "members' spread lets their mean be wrong by"
        )
        return replace(refused, refused=why)
    alpha = found.map(lambda values: np.sqrt(np.maximum(values, 0.0))).figure()
    return replace(refused, alpha=alpha)


def _noise(resampling: Resampling, sample: Sample, by_species: bool) -> Factor:
    arrays = (sample.error, sample.sigma, sample.frame)
    alpha, noise = label_noise.fit(resampling, label_noise.table_of(resampling, *arrays))
    found = Factor(how="noise", ddof=sample.ddof, alpha=alpha.figure(), noise=noise.figure())
    if not by_species or sample.species is None:
        return found
    names = sample.species_names
    table = label_noise.table_of(resampling, *arrays, sample.species, len(names))
    alpha, noise = label_noise.fit_by_group(
        resampling, table, float(alpha.value), float(noise.value)
    )
    there = np.flatnonzero(table.counts.sum(axis=(1, 2)) > 0)
    figures = noise.figures()
    species = {names[place]: figures[place] for place in there}
    return replace(found, by_species=BySpecies(alpha=alpha.figure(), noise=species))


def applied(factor: Factor, sigma: Array, *, members: int, ddof: int, components: int = 1) -> Array:
    """sigma_calibrated of a spread with ``ddof``.

    Args:
        factor: Of ``fit``, not refused.
        sigma: [...]
        members: Their number M.
        ddof: Of ``sigma``.
        components: Each of ``sigma`` is the root of so many components' sigma^2 added up.
    """
    if factor.alpha is None:
        raise ValueError(f"there is no factor {factor.how!r}: {factor.refused}")
    alpha = factor.alpha.value**2 * (members - ddof) / (members - factor.ddof)
    noise = 0.0 if factor.noise is None else factor.noise.value**2
    return np.asarray(np.sqrt(alpha * np.asarray(sigma, np.float64) ** 2 + components * noise))


def judge(resampling: Resampling, sample: Sample, factors: Sequence[Factor]) -> Judgement:
    """Scores of sigma as it is and as each factor makes it, with paired differences."""
    plain = estimate(resampling, sample.error, sample.sigma, sample.frame)
    judged = [Judged(how=NONE, scores=plain.scores())]
    curves = {NONE: plain.curve}
    for factor in factors:
        if factor.alpha is None:
            continue
        sigma = applied(factor, sample.sigma, members=sample.members, ddof=sample.ddof)
        if not (sigma > 0).all():
            continue  # alpha and noise are 0: no error there was any
        found = estimate(resampling, sample.error, sigma, sample.frame)
        curves[factor.how] = found.curve
        judged.append(
            Judged(
                how=factor.how,
                scores=found.scores(),
                nll_change=found.nll.minus(plain.nll).figure(),
                area_change=found.area.minus(plain.area).figure(),
            )
        )
    return Judgement(tuple(judged), curves)


class Judgement(NamedTuple):
    judged: tuple[Judged, ...]
    curves: dict[str, Estimate]  # calibration curves by factor
