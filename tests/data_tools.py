"""A small data set as arrays, and ways to spoil it, for tests of the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensq import config, data
from ensq.config.structs import DataConfig, GammasConfig, KeysConfig, RunConfig, UnitsConfig
from ensq.errors import DataError
from ensq.units import EnergyUnit

T, N = 12, 4
FORCES, BOTH, ENERGIES = GammasConfig(), GammasConfig(U=1.0), GammasConfig(F=0.0, U=1.0)
Arrays = dict[str, Any]


def load(
    path: Path,
    gammas: GammasConfig = BOTH,
    *,
    keys: Any = None,
    units: Any = None,
    unit: EnergyUnit = "kcal/mol",
) -> data.Data:
    """Load with names of arrays and units as mappings."""
    settings = DataConfig(
        path="x", keys=KeysConfig(**(keys or {})), units=UnitsConfig(**(units or {}))
    )
    return data.load(path, settings, gammas, unit)


def arrays() -> Arrays:
    """A small data set with nothing wrong: three trajectories, padding in one frame."""
    rng = np.random.default_rng(1)
    mask = np.ones((T, N), np.float32)
    mask[3, 3] = 0
    return {
        "R": rng.normal(size=(T, N, 3)).astype(np.float32),
        "F": rng.normal(size=(T, N, 3)).astype(np.float32),
        "U": rng.normal(size=T),
        "species": np.tile(np.array([0, 1, 2, 1]), (T, 1)),
        "mask": mask,
        "replica": np.repeat([0, 1, 2], T // 3),
        "species_names": np.array(["A", "B", "C"]),
    }


def save(path: Path, values: Arrays) -> Path:
    np.savez(path, **values)
    return path


def error_of(path: Path, gammas: GammasConfig = BOTH, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, gammas, **settings)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def edit(key: str, place: Any, value: Any) -> Callable[[Arrays], None]:
    def apply(raw: Arrays) -> None:
        raw[key][place] = value

    return apply


def replace(**values: Any) -> Callable[[Arrays], None]:
    def apply(raw: Arrays) -> None:
        for key, value in values.items():
            raw[key] = value(raw[key]) if callable(value) else value

    return apply


def without(*keys: str) -> Callable[[Arrays], None]:
    def apply(raw: Arrays) -> None:
        for key in keys:
            del raw[key]

    return apply


def run_config(**values: Any) -> RunConfig:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    text = (
        "data: {path: x}\nmodel: {cutoff: 5.0}\n"
        "training: {val_fraction: 0.25, stages: [{optimizer: adam, epochs: 1}]}"
    )
    return config.parse(text, "c.yaml", overrides)
