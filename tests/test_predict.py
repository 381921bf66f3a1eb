"""``ensq predict``: its files read back, selected frames, deviations in DeePMD's columns."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
from ase.io import read as ase_read
from click.testing import CliRunner, Result
from export_tools import SPECIES, crowd
from predict_tools import (
    SEEDS,
    ensemble,
    export,
    mixed,
    quick_compiles,
    results,
    singly,
    write_data,
)

from ensq import config as configuration
from ensq.cli import cli
from ensq.cli import predict as predict_cli
from ensq.config.structs import DataConfig, GammasConfig, UnitsConfig
from ensq.data import load
from ensq.ensemble import LoadedEnsemble, load_ensemble
from ensq.errors import DataError, UsageError
from ensq.predicted import picking
from ensq.predicted.running import Options, run
from ensq.prediction import Prediction

quick = pytest.fixture(scope="module", autouse=True)(quick_compiles)
KCAL = 23.060547830619  # of an eV


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and mixed.npz with labels."""
    place = tmp_path_factory.mktemp("predict")
    export(place / "models", results())
    rng = np.random.default_rng(5)
    frames = mixed(20)
    write_data(
        place / "mixed.npz",
        frames,
        F=np.where(frames.mask[..., None], rng.normal(size=frames.R.shape), 0.0),
        U=rng.normal(size=20),
        replica=np.repeat([0, 1], 10),
    )
    return place


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedEnsemble:
    return load_ensemble(folder / "models")


@pytest.fixture(scope="module")
def truth(loaded: LoadedEnsemble) -> tuple[np.ndarray, np.ndarray]:
    return singly(loaded.members.results, mixed(20))


def command(*arguments: Any) -> Result:
    """In this process, as a person calls it."""
    return CliRunner().invoke(cli, [str(one) for one in ("predict", *arguments)])


def plain(options: Options, folder: Path, loaded: LoadedEnsemble) -> Any:
    return run(loaded, folder / "mixed.npz", options)


