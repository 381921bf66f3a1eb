"""What a data set is in a few plain numbers, and whether it fits the model's cutoff and splines."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ensq.config.structs import RunConfig
from ensq.data.cells import heights
from ensq.data.splitting import Split
from ensq.data.stored import Source, spans
from ensq.data.structs import Array
from ensq.errors import DataError

_SAMPLE = 20  # frames whose neighbours are counted
_CENTRES = 100  # beads of each of them
_SEARCHED = 500  # frames looked at, with all their beads, before a cutoff is refused
_MAX_IMAGES = 8  # periodic images looked at along each vector and direction
_BLOCK = 1000  # frames at a time, for the memory
_DISTANCES = 500_000  # at a time, the same
_SAMPLED = 20_000_000  # distances of the sample, periodic images included, over all its frames
_MOST_SEARCHED = 50_000_000  # distances looked at before a cutoff is refused


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Lengths in Angstrom, energies in the run's unit."""

    unit: str
    frames: int
    training_frames: int
    validation_frames: int
    species: tuple[str, ...]
    elements: bool  # the species are chemical elements
    beads_min: int
    beads_max: int
    periodic: bool  # some frames have a periodic direction
    proteins: dict[str, int]  # frames of each, those in use; empty where nothing tells them apart
    force_rms: float | None  # per component, over the training frames; None without forces
    energy_min: float | None  # of the training frames
    energy_max: float | None
    neighbours: float | None  # within the cutoff, mean over beads of a sample of training frames
    steps_per_epoch: int  # a few more if frames of different sizes are grouped


