"""Configurations of the older form, with the files that they name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from train_tools import write_tiny

SAMPLES = Path(__file__).parent / "legacy_configs"
NAMES = ("two_stage", "staged", "everything")
SPECIES = 3


def spline_arrays() -> dict[str, NDArray[Any]]:
    """Splines of 5 knots; the middle species has no angle of its own."""
    rng = np.random.default_rng(0)

    def coeffs(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=(*shape, 4, 4)).astype(np.float32)

    angles = np.linspace(1.0, 2.8, 5)
    return {
        "bond_knots": np.linspace(3.0, 4.6, 5),
        "bond_coeffs": coeffs(),
        "angle_knots": angles,
        "angle_coeffs": coeffs(),
        "dih_knots": np.linspace(-np.pi, np.pi, 5),
        "dih_coeffs": coeffs(),
        "angle_type_knots": np.tile(angles, (SPECIES, 1)),
        "angle_type_coeffs": coeffs(SPECIES),
        "angle_type_mask": np.array([1, 0, 1]),
        "temperature": np.array(350.0),
        "angle_type_counts": np.array([9, 0, 9]),
    }


def write_samples(folder: Path) -> Path:
    """The sample files, their data set and their splines in one folder."""
    for name in NAMES:
        shutil.copy(SAMPLES / f"{name}.yaml", folder)
    write_tiny(folder / "dataset.npz")
    np.savez(folder / "splines.npz", **spline_arrays())  # type: ignore[arg-type]
    return folder
