"""A trajectory from elsewhere (LAMMPS, ASE, GROMACS, …): its shapes against those of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq import data
from ensq.dynamics.distributions import BLOCKS, compare
from ensq.dynamics.molecules import Molecule, molecules_of
from ensq.dynamics.preparing import COMPARED, spread
from ensq.ensemble import LoadedEnsemble
from ensq.errors import DataError, UsageError
from ensq.masses import masses_of
from ensq.resampling import blocks_of
from ensq.simulation import Distribution

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is found out about one trajectory."""

    source: str  # the file's name
    frames: int  # that were compared
    distributions: tuple[Distribution, ...]


def compared(ensemble: LoadedEnsemble, reference: Path, trajectory: Path) -> Given:
    """Bonds, angles, dihedrals, distances and radius of gyration of a trajectory, and of the data.

    At most ``COMPARED`` frames of each are used, evenly spread. Frames are bootstrapped by
    trajectories (``replica``), or by long pieces where there are fewer than ``BLOCKS``.

    Args:
        ensemble: Whose species the files have.
        reference: The data.
        trajectory: Any file that ``ensq predict`` reads, of molecules that the data have.

    Raises DataError for a file that can't be read, is periodic, or has other molecules.
    """
    elements = ensemble.elements
    ours = _some(ensemble.read(reference))
    theirs = _some(ensemble.read(trajectory))
    for frames, path in ((ours, reference), (theirs, trajectory)):
        if frames.cell is not None and frames.cell.any():
            raise DataError(
                f"{path}: has a periodic cell, whose box may cut a molecule apart: shapes are "
                "compared of whole molecules, written unwrapped and without a cell"
            )
    mass = _masses(ensemble, ours, elements)
    found: list[Distribution] = []
    used = 0
    for molecule in molecules_of(ours, ensemble.species_names, elements=elements):
        R, chosen = _positions(molecule, theirs)
        used += len(chosen)
        if len(chosen):
            found += _of_molecule(molecule, ours, (R, theirs.take(chosen).replica), mass)
    if not found:
        raise DataError(
            f"{trajectory}: no frame has the beads of a molecule of {reference}, in their order"
        )
    return Given(source=trajectory.name, frames=used, distributions=tuple(found))


def _some(frames: data.Source) -> data.Data:
    return frames.take(spread(np.arange(frames.n_frames), COMPARED))


def _masses(ensemble: LoadedEnsemble, frames: data.Data, elements: bool) -> Array:
    """[S] for the radius of gyration: of both sides the same, so that unknown ones may be 1."""
    present = np.unique(frames.species[frames.mask]).tolist()
    try:
        return np.array(masses_of(ensemble.species_names, present, elements=elements))
    except UsageError:
        return np.ones(len(ensemble.species_names))


def _positions(molecule: Molecule, frames: data.Data) -> tuple[Array, Array]:
    """Positions [t,N,3] of the frames that are of a molecule, in its places, and their numbers."""
    beads, kinds = np.flatnonzero(molecule.real), molecule.species[molecule.real]
    same = [
        number
        for number, (mask, species) in enumerate(zip(frames.mask, frames.species, strict=True))
        if mask.sum() == len(beads) and np.array_equal(species[mask], kinds)
    ]
    R = np.zeros((len(same), len(molecule.real), 3))
    R[:, beads] = frames.R[same][frames.mask[same]].reshape(len(same), len(beads), 3)
    return R, np.array(same, np.int64)


def _of_molecule(
    molecule: Molecule, data_: data.Data, given: tuple[Array, Array | None], mass: Array
) -> Sequence[Distribution]:
    R, replica = given
    part = data_.take(molecule.frames)
    block = blocks_of(part.n_frames, replica=part.replica, wanted=BLOCKS)
    group = blocks_of(len(R), replica=replica, wanted=BLOCKS)
    weight = np.where(molecule.real, mass[molecule.species], 1.0)
    return [
        compare(
            one,
            one.values(R, weight),
            group,
            one.values(part.R, weight),
            block,
            molecule=molecule.name,
        )
        for one in molecule.coordinates
    ]
