"""Statistics, choice of the best, metadata, and files that are replaced all at once."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ensemble_tools import with_losses
from train_tools import tiny_arrays

from ensq import publish as publishing
from ensq import selection
from ensq.errors import EnsqError, MismatchError
from ensq.finalize import METADATA, finalize
from ensq.jobs import Ensemble
from ensq.store import Store

PLAN = (3.45, 3.21, 3.67, 3.12, 3.89)  # the plan's example, base_seed 42
PLAN_KEYS = [
    "n_models",
    "base_seed",
    "seeds",
    "validation_losses",
    "mean_loss",
    "std_loss",
    "variance_loss",
    "best_model_index",
    "best_model_seed",
    "best_model_loss",
    "training_config",
]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Ensemble]:
    return with_losses(tmp_path_factory.mktemp("plan"), PLAN)


@pytest.fixture(scope="module")
def exported(plan: tuple[Store, Ensemble], tmp_path_factory: pytest.TempPathFactory) -> Any:
    store, ensemble = plan
    return finalize(store, ensemble, export_dir=tmp_path_factory.mktemp("out") / "exported")


def test_statistics_are_the_populations() -> None:
    found = selection.ensemble_statistics(PLAN)
    mean = sum(PLAN) / 5
    variance = sum((loss - mean) ** 2 for loss in PLAN) / 5
    assert found.mean == pytest.approx(mean, rel=1e-15)
    assert found.variance == pytest.approx(variance, rel=1e-12)
    assert found.std == pytest.approx(variance**0.5, rel=1e-12)
    assert found.best == 3


def test_first_of_equal_losses_is_the_best() -> None:
    assert selection.ensemble_statistics([2.0, 1.0, 1.0]).best == 1


@pytest.mark.parametrize("losses", [[], [1.0, float("nan")], [float("inf")]])
def test_statistics_of_nothing_or_of_nan_are_refused(losses: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no losses|not finite"):
        selection.ensemble_statistics(losses)


def test_metadata_has_the_plans_keys_and_values(exported: Any) -> None:
    found = json.loads((exported.folder / METADATA).read_text())
    assert set(PLAN_KEYS) <= set(found)
    assert found["n_models"] == 5
    assert found["seeds"] == [42, 43, 44, 45, 46]
    assert found["validation_losses"] == pytest.approx(list(PLAN), rel=1e-12)
    assert (found["best_model_index"], found["best_model_seed"]) == (3, 45)
    assert found["best_model_loss"] == pytest.approx(3.12, rel=1e-12)
    assert found["std_loss"] == pytest.approx(np.std(PLAN), rel=1e-12)
    assert found["ddof"] == 0
    assert found["training_config"]["ensemble"]["n_models"] == 5


def test_exported_files_are_those_of_the_plan(exported: Any) -> None:
    stems = ["tiny_best", *(f"tiny_ensemble_{index}" for index in range(5))]
    endings = (".mlir", "_params.pkl", ".safetensors")
    wanted = {METADATA, "tiny_ensemble_mean.mlir"}
    wanted |= {stem + ending for stem in stems for ending in endings}
    assert set(os.listdir(exported.folder)) == wanted
    best = (exported.folder / "tiny_best.mlir").read_bytes()
    assert best == (exported.folder / "tiny_ensemble_3.mlir").read_bytes()
    assert best != (exported.folder / "tiny_ensemble_2.mlir").read_bytes()


def test_metadata_tell_how_the_exports_were_proven(exported: Any) -> None:
    found = exported.metadata["export_comparison"]
    assert {"tiny_best.mlir", "tiny_ensemble_0.mlir", "tiny_ensemble_mean.mlir"} <= set(found)
    for comparison in found.values():
        assert comparison["relative_force_difference"] < 1e-4
        assert comparison["frames_split_over_two_domains"] == 1
        assert comparison["most_ghosts_of_a_domain"] > 0
    assert exported.metadata["priors"] == "none"


def test_metadata_have_each_members_errors_by_protein_and_species(exported: Any) -> None:
    member = exported.metadata["members"][0]
    (protein,) = member["proteins"].values()
    assert protein["loss"] == pytest.approx(PLAN[0])
    assert set(member["species"]) == {"A", "B", "C"}


def test_pickle_and_safetensors_hold_the_same_parameters(exported: Any) -> None:
    from ensq.train.checkpoint import read_result

    # The test reads the pickle as people's scripts do; ensq never does.
    pickled = pickle.loads((exported.folder / "tiny_best_params.pkl").read_bytes())
    stored = read_result((exported.folder / "tiny_best.safetensors").read_bytes()).params
    import jax

    same = jax.tree_util.tree_map(np.array_equal, pickled, stored)
    assert all(jax.tree_util.tree_leaves(same))


def test_finalize_twice_writes_the_same_bytes(exported: Any, plan: Any) -> None:
    before = {path.name: path.read_bytes() for path in exported.folder.iterdir()}
    finalize(*plan, export_dir=exported.folder)
    assert {path.name: path.read_bytes() for path in exported.folder.iterdir()} == before


def test_damaged_or_missing_exports_are_made_anew(exported: Any, plan: Any) -> None:
    before = {path.name: path.read_bytes() for path in exported.folder.iterdir()}
    (exported.folder / "tiny_best.mlir").write_bytes(b"damaged")
    (exported.folder / "tiny_ensemble_1.safetensors").unlink()
    said: list[str] = []
    finalize(*plan, export_dir=exported.folder, say=said.append)
    assert {path.name: path.read_bytes() for path in exported.folder.iterdir()} == before
    assert any("exporting" in line for line in said)
    said.clear()
    finalize(*plan, export_dir=exported.folder, say=said.append)
    assert not any("exporting" in line for line in said), "made again what was there"


def test_incomplete_ensemble_is_refused_unless_allowed(tmp_path: Path) -> None:
    store, ensemble = with_losses(tmp_path, [2.0, None])
    with pytest.raises(EnsqError, match=r"1 of 2 members .* seed 43 queued.*--allow-missing"):
        finalize(store, ensemble)
    done = finalize(store, ensemble, allow_missing=True)
    assert [member.seed for member in done.members] == [42]
    assert done.metadata["missing_members"][0]["seed"] == 43
    assert done.metadata["comparison"] is None, "of one member with itself"


def test_ensemble_without_a_trained_member_is_refused_even_then(tmp_path: Path) -> None:
    with pytest.raises(EnsqError, match="no member of 'tiny' is done"):
        finalize(*with_losses(tmp_path, [None]), allow_missing=True)


def test_damaged_result_is_refused_and_nothing_is_exported(tmp_path: Path) -> None:
    store, ensemble = with_losses(tmp_path, [2.0])
    (path,) = tmp_path.glob("runs/tiny/seed-42/attempt-1/result.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EnsqError, match="damaged"):
        finalize(store, ensemble)
    assert not (tmp_path / "runs/tiny/exported_models").exists()


def test_changed_data_are_refused(tmp_path: Path) -> None:
    store, ensemble = with_losses(tmp_path, [2.0])
    with (tmp_path / "tiny.npz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(MismatchError, match="the data have changed"):
        finalize(store, ensemble)


def test_folder_of_another_ensemble_is_refused(exported: Any, tmp_path: Path) -> None:
    store, ensemble = with_losses(tmp_path, [2.0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / METADATA).write_text('{"ensemble": "another"}')
    with pytest.raises(MismatchError, match="'another'; give another --export-dir"):
        finalize(store, ensemble, export_dir=tmp_path / "out")


# -- the mean of all members ---------------------------------------------------------------------


def test_mean_models_loss_is_that_of_the_mean_of_all_predictions(exported: Any, plan: Any) -> None:
    """By the exported files of the members, one frame at a time."""
    from ensq import data
    from ensq.train.checkpoint import read_result
    from ensq.train.domains import whole_system
    from ensq.train.module import LoadedModel

    store, ensemble = plan
    mean = exported.metadata["ensemble_mean"]
    assert mean["file"] == "tiny_ensemble_mean.mlir"
    assert mean["seeds"] == [42, 43, 44, 45, 46]
    result = read_result((exported.folder / "tiny_best.safetensors").read_bytes())
    config = exported.config
    path = store.root / ensemble.data_path
    whole = data.load(path, config.data, config.training.gammas, config.unit)
    frames = whole.take(result.validation_index)
    model = LoadedModel((exported.folder / mean["file"]).read_bytes())
    squares = 0.0
    for frame in range(frames.n_frames):
        real = frames.mask[frame]
        system = whole_system(frames.R[frame][real], frames.species[frame][real])
        _, force = model.energy_and_forces([system], newton=True)
        squares += float(((force - frames.F[frame][real]) ** 2).sum())
    loss = squares / (3 * frames.mask.sum())
    assert mean["loss"] == pytest.approx(loss, rel=1e-4)
    assert mean["force_rmse"] == pytest.approx(loss**0.5, rel=1e-4)


def test_mean_is_left_out_where_it_is_not_wanted_or_there_is_one_member(
    plan: Any, tmp_path: Path
) -> None:
    without = finalize(*plan, export_dir=tmp_path / "out", ensemble_mean=False, save_all=False)
    assert without.metadata["ensemble_mean"] is None
    assert "tiny_ensemble_mean.mlir" not in without.files
    again = finalize(*plan, export_dir=tmp_path / "out", save_all=False)
    assert "tiny_ensemble_mean.mlir" in again.files
    alone = finalize(*with_losses(tmp_path / "alone", [2.0]))
    assert alone.metadata["ensemble_mean"] is None
    assert not [name for name in alone.files if "mean" in name and name.endswith(".mlir")]


# -- reference energies ----------------------------------------------------------------------------


def test_reference_energies_are_left_out_where_they_are_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensq.cli.finalize import lines

    def write_large(path: Path) -> None:
        arrays = tiny_arrays()
        np.savez(path, **{**arrays, "U": arrays["U"].astype(np.float64) - 2e5})

    monkeypatch.setattr("ensemble_tools.write_tiny", write_large)
    made = with_losses(tmp_path, [2.0, 1.0], ("training.gammas.U=1",))
    done = finalize(*made)
    (note,) = done.metadata["export_notes"]
    assert "export.reference_energies: false leaves the constant out" in note
    assert done.metadata["reference_energies"]["in_model_files"]
    assert set(done.metadata["reference_energies"]["by_species"]) == {"A", "B", "C"}
    without = finalize(*made, reference_energies=False)
    assert without.metadata["export_notes"] == []
    assert not without.metadata["reference_energies"]["in_model_files"]
    assert without.metadata["reference_energies"]["unit"] == "kcal/mol per bead"
    for one, other in ((done, 1e3), (without, -1)):
        for found in one.metadata["export_comparison"].values():
            assert abs(found["largest_energy"]) > other
    assert (
        max(c["energy_difference"] for c in without.metadata["export_comparison"].values()) < 1e-3
    )
    text = lines(done)
    (place,) = (i for i, line in enumerate(text) if line.startswith("exports, read back and run"))
    assert all(len(line) <= 80 for line in text[place : place + 2])
    assert "of their range)" in " ".join(" ".join(text[place : place + 2]).split())
    rms = done.metadata["reference_force_rms"]
    assert f"rms of the reference forces {rms:.4g} kcal/mol/Angstrom" in text


# -- priors --------------------------------------------------------------------------------------

PRIORS = (
    "model.use_priors=true",
    "model.priors={r0: 1.5, kr: 3.0, a: [0.3], b: [0.1], k_dih: [0.2], gamma_dih: [0.4], "
    "epsilon_ex: 0.1, sigma_ex: 1.0}",
)


@pytest.fixture(scope="module")
def with_priors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Ensemble]:
    return with_losses(tmp_path_factory.mktemp("priors"), [2.0, 1.0], PRIORS)


def test_native_priors_are_lammps_input_beside_networks_alone(
    with_priors: Any, tmp_path: Path
) -> None:
    from ensq.train.module import LoadedModel

    done = finalize(*with_priors, export_dir=tmp_path / "out", priors="native")
    assert {"tiny_priors.in"} <= set(done.metadata["lammps_priors"]) <= set(done.files)
    assert any(name.endswith("_system.data") for name in done.files)
    assert done.metadata["priors"].startswith("native")
    assert done.metadata["export_notes"] == []
    for name in (name for name in done.files if name.endswith(".mlir")):
        assert LoadedModel((done.folder / name).read_bytes()).restriction is None
        assert done.metadata["export_comparison"][name]["frames_split_over_two_domains"] == 1
    text = (done.folder / "tiny_priors.in").read_text()
    assert "tiny_best.mlir" in text


def test_priors_alone_as_lammps_input_leave_no_model_and_it_is_said(tmp_path: Path) -> None:
    made = with_losses(tmp_path, [2.0], (*PRIORS, "model.prior_only=true"))
    done = finalize(*made, priors="native")
    (note,) = done.metadata["export_notes"]
    assert "the LAMMPS input is the whole model" in note
    assert "reference energies alone" in (done.folder / "tiny_priors.in").read_text()


def test_export_section_may_change_between_two_calls(with_priors: Any, tmp_path: Path) -> None:
    from ensq.train.module import LoadedModel

    finalize(*with_priors, export_dir=tmp_path / "out", priors="native")
    done = finalize(*with_priors, export_dir=tmp_path / "out")
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith((".in", ".data"))]
    assert done.metadata["lammps_priors"] is None
    content = (done.folder / "tiny_best.mlir").read_bytes()
    assert LoadedModel(content).restriction is not None
    assert done.metadata["priors"].startswith("embedded: ")


def test_trained_priors_that_differ_stay_inside_the_mean_and_it_is_said(tmp_path: Path) -> None:
    from ensq.cli.finalize import lines
    from ensq.train.module import LoadedModel

    def other(params: Any, seed: int) -> Any:
        return {**params, "priors": {**params["priors"], "kr": np.float32(seed)}}

    trained = (*PRIORS, "model.train_priors=true")
    done = finalize(*with_losses(tmp_path, [2.0, 1.0], trained, other), priors="native")
    assert {"tiny_best_priors.in", "tiny_ensemble_0_priors.in"} <= set(done.files)
    first = (done.folder / "tiny_ensemble_0_priors.in").read_text()
    assert first != (done.folder / "tiny_ensemble_1_priors.in").read_text()
    mean = LoadedModel((done.folder / "tiny_ensemble_mean.mlir").read_bytes())
    best = LoadedModel((done.folder / "tiny_best.mlir").read_bytes())
    assert (mean.restriction is None, best.restriction is None) == (False, True)
    assert done.metadata["ensemble_mean"]["priors"] == "embedded"
    (note,) = done.metadata["export_notes"]
    assert "priors differ" in note
    assert f"note: {note}" in lines(done)


def test_peoples_own_files_stay_and_old_exports_go(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    publishing.publish(folder, {"a.mlir": b"1", "b.mlir": b"1"}, ())
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "p.png").write_bytes(b"png")
    publishing.publish(folder, {"a.mlir": b"2"}, {"a.mlir", "b.mlir"})
    assert sorted(os.listdir(folder)) == ["a.mlir", "notes.txt", "plots"]
    assert (folder / "a.mlir").read_bytes() == b"2"
    assert (folder / "plots" / "p.png").read_bytes() == b"png"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("write", [0, 1, 2])
def test_failure_at_any_write_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    folder = tmp_path / "out"
    old = {"a": b"old", "b": b"old", "c": b"old"}
    publishing.publish(folder, old, ())
    done = 0

    def failing(path: Path, data: bytes) -> str:
        nonlocal done
        if done == write:
            raise OSError(28, "No space left on device")
        done += 1
        return publishing_write(path, data)

    publishing_write = publishing.write_atomic
    monkeypatch.setattr(publishing, "write_atomic", failing)
    with pytest.raises(EnsqError, match="No space left on device"):
        publishing.publish(folder, dict.fromkeys(old, b"new"), old)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert os.listdir(tmp_path) == ["out"]


def test_folders_change_places_in_one_step_and_without_the_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    publishing.exchange(tmp_path / "one", tmp_path / "two")
    assert os.listdir(tmp_path / "one") == ["two"]
    monkeypatch.setattr(publishing.ctypes, "CDLL", lambda *a, **k: object())
    publishing.exchange(tmp_path / "one", tmp_path / "two")
    assert os.listdir(tmp_path / "one") == ["one"]
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
