"""Writing frames as a data file that can be read again, with all that is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ensq.config.structs import UnitsConfig
from ensq.data.structs import Array, Data
from ensq.data.xyz import SUFFIXES
from ensq.errors import UsageError
from ensq.rundir import written_beside
from ensq.units import EnergyUnit, conversion, convert


def check_name(path: Path) -> None:
    """Raise UsageError unless the ending is that of a file that frames can be written to."""
    name = path.name.lower()
    if not name.endswith((".npz", *SUFFIXES)) or name.endswith(".gz"):
        raise UsageError(f"{path}: frames go into .npz or .extxyz files: name one such")


def save(
    path: Path,
    frames: Data,
    units: UnitsConfig,
    unit: EnergyUnit,
    more: Mapping[str, Array] | None = None,
) -> None:
    """Write frames in these units, with labels, cells, trajectories and proteins.

    A configuration with the same ``data.units`` reads an NPZ file with no other settings, and an
    XYZ file of beads that are no elements with ``data.keys.species: bead``.

    Args:
        path: A ``.npz``, ``.xyz`` or ``.extxyz`` file.
        frames: In Angstrom and ``unit``.
        units: Of the file. Values whose unit is the same keep every bit.
        unit: The run's unit of energy.
        more: Arrays [T] that are written beside; they must have names that are no data's.
    """
    check_name(path)
    frames = _in_units(frames, units, unit)
    with written_beside(path) as beside:
        if path.name.lower().endswith(".npz"):
            with beside.open("wb") as file:
                np.savez(file, **npz_arrays(frames), **(more or {}))
        else:
            _write_xyz(beside, frames, more or {})


def _in_units(frames: Data, units: UnitsConfig, unit: EnergyUnit) -> Data:
    factors = conversion(units.energy, units.length, unit)
    return replace(
        frames,
        R=convert(frames.R, 1 / factors.length),
        F=None if frames.F is None else convert(frames.F, 1 / factors.force),
        U=None if frames.U is None else convert(frames.U, 1 / factors.energy),
        cell=None if frames.cell is None else convert(frames.cell, 1 / factors.length),
    )


def npz_arrays(frames: Data) -> dict[str, Any]:
    """The arrays of an NPZ file that is read as these frames."""
    found: dict[str, Any] = {"R": frames.R, "species": frames.species}
    names = np.array(frames.species_names)
    if not _unnamed(frames):
        # aa_names are never taken for symbols of elements
        found["species_names" if frames.elements else "aa_names"] = names
    if not frames.mask.all():
        found["mask"] = frames.mask
    for key in ("F", "U", "replica", "cell", "protein"):
        values = getattr(frames, key)
        if values is not None:
            found[key] = values
    if frames.cell is not None:
        found["pbc"] = frames.cell.any(axis=2)
    if frames.protein is not None and frames.protein_names:
        found["protein_names"] = np.array(frames.protein_names)
    return found


def _unnamed(frames: Data) -> bool:
    """Whether species are plain numbers, whose names are themselves."""
    return frames.species_names == tuple(str(k) for k in range(len(frames.species_names)))


def atoms_of(frames: Data, row: int) -> Any:
    """``ase.Atoms`` of a frame without its labels; padding is left out.

    Beads that are no elements are X, with their names in the array ``bead``.
    """
    from ase import Atoms

    real = frames.mask[row]
    names = [frames.species_names[kind] for kind in frames.species[row][real]]
    cell = None if frames.cell is None else frames.cell[row]
    atoms = Atoms(
        symbols=names if frames.elements else ["X"] * len(names),
        positions=frames.R[row][real],
        cell=cell,
        pbc=False if cell is None else cell.any(axis=1),
    )
    if not frames.elements:
        atoms.set_array("bead", np.array(names))  # type: ignore[no-untyped-call]
    if frames.replica is not None:
        atoms.info["replica"] = int(frames.replica[row])
    if frames.protein is not None:
        number = int(frames.protein[row])
        names = list(frames.protein_names)
        atoms.info["protein"] = names[number] if names else str(number)
    return atoms


def _write_xyz(path: Path, frames: Data, more: Mapping[str, Array]) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.extxyz import write_extxyz

    with path.open("w", encoding="utf-8") as file:
        for row in range(frames.n_frames):
            atoms = atoms_of(frames, row)
            labels: dict[str, Any] = {}
            if frames.U is not None:
                labels["energy"] = float(frames.U[row])
            if frames.F is not None:
                labels["forces"] = frames.F[row][frames.mask[row]]
            if labels:
                atoms.calc = SinglePointCalculator(atoms, **labels)  # type: ignore[no-untyped-call]
            atoms.info |= {key: values[row].item() for key, values in more.items()}
            write_extxyz(file, [atoms])
