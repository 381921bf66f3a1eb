"""The loader's checks, which name file, key, frame and bead, and the splits."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_tools import (
    BOTH,
    ENERGIES,
    FORCES,
    Arrays,
    T,
    arrays,
    edit,
    error_of,
    load,
    replace,
    save,
    without,
)

from ensq.errors import DataError


def test_a_good_file_is_read_as_it_is(tmp_path: Path) -> None:
    raw = arrays()
    loaded = load(save(tmp_path / "d.npz", raw), BOTH)
    real = raw["mask"].astype(bool)
    np.testing.assert_array_equal(loaded.mask, real)
    np.testing.assert_array_equal(loaded.R[real], raw["R"][real])
    assert loaded.F is not None
    np.testing.assert_array_equal(loaded.F[real], raw["F"][real])
    np.testing.assert_array_equal(loaded.U, raw["U"])
    np.testing.assert_array_equal(loaded.species, np.where(real, raw["species"], 0))
    assert loaded.species_names == ("A", "B", "C")


def test_what_stands_on_padding_is_ignored_and_zeroed(tmp_path: Path) -> None:
    raw = arrays()
    raw["R"][3, 3], raw["F"][3, 3], raw["species"][3, 3] = np.nan, np.inf, -7
    loaded = load(save(tmp_path / "d.npz", raw), BOTH)
    assert loaded.F is not None
    assert not loaded.R[3, 3].any()
    assert not loaded.F[3, 3].any()
    assert loaded.species[3, 3] == 0


# -- checks ------------------------------------------------------------------------------------


WRONG: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "no R": (without("R"), "key R is missing; the file has F, U, species"),
    "no F": (without("F"), "key F is missing"),
    "no U": (without("U"), "key U (or E) is missing; training.gammas.U asks for energies"),
    "no species": (without("species"), "key species is missing (Z, atomic numbers, would do"),
    "flat R": (replace(R=lambda R: R.reshape(T, -1)), "R has shape (12, 12); it must have 3 axes"),
    "2D R": (replace(R=lambda R: R[:, :, :2]), "R has shape (12, 4, 2); it must be [frames, beads"),
    "no frames": (replace(R=lambda R: R[:0]), "R has shape (0, 4, 3)"),
    "integer R": (replace(R=lambda R: R.astype(int)), "R has dtype int64; it must be float32 or"),
    "text R": (replace(R=lambda R: R.astype(str)), "R has dtype <U"),
    "complex F": (replace(F=lambda F: F + 1j), "F has dtype complex"),
    "short F": (replace(F=lambda F: F[:-1]), "F has shape (11, 4, 3), R has (12, 4, 3)"),
    "NaN in R": (edit("R", (7, 2, 1), np.nan), "R: frame 7, bead 2 holds NaN or infinity (1 such"),
    "infinity in F": (edit("F", (11, 0), -np.inf), "F: frame 11, bead 0 holds NaN or infinity (3"),
    "NaN in U": (edit("U", 5, np.nan), "U: frame 5 holds NaN or infinity"),
    "short U": (replace(U=lambda U: U[:-1]), "U has shape (11,) and dtype float64; it must be"),
    "integer U": (replace(U=np.arange(T)), "U has shape (12,) and dtype int64"),
    "late species too high": (
        edit("species", (11, 3), 3),
        "species: frame 11, bead 3 has 3; species go from 0 to 2 (the names in the file)",
    ),
    "late negative species": (edit("species", (10, 1), -1), "species: frame 10, bead 1 has -1"),
    "float species": (
        replace(species=lambda s: s.astype(float)),
        "an integer type, as .astype(int)",
    ),
    "species of halves": (replace(species=lambda s: s + 0.5), "it must be an integer type"),
    "species of one bead too few": (
        replace(species=lambda s: s[:, :3]),
        "species has shape (12, 3); it must be [12,4] or [4]",
    ),
    "mask of 0.5": (edit("mask", (2, 2), 0.5), "mask must hold 1 for real beads and 0 for padding"),
    "mask of NaN": (edit("mask", (2, 2), np.nan), "mask must hold 1 for real beads"),
    "masks of text": (replace(mask=lambda m: m.astype(str)), "mask must hold 1 for real beads"),
    "an empty frame": (edit("mask", 9, 0), "mask: frame 9 has no real bead (1 such)"),
    "short mask": (replace(mask=lambda m: m[:-1]), "mask has shape (11, 4); it must be [12,4]"),
    "short replica": (replace(replica=np.zeros(3, int)), "replica has shape (3,) and dtype int64"),
    "float replica": (replace(replica=np.zeros(T)), "replica has shape (12,) and dtype float64"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_gives_one_line_that_names_the_place(
    tmp_path: Path, spoil: Callable[[Arrays], None], message: str
) -> None:
    raw = arrays()
    spoil(raw)
    assert message in error_of(save(tmp_path / "d.npz", raw))


def test_labels_without_a_weight_may_be_absent(tmp_path: Path) -> None:
    raw = arrays()
    without("U")(raw)
    assert load(save(tmp_path / "f.npz", raw), FORCES).U is None
    raw = arrays()
    without("F")(raw)
    assert load(save(tmp_path / "u.npz", raw), ENERGIES).F is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path / "no.npz") == "no such data file (data.path)"


# -- files that are none -----------------------------------------------------------------------


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("key", ["R", "F", "U", "species", "mask", "replica"])
def test_pickled_numbers_are_refused_by_name_and_not_run(tmp_path: Path, key: str) -> None:
    mark = tmp_path / "mark"
    raw = {**arrays(), key: np.array([Trap(mark)], object)}
    path = save(tmp_path / "d.npz", raw)
    assert f"{key} holds pickled objects, which are never read" in error_of(path)
    assert not mark.exists()
    np.load(path, allow_pickle=True)[key]  # without the protection, it runs
    assert mark.exists()


def test_pickled_arrays_that_are_not_needed_are_left_alone(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    raw = {**arrays(), "notes": np.array([Trap(mark)], object)}
    assert load(save(tmp_path / "d.npz", raw), BOTH).n_frames == T
    assert not mark.exists()


def test_a_pickle_named_npz_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "d.npz"
    path.write_bytes(pickle.dumps(Trap(mark)))
    assert "not a readable NPZ file" in error_of(path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"R = 1\nF = 2\n", b"PK\x03\x04", b"\x93NUMPY"])
def test_something_else_named_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    assert error_of(path).startswith("not a readable NPZ file: ")
    other = tmp_path / "d.h5"
    other.write_bytes(content)
    if b"PK" in content or b"NUMPY" in content:
        assert error_of(other).startswith("not a readable NPZ file: ")
    else:
        assert "it is no ZIP archive" in error_of(path)
        assert "data.path takes .npz files, extended XYZ files (.xyz or" in error_of(other)


def test_a_single_array_named_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    assert error_of(path).startswith("a single array, not an NPZ file")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damage_anywhere_gives_a_data_error_or_nothing_at_all(
    tmp_path: Path, write: Callable[..., None]
) -> None:
    path = tmp_path / "d.npz"
    write(path, **{**arrays(), "notes": np.array(["x"])})
    whole, rng, refused = path.read_bytes(), random.Random(7), 0
    for _ in range(150):
        damaged = bytearray(whole)
        place = rng.randrange(len(whole))
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged if rng.random() < 0.8 else damaged[:place])
        try:
            load(path, BOTH)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 75  # most of the file is covered by checksums