def facts(data: Source, split: Split, config: RunConfig, source: str) -> Facts:
    """Look at the data that a run will use.

    Raises:
        DataError: No pair of beads is nearer than the cutoff, or the angle splines by species are
            of another number of species.
    """
    _check_splines(data, config, source)
    used = np.sort(np.concatenate([split.training, split.validation]))
    beads = real_beads(data, used)
    energies = data.U[split.training] if data.U is not None and config.training.gammas.U else None
    return Facts(
        unit=config.unit,
        frames=data.n_frames,
        training_frames=len(split.training),
        validation_frames=len(split.validation),
        species=data.species_names,
        elements=data.elements,
        beads_min=int(beads.min()),
        beads_max=int(beads.max()),
        periodic=data.cell is not None
        and any(bool(data.cell[used[span]].any()) for span in spans(3, len(used))),
        proteins=_proteins(data, used),
        force_rms=_force_rms(data, split.training) if config.training.gammas.F else None,
        energy_min=None if energies is None else float(energies.min()),
        energy_max=None if energies is None else float(energies.max()),
        neighbours=None if config.model.prior_only else _neighbours(data, split, config, source),
        steps_per_epoch=-(-len(split.training) // config.training.batch_per_device),
    )


def real_beads(data: Source, frames: Array) -> Array:
    """[n] real beads of these frames."""
    counts = [data.mask[frames[span]].sum(axis=1) for span in spans(data.n_beads, len(frames))]
    return np.concatenate(counts)


def _check_splines(data: Source, config: RunConfig, source: str) -> None:
    priors = config.model.priors
    wanted = config.model.use_priors and priors.use_spline_priors and priors.residue_specific_angles
    if not wanted or priors.splines is None:
        return
    types, species = len(priors.splines.angle_types), len(data.species_names)
    if types and types != species:
        raise DataError(
            f"{source}: the data have {species} species, but the splines of "
            f"model.priors.residue_specific_angles are of {types}: fit them to these data "
            "(`ensq priors fit`), or set residue_specific_angles: false"
        )


def _proteins(data: Source, used: Array) -> dict[str, int]:
    if data.protein is None:
        return {}
    counts = np.bincount(data.protein[used], minlength=len(data.protein_names))
    return {name: int(n) for name, n in zip(data.protein_names, counts, strict=True) if n}


def _force_rms(data: Source, training: Array) -> float | None:
    if data.F is None:
        return None
    total, count = 0.0, 0
    for start in range(0, len(training), _BLOCK):
        frames = training[start : start + _BLOCK]
        values = data.F[frames].astype(np.float64)  # zero on padding
        total += float((values**2).sum())
        count += 3 * int(data.mask[frames].sum())
    return float(np.sqrt(total / count))


# -- neighbours --------------------------------------------------------------------------------


def _neighbours(data: Source, split: Split, config: RunConfig, source: str) -> float:
    """Neighbours per bead, from a sample. Raises DataError if no pair at all is within the cutoff.

    The trainer looks at every frame once more.
    """
    cutoff, counts = config.model.cutoff, []
    for frame in _spread(split.training, _SAMPLE):
        counts.append(_near(data, frame, cutoff, _CENTRES)[0])
    mean = float(np.concatenate(counts).mean())
    if mean > 0:
        return mean
    nearest, left = np.inf, _MOST_SEARCHED
    for frame in _spread(split.training, _SEARCHED):
        found, distance = _near(data, frame, cutoff, None)
        if found.any():
            return mean
        nearest = min(nearest, distance)
        left -= len(found) * int(real_beads(data, np.array([frame])).sum())
        if left < 0:
            break
    raise DataError(f"{source}: {no_neighbours(cutoff, nearest)}")


def no_neighbours(cutoff: float, nearest: float | None = None) -> str:
    """What is wrong where no bead has a neighbour; ``nearest`` is the least distance, if known."""
    found = "" if nearest is None or not np.isfinite(nearest) else f" (nearest {nearest:.3g})"
    return (
        f"model.cutoff is {cutoff:g} Angstrom and no pair of beads is nearer{found}: cutoffs are "
        "in Angstrom"
    )


def _spread(frames: Array, count: int) -> list[int]:
    places = np.unique(np.linspace(0, len(frames) - 1, count).astype(int))
    return [int(frame) for frame in frames[places]]


def _near(data: Source, frame: int, cutoff: float, centres: int | None) -> tuple[Array, float]:
    """Neighbours of some beads of a frame (of all for None), and the least distance seen.

    Large frames, and those of many periodic images, are looked at around fewer beads.
    """
    one = data.take(np.array([frame]))
    x = one.R[0][one.mask[0]].astype(np.float64)
    cell = None if one.cell is None else one.cell[0]
    room = _SAMPLED // _SAMPLE if centres else _MOST_SEARCHED
    images = _images(cell, cutoff, room // len(x))
    most = min(centres or len(x), max(1, room // (len(x) * len(images))))
    chosen = np.arange(0, len(x), -(-len(x) // most))
    counts, nearest = [], np.inf
    size = max(1, _DISTANCES // len(x))
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        count = np.zeros(len(block), int)
        away = x[block, None] - x[None]  # [C,N,3]
        if cell is not None:  # to the nearest cell: positions need not be wrapped
            away -= np.round(away @ np.linalg.pinv(cell)) @ cell
        for image in images:
            distance = np.linalg.norm(away + image, axis=-1)
            if not image.any():
                distance[np.arange(len(block)), block] = np.inf  # the bead itself
            count += (distance < cutoff).sum(axis=1)
            nearest = min(nearest, float(distance.min()))
        counts.append(count)
    return np.concatenate(counts), nearest


def _images(cell: Array | None, cutoff: float, most: int) -> list[Array]:
    """The shifts to periodic images that can hold a neighbour; at most so many, the nearest."""
    if cell is None or not cell.any():
        return [np.zeros(3)]
    reach = np.minimum(np.ceil(cutoff / heights(cell[None])[0] + 0.5), _MAX_IMAGES)
    while np.prod(2 * reach * cell.any(axis=1) + 1) > max(1, most):
        reach = np.minimum(reach, reach.max() - 1)
    steps = [
        range(-int(n), int(n) + 1) if v.any() else range(1)
        for n, v in zip(reach, cell, strict=True)
    ]
    return [np.array(shift) @ cell for shift in itertools.product(*steps)]
