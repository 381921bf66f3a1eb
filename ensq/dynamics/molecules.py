"""The molecules of a data set: what is measured in each, and what is no longer the molecule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq import data
from ensq.dynamics.contacts import free_pairs
from ensq.dynamics.measures import Coordinate, bonded_beads, bonds_of, coordinates, nearest_image

Array = NDArray[Any]

NARROW = 0.25  # of the mean length: a bond may leave its range in the data by this at least
ENERGY_TIMES = 3.0  # by how many times its range in the data the energy may leave it
RARE = 1e-18  # the chance, in one step, of a kinetic energy that counts as an explosion


@dataclass(frozen=True)
class Molecule:
    """Frames that have the same beads in the same places."""

    name: str  # empty if the data hold one only
    frames: Array  # their numbers in the data
    real: Array  # [N] bool
    species: Array  # [N]
    coordinates: tuple[Coordinate, ...]
    bonds: Array  # [b,2]
    low: Array  # [b] Angstrom: shorter is broken
    high: Array  # [b] longer is
    free: Array  # [N,N] bool: pairs that no bond and no angle holds
    bond: float | None  # Angstrom, the mean length of bonds; None: there are none

    @property
    def beads(self) -> int:
        return int(self.real.sum())


def molecules_of(frames: data.Data, names: Sequence[str], *, elements: bool) -> list[Molecule]:
    """The different molecules of a data set, in the order in which they come first.

    Coordinates are left out where boundaries are periodic, since a molecule may be cut there.
    """
    key = np.concatenate([frames.mask, np.where(frames.mask, frames.species, 0)], axis=1)
    _, first, place = np.unique(key, axis=0, return_index=True, return_inverse=True)
    place = np.asarray(place).reshape(-1)
    order = np.argsort(first)
    found = []
    for number, kind in enumerate(order):
        index = np.flatnonzero(place == kind)
        name = _name(frames, index, number) if len(order) > 1 else ""
        found.append(_molecule(frames, index, name, names, elements))
    return found


def _name(frames: data.Data, index: Array, number: int) -> str:
    if frames.protein is not None and frames.protein_names:
        proteins = np.unique(frames.protein[index])
        if len(proteins) == 1:
            return str(frames.protein_names[int(proteins[0])])
    return f"molecule {number}"


def _molecule(
    frames: data.Data, index: Array, name: str, names: Sequence[str], elements: bool
) -> Molecule:
    R, real, species = frames.R[index], frames.mask[index[0]], frames.species[index[0]]
    cell = None if frames.cell is None or not frames.cell.any() else frames.cell[index]
    measured: list[Coordinate] = []
    if cell is None:
        measured = coordinates(R, real, species, names, elements=elements)
    bonds = bonds_of(measured)
    low, high = bond_limits(R, bonds)
    if cell is None:
        bonded = np.zeros((len(real), len(real)), bool)
        bonded[bonds[:, 0], bonds[:, 1]] = bonded[bonds[:, 1], bonds[:, 0]] = True
    else:
        bonded = bonded_beads(R, real, species, names, elements=elements, cell=cell)
    free, bond = free_pairs(real, bonded), _mean_length(R, bonded, cell)
    return Molecule(name, index, real, species, tuple(measured), bonds, low, high, free, bond)


def _mean_length(R: Array, bonded: Array, cell: Array | None) -> float | None:
    i, j = np.nonzero(np.triu(bonded))
    if not len(i):
        return None
    vector = nearest_image(R[:, j].astype(float) - R[:, i], cell)
    return float(np.linalg.norm(vector, axis=-1).mean())


def bond_limits(R: Array, bonds: Array) -> tuple[Array, Array]:
    """[b] the shortest and the longest of each bond in frames [T,N,3], and as much again as they
    differ by, or ``NARROW`` of the mean, if that is more."""
    length = np.linalg.norm(R[:, bonds[:, 1]].astype(float) - R[:, bonds[:, 0]], axis=-1)
    low, high, mean = length.min(axis=0), length.max(axis=0), length.mean(axis=0)
    more = np.maximum(high - low, NARROW * mean)
    return low - more, high + more


def energy_limits(energies: Array, beads: int, kT: float) -> tuple[float, float]:
    """What an energy may be: the range of the data's, widened by ``ENERGY_TIMES`` of it and 3 kT
    for each bead."""
    low, high = float(energies.min()), float(energies.max())
    more = ENERGY_TIMES * (high - low) + 3 * beads * kT
    return low - more, high + more


def kinetic_limit(beads: int, kT: float) -> float:
    """The kinetic energy that ``beads`` exceed with the chance ``RARE`` at their temperature: twice
    it over kT is distributed as chi squared with three degrees of freedom for each."""
    from scipy.stats import chi2  # type: ignore[import-untyped]

    return float(0.5 * kT * chi2.isf(RARE, 3 * beads))
