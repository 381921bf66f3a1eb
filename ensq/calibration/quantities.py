"""All figures of forces and of energies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq.calibration import accuracy, ranking, scoring
from ensq.calibration.accuracy import Errors, Label
from ensq.calibration.factors import Sample
from ensq.calibration.figures import Estimate, Figure, Resampling
from ensq.calibration.results import Group, PerBead, Quantity, Spread
from ensq.calibration.samples import Energies, Forces, Observed

Array = NDArray[Any]

SINGLE = "a single member has no spread"
IDENTICAL = "all members predict the same: there is no spread"
MOST_POSITIONS = 5000  # more are no help to anybody, and large files


class Found(NamedTuple):
    """Figures, and the arrays that pictures are drawn from."""

    quantity: Quantity
    arrays: dict[str, Array]


class Spreading(NamedTuple):
    """Samples with a spread, one number each."""

    error: Array  # [n]
    sigma: Array  # [n]
    frame: Array  # [n]
    chosen: Array  # bool, among all samples


def rms(values: Array) -> float:
    """Root mean square of all numbers."""
    return float(np.sqrt(np.mean(np.asarray(values, np.float64) ** 2)))


def spreading_forces(forces: Forces) -> Spreading | None:
    """The components with a spread; None if there are none."""
    if forces.sigma is None:
        return None
    chosen = scoring.has_spread(forces.sigma, rms(forces.mean))
    if not chosen.any():
        return None
    frame = np.broadcast_to(forces.frame[:, None], chosen.shape)[chosen]
    return Spreading(forces.error[chosen], forces.sigma[chosen], frame, chosen)


def spreading_energies(energies: Energies) -> Spreading | None:
    """The frames with a spread; None if there are none."""
    if energies.sigma is None:
        return None
    # about their mean: beside reference energies of -10000 eV every spread would look like rounding
    chosen = scoring.has_spread(energies.sigma, float(energies.mean.std()))
    if not chosen.any():
        return None
    frame = np.flatnonzero(chosen)
    return Spreading(energies.error[chosen], energies.sigma[chosen], frame, chosen)


def force_sample(observed: Observed) -> Sample | None:
    """What factors of the forces are fitted to."""
    forces = observed.forces
    found = None if forces is None else spreading_forces(forces)
    if forces is None or found is None:
        return None
    species = np.broadcast_to(forces.species[:, None], found.chosen.shape)[found.chosen]
    return _sample(observed, found, species)


def energy_sample(observed: Observed) -> Sample | None:
    """What factors of the energies are fitted to."""
    energies = observed.energies
    found = None if energies is None else spreading_energies(energies)
    return None if found is None else _sample(observed, found, None)


def _sample(observed: Observed, found: Spreading, species: Array | None) -> Sample:
    return Sample(
        found.error,
        found.sigma,
        found.frame,
        members=len(observed.seeds),
        ddof=observed.ddof,
        species=species,
        species_names=observed.species_names,
    )


def of_forces(resampling: Resampling, observed: Observed, unit: str) -> Found | None:
    """Figures of the forces by component; None where they have no labels."""
    forces = observed.forces
    if forces is None:
        return None
    errors, frames = forces.errors, observed.frames
    rmse, mae, _ = accuracy.overall(resampling, errors)
    protein = frames.protein[forces.frame]
    positions, place = _positions(observed, forces, protein)
    groups = accuracy.by_group(resampling, errors, place, positions) if positions else ()
    spread, arrays = _force_spread(resampling, observed, forces)
    quantity = Quantity(
        unit=unit,
        samples="components of forces on beads",
        count=forces.error.size,
        reference_rms=rms(np.asarray(forces.mean, np.float64) - forces.error),
        rmse=rmse.figure(),
        mae=mae.figure(),
        members=accuracy.members(
            resampling, observed.seeds, forces.member_squares, forces.member_sizes, 3 * frames.beads
        ),
        proteins=accuracy.by_group(
            resampling, errors, protein, [Label(name) for name in frames.protein_names]
        ),
        species=accuracy.by_group(
            resampling, errors, forces.species, [Label(name) for name in observed.species_names]
        ),
        positions=groups,
        spread=spread,
        no_spread=_why(forces.sigma, spread),
    )
    return Found(quantity, {**_frame_arrays(forces, frames.count), **arrays, **_columns(groups)})


def _why(sigma: Array | None, spread: Spread | None) -> str | None:
    if sigma is None:
        return SINGLE
    return IDENTICAL if spread is None else None


def _positions(observed: Observed, forces: Forces, protein: Array) -> tuple[list[Label], Array]:
    """Names of the places in each protein's chain that there are, and the one of each bead.

    None at all where there are more than ``MOST_POSITIONS``.
    """
    longest = int(forces.place.max()) + 1
    numbers, number = np.unique(
        protein.astype(np.int64) * longest + forces.place, return_inverse=True
    )
    if len(numbers) > MOST_POSITIONS:
        return [], np.zeros(0, np.int64)
    number = number.reshape(-1)
    first = np.zeros(len(numbers), np.int64)
    first[number[::-1]] = forces.species[::-1]
    same = np.ones(len(numbers), bool)
    same[number[forces.species != first[number]]] = False
    labels = [
        Label(
            observed.species_names[first[k]] if same[k] else "several",
            observed.frames.protein_names[place // longest],
            int(place % longest),
        )
        for k, place in enumerate(numbers)
    ]
    return labels, number


def _force_spread(
    resampling: Resampling, observed: Observed, forces: Forces
) -> tuple[Spread | None, dict[str, Array]]:
    found = spreading_forces(forces)
    if found is None or forces.sigma is None:
        return None, {}
    estimates = scoring.estimate(resampling, found.error, found.sigma, found.frame)
    ranks = ranking.ranked(found.error, found.sigma, found.frame)
    beads = np.flatnonzero(found.chosen.any(axis=1))
    frame = forces.frame[beads]
    length = np.sqrt(accuracy.per_sample(forces.error[beads], accuracy.square))
    spread = np.sqrt(accuracy.per_sample(forces.sigma[beads], accuracy.square))
    every, size = np.unique(frame), np.bincount(frame)
    of_frame = [
        np.sqrt(np.bincount(frame, values**2)[every] / (3 * size[every]))
        for values in (length, spread)
    ]
    correlations = {
        "component": ranking.spearman(resampling, ranks),
        "bead": ranking.spearman(resampling, ranking.ranked(length, spread, frame)),
        "frame": ranking.spearman(resampling, ranking.ranked(of_frame[0], of_frame[1], every)),
    }
    result = _spread(observed, found, estimates, correlations)
    bins = ranking.binned(resampling, found.error, found.sigma, ranks)
    return result, _picture_arrays("forces", estimates, bins)


def _spread(
    observed: Observed,
    found: Spreading,
    estimates: scoring.Estimates,
    correlations: dict[str, Estimate | None],
) -> Spread:
    return Spread(
        used=len(found.error),
        left_out=int(found.chosen.size - len(found.error)),
        scores=estimates.scores(len(observed.seeds), observed.ddof),
        spearman={name: one.figure() for name, one in correlations.items() if one is not None},
    )


def of_energies(resampling: Resampling, observed: Observed, unit: str) -> Found | None:
    """Figures of the energies of whole frames; None where they have no labels."""
    energies, frames = observed.energies, observed.frames
    if energies is None:
        return None
    errors = energies.errors
    rmse, mae, _ = accuracy.overall(resampling, errors)
    found = spreading_energies(energies)
    spread, arrays = None, {}
    if found is not None:
        estimates = scoring.estimate(resampling, found.error, found.sigma, found.frame)
        ranks = ranking.ranked(found.error, found.sigma, found.frame)
        spread = _spread(observed, found, estimates, {"frame": ranking.spearman(resampling, ranks)})
        bins = ranking.binned(resampling, found.error, found.sigma, ranks)
        arrays = _picture_arrays("energy", estimates, bins)
    arrays |= {"frame_energy": energies.mean, "frame_energy_error": energies.error}
    if energies.sigma is not None:
        arrays["frame_energy_sigma"] = energies.sigma
    quantity = Quantity(
        unit=unit,
        samples="energies of frames",
        count=frames.count,
        reference_rms=float((energies.mean - energies.error).std()),
        rmse=rmse.figure(),
        mae=mae.figure(),
        members=accuracy.members(
            resampling,
            observed.seeds,
            energies.member_errors**2,
            np.abs(energies.member_errors),
            np.ones(frames.count),
        ),
        proteins=accuracy.by_group(
            resampling, errors, frames.protein, [Label(name) for name in frames.protein_names]
        ),
        species=(),
        positions=(),
        spread=spread,
        no_spread=_why(energies.sigma, spread),
    )
    return Found(quantity, arrays)


def per_bead(resampling: Resampling, observed: Observed, unit: str) -> PerBead | None:
    """Energies by the number of beads of their frames."""
    energies, beads = observed.energies, observed.frames.beads
    if energies is None:
        return None
    sigma = None if energies.sigma is None else energies.sigma / beads
    errors = Errors(energies.error / beads, sigma, np.arange(len(beads)))
    rmse, mae, sharp = accuracy.overall(resampling, errors)
    single = energies.member_errors / beads
    return PerBead(
        unit=unit,
        rmse=rmse.figure(),
        mae=mae.figure(),
        sharpness=None if sharp is None else sharp.figure(),
        members=accuracy.members(
            resampling, observed.seeds, single**2, np.abs(single), np.ones(len(beads))
        ),
    )


def _frame_arrays(forces: Forces, frames: int) -> dict[str, Array]:
    """Of each frame: rms error and rms sigma of its components."""

    def mean_square(values: Array) -> Array:
        total = np.bincount(
            forces.frame, accuracy.per_sample(values, accuracy.square), minlength=frames
        )
        return np.asarray(np.sqrt(total / (3 * np.bincount(forces.frame, minlength=frames))))

    arrays = {"frame_force_rmse": mean_square(forces.error)}
    if forces.sigma is not None:
        arrays["frame_force_sigma"] = mean_square(forces.sigma)
    return arrays


def _picture_arrays(
    name: str, estimates: scoring.Estimates, bins: ranking.Binned
) -> dict[str, Array]:
    """The calibration curve and the curve of error against sigma, with their intervals."""
    curve, error = estimates.curve.figures(), bins.error.figures()
    return {
        "curve_expected": scoring.EXPECTED,
        **_named(f"{name}_curve_observed", curve),
        f"{name}_bins_count": bins.counts,
        f"{name}_bins_sigma": bins.sigma.value,
        **_named(f"{name}_bins_error", error),
    }


def _named(name: str, figures: list[Figure]) -> dict[str, Array]:
    """Values and intervals as arrays; where there is no interval, both ends are the value."""
    return {
        name: np.array([one.value for one in figures]),
        f"{name}_low": np.array([one.value if one.low is None else one.low for one in figures]),
        f"{name}_high": np.array([one.value if one.high is None else one.high for one in figures]),
    }


def _columns(groups: tuple[Group, ...]) -> dict[str, Array]:
    """The positions' figures as arrays [G]."""
    found = {
        "position_protein": np.array([group.protein for group in groups]),
        "position_index": np.array([group.position for group in groups]),
        "position_species": np.array([group.name for group in groups]),
        **_named("position_rmse", [group.rmse for group in groups]),
    }
    sharp = [group.sharpness for group in groups if group.sharpness is not None]
    if len(sharp) == len(groups):
        found |= _named("position_sigma", sharp)
    return found
