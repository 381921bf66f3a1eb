"""A fast GBn2 (Amber igb=8 + ACE surface term, no cutoff, no salt) to drive OpenMM on a CPU.

OpenMM evaluates GBn2 as a CustomGBForce, which on its CPU platform costs ~7 ms per step for 170
atoms (~12 ns/day). ``gbn2.c`` is the same function in SIMD code, called through a ``PythonForce``.
It only *drives* the sampling; the recorded forces come from the untouched ``amber14-all.xml`` +
``implicit/gbn2.xml`` system. ``make_cgdata.py selftest`` compares the two.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import openmm as mm

FLAGS = ["-O3", "-march=native", "-ffast-math", "-fopenmp-simd", "-shared", "-fPIC"]
PARAMETERS = ["charge", "or", "sr", "alpha", "beta", "gamma", "radindex"]


def _library() -> Any:
    source = Path(__file__).with_name("gbn2.c")
    library = source.with_suffix(".so")
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", *FLAGS, str(source), "-o", str(library), "-lm"], check=True)
    function = ctypes.CDLL(str(library)).gbn2
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_int] + [ctypes.c_void_p] * 5
    return function


class FastGBn2:
    """Reads its parameters from the CustomGBForce that ``implicit/gbn2.xml`` made."""

    def __init__(self, force: Any) -> None:
        n = self.n = force.getNumParticles()
        par = np.array([force.getParticleParameters(k) for k in range(n)]).T
        names = [force.getPerParticleParameterName(k) for k in range(len(par))]
        if names != PARAMETERS:
            raise ValueError(f"not a GBn2 force: {names}")
        idx = par[6].astype(int)
        table = {}
        for k in range(force.getNumTabulatedFunctions()):
            nx, ny, values = force.getTabulatedFunction(k).getFunctionParameters()
            full = np.array(values).reshape(ny, nx).T  # OpenMM: values[i + nx*j] = f(i, j)
            table[force.getTabulatedFunctionName(k)] = full[idx][:, idx]
        m0, d0 = table["getm0"], table["getd0"]
        self.par = np.ascontiguousarray(par[:6])
        self.tab = np.ascontiguousarray([m0, d0, m0.T, d0.T])
        self.work = np.ones(4 * n * n + 7 * n)
        self.function = _library()

    def __call__(self, state: Any) -> tuple[float, Any]:
        x, forces = np.empty((self.n, 3)), np.empty((self.n, 3))
        # What state.getPositions(asNumpy=True) does, without the 0.35 ms its wrapper costs.
        state._getVectorAsNumpy(mm.State.Positions, x)
        arrays = (x, self.par, self.tab, self.work, forces)
        energy = self.function(self.n, *(array.ctypes.data for array in arrays))
        return energy, forces


def replace_custom_gb(system: Any) -> None:
    """Swap the CustomGBForce of ``system`` for the fast one."""
    for k in range(system.getNumForces()):
        if isinstance(system.getForce(k), mm.CustomGBForce):
            fast = mm.PythonForce(FastGBn2(system.getForce(k)), {})
            system.removeForce(k)
            system.addForce(fast)
            return
    raise ValueError("no CustomGBForce in this system")
