"""Coordinates that tell a molecule's shape: bonds, angles, dihedrals, distances, the radius of
gyration.

In a chain of beads they follow from the order of the beads. Atoms are taken as bonded where their
mean distance in the data is shorter than ``BONDED`` times the sum of their covalent radii (Cordero
et al., Dalton Trans. 2832 (2008), as ASE has them); angles and dihedrals are then those of bonded
heavy atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Kind = Literal["bond", "angle", "dihedral", "distance", "rg"]

BONDED = 1.25
AVERAGED = 200  # frames, about, in the mean distance
WIDEST = 0.25  # spread of the bonds, against their length, of what still is a chain
APART = 4  # beads of a chain between whose distances others are looked at: i and i + 4


@dataclass(frozen=True)
class Coordinate:
    """Values of one kind, of the beads in ``index`` [n, 2 to 4]; of rg [1, N] all beads."""

    kind: Kind
    label: str
    index: Array

    @property
    def unit(self) -> str:
        return "degrees" if self.kind in ("angle", "dihedral") else "Angstrom"

    def values(self, R: Array, mass: Array) -> Array:
        """[T,n] of positions [T,N,3] in Angstrom; angles in degrees. ``mass`` [N] is for rg."""
        places = [R[:, self.index[:, k]].astype(np.float64) for k in range(self.index.shape[1])]
        if self.kind == "rg":
            return radius_of_gyration(R[:, self.index[0]], mass[self.index[0]])[:, None]
        if self.kind == "angle":
            return np.degrees(angles(*places))
        if self.kind == "dihedral":
            return np.degrees(dihedrals(*places))
        length: Array = np.linalg.norm(places[1] - places[0], axis=-1)
        return length


def angles(first: Array, middle: Array, last: Array) -> Array:
    """At the middle point of three [..., 3], rad; pi where they stand on a line in their order."""
    a, b = first - middle, last - middle
    return np.asarray(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(axis=-1)))


def dihedrals(first: Array, second: Array, third: Array, last: Array) -> Array:
    """Of four points [..., 3], rad in -pi to pi after IUPAC: 0 for cis."""
    a, b, c = second - first, third - second, last - third
    left, right = np.cross(a, b), np.cross(b, c)
    across = np.linalg.norm(b, axis=-1) * (a * right).sum(axis=-1)
    return np.asarray(np.arctan2(across, (left * right).sum(axis=-1)))


def radius_of_gyration(R: Array, mass: Array) -> Array:
    """[T] root mean square distance from the centre of mass, weighted by mass [N]."""
    share = mass / mass.sum()
    centred = R.astype(np.float64)
    centred = centred - np.einsum("n,tnx->tx", share, centred)[:, None]
    return np.asarray(np.sqrt(np.einsum("n,tnx,tnx->t", share, centred, centred)))


def coordinates(
    R: Array, real: Array, species: Array, names: Sequence[str], *, elements: bool
) -> list[Coordinate]:
    """What there is to measure in one molecule.

    Args:
        R: [T,N,3] frames of it.
        real: [N] beads that are no padding.
        species: [N] places in ``names``.
        names: Of the species.
        elements: The names are symbols of chemical elements.
    """
    if elements:
        found = _of_atoms(R, real, [names[number] for number in species])
    elif is_chain(R, real):
        found = _of_chain(real)
    else:
        found = []
    beads = np.flatnonzero(real)
    found.append(Coordinate("rg", "radius of gyration", beads[None]))
    return [one for one in found if len(one.index)]


def is_chain(R: Array, real: Array, cell: Array | None = None) -> bool:
    """Whether beads that follow each other have about one distance; ``cell`` [T,3,3]: to the
    nearest image."""
    bonds = _runs(real, 2)
    if not len(bonds):
        return False
    length = np.linalg.norm(nearest_image(R[:, bonds[:, 1]] - R[:, bonds[:, 0]], cell), axis=-1)
    return bool(length.mean() > 0 and length.std() <= WIDEST * length.mean())


def nearest_image(vector: Array, cell: Array | None) -> Array:
    """Vectors [T,n,3] less the lattice vectors that they cross; right for those that are shorter
    than half of the cell is high. ``cell`` [T,3,3] with zero rows where a direction is open."""
    if cell is None:
        return vector
    crossed = np.rint(vector @ np.linalg.pinv(cell))
    return np.asarray(vector - crossed @ cell)


def bonded_beads(
    R: Array,
    real: Array,
    species: Array,
    names: Sequence[str],
    *,
    elements: bool,
    cell: Array | None = None,
) -> Array:
    """[N,N] bool: atoms near enough for a bond, or beads that follow each other in a chain."""
    if elements:
        return bonded_atoms(R, real, [names[number] for number in species], cell)
    found = np.zeros((len(real), len(real)), bool)
    if is_chain(R, real, cell):
        first = _runs(real, 2)[:, 0]
        found[first, first + 1] = found[first + 1, first] = True
    return found


def bonds_of(found: Sequence[Coordinate]) -> Array:
    """[b,2] all bonds among the coordinates."""
    bonds = [one.index for one in found if one.kind == "bond"]
    return np.concatenate(bonds) if bonds else np.zeros((0, 2), np.int64)


def _of_chain(real: Array) -> list[Coordinate]:
    beads = np.flatnonzero(real)
    apart = _runs(real, APART + 1)[:, [0, -1]]
    found = [
        Coordinate("bond", "bond", _runs(real, 2)),
        Coordinate("angle", "angle", _runs(real, 3)),
        Coordinate("dihedral", "dihedral", _runs(real, 4)),
        Coordinate("distance", f"distance i, i+{APART}", apart),
    ]
    if len(beads) > APART + 1:
        found.append(Coordinate("distance", "end to end", beads[None, [0, -1]]))
    return found


def _runs(real: Array, size: int) -> Array:
    """[n,size] beads that follow each other without a gap."""
    first = np.arange(max(0, len(real) - size + 1))
    runs = first[:, None] + np.arange(size)
    return np.asarray(runs[real[runs].all(axis=1)])


def bonded_atoms(R: Array, real: Array, symbols: Sequence[str], cell: Array | None = None) -> Array:
    """[N,N] bool: whose mean distance in the data, to the nearest image, is that of a bond."""
    from ase.data import atomic_numbers, covalent_radii

    radius = np.array([covalent_radii[atomic_numbers[symbol]] for symbol in symbols])
    mean = np.zeros((len(real), len(real)))
    some = np.arange(len(R))[:: max(1, len(R) // AVERAGED)]
    for number in some:
        frame = R[number].astype(np.float64)
        box = None if cell is None else cell[number]
        mean += np.linalg.norm(nearest_image(frame[:, None] - frame[None], box), axis=-1)
    bonded = (mean < BONDED * len(some) * (radius[:, None] + radius)) & real[:, None] & real
    np.fill_diagonal(bonded, False)
    return np.asarray(bonded)


def _of_atoms(R: Array, real: Array, symbols: Sequence[str]) -> list[Coordinate]:
    bonded = bonded_atoms(R, real, symbols)
    pairs = np.argwhere(np.triu(bonded))
    by_label: dict[str, list[Array]] = {}
    for i, j in pairs:
        label = "-".join(sorted((symbols[i], symbols[j])))
        by_label.setdefault(label, []).append(np.array([i, j]))
    found = [
        Coordinate("bond", f"bond {label}", np.array(some))
        for label, some in sorted(by_label.items())
    ]
    heavy = bonded & np.not_equal.outer(symbols, ["H"]) & np.not_equal.outer(symbols, ["H"]).T
    three = [
        (i, j, k)
        for j in range(len(real))
        for i in np.flatnonzero(heavy[j])
        for k in np.flatnonzero(heavy[j])
        if i < k
    ]
    four = [
        (i, j, k, last)
        for j, k in np.argwhere(np.triu(heavy))
        for i in np.flatnonzero(heavy[j])
        for last in np.flatnonzero(heavy[k])
        if len({i, j, k, last}) == 4
    ]
    found.append(Coordinate("angle", "angle, heavy", _rows(three, 3)))
    found.append(Coordinate("dihedral", "dihedral, heavy", _rows(four, 4)))
    return found


def _rows(index: list[Any], width: int) -> Array:
    return np.array(index, np.int64).reshape(-1, width)
