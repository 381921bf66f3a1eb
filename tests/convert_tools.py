"""Small sets that are converted and loaded, for the tests of converted sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensq import data
from ensq.config.structs import DataConfig, KeysConfig, UnitsConfig
from ensq.data import stored
from ensq.data.converting import Converted, convert_set
from ensq.units import EnergyUnit

UNITS, KEYS = UnitsConfig(), KeysConfig()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three frames of the small set at a time, so that every set is read in several pieces."""
    monkeypatch.setattr(stored, "_BEADS_AT_ONCE", 12)


def convert(
    source: Path, *, units: UnitsConfig = UNITS, keys: KeysConfig = KEYS, name: str = "set"
) -> Converted:
    return convert_set(source, source.parent / name, units=units, keys=keys)


def load(path: Path, units: UnitsConfig = UNITS, unit: EnergyUnit = "kcal/mol") -> data.Source:
    return data.load(path, DataConfig(path="x", units=units), None, unit)
