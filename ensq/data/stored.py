"""A converted set: a folder of arrays, whose frames are read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensq.config.structs import GammasConfig, UnitsConfig
from ensq.data import index as indices
from ensq.data.index import Index
from ensq.data.rows import Rows
from ensq.data.structs import Array, Data
from ensq.errors import DataError
from ensq.units import EnergyUnit, conversion, convert

_BEADS_AT_ONCE = 1 << 20  # positions and forces of so many take 24 MB


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Frames on a disk, in Angstrom and the run's unit of energy once they are read.

    The fields are those of ``Data``; the large ones give up frames by ``values[indices]`` alone.
    """

    R: Rows
    F: Rows | None
    U: Array | None
    species: Rows | Array
    mask: Rows | Array
    replica: Array | None
    species_names: tuple[str, ...]
    elements: bool
    cell: Rows | None
    protein: Array | None
    protein_names: tuple[str, ...]

    @property
    def n_frames(self) -> int:
        return self.R.shape[0]

    @property
    def n_beads(self) -> int:
        return self.R.shape[1]

    def take(self, frames: Array) -> Data:
        """The frames of these indices, in this order, in memory. Raises DataError."""
        frames = np.asarray(frames)
        species = self.species[frames]
        check_indices(self.R.path.with_name("species.npy"), species, len(self.species_names))
        return Data(
            R=self.R[frames],
            F=None if self.F is None else self.F[frames],
            U=None if self.U is None else self.U[frames],
            species=species,
            mask=self.mask[frames],
            replica=None if self.replica is None else self.replica[frames],
            species_names=self.species_names,
            elements=self.elements,
            cell=None if self.cell is None else self.cell[frames],
            protein=None if self.protein is None else self.protein[frames],
            protein_names=self.protein_names,
        )


Source = Data | Stored


def spans(beads: int, frames: int) -> Iterator[slice]:
    """So many frames of so many beads, in pieces that fit into memory."""
    step = max(1, _BEADS_AT_ONCE // max(1, beads))
    for start in range(0, frames, step):
        yield slice(start, min(start + step, frames))


def load(path: Path, units: UnitsConfig, gammas: GammasConfig, unit: EnergyUnit) -> Stored:
    """A converted set. Its arrays were checked when it was made, and are not looked at again.

    Raises DataError if it is damaged, is in other units than the configuration says, or lacks
    labels that have a weight.
    """
    found = indices.read(path)
    if found.units != units:
        raise DataError(
            f"{path}: was converted from data in {found.units.energy} and {found.units.length}, "
            f"and data.units says {units.energy} and {units.length}: write data.units: "
            f"{{energy: {found.units.energy}, length: {found.units.length}}}, or convert again "
            "with the right units"
        )
    for key, weight in (("F", gammas.F), ("U", gammas.U)):
        if weight and key not in found.arrays:
            raise DataError(
                f"{path}: has no {key}, and training.gammas.{key} is not 0; it has "
                f"{', '.join(found.arrays)}: convert data that have it"
            )
    factors = conversion(units.energy, units.length, unit)
    protein = _whole(path, found, "protein")
    if protein is not None:
        check_indices(path / "protein.npy", protein, len(found.protein_names))
    return Stored(
        R=_open(path, found, "R", factors.length),
        F=_rows(path, found, "F", factors.force),
        U=_whole(path, found, "U", factors.energy),
        species=_per_frame(path, found, "species"),
        mask=_rows(path, found, "mask") or _same(found, np.ones(found.beads, bool)),
        replica=_whole(path, found, "replica"),
        species_names=found.species_names,
        elements=found.elements,
        cell=_rows(path, found, "cell", factors.length),
        protein=protein,
        protein_names=found.protein_names,
    )


def check_indices(file: Path, values: Array, names: int) -> None:
    """Raise DataError for numbers that have no name: a set may come from anybody."""
    if values.size and not (values.min() >= 0 and values.max() < names):
        raise DataError(
            f"{file}: holds numbers from {values.min()} to {values.max()}, and the set has {names} "
            "names: it was not made by `ensq data convert`; convert the data again"
        )


def _open(path: Path, found: Index, key: str, factor: float = 1.0) -> Rows:
    """The array that the index promises."""
    rows, entry = Rows(path / f"{key}.npy", factor=factor), found.arrays[key]
    if (rows.shape, rows.dtype.str) != (entry.shape, entry.dtype):
        raise DataError(
            f"{rows.path}: has shape {rows.shape} and dtype {rows.dtype}, and the index of the set "
            f"says {entry.shape} and {entry.dtype}: restore the file, or convert the data again"
        )
    return rows


def _rows(path: Path, found: Index, key: str, factor: float = 1.0) -> Rows | None:
    return _open(path, found, key, factor) if key in found.arrays else None


def _whole(path: Path, found: Index, key: str, factor: float = 1.0) -> Array | None:
    """An array of a number for each frame."""
    if key not in found.arrays:
        return None
    return convert(_open(path, found, key)[np.arange(found.frames)], factor)


def _per_frame(path: Path, found: Index, key: str) -> Rows | Array:
    """Rows [T,N], or one row [N] that all frames share."""
    rows = _open(path, found, key)
    return rows if len(rows.shape) > 1 else _same(found, rows[np.arange(found.beads)])


def _same(found: Index, row: Array) -> Array:
    """[T,N] of one row, which takes the memory of one."""
    return np.broadcast_to(row, (found.frames, found.beads))
