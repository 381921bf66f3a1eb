"""Predictions of all members at once, against those of single models and NumPy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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

from ensq import data, prediction
from ensq.ensemble import LoadedEnsemble, load_ensemble
from ensq.errors import CheckpointError, DataError, MismatchError, UsageError
from ensq.prediction import Prediction
from ensq.rundir import sha256

quick = pytest.fixture(scope="module", autouse=True)(quick_compiles)


@pytest.fixture(scope="module")
def members() -> list:
    return results()


@pytest.fixture(scope="module")
def loaded(members: list) -> LoadedEnsemble:
    return ensemble(members)


def test_means_and_spreads_are_those_of_single_models_whatever_the_sizes(
    members: list, loaded: LoadedEnsemble
) -> None:
    frames = mixed()
    told: list[tuple[int, int]] = []
    found = loaded.predict(
        frames, members=True, ddof=1, progress=lambda *numbers: told.append(numbers)
    )
    energies, forces = singly(members, frames)
    assert (found.n_frames, found.seeds, found.ddof) == (40, SEEDS, 1)
    size = np.abs(forces).max()
    np.testing.assert_allclose(found.energies, energies, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.forces, forces, atol=1e-5 * size)
    np.testing.assert_allclose(found.energy_mean, energies.mean(0), atol=1e-4)
    np.testing.assert_allclose(found.forces_mean, forces.mean(0), atol=1e-5 * size)
    # by other formulas than the code's
    variance = ((forces - forces.mean(0)) ** 2).sum(0) / (len(SEEDS) - 1)
    np.testing.assert_allclose(found.forces_std, np.sqrt(variance), atol=2e-5 * size)
    spread = np.sqrt(np.mean([np.sum((f - forces.mean(0)) ** 2, axis=-1) for f in forces], axis=0))
    np.testing.assert_allclose(found.epsilon, spread, atol=2e-5 * size)
    deviation = np.sqrt(((energies - energies.mean(0)) ** 2).sum(0) / (len(SEEDS) - 1))
    np.testing.assert_allclose(found.energy_std, deviation, rtol=1e-3, atol=1e-4)
    beads = [spread[t][frames.mask[t]] for t in range(40)]
    np.testing.assert_allclose(found.epsilon_max, [b.max() for b in beads], rtol=1e-3)
    np.testing.assert_allclose(found.epsilon_mean, [b.mean() for b in beads], rtol=1e-3)
    np.testing.assert_allclose(found.epsilon_min, [b.min() for b in beads], rtol=1e-3)
    assert not found.forces_mean[~frames.mask].any() and not found.epsilon[~frames.mask].any()
    assert told[-1] == (40, 40) and [done for done, _ in told] == sorted(done for done, _ in told)


def test_batches_of_any_size_predict_the_same(loaded: LoadedEnsemble) -> None:
    frames = crowd("open", 5)
    whole, pieces = loaded.predict(frames), loaded.predict(frames, batch=2)
    np.testing.assert_allclose(pieces.energy_mean, whole.energy_mean, atol=1e-4)
    np.testing.assert_allclose(pieces.forces_mean, whole.forces_mean, atol=1e-4)


def test_frames_far_from_the_origin_keep_their_digits(loaded: LoadedEnsemble) -> None:
    frames = crowd("open", 2)
    away = dataclasses.replace(frames, R=frames.R.astype(np.float64) + 1e5)
    near, far = loaded.predict(frames), loaded.predict(away)
    size = np.abs(near.forces_mean).max()
    np.testing.assert_allclose(far.forces_mean, near.forces_mean, atol=1e-4 * size)
    # the same in float32, as models get them, would be lost
    assert np.abs(away.R.astype(np.float32) - 1e5 - frames.R).max() > 1e-3


def test_virials_are_minus_the_derivative_of_the_energy_by_a_strain() -> None:
    frames = crowd("triclinic", 1)
    frames = dataclasses.replace(frames, R=frames.R.astype(np.float64))
    exact = ensemble(results("triclinic", SEEDS[:2]), "float64")
    found = exact.predict(frames, virial=True)
    step = 1e-5

    def energies(strain: np.ndarray) -> np.ndarray:
        R = frames.R + frames.R @ strain
        cell = None if frames.cell is None else frames.cell + frames.cell @ strain
        moved = dataclasses.replace(frames, R=R, cell=cell)
        values = exact.predict(moved, members=True).energies
        assert values is not None
        return values[:, 0]

    virials = np.zeros((2, 3, 3))
    for i, j in [(0, 0), (1, 1), (2, 2), (0, 1), (2, 0)]:
        strain = np.zeros((3, 3))
        strain[i, j] = step
        virials[:, i, j] = -(energies(strain) - energies(-strain)) / (2 * step)
    virials[:, [1, 0, 1, 2], [0, 2, 2, 1]] = np.nan  # not worked out
    known = np.isfinite(virials[0])
    assert found.virial_mean is not None and found.virial_std is not None
    np.testing.assert_allclose(found.virial_mean[0][known], virials.mean(0)[known], rtol=1e-5)
    np.testing.assert_allclose(
        found.virial_std[0][known], virials.std(0)[known], rtol=1e-5, atol=1e-6
    )


def test_species_are_known_by_their_names(loaded: LoadedEnsemble, tmp_path: Path) -> None:
    frames = crowd("open", 2)
    order = np.array([2, 0, 1])  # number k of the model is order[k] in the file
    other = dataclasses.replace(
        frames,
        species=order[frames.species].astype(np.int32),
        species_names=tuple(np.array(SPECIES)[np.argsort(order)].tolist()),
    )
    path = write_data(tmp_path / "other.npz", other)
    assert other.species_names != SPECIES
    there = loaded.predict(path)
    np.testing.assert_allclose(there.energy_mean, loaded.predict(frames).energy_mean, atol=1e-4)
    # with the numbers of the file taken for the model's, energies would be others
    wrong = loaded.predict(dataclasses.replace(other, species_names=SPECIES))
    assert np.abs(wrong.energy_mean - there.energy_mean).min() > 1e-2


def test_an_unknown_species_is_refused_with_its_place(
    loaded: LoadedEnsemble, tmp_path: Path
) -> None:
    frames = crowd("open", 3)
    species = frames.species.copy()
    species[1, 4] = 3
    strange = dataclasses.replace(frames, species=species, species_names=(*SPECIES, "ZN"))
    path = write_data(tmp_path / "strange.npz", strange)
    with pytest.raises(DataError, match=r"frame 1, bead 4 is of the species ZN.*knows A, B, C"):
        loaded.read(path)


def test_a_frame_without_finite_forces_is_named(loaded: LoadedEnsemble) -> None:
    plain = loaded.predictor.evaluate

    def broken(*arguments: Any, **options: Any) -> Any:
        energies, forces, virials = plain(*arguments, **options)
        forces[1, 1, 4, 0] = np.nan  # of the second member for the second frame
        return energies, forces, virials

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded.predictor, "evaluate", broken)
        with pytest.raises(DataError, match=r"^frame 1: the model gives no finite energy"):
            loaded.predict(crowd("open", 2))


def test_priors_refuse_a_periodic_frame_by_its_number() -> None:
    frames = crowd("orthogonal", 3)
    assert frames.cell is not None
    frames.cell[:2] = 0
    chain = ensemble(results("open", (1,), "model.use_priors=true"))
    with pytest.raises(DataError, match="frame 2 has a periodic cell"):
        chain.predict(frames)


def test_one_member_has_no_spread(members: list) -> None:
    found = ensemble(members).member(1).predict(crowd("open", 2), virial=True)
    assert not found.has_spread and found.seeds == SEEDS[1:2]
    assert np.isfinite(found.forces_mean).all() and np.isfinite(found.energy_mean).all()
    for values in (found.energy_std, found.epsilon, found.forces_std, found.virial_std):
        assert values is not None and np.isnan(values).all()


def test_members_of_other_ensembles_and_wrong_options_are_refused(members: list) -> None:
    other = dataclasses.replace(members[0], config=members[0].config.replace("3.0", "2.9"))
    with pytest.raises(MismatchError):
        ensemble([members[0], other]).predict(crowd("open", 1))
    with pytest.raises(UsageError, match="ddof"):
        ensemble(members).predict(crowd("open", 1), ddof=2)
    with pytest.raises(UsageError, match="no member 3"):
        ensemble(members).member(3)
    with pytest.raises(UsageError, match="float16"):
        ensemble(members, "float16")


# -- arithmetic --------------------------------------------------------------------------------


def made(ddof: int = 0, count: int = 4) -> tuple[Prediction, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    energies, forces = rng.normal(size=(count, 5)), rng.normal(size=(count, 5, 3, 3))
    mask = np.ones((5, 3), bool)
    mask[2, 2] = False
    found = prediction.summarize(
        energies, forces, mask, seeds=range(count), energy_unit="eV", ddof=ddof, members=True
    )
    return found, energies, forces


def test_other_units_change_variances_by_the_square() -> None:
    found, energies, forces = made()
    other = found.converted("kcal/mol", "nm")
    kcal = 23.060547830619  # of an eV; 1 nm is 10 Angstrom
    np.testing.assert_allclose(other.energy_std**2, kcal**2 * energies.var(0))
    np.testing.assert_allclose(other.forces_std[0] ** 2, (10 * kcal) ** 2 * forces.var(0)[0])
    np.testing.assert_allclose(other.energies, kcal * energies)
    np.testing.assert_allclose(other.epsilon, 10 * kcal * found.epsilon)
    assert (other.energy_unit, other.force_unit) == ("kcal/mol", "kcal/mol/nm")
    back = other.converted("eV")
    np.testing.assert_allclose(back.forces_mean, found.forces_mean)


def test_epsilon_is_with_ddof_0_whatever_the_ddof() -> None:
    none, _, _ = made()
    one, _, _ = made(ddof=1)
    np.testing.assert_array_equal(one.epsilon, none.epsilon)
    np.testing.assert_allclose(one.forces_std, none.forces_std * np.sqrt(4 / 3))
    with pytest.raises(ValueError, match="needs more"):
        made(ddof=2, count=2)


def test_parts_are_put_together_in_their_places() -> None:
    whole, _, _ = made()
    parts = [(index, prediction.take(whole, index)) for index in (np.array([4, 1]), np.arange(4))]
    again = prediction.gather(parts, 5)
    for name, values, _ in prediction.arrays_of(whole):
        np.testing.assert_array_equal(getattr(again, name), values)
    with pytest.raises(ValueError, match="no frames"):
        prediction.gather([], 5)


# -- export folders ----------------------------------------------------------------------------


def test_a_copied_folder_is_all_that_is_needed(
    members: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(tmp_path / "there", members)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder.rename(elsewhere / "copy")
    monkeypatch.chdir(elsewhere)
    found = load_ensemble("copy")
    assert found.seeds == SEEDS and found.species_names == SPECIES
    files = sorted((elsewhere / "copy").glob("*.safetensors"))
    assert found.members.digests == tuple(sha256(file.read_bytes()) for file in files)


@pytest.mark.parametrize("how", ["missing", "damaged", "swapped"])
def test_a_damaged_or_missing_file_is_named(members: list, tmp_path: Path, how: str) -> None:
    folder = export(tmp_path / "there", members)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    if how == "missing":
        first.unlink()
    elif how == "damaged":
        content = bytearray(first.read_bytes())
        content[len(content) // 2] ^= 1
        first.write_bytes(content)
    else:
        first.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match=first.name):
        load_ensemble(folder)


def test_a_folder_without_members_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no export folder"):
        load_ensemble(tmp_path)
    (tmp_path / "ensemble_metadata.json").write_text('{"ensemble": "old"}')
    with pytest.raises(UsageError, match="finalize"):
        load_ensemble(tmp_path)


def test_converted_sets_are_read_by_the_model_s_species(
    loaded: LoadedEnsemble, tmp_path: Path
) -> None:
    from ensq.config.structs import KeysConfig, UnitsConfig
    from ensq.data.converting import convert_set

    frames = dataclasses.replace(crowd("open", 3), species_names=("C", "A", "B"))
    source = write_data(tmp_path / "set.npz", frames)
    convert_set(
        source,
        tmp_path / "set",
        units=UnitsConfig(energy="eV", length="nm"),
        keys=KeysConfig(),
        say=lambda *words: None,
    )
    stored = loaded.read(tmp_path / "set")
    assert isinstance(stored, data.Stored)
    expected = loaded.read(source, units=UnitsConfig(energy="eV", length="nm"))
    found, same = loaded.predict(stored), loaded.predict(expected)
    np.testing.assert_allclose(found.energy_mean, same.energy_mean, atol=1e-5)
