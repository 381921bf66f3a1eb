"""From what a person asks to what the dynamics need: frames, masses, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensq import data, units
from ensq.dynamics import contacts
from ensq.dynamics.contacts import Nearest
from ensq.dynamics.molecules import Molecule, energy_limits, kinetic_limit, molecules_of
from ensq.dynamics.options import OF_ATOMS, OF_BEADS, Options, numbers_in
from ensq.ensemble import LoadedEnsemble
from ensq.errors import DataError, UsageError
from ensq.masses import masses_of
from ensq.priorfiles import temperature_of

if TYPE_CHECKING:
    from ensq.train.dynamics import Limits, Settings

Array = NDArray[Any]
Say = Callable[[str], None]

REFERENCE = 1000  # frames of the data at most for which epsilon and energies are predicted
COMPARED = 20_000  # frames at most with whose distributions the simulation is compared


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a run begins with."""

    frames: data.Data  # what distributions are compared with
    starts: data.Data  # [R]
    molecules: tuple[Molecule, ...]
    molecule: Array  # [R] which of them
    mass: Array  # [R,N] unified atomic mass units
    temperature: float
    timestep: float
    energies: tuple[tuple[float, float], ...]  # lowest and highest allowed, by molecule
    kinetic: tuple[float, ...]  # highest allowed, by molecule
    epsilon: Array  # [n] of all beads of the reference frames
    near: tuple[tuple[Array, Nearest] | None, ...]  # by molecule: frames of ``frames``, contacts
    contact: tuple[float, ...]  # nearer is an overlap, by molecule


def prepare(ensemble: LoadedEnsemble, source: Path, options: Options, say: Say) -> Prepared:
    """Read the data, choose the frames to start from, learn the limits.

    Raises DataError, UsageError.
    """
    found = ensemble.read(source)
    temperature = options.temperature or temperature_of(data.data_files(source))
    if temperature is None:
        raise UsageError(f"{source} does not tell its temperature (temperature_K): --temperature K")
    elements = ensemble.elements
    timestep = options.timestep or (OF_ATOMS if elements else OF_BEADS)
    options.check(timestep)
    some = found.take(spread(np.arange(found.n_frames), COMPARED))
    molecules = molecules_of(some, ensemble.species_names, elements=elements)
    index = _reference(ensemble, source, found.n_frames)
    reference = found.take(spread(index, REFERENCE))
    chosen = index if options.frames is None else numbers_in(options.frames, found.n_frames)
    starts = found.take(spread(np.asarray(chosen), options.replicas, repeat=True))
    say(f"epsilon and energy of {reference.n_frames} frames of {source.name}")
    predicted = ensemble.predict(reference)
    energies = predicted.energy_mean - ensemble.predictor.constant(reference)
    kT = units.boltzmann(ensemble.config.unit) * temperature
    masses = np.array(
        masses_of(
            ensemble.species_names,
            np.unique(starts.species[starts.mask]).tolist(),
            elements=elements,
            given=options.masses,
        )
    )
    kinds = _which(reference, molecules, source)
    near = tuple(_near(some, one, ensemble.config.model.cutoff) for one in molecules)
    smallest = min((float(one[1].distance.min()) for one in near if one), default=0.0)
    return Prepared(
        frames=some,
        starts=starts,
        molecules=tuple(molecules),
        molecule=_which(starts, molecules, source),
        mass=np.where(starts.mask, masses[starts.species], 1.0),
        temperature=temperature,
        timestep=timestep,
        energies=tuple(
            energy_limits(energies[kinds == k] if (kinds == k).any() else energies, one.beads, kT)
            for k, one in enumerate(molecules)
        ),
        kinetic=tuple(kinetic_limit(one.beads, kT) for one in molecules),
        epsilon=predicted.epsilon[predicted.mask],
        near=near,
        contact=tuple(contacts.limit(smallest, one.bond) for one in molecules),
    )


def settings_of(prepared: Prepared, options: Options, unit: units.EnergyUnit) -> Settings:
    from ensq.train.dynamics import Settings

    return Settings(
        temperature=prepared.temperature,
        timestep=prepared.timestep,
        friction=options.friction,
        seed=options.seed,
        unit=unit,
    )


def limits_of(prepared: Prepared, options: Options) -> Limits:
    """The limits of each replica, as those of its molecule."""
    from ensq.train.dynamics import Limits

    every = [prepared.molecules[number] for number in prepared.molecule]
    most = max(len(one.bonds) for one in every)

    def padded(values: Array) -> Array:
        return np.concatenate([values, np.zeros((most - len(values), *values.shape[1:]))])

    energies = np.array(prepared.energies)[prepared.molecule]
    top = np.inf if options.max_epsilon is None else options.max_epsilon
    return Limits(
        bonds=np.stack([padded(one.bonds) for one in every]),
        used=np.stack([np.arange(most) < len(one.bonds) for one in every]),
        low=np.stack([padded(one.low) for one in every]),
        high=np.stack([padded(one.high) for one in every]),
        energy_low=energies[:, 0],
        energy_high=energies[:, 1],
        kinetic=np.array(prepared.kinetic)[prepared.molecule],
        epsilon=np.full(len(every), top),
        pairs=np.stack([one.free for one in every]),
        contact=np.array(prepared.contact)[prepared.molecule],
    )


def _near(frames: data.Data, molecule: Molecule, cutoff: float) -> tuple[Array, Nearest] | None:
    """The nearest pairs in the data, of as many frames as time allows; None: all are held."""
    if not molecule.free.any():
        return None
    index = spread(molecule.frames, max(100, contacts.PAIRS // len(molecule.real) ** 2))
    cell = None if frames.cell is None else frames.cell[index]
    return index, contacts.nearest(frames.R[index], molecule.free, cutoff, cell)


def _reference(ensemble: LoadedEnsemble, source: Path, frames: int) -> Array:
    """The validation frames, if these are the data of the training, else all."""
    first = ensemble.members.results[0]
    if data.digest(source) != first.identity.data_digest:
        return np.arange(frames)
    return np.sort(first.validation_index)


def spread(index: Array, wanted: int, *, repeat: bool = False) -> Array:
    """So many of them, evenly spread; fewer there are only if they are not to be repeated."""
    if len(index) <= wanted and not repeat:
        return index
    if len(index) < wanted:
        return np.asarray(np.resize(index, wanted))
    return np.asarray(index[np.linspace(0, len(index) - 1, wanted).round().astype(int)])


def _which(frames: data.Data, molecules: list[Molecule], source: Path) -> Array:
    """[T] the molecule of each frame."""
    place = np.full(frames.n_frames, -1)
    for number, one in enumerate(molecules):
        same = (frames.mask == one.real).all(axis=1)
        same &= np.where(frames.mask, frames.species == one.species, True).all(axis=1)
        place[same] = number
    if (place < 0).any():
        raise DataError(f"{source}: has too many different molecules to tell them apart")
    return place
