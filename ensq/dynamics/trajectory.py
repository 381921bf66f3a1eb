"""Trajectories: what was recorded of each replica, and files that ensq and others read."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.data import ELEMENTS
from ensq.errors import UsageError
from ensq.rundir import write_atomic

Array = NDArray[Any]

SUFFIXES = (".npz", ".extxyz", ".xyz")


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """K looks at R replicas of N beads; only what is ``recorded`` counts."""

    step: Array  # [K]
    time: Array  # [K] ps
    position: Array  # [K,R,N,3] Angstrom
    epsilon: Array  # [K,R,N]
    potential: Array  # [K,R] without reference energies
    recorded: Array  # [K,R] bool
    species: Array  # [R,N]
    mask: Array  # [R,N] bool
    cell: Array | None  # [R,3,3]
    protein: Array | None  # [R]
    species_names: tuple[str, ...]
    protein_names: tuple[str, ...]
    elements: bool
    energy_unit: str
    temperature: float

    def flat(self) -> tuple[Array, Array]:
        """Looks and replicas of all frames, one replica after the other."""
        replica, look = np.nonzero(self.recorded.T)
        return look, replica


def check_path(path: Path) -> None:
    """Raise UsageError for a name that says no format, or a folder that is not there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"-o {path}: name it .npz or .extxyz")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"-o {path}: there is no such folder")


def write(path: Path, found: Trajectory) -> None:
    """As its name says. An NPZ is a data file: `ensq predict` and others read it."""
    npz = path.suffix.lower() == ".npz"
    write_atomic(path, as_npz(found) if npz else as_xyz(found).encode())


def as_npz(found: Trajectory) -> bytes:
    """R, mask, species (Z of elements), replica, protein as `docs/data.md` has them, and step,
    time_ps, epsilon, potential."""
    look, replica = found.flat()
    mask = found.mask[replica]
    arrays: dict[str, Any] = {
        "R": np.where(mask[..., None], found.position[look, replica], 0.0).astype(np.float32),
        "mask": mask.astype(np.float32),
        "replica": replica.astype(np.int32),
        "step": found.step[look],
        "time_ps": found.time[look],
        "epsilon": found.epsilon[look, replica],
        "potential": found.potential[look, replica],
        "temperature_K": np.array(found.temperature),
        "units": np.array(f"Angstrom, {found.energy_unit}"),
    }
    if found.elements:
        numbers = np.array([ELEMENTS.index(name) for name in found.species_names], np.int32)
        arrays["Z"] = np.where(mask, numbers[found.species[replica]], 0)
    else:
        arrays["species"] = found.species[replica].astype(np.int32)
        arrays["aa_names"] = np.array(found.species_names)
    if found.cell is not None:
        arrays["cell"] = found.cell[replica]
    if found.protein is not None and found.protein_names:
        arrays |= {
            "protein": found.protein[replica],
            "protein_names": np.array(found.protein_names),
        }
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def as_xyz(found: Trajectory) -> str:
    """Extended XYZ; beads that are no elements are X, with their names in the column bead."""
    lines: list[str] = []
    column = "" if found.elements else "bead:S:1:"
    for look, replica in zip(*found.flat(), strict=True):
        real = found.mask[replica]
        names = [found.species_names[number] for number in found.species[replica][real]]
        cell = "" if found.cell is None else _lattice(found.cell[replica])
        lines += [
            str(int(real.sum())),
            f"{cell}Properties=species:S:1:{column}pos:R:3:epsilon:R:1 replica={replica} "
            f"step={found.step[look]} time_ps={found.time[look]:.9g} "
            f"potential={found.potential[look, replica]:.9g}",
        ]
        for name, x, e in zip(
            names,
            found.position[look, replica][real],
            found.epsilon[look, replica][real],
            strict=True,
        ):
            first = name if found.elements else f"X {name}"
            lines.append(f"{first} {x[0]:.6f} {x[1]:.6f} {x[2]:.6f} {e:.6g}")
    return "\n".join(lines) + "\n"


def _lattice(cell: Array) -> str:
    numbers = " ".join(f"{x:.9g}" for x in cell.ravel())
    periodic = " ".join("T" if row.any() else "F" for row in cell)
    return f'Lattice="{numbers}" pbc="{periodic}" '
