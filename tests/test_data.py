"""The loader's checks, which name file, key, frame and bead, and the splits."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensq import config, data
from ensq.config.structs import GammasConfig, RunConfig
from ensq.errors import DataError

T, N = 12, 4
FORCES, BOTH, ENERGIES = GammasConfig(), GammasConfig(U=1.0), GammasConfig(F=0.0, U=1.0)
Arrays = dict[str, Any]


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


def error_of(path: Path, gammas: GammasConfig = BOTH) -> str:
    with pytest.raises(DataError) as caught:
        data.load(path, gammas)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_good_file_is_read_as_it_is(tmp_path: Path) -> None:
    raw = arrays()
    loaded = data.load(save(tmp_path / "d.npz", raw), BOTH)
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
    loaded = data.load(save(tmp_path / "d.npz", raw), BOTH)
    assert loaded.F is not None
    assert not loaded.R[3, 3].any()
    assert not loaded.F[3, 3].any()
    assert loaded.species[3, 3] == 0


# -- checks ------------------------------------------------------------------------------------


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
    "float species": (replace(species=lambda s: s.astype(float)), "species has dtype float64"),
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
    assert data.load(save(tmp_path / "f.npz", raw), FORCES).U is None
    raw = arrays()
    without("F")(raw)
    assert data.load(save(tmp_path / "u.npz", raw), ENERGIES).F is None


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
    assert data.load(save(tmp_path / "d.npz", raw), BOTH).n_frames == T
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
            data.load(path, BOTH)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 75  # most of the file is covered by checksums


# -- species of atoms, folders, digest ---------------------------------------------------------


def test_atomic_numbers_become_species_named_by_element(tmp_path: Path) -> None:
    raw = arrays()
    without("species", "species_names")(raw)
    raw["Z"] = np.array([6, 1, 8, 1])
    loaded = data.load(save(tmp_path / "d.npz", raw), BOTH)
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
    loaded = data.load(save(tmp_path / "d.npz", raw), BOTH)
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
    loaded = data.load(folder(tmp_path / "d"), BOTH)
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
    assert error_of(path, FORCES) == "some of its files have U and some have not"
    save(path / "c.npz", {**arrays(), "species_names": np.array(["B", "A", "C"])})
    assert "name their species differently" in error_of(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert error_of(empty) == "the folder holds no .npz file"


def test_the_digest_sees_one_changed_bit_and_a_renamed_or_added_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    digests = [data.digest(path), data.digest(path / "a.npz")]
    assert data.digest(path) == digests[0]
    (path / "b.npz").rename(path / "c.npz")
    digests.append(data.digest(path))
    save(path / "e.npz", arrays())
    digests.append(data.digest(path))
    content = bytearray((path / "a.npz").read_bytes())
    content[100] ^= 1
    (path / "a.npz").write_bytes(content)
    digests += [data.digest(path), data.digest(path / "a.npz")]
    assert len(set(digests)) == len(digests)


# -- splits ------------------------------------------------------------------------------------


def run_config(**values: Any) -> RunConfig:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    text = (
        "data: {path: x}\nmodel: {cutoff: 5.0}\n"
        "training: {val_fraction: 0.25, stages: [{optimizer: adam, epochs: 1}]}"
    )
    return config.parse(text, "c.yaml", overrides)


@pytest.fixture
def loaded(tmp_path: Path) -> data.Data:
    return data.load(save(tmp_path / "d.npz", arrays()), BOTH)


REPLICA = "{by: replica, validation: [2]}"
SPLITS = ["{by: frame}", REPLICA, "{by: tail}"]


@pytest.mark.parametrize("how", SPLITS)
def test_a_split_is_disjoint_and_complete(loaded: data.Data, how: str) -> None:
    split = data.split(loaded, run_config(data__split=how), "d.npz")
    assert sorted([*split.training, *split.validation]) == list(range(T))
    assert len(split.validation) == (4 if how == REPLICA else 3)


def test_a_split_by_frame_is_shuffled_by_the_data_seed_alone(loaded: data.Data) -> None:
    def validation(**values: Any) -> tuple[int, ...]:
        return tuple(data.split(loaded, run_config(**values), "d.npz").validation)

    assert validation(data__seed=1) == validation(data__seed=1, seed=99)
    assert len({validation(data__seed=seed) for seed in range(8)}) > 4
    assert validation(data__seed=1) != (9, 10, 11)  # no tail


def test_a_split_by_replica_keeps_trajectories_whole(loaded: data.Data) -> None:
    split = data.split(loaded, run_config(data__split="{by: replica, validation: [0, 2]}"), "d.npz")
    assert split.training.tolist() == [4, 5, 6, 7]
    assert split.validation.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_split_by_tail_takes_the_end_of_each_trajectory(loaded: data.Data) -> None:
    split = data.split(loaded, run_config(data__split="{by: tail}"), "d.npz")
    assert split.validation.tolist() == [3, 7, 11]


def test_max_frames_draws_from_all_frames_by_the_data_seed(loaded: data.Data) -> None:
    drawn = set()
    for seed in range(10):
        split = data.split(loaded, run_config(data__max_frames=8, data__seed=seed), "d.npz")
        chosen = sorted([*split.training, *split.validation])
        assert len(set(chosen)) == 8
        drawn |= set(chosen)
    assert drawn == set(range(T))  # not the first eight again and again


@pytest.mark.parametrize("how", SPLITS)
def test_copies_of_a_frame_are_never_on_both_sides(loaded: data.Data, how: str) -> None:
    copied = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11])
    twice = loaded.take(copied)
    # Frame 8 now is frame 0; its trajectory is still the third.
    twice = data.Data(**{**vars(twice), "replica": loaded.replica})
    for seed in range(12):
        config = run_config(data__split=how, data__seed=seed)
        split = data.split(twice, config, "d.npz")
        assert sorted([*split.training, *split.validation]) == list(range(T))
        assert (0 in split.training) == (8 in split.training)


def test_without_the_care_for_copies_some_split_would_tear_them_apart(
    loaded: data.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_without_copies", lambda R, t, v: (v, v[:0]))
    with pytest.raises(AssertionError, match="in array"):
        test_copies_of_a_frame_are_never_on_both_sides(loaded, "{by: frame}")
    with pytest.raises(AssertionError, match="in array"):
        test_copies_of_a_frame_are_never_on_both_sides(loaded, REPLICA)


@pytest.mark.parametrize(
    "values",
    [
        {"training__val_fraction": 0.1},  # one frame of twelve
        {"training__val_fraction": 0.99},  # none left to train on
        {"data__max_frames": 2},
        {"data__split": "{by: replica, validation: [0, 1, 2]}"},
    ],
    ids=str,
)
def test_too_few_frames_on_a_side_are_refused(loaded: data.Data, values: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"d.npz: \d+ training and \d+ validation frames; at least"):
        data.split(loaded, run_config(**values), "d.npz")


def test_a_trajectory_that_is_not_there_is_named(loaded: data.Data) -> None:
    config = run_config(data__split="{by: replica, validation: [2, 5]}")
    with pytest.raises(DataError, match="names trajectory 5; there are 0, 1, 2"):
        data.split(loaded, config, "d.npz")
    bare = data.Data(**{**vars(loaded), "replica": None})
    with pytest.raises(DataError, match="needs the key replica in the file"):
        data.split(bare, config, "d.npz")