def test_an_npz_file_has_all_that_was_predicted(
    folder: Path, loaded: LoadedEnsemble, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    path = folder / "out.npz"
    plain(Options(output=path, members=True, ddof=1), folder, loaded)
    energies, forces = truth
    frames = mixed(20)
    with np.load(path) as found:
        assert set(found) == {
            *("energy_mean", "energy_std", "forces_mean", "forces_std", "epsilon"),
            *("epsilon_max", "epsilon_mean", "epsilon_min", "energies", "forces", "mask"),
            *("species", "species_names", "seeds", "digests", "ensemble", "ddof"),
            *("energy_unit", "force_unit", "ensq_version", "energies_trained"),
        }
        np.testing.assert_allclose(found["energy_mean"], energies.mean(0), atol=1e-4)
        np.testing.assert_allclose(found["forces"], forces, atol=1e-3)
        np.testing.assert_allclose(found["forces_std"], forces.std(0, ddof=1), atol=1e-3)
        np.testing.assert_array_equal(found["mask"], frames.mask)
        np.testing.assert_array_equal(found["species"], frames.species)
        assert tuple(found["species_names"]) == SPECIES and tuple(found["seeds"]) == SEEDS
        assert tuple(found["digests"]) == loaded.members.digests
        assert (found["ddof"], found["force_unit"]) == (1, "kcal/mol/Angstrom")


def test_hdf5_written_as_predictions_come_holds_the_same(
    folder: Path, loaded: LoadedEnsemble
) -> None:
    options = Options(members=True, energy_unit="eV", length_unit="nm", batch=3)
    plain(dataclasses.replace(options, output=folder / "same.npz"), folder, loaded)
    plain(dataclasses.replace(options, output=folder / "same.h5"), folder, loaded)
    with np.load(folder / "same.npz") as one, h5py.File(folder / "same.h5") as other:
        for name in one.files:
            if name in other.attrs:
                assert other.attrs[name] == one[name]
            elif one[name].dtype.kind == "U":
                assert [text.decode() for text in other[name][()]] == one[name].tolist()
            else:
                np.testing.assert_array_equal(other[name][()], one[name])
        assert other["epsilon"].attrs["unit"] == "eV/nm"
        assert other["energies"].attrs["unit"] == "eV"


def test_ase_reads_extended_xyz_back(
    folder: Path, loaded: LoadedEnsemble, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    path = folder / "out.extxyz"
    plain(Options(output=path, energy_unit="eV"), folder, loaded)
    energies, forces = truth
    frames = mixed(20)
    found = ase_read(path, index=":")
    assert len(found) == 20
    for t, atoms in enumerate(found):
        real = frames.mask[t]
        np.testing.assert_allclose(
            atoms.get_potential_energy(), energies[:, t].mean() / KCAL, atol=1e-5
        )
        np.testing.assert_allclose(atoms.get_forces(), forces[:, t].mean(0)[real] / KCAL, atol=1e-4)
        np.testing.assert_allclose(
            atoms.arrays["forces_std"], forces[:, t].std(0)[real] / KCAL, atol=1e-4
        )
        names = [SPECIES[kind] for kind in frames.species[t][real]]
        assert atoms.arrays["bead"].tolist() == names and atoms.info["energy_unit"] == "eV"
        assert atoms.info["epsilon_max"] == pytest.approx(atoms.arrays["epsilon"].max(), abs=1e-7)
    with pytest.raises(UsageError, match="Angstrom"):
        plain(Options(output=folder / "nm.extxyz", length_unit="nm"), folder, loaded)


def test_model_deviations_have_deepmd_s_columns_and_values(
    folder: Path, loaded: LoadedEnsemble, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    path = folder / "model_devi.out"
    plain(Options(model_devi=path, ddof=1, energy_unit="Hartree"), folder, loaded)
    lines = path.read_text().splitlines()
    head = "# step max_devi_v min_devi_v avg_devi_v max_devi_f min_devi_f avg_devi_f devi_e"
    assert lines[1].split() == head.split()
    assert [len(line) for line in lines[2:]] == [12 + 7 * 19] * 20
    found = np.loadtxt(path)
    energies, forces = truth
    frames = mixed(20)
    R = frames.R.astype(np.float64)
    for t in range(20):
        real = frames.mask[t]
        f = forces[:, t, real] / KCAL
        # boundaries are open: the virial is the sum of r F
        v = np.einsum("ni,mnj->mij", R[t, real], f).reshape(len(SEEDS), 9) / real.sum()
        devi_f = np.linalg.norm(np.std(f, axis=0), axis=-1)
        devi_v = np.std(v, axis=0)
        devi_e = np.std(energies[:, t] / KCAL / real.sum())
        expected = [
            *(t, devi_v.max(), devi_v.min(), np.linalg.norm(devi_v) / 3),
            *(devi_f.max(), devi_f.min(), devi_f.mean(), devi_e),
        ]
        np.testing.assert_allclose(found[t], expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("ending", ["npz", "extxyz"])
def test_selected_frames_are_data_again_with_all_their_labels(
    folder: Path, loaded: LoadedEnsemble, ending: str
) -> None:
    path = folder / f"picked.{ending}"
    units = UnitsConfig(energy="kJ/mol", length="Angstrom")
    done = plain(Options(output=path, select=4, units=units), folder, loaded)
    settings = DataConfig(path="x", units=units)
    source = load(folder / "mixed.npz", settings, None, "kcal/mol")
    worst = np.argsort(-done.per_frame.epsilon_max)[:4]
    assert sorted(worst.tolist()) == done.picked.tolist()
    from ensq.config.structs import KeysConfig

    if ending == "extxyz":
        settings = DataConfig(path="x", units=units, keys=KeysConfig(species="bead"))
    again = load(path, settings, None, "kcal/mol")
    expected = source.take(done.picked)
    assert again.F is not None and again.U is not None and again.replica is not None
    width = again.R.shape[1]
    close = {"atol": 0 if ending == "npz" else 2e-8, "rtol": 1e-7}
    np.testing.assert_allclose(again.R, expected.R[:, :width], **close)
    np.testing.assert_allclose(again.F, expected.F[:, :width], **close)
    np.testing.assert_allclose(again.U, expected.U, rtol=1e-14)
    np.testing.assert_array_equal(again.replica, expected.replica)
    np.testing.assert_array_equal(again.mask, expected.mask[:, :width])
    names = np.array(again.species_names)[again.species][again.mask]
    assert (names == np.array(SPECIES)[expected.species][expected.mask]).all()


def test_npz_keeps_the_bits_of_data_in_the_run_s_unit_and_cells(
    folder: Path, tmp_path: Path
) -> None:
    frames = dataclasses.replace(
        crowd("triclinic", 6), elements=True, species_names=("C", "H", "O")
    )
    write_data(tmp_path / "cells.npz", frames)
    members = [
        dataclasses.replace(one, species_names=("C", "H", "O")) for one in results("triclinic")
    ]
    periodic = load_ensemble(export(tmp_path / "models", members))
    for name in ("picked.npz", "picked.extxyz"):
        run(periodic, tmp_path / "cells.npz", Options(output=tmp_path / name, select=2))
        again = periodic.read(tmp_path / name)
        with np.load(tmp_path / "picked.npz") as found:
            index = found["source_frame"]
        assert again.cell is not None and frames.cell is not None and again.elements
        np.testing.assert_allclose(again.cell[:], frames.cell[index], atol=1e-12)
        if name.endswith("npz"):
            np.testing.assert_array_equal(again.R[:], frames.R[index])


def test_neighbours_in_time_are_left_out() -> None:
    rng = np.random.default_rng(3)
    value, where = rng.normal(size=200), np.repeat([0, 1], 100)
    value[50:60] += 10  # all the most uncertain are together
    assert picking.pick(value, 10, where).tolist() == list(range(50, 60))
    found = picking.pick(value, 10, where, apart=8)
    assert len(found) == 10 and int(np.argmax(value)) in found
    for one in found:
        near = [k for k in found if k != one and where[k] == where[one] and abs(k - one) < 8]
        assert near == []
        # whatever is more uncertain and was not taken is near one that was
    for k in np.flatnonzero(value > value[found].min()):
        assert any(where[k] == where[one] and abs(k - one) < 8 for one in found)
    assert len(picking.pick(value, 500, where, apart=50)) < 9


def test_trajectories_are_told_apart_by_replica_and_protein(loaded: LoadedEnsemble) -> None:
    frames = dataclasses.replace(
        crowd("open", 4), replica=np.array([7, 7, 9, 9]), protein=np.array([0, 1, 0, 0], np.int32)
    )
    found = picking.trajectories(frames)
    assert found[2] == found[3] and len(set(found.tolist())) == 3


def test_the_command_tells_units_quantiles_and_the_worst_frame(
    folder: Path, truth: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    asked = (folder / "models", folder / "mixed.npz", "-o", out, "--energy-unit", "eV", "--json")
    told = json.loads(command(*asked).stdout)
    energies, _ = truth
    spread = energies.std(0) / KCAL
    assert told["spread"]["energy_std"]["q50"] == pytest.approx(np.median(spread), rel=1e-3)
    assert told["spread"]["energy_std"]["max_frame"] == int(np.argmax(spread))
    assert (told["frames"], told["energy_unit"], told["seeds"]) == (20, "eV", list(SEEDS))
    again = command(*asked)
    assert isinstance(again.exception, UsageError) and "--force" in str(again.exception)
    shown = command(*asked[:-1], "--force")
    assert shown.exit_code == 0 and "ddof 0" in shown.stdout and "eV/Angstrom" in shown.stdout
    assert all(len(line) <= 80 or str(tmp_path) in line for line in shown.stdout.splitlines()[2:])
    assert "predicted: 20 of 20 frames" in shown.stderr


def test_one_member_has_predictions_and_no_spread(folder: Path, tmp_path: Path) -> None:
    models = export(tmp_path / "models", results(seeds=(3,)))
    out = tmp_path / "one.npz"
    shown = command(models, folder / "mixed.npz", "-o", out)
    assert "1 member, seed 3\n" in shown.stdout
    assert "one member has no spread" in shown.stdout and "nan" not in shown.stdout.lower()
    with np.load(out) as found:
        assert np.isfinite(found["forces_mean"]).all()
        assert not {"forces_std", "energy_std", "epsilon", "epsilon_max"} & set(found)
    for option in (("--select", 2), ("--model-devi", tmp_path / "devi.out")):
        refused = command(models, folder / "mixed.npz", *option)
        assert "needs a spread" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-o", "out.csv"), "go into .npz, .h5 or .extxyz"),
        (("-o", "no/such/out.npz"), "there is no folder"),
        (("-o", "mixed.npz"), "is the data file itself"),
        (("-o", "x.npz", "--model-devi", "x.npz"), "name one file"),
        (("--units", "kcal,nm"), "write one of"),
        (("--key", "Q=x"), "write R="),
        (("--select", "2", "--members"), "--members"),
        (("--select", "2", "-o", "x.h5"), "frames go into .npz or .extxyz"),
    ],
)
def test_what_can_t_be_meant_is_refused_before_anything_is_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    refused = command("models", "mixed.npz", *arguments)
    assert isinstance(refused.exception, UsageError) and says in str(refused.exception)
    assert sorted(folder.iterdir()) == before


def test_calibrated_spreads_are_written_and_deviations_stay_as_they_are(
    folder: Path, tmp_path: Path
) -> None:
    class Threefold:
        def check(self, how: str) -> None:
            if how != "global":
                raise UsageError(f"no factor {how!r}")

        def apply(self, found: Prediction, how: str) -> Prediction:
            assert how == "global"
            return dataclasses.replace(
                found, forces_std=3 * found.forces_std, epsilon=3 * found.epsilon
            )

    own = load_ensemble(folder / "models")
    with pytest.raises(UsageError, match="evaluate"):
        run(own, folder / "mixed.npz", Options(calibrated="global"))
    own.__dict__["calibration"] = Threefold()
    with pytest.raises(UsageError, match="no factor 'noise'"):  # before anything is computed
        run(own, folder / "mixed.npz", Options(calibrated="noise"))
    one, devi = tmp_path / "one.npz", tmp_path / "devi.out"
    plain_ones = run(own, folder / "mixed.npz", Options())
    run(own, folder / "mixed.npz", Options(output=one, model_devi=devi, calibrated="global"))
    with np.load(one) as found:
        assert str(found["calibration"]) == "global"
        np.testing.assert_allclose(found["epsilon_max"], 3 * plain_ones.per_frame.epsilon_max)
    largest = np.loadtxt(devi)[:, 4] * KCAL
    np.testing.assert_allclose(largest, plain_ones.per_frame.epsilon_max, rtol=1e-5)
    direct = own.predict(folder / "mixed.npz", calibrated="global")
    np.testing.assert_allclose(direct.epsilon_max, 3 * plain_ones.per_frame.epsilon_max)


@pytest.mark.parametrize("ending", ["h5", "npz", "extxyz"])
def test_a_failure_on_the_way_leaves_no_file_and_the_old_one(
    folder: Path, loaded: LoadedEnsemble, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"out.{ending}"
    path.write_text("old")

    def stop(done: int, total: int) -> None:
        if done > 5:
            raise KeyboardInterrupt

    options = Options(output=path, batch=3, force=True)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, folder / "mixed.npz", options, stop)
    assert sorted(tmp_path.iterdir()) == [path] and path.read_text() == "old"
    run(loaded, folder / "mixed.npz", options)
    assert path.stat().st_size > 1000 and sorted(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_labels_that_the_training_named_need_not_be_there(tmp_path: Path) -> None:
    members = results("open", SEEDS[:2], "data.keys.F=dft_force", "data.keys.U=dft")
    loaded = load_ensemble(export(tmp_path / "models", members))
    path = write_data(tmp_path / "bare.npz", crowd("open", 2))
    source = loaded.read(path)
    assert source.F is None and source.U is None
    (tmp_path / "bare.xyz").write_text(
        "2\nProperties=species:S:1:pos:R:3\nC 0 0 0\nC 0 0 1.5\n", encoding="utf-8"
    )
    settings = loaded.config.data
    assert load(tmp_path / "bare.xyz", settings, None, "kcal/mol").F is None


@pytest.mark.parametrize("ending", ["npz", "extxyz"])
def test_a_label_that_key_names_must_be_there_and_no_other_is_taken_for_it(
    folder: Path, loaded: LoadedEnsemble, tmp_path: Path, ending: str
) -> None:
    """A slip of the pen must not write the labels of another array."""
    path = tmp_path / f"data.{ending}"
    run(loaded, folder / "mixed.npz", Options(output=path, select=20))
    arguments = ("--select", 2, "-o", tmp_path / f"picked.{ending}")
    refused = command(folder / "models", path, *arguments, "--key", "F=dft_forse")
    assert isinstance(refused.exception, DataError)
    assert "dft_forse" in str(refused.exception) and "--key F=" in str(refused.exception)
    assert not (tmp_path / f"picked.{ending}").exists()


def test_a_file_without_frames_is_called_empty(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    np.savez(path, R=np.zeros((0, 3, 3), np.float32), species=np.zeros((0, 3), np.int32))
    refused = command(folder / "models", path)
    assert isinstance(refused.exception, DataError) and "holds no frame" in str(refused.exception)


def test_frames_that_are_selected_and_not_written_are_told_to_be(folder: Path) -> None:
    shown = " ".join(command(folder / "models", folder / "mixed.npz", "--select", 1).stdout.split())
    assert "selected 1 frame by" in shown and "not written: -o picked.npz" in shown


def test_energies_that_were_not_trained_are_told(folder: Path, loaded: LoadedEnsemble) -> None:
    """Their constants differ from member to member: their spread says nothing of a frame."""
    done = plain(Options(), folder, loaded)
    assert not done.about.plain()["energies_trained"]
    assert any("not trained" in line for line in predict_cli.lines(done, Options()))
    with pytest.raises(UsageError, match="--by energy: energies were not trained"):
        plain(Options(select=2, by="energy"), folder, loaded)
    config = configuration.loads(loaded.members.results[0].config)
    training = msgspec.structs.replace(config.training, gammas=GammasConfig(F=1.0, U=0.1))
    text = configuration.dumps(msgspec.structs.replace(config, training=training))
    knowing = ensemble([dataclasses.replace(one, config=text) for one in loaded.members.results])
    done = plain(Options(select=2, by="energy"), folder, knowing)
    assert done.about.energies_trained
    assert not any("not trained" in line for line in predict_cli.lines(done, Options()))
