"""The file of spline priors becomes a part of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from legacy_tools import spline_arrays

from ensq import config
from ensq.config.splines import read
from ensq.errors import ConfigError

TEXT = """
data: {path: d.npz}
model:
  cutoff: 10.0
  use_priors: true
  priors: {use_spline_priors: true, spline_file: s.npz}
training: {stages: [{optimizer: adam, epochs: 1}]}
"""


def write(folder: Path, without: tuple[str, ...] = (), **changes: Any) -> Path:
    """A configuration and its file of splines."""
    arrays = {key: value for key, value in spline_arrays().items() if key not in without}
    np.savez(folder / "s.npz", **{**arrays, **changes})
    (folder / "c.yaml").write_text(TEXT)
    return folder / "c.yaml"


def test_the_splines_stand_in_the_configuration(tmp_path: Path) -> None:
    splines = config.load(write(tmp_path)).model.priors.splines
    assert splines is not None and splines.dih is not None
    arrays = spline_arrays()
    np.testing.assert_array_equal(splines.dih.knots, arrays["dih_knots"])
    np.testing.assert_array_equal(splines.dih.coeffs, arrays["dih_coeffs"])
    assert splines.angle_types == ()  # residue_specific_angles is off


def test_angles_by_species_are_read_where_they_are_used(tmp_path: Path) -> None:
    path = write(tmp_path)
    run = config.load(path, ["model.priors.residue_specific_angles=true"])
    splines = run.model.priors.splines
    assert splines is not None
    first, second, third = splines.angle_types
    assert first is not None and second is None and third is not None
    np.testing.assert_array_equal(third.coeffs, spline_arrays()["angle_type_coeffs"][2])


def test_without_spline_priors_the_file_is_not_touched(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "s.npz").unlink()
    overrides = ["model.priors={use_spline_priors: false, spline_file: s.npz, r0: 3.8, kr: 1.0}"]
    assert config.load(path, overrides).model.priors.splines is None


def test_the_file_beside_the_configuration_comes_before_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write(here, bond_knots=np.linspace(2.0, 3.0, 5))
    path = write(there)
    monkeypatch.chdir(here)
    beside = config.load(path).model.priors.splines
    (there / "s.npz").unlink()
    in_folder = config.load(path).model.priors.splines
    assert beside is not None and beside.bond is not None and beside.bond.knots[0] == 3.0
    assert in_folder is not None and in_folder.bond is not None
    assert in_folder.bond.knots[0] == 2.0
    (here / "s.npz").unlink()
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(there / "s.npz") in str(caught.value) and str(here / "s.npz") in str(caught.value)


def test_where_the_file_lies_does_not_make_another_ensemble(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = config.load(path)
    (tmp_path / "s.npz").rename(tmp_path / "moved.npz")
    after = config.load(path, ["model.priors.spline_file=moved.npz"])
    assert config.digest(before) == config.digest(after)
    write(tmp_path, bond_knots=np.linspace(2.0, 3.0, 5))
    assert config.digest(config.load(path)) != config.digest(before)


def test_a_file_with_some_of_the_terms_has_the_others_empty(tmp_path: Path) -> None:
    path = write(tmp_path, without=("bond_knots", "bond_coeffs"))
    splines = config.load(path).model.priors.splines
    assert splines is not None and splines.bond is None and splines.angle is not None


@pytest.mark.parametrize(
    ("without", "changes", "message"),
    [
        (("bond_knots",), {}, "bond_knots and bond_coeffs go together"),
        ((), {"bond_coeffs": np.zeros((5, 4))}, r"bond_knots has shape \[5\] and bond_coeffs \[5"),
        ((), {"dih_knots": np.zeros(5)}, "dih: the knots of a spline must rise"),
        ((), {"angle_coeffs": np.full((4, 4), np.nan)}, "angle: spline must be a finite number"),
        ((), {"bond_knots": np.array(["a"] * 5)}, "not a readable NPZ file of splines"),
        ((), {"bond_knots": np.array([{}] * 5)}, "pickled data, which ensq never loads"),
        (("angle_type_mask",), {}, "angle_type_mask missing"),
        ((), {"angle_type_mask": np.ones(4)}, "one entry per species"),
        ((), {"angle_type_coeffs": np.zeros((3, 5, 4))}, r"angle_type 0_knots has shape \[5\]"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(
    tmp_path: Path, without: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, without, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(path, ["model.priors.residue_specific_angles=true"])
    assert "s.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn", b"\x80\x04N."])
def test_a_file_that_is_no_archive_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path)
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"s\.npz: not a readable NPZ file of splines"):
        config.load(path)


def test_a_single_array_or_an_empty_archive_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="holds one array"):
        read(tmp_path / "one.npy", types=False)
    np.savez(tmp_path / "none.npz", x=np.zeros(3))
    with pytest.raises(ConfigError, match="no splines in it"):
        read(tmp_path / "none.npz", types=False)


@pytest.mark.parametrize(("said", "factor"), [({}, 1 / 23.06054783), ({"energy_unit": "eV"}, 1.0)])
def test_energies_are_converted_to_the_runs_unit(
    tmp_path: Path, said: dict[str, str], factor: float
) -> None:
    """A file that names no unit is in kcal/mol, as older ones are."""
    splines = config.load(write(tmp_path, **said), ["energy_unit=eV"]).model.priors.splines
    assert splines is not None and splines.bond is not None
    expected = factor * spline_arrays()["bond_coeffs"]
    np.testing.assert_allclose(splines.bond.coeffs, expected, rtol=1e-7)


def test_another_unit_of_energy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="energy_unit is 'K'"):
        config.load(write(tmp_path, energy_unit="K"))
