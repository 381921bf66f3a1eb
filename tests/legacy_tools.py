"""Configurations of the older form, with the files that they name, and what becomes of them."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from train_tools import write_tiny

from ensq import config
from ensq.config import Loaded, RunConfig
from ensq.errors import ConfigError

SAMPLES = Path(__file__).parent / "legacy_configs"
NAMES = ("two_stage", "staged", "everything")
SPECIES = 3
OLDER: dict[str, Any] = {
    "data": {"path": "d.npz"},
    "model": {"cutoff": 10.0},
    "optimizer": {},
    "training": {"stage1_optimizer": "adam", "epochs_adam": 3},
}


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


def tree_of(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((SAMPLES / f"{name}.yaml").read_text())
    return tree


def value_at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def changed(*changes: tuple[str, Any], tree: dict[str, Any] = OLDER) -> dict[str, Any]:
    """The tree with values at keys in dot notation."""
    new = copy.deepcopy(tree)
    for key, value in changes:
        node = new
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return new


def translated(*changes: tuple[str, Any]) -> Loaded:
    return config.parse_with_notes(yaml.safe_dump(changed(*changes)), "c.yaml")


def made(*changes: tuple[str, Any]) -> RunConfig:
    return translated(*changes).config


def error_of(*changes: tuple[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        made(*changes)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("c.yaml: ")
    return message


def said(loaded: Loaded, kind: str) -> dict[str, str]:
    return {note.key: note.text for note in loaded.notes if note.kind == kind}
