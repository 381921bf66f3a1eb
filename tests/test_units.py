"""The one place of units: factors, and what they do to data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from data_tools import arrays, load, save

from ensq.config.structs import UnitsConfig
from ensq.units import ENERGY, LENGTH, EnergyUnit, conversion, convert


def test_every_unit_of_the_configuration_has_a_factor_and_none_is_superfluous() -> None:
    hints = get_type_hints(UnitsConfig)
    assert set(get_args(hints["energy"])) == set(ENERGY)
    assert set(get_args(hints["length"])) == set(LENGTH)
    assert set(get_args(EnergyUnit)) <= set(ENERGY)


def test_factors_are_the_published_ones() -> None:
    assert conversion("eV", "Angstrom", "kcal/mol").energy == pytest.approx(23.060547830619, 1e-12)
    assert conversion("Hartree", "Bohr", "eV").energy == pytest.approx(27.211386245988, 1e-14)
    assert conversion("Hartree", "Bohr", "eV").force == pytest.approx(51.42206747632, 1e-11)
    assert conversion("Hartree", "nm", "kcal/mol").energy == pytest.approx(627.5094740631, 1e-12)
    assert conversion("kJ/mol", "nm", "kcal/mol").force == pytest.approx(1 / 41.84, 1e-15)


@pytest.mark.parametrize("energy", ENERGY)
@pytest.mark.parametrize("unit", get_args(EnergyUnit))
def test_there_and_back_again_is_where_one_was(energy: Any, unit: Any) -> None:
    there = conversion(energy, "Angstrom", unit).energy
    if energy in get_args(EnergyUnit):
        assert there * conversion(unit, "Angstrom", energy).energy == pytest.approx(1.0, 1e-15)
    assert (there == 1.0) == (energy == unit)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_are_multiplied_in_float64_and_keep_their_type(kind: Any) -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(kind)
    found = convert(values, 1 / 4.184)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, (values.astype(np.float64) * (1 / 4.184)).astype(kind))
    assert convert(values, 1.0) is values
    if kind is np.float32:  # in float32 some would be a bit off
        assert (values * np.float32(1 / 4.184) != found).any()


def test_one_system_in_any_units_is_one_data_set(tmp_path: Path) -> None:
    raw = arrays()
    raw = {k: v.astype(np.float64) if k in ("R", "F") else v for k, v in raw.items()}
    raw["cell"] = np.array([30.0, 40.0, 50.0])
    expected = load(save(tmp_path / "a.npz", raw))
    assert expected.F is not None and expected.U is not None and expected.cell is not None
    for energy, per_kcal in (("kJ/mol", 4.184), ("eV", 1 / 23.060547830619)):
        for length, per_angstrom in (("nm", 0.1), ("Bohr", 1 / 0.529177210903)):
            other = {
                **raw,
                "R": raw["R"] * per_angstrom,
                "F": raw["F"] * per_kcal / per_angstrom,
                "U": raw["U"] * per_kcal,
                "cell": raw["cell"] * per_angstrom,
            }
            path = save(tmp_path / "b.npz", other)
            loaded = load(path, units={"energy": energy, "length": length})
            assert loaded.F is not None and loaded.U is not None and loaded.cell is not None
            np.testing.assert_allclose(loaded.R, expected.R, rtol=1e-12)
            np.testing.assert_allclose(loaded.F, expected.F, rtol=1e-12)
            np.testing.assert_allclose(loaded.U, expected.U, rtol=1e-12)
            np.testing.assert_allclose(loaded.cell, expected.cell, rtol=1e-12)
            np.testing.assert_array_equal(loaded.species, expected.species)


def test_a_run_in_another_unit_than_its_data_has_converted_energies(tmp_path: Path) -> None:
    raw = arrays()
    loaded = load(save(tmp_path / "d.npz", raw), unit="eV")
    assert loaded.F is not None
    np.testing.assert_allclose(loaded.U, raw["U"] / 23.060547830619, rtol=1e-12)
    real = raw["mask"].astype(bool)
    np.testing.assert_array_equal(loaded.R[real], raw["R"][real])  # no bit of these
    np.testing.assert_allclose(loaded.F[real], raw["F"][real] / 23.060547830619, rtol=1e-6)
    assert loaded.F.dtype == np.float32
