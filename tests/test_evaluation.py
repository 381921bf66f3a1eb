"""`ensq evaluate` from end to end: figures against loops over raw arrays, its files, the factors
that it keeps, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ensemble_tools import with_losses
from numpy.typing import NDArray
from scipy import stats
from train_tools import tiny_arrays

from ensq import evaluating, evaluation, load_ensemble
from ensq.ensemble import LoadedEnsemble
from ensq.errors import DataError
from ensq.evaluation import Report
from ensq.observing import Options

Array = NDArray[Any]
MEMBERS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database with five untrained members, which differ by their seeds."""
    folder = tmp_path_factory.mktemp("evaluated")
    store, _ = with_losses(folder, [0.5] * MEMBERS, ["training.gammas.U=0.1"])
    yield folder
    store.close()


@pytest.fixture(scope="module")
def ensemble(folder: Path) -> LoadedEnsemble:
    return load_ensemble("tiny", db=str(folder / "ensq.db"))


@pytest.fixture(scope="module")
def report(ensemble: LoadedEnsemble, folder: Path) -> Report:
    return evaluating.evaluate(ensemble, Options(data=folder / "tiny.npz", draws=300))


def raw() -> tuple[Array, Array, Array]:
    """(F, U, mask) as they lie in the file; padding holds rubbish."""
    arrays = tiny_arrays()
    return arrays["F"].astype(float), arrays["U"], arrays["mask"] > 0


def predictions(ensemble: LoadedEnsemble, path: Path) -> tuple[Array, Array]:
    """Forces [M,T,N,3] and energies [M,T] of the members."""
    found = ensemble.predict(path, members=True)
    assert found.forces is not None and found.energies is not None
    return found.forces, found.energies


def test_figures_are_those_of_loops_over_the_real_beads(
    ensemble: LoadedEnsemble, folder: Path, report: Report
) -> None:
    forces, energies = predictions(ensemble, folder / "tiny.npz")
    label, energy, mask = raw()
    errors, sigmas, lengths, epsilons = [], [], [], []
    single: list[list[float]] = [[] for _ in range(MEMBERS)]
    for frame in range(len(mask)):
        for bead in range(mask.shape[1]):
            if not mask[frame, bead]:
                continue
            of_members = forces[:, frame, bead]
            errors += list(of_members.mean(axis=0) - label[frame, bead])
            sigmas += list(of_members.std(axis=0))
            lengths.append(np.linalg.norm(of_members.mean(axis=0) - label[frame, bead]))
            away = of_members - of_members.mean(axis=0)
            epsilons.append(np.sqrt((away**2).sum(axis=1).mean()))
            for place in range(MEMBERS):
                single[place] += list(of_members[place] - label[frame, bead])
    error, sigma = np.array(errors), np.array(sigmas)
    found = report.evaluation.forces
    assert found is not None and found.spread is not None
    assert found.count == len(error) == 3 * mask.sum()
    assert found.rmse.value == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert found.mae.value == pytest.approx(np.abs(error).mean(), rel=1e-5)
    for place, member in enumerate(found.members):
        assert member.rmse.value == pytest.approx(
            np.sqrt(np.mean(np.square(single[place]))), rel=1e-5
        )
        assert member.mae.value == pytest.approx(np.mean(np.abs(single[place])), rel=1e-5)
    scores = found.spread.scores
    assert scores.nll.value == pytest.approx(-stats.norm(0, sigma).logpdf(error).mean(), rel=1e-3)
    for one in scores.coverage:
        inside = (np.abs(error) <= one.sigmas * sigma).mean()
        assert one.observed.value == pytest.approx(inside, abs=2 / len(error))
    by_bead = stats.spearmanr(epsilons, lengths).statistic
    assert found.spread.spearman["bead"].value == pytest.approx(by_bead, abs=1e-3)
    by_component = stats.spearmanr(sigma, np.abs(error)).statistic
    assert found.spread.spearman["component"].value == pytest.approx(by_component, abs=1e-3)
    own, per_bead = report.evaluation.energy, report.evaluation.energy_per_bead
    assert own is not None and own.spread is not None and per_bead is not None
    away = energies.mean(axis=0) - energy
    assert own.rmse.value == pytest.approx(np.sqrt((away**2).mean()), rel=1e-5)
    assert own.spread.scores.ratio.value == pytest.approx(
        np.sqrt((away**2).mean() / energies.var(axis=0).mean()), rel=1e-4
    )
    assert per_bead.rmse.value == pytest.approx(
        np.sqrt(((away / mask.sum(axis=1)) ** 2).mean()), rel=1e-5
    )


def test_groups_are_those_of_the_real_beads_alone(
    ensemble: LoadedEnsemble, folder: Path, report: Report
) -> None:
    forces, _ = predictions(ensemble, folder / "tiny.npz")
    label, _, mask = raw()
    square = ((forces.mean(axis=0) - label) ** 2).sum(axis=-1)
    species = np.broadcast_to(tiny_arrays()["species"], mask.shape)
    found = report.evaluation.forces
    assert found is not None
    for number, name in enumerate("ABC"):
        chosen = mask & (species == number)
        [group] = [one for one in found.species if one.name == name] or [None]
        assert (group is None) == (not chosen.any())
        if group is not None:
            assert group.count == 3 * chosen.sum()
            assert group.rmse.value == pytest.approx(np.sqrt(square[chosen].mean() / 3), rel=1e-5)
    for group in found.positions:
        chosen = mask[:, group.position]
        assert group.count == 3 * chosen.sum()
        mean = square[chosen, group.position].mean() / 3
        assert group.rmse.value == pytest.approx(np.sqrt(mean), rel=1e-5)
        # counted with its padding, the last place would have another figure
        if not chosen.all():
            assert np.sqrt(square[:, group.position].mean() / 3) != pytest.approx(
                mean**0.5, rel=0.01
            )


def test_the_files_come_back_as_they_were(tmp_path: Path, report: Report) -> None:
    path, arrays = evaluation.write(tmp_path, report)
    assert (path.name, arrays.name) == ("evaluation-tiny.json", "evaluation-tiny.npz")
    again = evaluation.read(path)
    assert again.evaluation == report.evaluation
    assert set(again.arrays) == set(report.arrays)
    for name, values in report.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], values)
    before = path.read_bytes(), arrays.read_bytes()
    evaluation.write(tmp_path, report)
    assert (path.read_bytes(), arrays.read_bytes()) == before
    assert evaluation.of_folder(tmp_path) == [path]


def test_other_data_of_the_same_name_get_files_of_their_own(tmp_path: Path, report: Report) -> None:
    path, arrays = evaluation.write(tmp_path, report)
    data = dataclasses.replace(report.evaluation.data, digest="f" * 64)
    other = Report(dataclasses.replace(report.evaluation, data=data), report.arrays)
    second, _ = evaluation.write(tmp_path, other)
    assert second.name == "evaluation-tiny-ffffffff.json"
    assert evaluation.read(path).evaluation == report.evaluation
    # arrays of other data beside a JSON file are refused
    arrays.write_bytes(second.with_suffix(".npz").read_bytes())
    with pytest.raises(DataError, match="not of the data"):
        evaluation.read(path)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 3}', b"\x00" * 100])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evaluation-x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no evaluation"):
        evaluation.read(path)


def test_the_same_command_gives_the_same_numbers(
    ensemble: LoadedEnsemble, folder: Path, report: Report
) -> None:
    again = evaluating.evaluate(ensemble, Options(data=folder / "tiny.npz", draws=300))
    assert evaluation.as_json(again.evaluation) == evaluation.as_json(report.evaluation)
