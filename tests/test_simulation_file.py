"""The file of a dynamics check: read as it was written, refused where it is none; units of time."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import constants

from ensq import simulation, units
from ensq.errors import DataError
from ensq.simulation import Distribution, Simulation


def made(**changes: object) -> Simulation:
    """Two replicas, one of which was stopped after 30 of 40 steps."""
    bond = Distribution(
        molecule="",
        kind="bond",
        label="bond",
        unit="Angstrom",
        edges=np.linspace(3.0, 5.0, 5),
        simulation=np.array([0.0, 1.0, 1.0, 0.0]),
        data=np.array([0.0, 1.2, 0.8, 0.0]),
        n_simulation=40,
        n_data=80,
        js=0.1,
        js_interval=(0.05, 0.2),
        js_noise=(0.01, 0.02),
        wasserstein=0.2,
        wasserstein_interval=(0.1, 0.3),
        wasserstein_noise=(0.02, 0.05),
    )
    found = Simulation(
        name="tiny",
        seeds=(42, 43),
        source="tiny.npz",
        molecules=("", ""),
        temperature=350.0,
        timestep=5.0,
        friction=1.0,
        steps=40,
        every=20,
        seed=1,
        dtype="float32",
        energy_unit="kcal/mol",
        equilibration=0.05,
        bond_limits="2.8 to 4.9 Angstrom",
        max_epsilon=None,
        interrupted=False,
        seconds=1.5,
        ensemble_temperature=349.0,
        temperature_error=2.0,
        epsilon_levels=simulation.LEVELS,
        epsilon_simulation=(1.0, 2.0, 3.0, 4.0, 5.0),
        epsilon_data=(1.0, 2.0, 3.0, 4.0, 5.0),
        extrapolation=0.01,
        verdict="1 of 2 replicas exploded.",
        stable=False,
        reasons=("", "a bond of 7 Angstrom"),
        time=np.array([0.0, 0.1, 0.2]),
        potential=np.arange(6.0).reshape(3, 2),
        kinetic_temperature=np.full((3, 2), 350.0),
        epsilon_max=np.ones((3, 2)),
        bonds=np.full((3, 2, 2), 3.8),
        recorded=np.array([[True, True], [True, True], [True, False]]),
        steps_done=np.array([40, 30]),
        distributions=(bond,),
    )
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def test_a_simulation_is_read_as_it_was_written(tmp_path: Path) -> None:
    wanted = made()
    path, beside = simulation.write(tmp_path / "analysis" / "simulation-tiny.npz", wanted)
    found = simulation.read(path)
    for field in dataclasses.fields(Simulation):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        elif field.name != "distributions":
            assert one == other and type(one) is type(other), field.name
    for field in dataclasses.fields(Distribution):
        one, other = (getattr(f.distributions[0], field.name) for f in (found, wanted))
        assert np.array_equal(one, other), field.name
    assert simulation.find(path.parent) == [path]
    summary = json.loads(beside.read_text())
    assert (summary["replicas"], summary["survived"]) == (2, 1)
    assert summary["time_done_ps"] == [0.2, 0.15]
    assert summary["distributions"][0]["differs"] is True
    assert found.distributions[0].differs is True


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        simulation.write(tmp_path / "simulation-a.npz", made(temperature_error=math.nan))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK", b"text"])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "simulation-a.npz").write_bytes(content)
    with pytest.raises(DataError, match="no file of `ensq simulate`"):
        simulation.read(tmp_path / "simulation-a.npz")


def test_an_npz_file_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", summary=np.array('{"format": 1}'))
    with pytest.raises(DataError, match="no file of `ensq simulate`"):
        simulation.read(tmp_path / "other.npz")


@pytest.mark.parametrize("unit", ["kcal/mol", "eV"])
def test_units_of_time_and_temperature_are_those_of_the_si(unit: units.EnergyUnit) -> None:
    joule = {"kcal/mol": 4184 / constants.N_A, "eV": constants.e}[unit]
    assert units.boltzmann(unit) == pytest.approx(constants.k / joule, rel=1e-12)
    seconds = constants.angstrom * math.sqrt(constants.atomic_mass / joule)
    assert units.time_unit(unit) == pytest.approx(seconds * 1e15, rel=1e-9)
