"""Systems as LAMMPS lays them out: each rank's own atoms first, then ghosts, then padding.

Plain arrays; nothing here knows a model. A ghost is a copy of an atom that another rank owns, or a
periodic image of any atom, within some distance of the rank's domain. The pair style
``chemtrain_deploy`` takes a full list of neighbours with newton on, whose rows are those of the
rank's own atoms unless energies of ghosts are needed (an order of neighbours above 1), and a half
list with newton off. Pairs go as far as cutoff and skin; the model leaves out what is too long.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

SKIN = 2.0  # Angstrom, what LAMMPS adds to cutoffs with units real and metal
_PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class System:
    """The atoms that one rank sees."""

    position: Floats  # [n,3]
    species: Ints  # [n], from 0
    owner: Ints  # [n] number in the whole system of each atom, or of the atom it is an image of
    n_local: int  # the rank's own atoms, which come first; the others are ghosts

    @property
    def n_atoms(self) -> int:
        return len(self.species)

    @property
    def n_ghost(self) -> int:
        return self.n_atoms - self.n_local


def whole_system(position: Floats, species: Ints) -> System:
    """All atoms on one rank with open boundaries: no ghosts."""
    return System(position, species, np.arange(len(species)), len(species))


def periodic_system(position: Floats, species: Ints, cell: Floats, reach: float) -> System:
    """All atoms on one rank, wrapped into the cell, and their images within ``reach`` of it.

    The rows of ``cell`` [3,3] are its vectors.
    """
    (system,) = split_domain(position, species, reach, cell=cell)
    return system


def split_domain(
    position: Floats,
    species: Ints,
    reach: float,
    *,
    cell: Floats | None = None,
    axis: int = 0,
    places: Sequence[float] = (),
) -> list[System]:
    """One system for each rank; ranks share the atoms by planes across one axis.

    Args:
        position: [N,3] of all atoms; ``species`` [N].
        reach: How far from its domain a rank sees ghosts.
        cell: [3,3] cell vectors, zeros for an open direction; None for open boundaries.
        axis: The axis (the cell vector) that is cut.
        places: Where, rising: in units of length, or fractions of the cell vector.
    """
    frame, periodic = _frame(np.zeros((3, 3)) if cell is None else np.asarray(cell, np.float64))
    inverse = np.linalg.inv(frame)
    margin = reach * np.linalg.norm(inverse, axis=0)  # reach over the distance of opposite faces
    scaled = np.asarray(position, np.float64) @ inverse
    scaled = np.where(periodic, scaled - np.floor(scaled), scaled)
    first, last = np.where(periodic, 0.0, -np.inf), np.where(periodic, 1.0, np.inf)
    systems = []
    for low, high in itertools.pairwise([first[axis], *places, last[axis]]):
        lower, upper = first.copy(), last.copy()
        lower[axis], upper[axis] = low, high
        own = (scaled[:, axis] >= low) & (scaled[:, axis] < high)
        index, at = _ghosts(scaled, own, lower - margin, upper + margin, periodic)
        owner = np.concatenate([np.flatnonzero(own), index])
        every = np.concatenate([scaled[own], at])
        systems.append(System(every @ frame, np.asarray(species)[owner], owner, int(own.sum())))
    return systems


def _frame(cell: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The cell with a unit vector, at right angles to all others, for each open direction (a row
    of zeros), and which directions are periodic."""
    periodic = np.linalg.norm(cell, axis=1) > 0
    frame = cell.copy()
    _, _, directions = np.linalg.svd(cell)
    frame[~periodic] = directions[int(periodic.sum()) :]
    return (np.eye(3) if not periodic.any() else frame), periodic


def _ghosts(
    scaled: Floats,
    own: NDArray[np.bool_],
    lower: Floats,
    upper: Floats,
    periodic: NDArray[np.bool_],
) -> tuple[Ints, Floats]:
    """Owners and scaled positions of all copies between two corners that are not ``own``."""
    found, at = [np.zeros(0, np.int64)], [np.zeros((0, 3))]
    for shift in _shifts(lower, upper, periodic):
        moved = scaled + shift
        near = ((moved >= lower) & (moved < upper)).all(axis=1)
        if not shift.any():
            near &= ~own
        found.append(np.flatnonzero(near))
        at.append(moved[near])
    return np.concatenate(found), np.concatenate(at)


def _shifts(lower: Floats, upper: Floats, periodic: NDArray[np.bool_]) -> Iterator[Floats]:
    """The translations that bring something of the cell between the corners."""
    ranges = [
        range(int(np.floor(a)), int(np.ceil(b))) if repeats else range(1)
        for a, b, repeats in zip(lower, upper, periodic, strict=True)
    ]
    for shift in itertools.product(*ranges):
        yield np.array(shift, float)


def neighbour_list(
    system: System, distance: float, *, half: bool, ghost_rows: bool
) -> tuple[Ints, Ints]:
    """Pairs nearer than ``distance``: the atoms whose rows they stand in, and their neighbours.

    A half list holds each pair once, in the row of the atom that comes first. Without
    ``ghost_rows`` only the rank's own atoms have rows.
    """
    position = np.asarray(system.position, np.float64)
    n = system.n_atoms
    n_rows = n if ghost_rows else system.n_local
    step = max(1, _PAIRS_AT_ONCE // max(1, n))
    rows, neighbours = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, n_rows, step):
        row = np.arange(start, min(start + step, n_rows))
        squared = np.zeros((len(row), n))
        for k in range(3):
            squared += np.square(position[row, k, None] - position[None, :, k])
        near = squared < distance * distance
        near &= row[:, None] < np.arange(n) if half else row[:, None] != np.arange(n)
        i, j = np.nonzero(near)
        rows.append(row[i])
        neighbours.append(j)
    return np.concatenate(rows), np.concatenate(neighbours)


def total_forces(
    systems: Sequence[System], forces: Sequence[Floats], n_atoms: int, *, newton: bool
) -> Floats:
    """Forces [N,3] on all atoms from those that each rank computed [n,3].

    With newton on the forces on ghosts are added to their owners'; with newton off each rank's
    forces on its own atoms are complete, and those on ghosts mean nothing.
    """
    total = np.zeros((n_atoms, 3))
    for system, force in zip(systems, forces, strict=True):
        count = system.n_atoms if newton else system.n_local
        np.add.at(total, system.owner[:count], np.asarray(force, np.float64)[:count])
    return total
