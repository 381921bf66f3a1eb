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
