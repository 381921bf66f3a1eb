"""Converted sets hold the frames of their source, bit for bit, and notice when they change."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_tools import KEYS, UNITS, convert, load, small_pieces  # noqa: F401
from data_tools import BOTH, FORCES, T, arrays, run_config, save
from fuzz_arrays import data_arrays, npz_mutator

from ensq import data
from ensq.config.structs import DataConfig, GammasConfig, UnitsConfig
from ensq.data import index
from ensq.data.converting import Converted
from ensq.data.examining import examine
from ensq.errors import DataError, DiskError, EnsqError, UsageError
from ensq.units import EnergyUnit


def assert_same(source: Path, units: UnitsConfig = UNITS, unit: EnergyUnit = "kcal/mol") -> Path:
    """Convert, and compare every field of all frames. Returns the set."""
    made = convert(source, units=units)
    one, two = load(source, units, unit), load(made.path, units, unit)
    assert isinstance(one, data.Data)
    assert isinstance(two, data.Stored)
    taken = two.take(np.arange(two.n_frames))
    for key in ("R", "F", "U", "species", "mask", "replica", "cell", "protein"):
        mine, theirs = getattr(taken, key), getattr(one, key)
        assert (mine is None) == (theirs is None), key
        if mine is not None:
            if key != "replica":
                assert mine.dtype == theirs.dtype, key
            np.testing.assert_array_equal(mine, theirs, err_msg=key)
    for key in ("species_names", "elements", "protein_names", "n_frames", "n_beads"):
        assert getattr(two, key) == getattr(one, key), key
    return made.path


def padded_text(raw: dict[str, Any]) -> None:
    raw["species"] = np.tile(np.array(["b", "a", "c", "a"]), (T, 1))
    raw["species"][7:, 0] = "z"
    del raw["species_names"]


def residues(raw: dict[str, Any]) -> None:
    """One atomic number for all beads, and residues that differ in the last frames alone."""
    del raw["species"], raw["species_names"]
    raw["Z"] = np.full((T, 4), 6)
    raw["resname"] = np.tile(np.array(["ALA"] * 4), (T, 1))
    raw["resname"][9:, 1] = "GLY"


def elements(raw: dict[str, Any]) -> None:
    """An element that occurs in the last frame alone, and one on padding."""
    del raw["species"], raw["species_names"]
    raw["Z"] = np.tile(np.array([8, 1, 6, 6]), (T, 1))
    raw["Z"][-1, 2], raw["Z"][3, 3] = 7, 92


def numbered_residues(raw: dict[str, Any]) -> None:
    del raw["species_names"]
    raw["resname"] = np.array(["X", "Y", "Z", "Y"])


def edges(raw: dict[str, Any]) -> None:
    raw["cell"] = np.linspace(4.0, 6.0, 3 * T).reshape(T, 3)
    raw["pbc"] = np.array([1, 1, 0])


def proteins(raw: dict[str, Any]) -> None:
    raw["protein"] = np.repeat(["two", "one"], T // 2)


def by_columns(raw: dict[str, Any]) -> None:
    raw["R"], raw["F"] = np.asfortranarray(raw["R"]), raw["F"].astype(">f8")


def no_padding(raw: dict[str, Any]) -> None:
    del raw["mask"]


def open_cells(raw: dict[str, Any]) -> None:
    raw["cell"], raw["pbc"] = np.eye(3) * 9, np.zeros((T, 3))


def nothing(raw: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    "change",
    [
        *(nothing, padded_text, residues, elements, numbered_residues, edges, proteins),
        *(by_columns, no_padding, open_cells),
    ],
)
@pytest.mark.parametrize("packed", [np.savez, np.savez_compressed])
def test_a_converted_set_holds_the_frames_of_its_file(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], packed: Any
) -> None:
    raw = arrays()
    change(raw)
    packed(tmp_path / "d.npz", **raw)
    assert_same(tmp_path / "d.npz")


def test_species_that_all_frames_share_are_stored_once(tmp_path: Path) -> None:
    raw = arrays()
    del raw["mask"]
    made = convert(save(tmp_path / "d.npz", raw)).index.arrays
    assert made["species"].shape == (4,)
    assert "mask" not in made


@pytest.mark.parametrize("unit", ["kcal/mol", "eV"])
def test_units_are_kept_and_converted_when_frames_are_read(
    tmp_path: Path, unit: EnergyUnit
) -> None:
    raw = arrays()
    raw["cell"] = np.eye(3)
    units = UnitsConfig(energy="kJ/mol", length="nm")
    made = assert_same(save(tmp_path / "d.npz", raw), units, unit)
    np.testing.assert_array_equal(np.load(made / "U.npy"), raw["U"])
    with pytest.raises(DataError, match="converted from data in kJ/mol and nm"):
        load(made)


def test_a_folder_is_joined_as_it_is_when_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    first, second = arrays(), arrays()
    second = {**second, **{key: second[key][:, :3] for key in ("R", "F", "species", "mask")}}
    second["species_names"] = np.array(["C", "A", "D"])
    second["R"] = second["R"].astype(np.float64)
    second["cell"] = np.tile(np.eye(3) * 8, (T, 1, 1))
    save(folder / "a.npz", first)
    save(folder / "b.npz", second)
    assert_same(folder)


def test_files_of_one_molecule_each_become_proteins(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for name, species in (("a", [0, 1, 2, 1]), ("b", [0, 0, 2, 1])):
        raw = {**arrays(), "species": np.array(species)}
        del raw["mask"], raw["replica"]
        save(folder / f"{name}.npz", raw)
    made = load(assert_same(folder))
    assert made.protein_names == ("a", "b")


def test_xyz_files_can_be_converted(tmp_path: Path) -> None:
    frames = []
    for frame in range(5):
        atoms = ["C", "O", "H"][: 2 + frame % 2]
        lines = [
            f"{name} {1.1 * i} {0.1 * frame} 0.0 {frame}.5 0.0 {i}.25"
            for i, name in enumerate(atoms)
        ]
        about = f'Properties=species:S:1:pos:R:3:forces:R:3 energy={frame}.125 pbc="F F F"'
        frames.append("\n".join([str(len(atoms)), about, *lines]))
    (tmp_path / "d.xyz").write_text("\n".join(frames) + "\n")
    assert_same(tmp_path / "d.xyz", UnitsConfig(energy="eV"), "eV")
    assert not list((tmp_path / "set").glob("*.npz"))


def test_the_same_data_give_the_same_set(tmp_path: Path) -> None:
    source = save(tmp_path / "d.npz", arrays())
    one, two = convert(source, name="one"), convert(source, name="two")
    assert one.digest == two.digest == data.digest(one.path)
    assert one.digest != convert(source, name="3", units=UnitsConfig(energy="eV")).digest


def test_split_and_facts_are_those_of_the_source(tmp_path: Path) -> None:
    raw = arrays()
    raw["R"][5] = raw["R"][1]  # a copy, on which the split has to look
    source = save(tmp_path / "d.npz", raw)
    config, found = run_config(), []
    for path in (source, convert(source).path):
        whole = data.load(path, config.data, FORCES, "kcal/mol")
        split = data.split(whole, config, "x")
        found.append((data.facts(whole, split, config, "x"), split))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1].validation, found[1][1].validation)
    np.testing.assert_array_equal(found[0][1].training, found[1][1].training)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "place", "value", "message"),
    [
        ("F", (7, 2, 0), np.nan, "F: frame 7, bead 2 holds NaN or infinity (1 such values)"),
        ("R", (11, 0, 1), np.inf, "R: frame 11, bead 0 holds NaN or infinity (1 such values)"),
        ("U", 5, np.nan, "U: frame 5 holds NaN or infinity (1 such values)"),
        ("species", (8, 1), 9, "species: frame 8, bead 1 has 9; species go from 0 to 2"),
        ("mask", 10, 0, "mask: frame 10 has no real bead (1 such)"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(
    tmp_path: Path, key: str, place: Any, value: Any, message: str
) -> None:
    raw = arrays()
    raw[key][place] = value
    source = save(tmp_path / "d.npz", raw)
    with pytest.raises(DataError) as caught:
        convert(source)
    assert str(caught.value).startswith(f"{source}: {message}")
    assert os.listdir(tmp_path) == ["d.npz"]


def test_shapes_and_a_wrong_unit_are_refused(tmp_path: Path) -> None:
    for key, value, message in (
        ("F", arrays()["F"][:5], "F has shape (5, 4, 3), R has (12, 4, 3)"),
        ("species", np.zeros(5, int), "species has shape (5,); it must be [12,4] or [4]"),
        ("R", arrays()["R"] * np.float32(0.1), "are the positions in nm?"),
        ("cell", np.zeros((5, 3)), "cell has shape (5, 3)"),
    ):
        source = save(tmp_path / "d.npz", {**arrays(), key: value})
        with pytest.raises(DataError) as caught:
            convert(source)
        assert message in str(caught.value)
    assert os.listdir(tmp_path) == ["d.npz"]


def test_a_file_that_is_damaged_behind_its_first_frames_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "d.npz", arrays())
    content = bytearray(source.read_bytes())
    at = content.find(b"F.npy") + 400
    content[at] ^= 1
    source.write_bytes(content)
    with pytest.raises(DataError, match="F: Bad CRC-32"):
        convert(source)
    assert os.listdir(tmp_path) == ["d.npz"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = save(tmp_path / "d.npz", arrays())
    made = convert(source)
    with pytest.raises(UsageError, match="is there already"):
        convert(source)
    with pytest.raises(UsageError, match="is a converted set already"):
        convert(made.path, name="again")


def test_labels_with_a_weight_must_be_there(tmp_path: Path) -> None:
    raw = arrays()
    del raw["U"]
    made = convert(save(tmp_path / "d.npz", raw))
    with pytest.raises(DataError, match=r"has no U, and training.gammas.U is not 0; it has R, F"):
        data.load(made.path, DataConfig(path="x"), BOTH, "kcal/mol")
    assert data.load(made.path, DataConfig(path="x"), GammasConfig(), "kcal/mol").U is None


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    source = save(tmp_path / "d.npz", arrays())
    with pytest.raises(DiskError, match="free space"):
        convert(source)
    assert os.listdir(tmp_path) == ["d.npz"]


def _attempt(work: Callable[[], Any]) -> Any:
    """What it gives, or the error that a person can put right."""
    try:
        return work()
    except EnsqError as error:
        return error


def test_what_loading_takes_convert_takes_and_what_it_refuses_convert_refuses(
    tmp_path: Path,
) -> None:
    """Of files that are damaged or lie about themselves, as of whole ones."""
    mutated, outcomes = npz_mutator(data_arrays()), set()
    source, dest = tmp_path / "d.npz", tmp_path / "set"
    for seed in range(150):
        source.write_bytes(mutated(random.Random(seed)))
        expected, found = _attempt(lambda: load(source)), _attempt(lambda: convert(source))
        assert isinstance(found, DataError) == isinstance(expected, DataError), seed
        assert dest.exists() == isinstance(expected, data.Data)
        outcomes.add(type(found))
        if isinstance(expected, data.Data):
            taken = load(dest).take(np.arange(expected.n_frames))
            for key in ("R", "F", "U", "species", "mask", "cell", "protein"):
                np.testing.assert_array_equal(getattr(taken, key), getattr(expected, key))
            shutil.rmtree(dest)
        assert os.listdir(tmp_path) == ["d.npz"]
    assert outcomes == {DataError, Converted}


def test_a_damaged_set_is_an_error_in_words(tmp_path: Path) -> None:
    made = convert(save(tmp_path / "d.npz", arrays())).path
    refused = 0
    for seed in range(150):
        rng = random.Random(seed)
        file = rng.choice([made / index.NAME, made / "R.npy", made / "species.npy"])
        whole = file.read_bytes()
        at = rng.randrange(len(whole) if file.suffix == ".json" else 200)
        change = rng.choice([b"", b"\0", b"9", b'"', b"-", whole[at : at + 30] * 2])
        file.write_bytes(whole[:at] + change + whole[at + len(change) :])
        stamps = made / index.STAMPS
        stamps.unlink(missing_ok=True)
        found = _attempt(
            lambda: (
                data.digest(made),
                load(made).take(np.arange(T)),
                examine(made, lambda *told: None),
            )
        )
        refused += isinstance(found, EnsqError)
        file.write_bytes(whole)
    assert refused > 50
