"""Which array of a file is what: usual names, other people's, and those of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_tools import BOTH, N, T, arrays, error_of, load, save, without

from ensq.data import ELEMENTS


def renamed(**names: str) -> dict[str, Any]:
    raw = arrays()
    for old, new in names.items():
        raw[new] = raw.pop(old)
    return raw


@pytest.mark.parametrize("R", ["coords", "positions", "pos", "conf"])
@pytest.mark.parametrize("U", ["E", "energies", "energy"])
def test_well_known_names_of_other_peoples_files_are_understood(
    tmp_path: Path, R: str, U: str
) -> None:
    expected = load(save(tmp_path / "a.npz", arrays()))
    F = "force" if R == "conf" else "forces"
    loaded = load(save(tmp_path / "b.npz", renamed(R=R, F=F, U=U)))
    np.testing.assert_array_equal(loaded.R, expected.R)
    np.testing.assert_array_equal(loaded.F, expected.F)
    np.testing.assert_array_equal(loaded.U, expected.U)


def test_the_usual_name_counts_before_others(tmp_path: Path) -> None:
    raw = arrays()
    raw["coords"], raw["positions"], raw["E"] = raw["R"] + 1, raw["R"] + 2, raw["U"] + 3
    loaded = load(save(tmp_path / "d.npz", raw))
    np.testing.assert_array_equal(loaded.R[0], raw["R"][0])
    np.testing.assert_array_equal(loaded.U, raw["U"])


def test_two_names_that_could_each_be_meant_are_an_error_until_one_is_chosen(
    tmp_path: Path,
) -> None:
    raw = renamed(F="forces", R="coords")
    raw["pos"] = raw["coords"] + 1
    path = save(tmp_path / "d.npz", raw)
    message = "coords and pos could each be R: say which in data.keys.R"
    assert error_of(path) == message
    np.testing.assert_array_equal(load(path, keys={"R": "pos"}).R[0], raw["pos"][0])
    assert error_of(path, keys={"F": "forces"}) == message
    save(path, {**arrays(), "box": np.ones(3), "lattice": np.ones(3)})
    assert "lattice and box could each be cell: keep one of them" in error_of(path)


def test_names_of_the_configuration_win(tmp_path: Path) -> None:
    raw = arrays()
    raw |= {"x": raw["R"] + 1, "f": raw["F"] + 1, "e": raw["U"] + 1, "kind": raw["species"] * 0}
    path = save(tmp_path / "d.npz", raw)
    loaded = load(path, keys={"R": "x", "F": "f", "U": "e", "species": "kind"})
    np.testing.assert_array_equal(loaded.R[0], raw["x"][0])
    assert loaded.F is not None
    np.testing.assert_array_equal(loaded.F[0], raw["f"][0])
    np.testing.assert_array_equal(loaded.U, raw["e"])
    assert not loaded.species.any()
    assert error_of(path, keys={"F": "g"}).startswith(
        "data.keys.F is 'g', which the file has not; it has R, F, U, species, mask"
    )


def test_errors_call_an_array_what_the_file_calls_it(tmp_path: Path) -> None:
    raw = renamed(F="forces", R="coords", U="energies")
    raw["forces"][7, 2, 0] = np.nan
    path = save(tmp_path / "d.npz", raw)
    assert error_of(path).startswith("forces: frame 7, bead 2 holds NaN")
    save(path, {**raw, "forces": raw["forces"][:5]})
    assert "forces has shape (5, 4, 3), coords has (12, 4, 3)" in error_of(path)
    save(path, {**raw, "energies": np.arange(T)})
    assert "energies has shape (12,) and dtype int64" in error_of(path)


def test_energies_may_have_an_axis_of_one(tmp_path: Path) -> None:
    raw = arrays()
    raw["U"] = raw["U"][:, None].astype(np.float32)
    loaded = load(save(tmp_path / "d.npz", raw))
    assert loaded.U is not None
    assert loaded.U.dtype == np.float64
    np.testing.assert_array_equal(loaded.U, raw["U"][:, 0])


def test_numbers_of_another_byte_order_are_read(tmp_path: Path) -> None:
    raw = arrays()
    expected = raw["R"][0].copy()
    raw["R"] = raw["R"].astype(">f4")
    loaded = load(save(tmp_path / "d.npz", raw))
    assert loaded.R.dtype == np.float32 and loaded.R.dtype.isnative
    np.testing.assert_array_equal(loaded.R[0], expected)


# -- species -----------------------------------------------------------------------------------


def test_a_file_of_rmd17_is_read_as_it_is(tmp_path: Path) -> None:
    """Keys and types as published: 10.6084/m9.figshare.12672038."""
    raw = arrays()
    path = tmp_path / "rmd17_ethanol.npz"
    np.savez(
        path,
        nuclear_charges=np.array([6, 6, 8, 1], np.uint8),
        coords=raw["R"].astype(np.float64),
        energies=raw["U"],
        forces=raw["F"].astype(np.float64),
        old_indices=np.arange(T, dtype=float),
        old_energies=raw["U"] + 1,
        old_forces=raw["F"] + 1,
    )
    loaded = load(path)
    assert loaded.species_names == ("H", "C", "O")
    assert loaded.elements
    assert loaded.species[11].tolist() == [1, 1, 2, 0]
    np.testing.assert_array_equal(loaded.U, raw["U"])
    assert loaded.mask.all()


def test_a_file_of_md17_is_read_as_it_is(tmp_path: Path) -> None:
    raw = arrays()
    path = tmp_path / "md17_ethanol.npz"
    np.savez(
        path,
        E=raw["U"][:, None],
        name=np.array(b"ethanol"),
        F=raw["F"],
        theory=np.array(b"unknown"),
        R=raw["R"],
        z=np.array([6, 6, 8, 1], np.uint8),
        type=np.array(b"d"),
        md5=np.array(b"00"),
    )
    loaded = load(path)
    assert loaded.species_names == ("H", "C", "O")
    np.testing.assert_array_equal(loaded.U, raw["U"])


@pytest.mark.parametrize("Z", [[6.0, 6.0, 8.0, 1.0], ["C", "C", "O", "H"]], ids=["float", "text"])
def test_atomic_numbers_that_are_no_integers_are_refused(tmp_path: Path, Z: list[Any]) -> None:
    raw = {**arrays(), "nuclear_charges": np.array(Z)}
    without("species")(raw)
    error = error_of(save(tmp_path / "d.npz", raw))
    assert error.startswith("nuclear_charges has dtype")
    advice = ", as .astype(int) makes it" if isinstance(Z[0], float) else ""
    assert error.endswith("it must be an integer type" + advice)


def test_atomic_number_0_without_a_mask_asks_for_one(tmp_path: Path) -> None:
    raw = {**arrays(), "z": np.array([6, 1, 8, 0])}
    without("species", "mask")(raw)
    error = error_of(save(tmp_path / "d.npz", raw))
    assert error == "z: frame 0, bead 3 has 0, no atomic number (padding needs a mask)"


def test_residues_tell_beads_of_one_atomic_number_apart(tmp_path: Path) -> None:
    raw = {**arrays(), "Z": np.full(N, 6), "resname": np.array(["GLY", "ALA", "GLY", "TRP"])}
    without("species", "species_names")(raw)
    loaded = load(save(tmp_path / "d.npz", raw))
    assert loaded.species_names == ("ALA", "GLY", "TRP")
    assert loaded.species[0].tolist() == [1, 0, 1, 2]
    assert not loaded.elements
    names = np.array(["TRP", "ALA", "GLY"])  # an order that the file gives is kept
    assert load(save(tmp_path / "n.npz", {**raw, "aa_names": names})).species_names == tuple(names)
    for other in (
        {"Z": np.array([6, 1, 8, 1])},
        {"resname": np.array(["GLY"] * N)},
        {"resname": np.array(["GLY", "ALA", "GLY", "TRP"], object)},
    ):
        assert load(save(tmp_path / "o.npz", {**raw, **other})).elements
    assert load(save(tmp_path / "d.npz", raw), keys={"species": "Z"}).species_names == ("C",)


def test_species_count_before_atomic_numbers_unless_these_are_chosen(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", {**arrays(), "Z": np.array([6, 1, 8, 1])})
    assert load(path).species_names == ("A", "B", "C")
    loaded = load(path, keys={"species": "Z"})
    assert loaded.species_names == ("H", "C", "O")
    assert loaded.elements


@pytest.mark.parametrize(
    ("key", "names", "elements"),
    [
        ("species_names", ["C", "H", "O"], True),
        ("species_names", ["C", "H", "CA1"], False),
        ("species_names", ["X", "H", "O"], False),
        ("aa_names", ["C", "H", "S"], False),  # cysteine, histidine, serine
        (None, None, False),
    ],
)
def test_species_are_elements_only_if_the_file_says_so(
    tmp_path: Path, key: str | None, names: list[str], elements: bool
) -> None:
    raw = arrays()
    without("species_names")(raw)
    if key is not None:
        raw[key] = np.array(names)
    loaded = load(save(tmp_path / "d.npz", raw))
    assert loaded.elements is elements
    assert loaded.species_names == (tuple(names) if names else ("0", "1", "2"))


class Mapping:
    """Stands for a dictionary that was pickled into the file."""


def users_arrays(**values: Any) -> dict[str, Any]:
    """As existing users store them: names only in a pickled dictionary, and in resname."""
    raw = arrays()
    without("species_names")(raw)
    raw["aa_to_id"] = np.array({"ALA": 0, "GLY": 1, "TRP": 2}, object)
    return {**raw, "resname": np.array(["ALA", "GLY", "TRP", "GLY"]), **values}


def test_numbered_species_are_named_by_their_residues(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", users_arrays())
    assert load(path).species_names == ("ALA", "GLY", "TRP")
    # a number for each bead, two of one residue: the numbers are no residues
    save(path, users_arrays(species=np.arange(N)))
    assert load(path).species_names == ("0", "1", "2", "3")
    # gaps keep their numbers
    save(path, users_arrays(species=np.array([0, 3, 4, 3])))
    assert load(path).species_names == ("ALA", "1", "2", "GLY", "TRP")


def test_residue_names_are_species_where_there_are_no_others(tmp_path: Path) -> None:
    raw = users_arrays()
    without("species")(raw)
    path = save(tmp_path / "d.npz", raw)
    loaded = load(path)
    assert loaded.species_names == ("ALA", "GLY", "TRP")
    assert loaded.species[0].tolist() == [0, 1, 2, 1]
    assert not loaded.elements
    save(path, {**raw, "aa_names": np.array(["TRP", "ALA", "GLY", "VAL"])})
    loaded = load(path)
    assert loaded.species_names == ("TRP", "ALA", "GLY", "VAL")
    assert loaded.species[0].tolist() == [1, 2, 0, 2]
    save(path, {**raw, "aa_names": np.array(["TRP", "ALA"])})
    assert error_of(path) == "resname has 'GLY', which is not among aa_names"
    save(path, {**raw, "resname": np.array(["ALA"])})  # of the molecule, not of beads
    assert "key species is missing" in error_of(path)


def test_species_may_be_chosen_from_an_array_of_text(tmp_path: Path) -> None:
    raw = {**arrays(), "bead_type": np.array([b"N", b"CA", b"C", b"CA"])}
    without("species_names")(raw)
    loaded = load(save(tmp_path / "d.npz", raw), keys={"species": "bead_type"})
    assert loaded.species_names == ("C", "CA", "N")
    assert loaded.species[0].tolist() == [2, 1, 0, 1]
    assert not loaded.elements


@pytest.mark.parametrize("key", ["species_names", "protein", "Z"])
def test_pickled_arrays_are_refused_where_they_are_needed(tmp_path: Path, key: str) -> None:
    raw = {**arrays(), key: np.array([Mapping()], object)}
    if key == "Z":
        without("species")(raw)
    path = save(tmp_path / "d.npz", raw)
    assert f"{key} holds pickled objects, which are never read" in error_of(path)
    if key == "Z":  # not needed beside species
        save(path, {**arrays(), "Z": raw["Z"], "resname": raw["Z"]})
        assert load(path, BOTH).n_frames == T


def test_the_list_of_elements_is_the_periodic_table() -> None:
    assert len(ELEMENTS) == 119
    assert [ELEMENTS.index(name) for name in ("H", "C", "Fe", "U", "Og")] == [1, 6, 26, 92, 118]
