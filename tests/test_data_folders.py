"""Species and their names, folders of files, digests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_tools import BOTH, FORCES, Arrays, N, T, arrays, error_of, load, save, without

from ensq import data


def test_atomic_numbers_become_species_named_by_element(tmp_path: Path) -> None:
    raw = arrays()
    without("species", "species_names")(raw)
    raw["Z"] = np.array([6, 1, 8, 1])
    loaded = load(save(tmp_path / "d.npz", raw), BOTH)
    assert loaded.species_names == ("H", "C", "O")
    assert loaded.species[0].tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("number", [0, -1, 119])
def test_a_number_that_is_no_element_is_named(tmp_path: Path, number: int) -> None:
    raw = arrays()
    without("species", "species_names")(raw)
    raw["Z"] = np.tile([6, 1, 8, 1], (T, 1))
    raw["Z"][8, 1] = number
    path = save(tmp_path / "d.npz", raw)
    assert error_of(path) == f"Z: frame 8, bead 1 has {number}, no atomic number"


def test_species_without_names_are_named_by_number(tmp_path: Path) -> None:
    raw = arrays()
    without("species_names")(raw)
    raw["species"][11, 0] = 4
    loaded = load(save(tmp_path / "d.npz", raw), BOTH)
    assert loaded.species_names == ("0", "1", "2", "3", "4")


def folder(path: Path) -> Path:
    path.mkdir()
    raw = arrays()
    save(path / "b.npz", {k: v if k == "species_names" else v[4:] for k, v in raw.items()})
    wide = ("R", "F", "species", "mask")
    save(path / "a.npz", {k: v[:4, :3] if k in wide else v[:4] for k, v in raw.items()})
    return path


def test_a_folder_is_its_files_in_the_order_of_their_names_padded_to_one_size(
    tmp_path: Path,
) -> None:
    loaded = load(folder(tmp_path / "d"), BOTH)
    raw = arrays()
    assert loaded.R.shape == (T, N, 3)
    np.testing.assert_array_equal(loaded.R[:4, :3], raw["R"][:4, :3])
    assert not loaded.mask[:4, 3].any()
    np.testing.assert_array_equal(loaded.R[4:], raw["R"][4:])
    np.testing.assert_array_equal(loaded.U, raw["U"])


def test_files_of_a_folder_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    raw = arrays()
    without("U")(raw)
    save(path / "c.npz", raw)
    assert error_of(path, FORCES) == "some of its files have U and some have not (c.npz)"
    raw = arrays()
    without("species_names")(raw)
    save(path / "c.npz", raw)
    assert "some of its files name their species and some do not (c.npz)" in error_of(path)
    save(path / "c.npz", atoms([6, 1, 8, 1]))
    assert "have chemical elements as species and some do not (a.npz)" in error_of(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert error_of(empty) == "the folder holds no .npz, .extxyz or .xyz file"


def atoms(Z: list[int]) -> Arrays:
    raw = arrays()
    without("species", "species_names", "replica", "mask")(raw)
    return {**raw, "Z": np.array(Z)}


def test_one_set_in_two_formats_is_not_read_twice(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    (path / "a.extxyz").write_text("")
    assert "a.extxyz and a.npz look like one set in two formats" in error_of(path)
    (path / "a.extxyz").unlink()
    (path / "notes.txt").write_text("not data")
    assert load(path).n_frames == T


def test_the_elements_of_a_folder_are_those_of_all_its_files(tmp_path: Path) -> None:
    for name, Z in (("a", [8, 1, 1, 1]), ("b", [6, 1, 7, 1])):
        save(tmp_path / f"{name}.npz", atoms(Z))
    loaded = load(tmp_path)
    assert loaded.species_names == ("H", "C", "N", "O")
    assert loaded.elements
    assert loaded.species[0].tolist() == [3, 0, 0, 0]
    assert loaded.species[T].tolist() == [1, 0, 2, 0]


def test_species_that_files_name_are_joined_by_name(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    raw = {**arrays(), "species_names": np.array(["C", "A", "D"])}
    save(path / "c.npz", raw)
    loaded = load(path)
    assert loaded.species_names == ("A", "B", "C", "D")
    assert loaded.species[T].tolist() == [2, 0, 3, 0]
    assert loaded.species[T + 3].tolist() == [2, 0, 3, 0]  # bead 3 is padding
    assert not loaded.elements


def test_species_that_no_file_names_keep_their_numbers(tmp_path: Path) -> None:
    for name, highest in (("a", 2), ("b", 5)):
        raw = arrays()
        without("species_names")(raw)
        raw["species"][0, 2] = highest
        save(tmp_path / f"{name}.npz", raw)
    loaded = load(tmp_path)
    assert loaded.species_names == ("0", "1", "2", "3", "4", "5")
    assert loaded.species[0, 2] == 2
    assert loaded.species[T, 2] == 5


def trajectories(path: Path, *replicas: Any) -> list[int]:
    path.mkdir()
    for place, replica in enumerate(replicas):
        raw = arrays()
        del raw["replica"]
        if replica is not None:
            raw["replica"] = np.repeat(replica, T // len(replica))
        save(path / f"{place}.npz", raw)
    found = load(path).replica
    assert found is not None
    return list(dict.fromkeys(found.tolist()))


def test_trajectories_of_different_files_stay_apart(tmp_path: Path) -> None:
    assert trajectories(tmp_path / "none", None, None, None) == [0, 1, 2]
    assert trajectories(tmp_path / "same", [0, 1], [0, 1]) == [0, 1, 2, 3]
    assert trajectories(tmp_path / "mixed", [3, 0], None, [0]) == [3, 0, 4, 8]
    assert trajectories(tmp_path / "negative", [-2, 3], [-2, 3]) == [-2, 3, 4, 9]
    # numbers that are unique already stay the user's
    assert trajectories(tmp_path / "unique", [7], [2, 5]) == [7, 2, 5]


# -- proteins ----------------------------------------------------------------------------------


def test_files_with_different_molecules_are_proteins_named_like_the_files(tmp_path: Path) -> None:
    save(tmp_path / "water.npz", atoms([8, 1, 1, 1]))
    save(tmp_path / "methane.npz", atoms([6, 1, 1, 1]))
    loaded = load(tmp_path)
    assert loaded.protein_names == ("methane", "water")
    assert loaded.protein is not None
    assert loaded.protein.tolist() == [0] * T + [1] * T


def test_files_with_one_molecule_or_with_many_make_no_proteins(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", atoms([8, 1, 1, 1]))
    save(tmp_path / "b.npz", atoms([1, 8, 1, 1]))
    assert load(tmp_path).protein is None
    raw = atoms([6, 1, 1, 1])
    raw["Z"] = np.tile(raw["Z"], (T, 1))
    raw["Z"][5, 0] = 7
    save(tmp_path / "b.npz", raw)
    loaded = load(tmp_path)
    assert loaded.protein is None
    assert loaded.protein_names == ()


@pytest.mark.parametrize(
    ("protein", "names"),
    [
        (np.repeat([4, 2], T // 2), ("2", "4")),
        (np.repeat(["b", "a"], T // 2), ("a", "b")),
        (np.repeat([b"b", b"a"], T // 2), ("a", "b")),
    ],
    ids=["numbers", "text", "bytes"],
)
def test_proteins_may_be_numbers_or_text(
    tmp_path: Path, protein: Any, names: tuple[str, ...]
) -> None:
    loaded = load(save(tmp_path / "d.npz", {**arrays(), "protein": protein}))
    assert loaded.protein_names == names
    assert loaded.protein is not None
    assert loaded.protein.tolist() == [1] * 6 + [0] * 6
    again = loaded.take(np.array([7, 0]))
    assert again.protein is not None
    assert again.protein.tolist() == [0, 1]
    assert again.protein_names == names


def test_proteins_of_several_files_are_joined_by_name(tmp_path: Path) -> None:
    names = np.array(["x", "y"])
    numbers = np.repeat([0, 1], T // 2)
    save(tmp_path / "a.npz", {**arrays(), "protein": numbers, "protein_names": names})
    save(tmp_path / "b.npz", {**arrays(), "protein": numbers, "protein_names": names[::-1]})
    save(tmp_path / "c.npz", {**arrays(), "protein": np.array("z")})
    save(tmp_path / "d.npz", arrays())
    loaded = load(tmp_path)
    assert loaded.protein_names == ("x", "y", "z", "d")
    assert loaded.protein is not None
    assert loaded.protein[:: T // 2].tolist() == [0, 1, 1, 0, 2, 2, 3, 3]


def test_proteins_that_are_not_named_are_refused(tmp_path: Path) -> None:
    raw = {**arrays(), "protein": np.repeat([0, 2], 6), "protein_names": np.array(["x", "y"])}
    path = save(tmp_path / "d.npz", raw)
    assert error_of(path) == "protein: frame 6 has 2; the file names proteins 0 to 1"
    save(path, {**raw, "protein": np.repeat(["x", "z"], 6)})
    assert error_of(path) == "protein has 'z', not among protein_names"
    save(path, {**raw, "protein": np.zeros(3, int)})
    assert "protein has shape (3,) and dtype int64" in error_of(path)


# -- digests -----------------------------------------------------------------------------------


def test_the_digest_sees_one_changed_bit_and_a_renamed_or_added_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    digests = [data.digest(path), data.digest(path / "a.npz")]
    assert data.digest(path) == digests[0]
    (path / "b.npz").rename(path / "c.npz")
    digests.append(data.digest(path))
    save(path / "e.npz", arrays())
    digests.append(data.digest(path))
    (path / "f.xyz").write_text("1\n\nH 0 0 0\n")
    digests.append(data.digest(path))
    content = bytearray((path / "a.npz").read_bytes())
    content[100] ^= 1
    (path / "a.npz").write_bytes(content)
    digests += [data.digest(path), data.digest(path / "a.npz")]
    assert len(set(digests)) == len(digests)


def test_digests_are_what_older_versions_recorded(tmp_path: Path) -> None:
    for name in ("b.npz", "a.npz"):
        (tmp_path / name).write_bytes(name.encode())
    one = hashlib.sha256(b"a.npz").hexdigest()
    two = hashlib.sha256(b"b.npz").hexdigest()
    assert data.digest(tmp_path / "a.npz") == one
    whole = f"a.npz {one}\nb.npz {two}\n"
    assert data.digest(tmp_path) == hashlib.sha256(whole.encode()).hexdigest()
