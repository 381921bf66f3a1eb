"""Units of energy and length: the one place that holds the factors and applies them.

Inside ensq lengths are in Angstrom and energies in the run's unit; data in other units are
converted when they are read. Constants: CODATA 2018, exact where the SI is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EnergyUnit = Literal["kcal/mol", "eV"]  # what a run can work in

# One eV per particle in kJ/mol: e (1.602176634e-19 C) times N_A (6.02214076e23/mol).
_EV = 96.48533212331002
ENERGY: Mapping[str, float] = {  # in kJ/mol
    "kJ/mol": 1.0,
    "kcal/mol": 4.184,  # the thermochemical calorie
    "eV": _EV,
    "Hartree": 27.211386245988 * _EV,
}
LENGTH: Mapping[str, float] = {  # in Angstrom
    "Angstrom": 1.0,
    "nm": 10.0,
    "Bohr": 0.529177210903,
}


@dataclass(frozen=True)
class Conversion:
    """Factors from the units of a data file to those of a run; 1.0 leaves every bit alone."""

    energy: float
    length: float

    @property
    def force(self) -> float:
        """Forces are energy per length."""
        return self.energy / self.length


def conversion(energy: str, length: str, unit: EnergyUnit) -> Conversion:
    """The way from these units of a file (``data.units``) to Angstrom and ``unit``."""
    return Conversion(ENERGY[energy] / ENERGY[unit], LENGTH[length])


def convert(values: NDArray[Any], factor: float) -> NDArray[Any]:
    """Values times a factor, multiplied in float64 and given back in their own type."""
    if factor == 1.0:
        return values
    return (values.astype(np.float64) * factor).astype(values.dtype)


# -- time, mass and temperature, for dynamics -----------------------------------------------------

_GAS = 8.31446261815324e-3  # kJ/mol/K: the Boltzmann constant (1.380649e-23 J/K) times N_A, exact
# One unified atomic mass unit times (Angstrom/fs)^2 in kJ/mol: 1e-3 kg/mol (1e5 m/s)^2, but for
# the 3e-10 by which the molar mass constant differs from 1 g/mol.
_KINETIC = 1e4


def boltzmann(unit: EnergyUnit) -> float:
    """The Boltzmann constant in this unit of energy per K."""
    return _GAS / ENERGY[unit]


def time_unit(unit: EnergyUnit) -> float:
    """The time in fs that goes with Angstrom, the unified atomic mass unit and this unit of energy:
    Angstrom (u / unit)^(1/2), in which Newton's equations have no factor."""
    return float(np.sqrt(_KINETIC / ENERGY[unit]))
