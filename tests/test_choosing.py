"""Who may be as good as the best, in the metadata and at the terminal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from ensemble_tools import with_losses

from ensq import choosing, exports
from ensq.cli.finalize import lines, show
from ensq.config.structs import GammasConfig
from ensq.finalize import METADATA, Finalized, finalize
from ensq.metadata import statistics_of
from ensq.text import with_error
from ensq.train import statistics

LOSSES = (3.02, 3.0, None, 3.4)  # seeds 42 to 45
SMALL = (
    *("ensemble.save_all_models=false", "export.ensemble_mean=false"),  # quickly exported
    "training.val_fraction=0.75",  # 30 frames, 6 blocks
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Members whose losses differ from frame to frame by more than the first two do in all."""
    return with_losses(tmp_path_factory.mktemp("noisy"), LOSSES, SMALL, noise=0.05)


@pytest.fixture(scope="module")
def done(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Finalized:
    folder = tmp_path_factory.mktemp("out") / "exported"
    return finalize(*made, export_dir=folder, allow_missing=True)


@pytest.fixture(scope="module")
def results(made: Any, done: Finalized) -> list[Any]:
    store, ensemble = made
    jobs = [job for job in store.jobs(ensemble.id) if job.result_path]
    return [exports.read_member(store, ensemble, job) for job in jobs]


# -- metadata --------------------------------------------------------------------------------------


def test_metadata_tell_who_may_be_the_best(done: Finalized) -> None:
    told = json.loads((done.folder / METADATA).read_text())["comparison"]
    assert told == done.metadata["comparison"]
    assert (told["best_seed"], told["indistinguishable_seeds"]) == (43, [42, 43])
    assert (told["level"], told["draws"], told["seed"]) == (0.95, 2000, 0)
    assert abs(told["blocks"].pop("correlation") or 0) < 1  # 5 pairs: none is told
    assert abs(told["blocks"].pop("loss_correlation") or 0) < 1
    assert told["blocks"] == {
        "pairs": 5,
        "number": 6,
        "fewest_frames": 5,
        "most_frames": 5,
        "trajectories": None,
    }
    first, best, worst = told["members"]
    assert [one["index"] for one in told["members"]] == [0, 1, 3]
    assert [one["seed"] for one in told["members"]] == [42, 43, 45]
    assert best["difference"] == best["difference_error"] == 0
    assert best["interval"] == [0, 0]
    assert best["p_value"] == 1
    assert first["difference"] == pytest.approx(0.02)
    assert worst["difference"] == pytest.approx(0.4)
    assert first["interval"][0] < 0 < first["interval"][1]
    assert worst["interval"][0] > 0
    assert worst["p_value"] < 0.05 <= first["p_value"]
    assert sum(one["probability_best"] for one in told["members"]) == pytest.approx(1)
    assert 3.0 < told["corrected_loss"] < 3.1


def test_differences_are_paired_and_so_better_known_than_losses(results: list[Any]) -> None:
    """Where frames are hard for all alike, errors of differences are much smaller."""
    hard = np.linspace(0.2, 3.0, len(results[0].components))
    alike = [
        dataclasses.replace(result, force_errors=result.force_errors * hard) for result in results
    ]
    told = choosing.comparison_of(alike, [0, 1, 3], 1, None)
    assert told is not None
    for one in (told["members"][0], told["members"][2]):
        assert one["difference_error"] < 0.2 * one["loss_error"]


def test_same_bytes_whether_exports_are_made_anew_or_kept(made: Any, done: Finalized) -> None:
    before = {path.name: path.read_bytes() for path in done.folder.iterdir()}
    said: list[str] = []
    kept = {"export_dir": done.folder, "allow_missing": True, "say": said.append}
    finalize(*made, **kept)
    assert not any("exporting" in line for line in said)
    assert {path.name: path.read_bytes() for path in done.folder.iterdir()} == before
    (done.folder / "tiny_best.mlir").unlink()
    finalize(*made, **kept)
    assert any("exporting" in line for line in said)
    assert {path.name: path.read_bytes() for path in done.folder.iterdir()} == before


def test_export_of_an_ensq_that_did_not_compare_gets_its_comparison(
    made: Any, done: Finalized, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for path in done.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    told = json.loads((folder / METADATA).read_text())
    del told["comparison"]
    (folder / METADATA).write_text(json.dumps(told))
    finalize(*made, export_dir=folder, allow_missing=True)
    assert (folder / METADATA).read_bytes() == (done.folder / METADATA).read_bytes()


def test_trajectories_of_the_data_make_the_blocks(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = exports.validation_frames

    def with_replicas(*arguments: Any) -> Any:
        return dataclasses.replace(loaded(*arguments), replica=np.arange(30) // 15)

    monkeypatch.setattr(exports, "validation_frames", with_replicas)
    found = finalize(*made, export_dir=tmp_path / "out", allow_missing=True)
    assert found.metadata["comparison"]["blocks"]["trajectories"] == 2


def test_many_trajectories_are_joined_and_ten_frames_are_the_fewest(results: list[Any]) -> None:
    def some(frames: int) -> list[Any]:
        """As many frames as wanted, over and over."""
        chosen = np.arange(frames) % len(results[0].components)
        names = ("force_errors", "energy_errors", "components", "protein", "validation_index")
        return [
            dataclasses.replace(result, **{name: getattr(result, name)[chosen] for name in names})
            for result in results
        ]

    many = choosing.comparison_of(some(100), [0, 1, 3], 1, np.arange(100) // 2)
    assert many is not None
    assert (many["blocks"]["number"], many["blocks"]["trajectories"]) == (32, 50)
    assert choosing.about_blocks(many) == "32 blocks of 2-4 frames of 50 trajectories"
    few = choosing.comparison_of(some(10), [0, 1, 3], 1, None)
    assert few is not None
    assert few["indistinguishable_seeds"] == [42, 43, 45]
    assert few["members"][0]["interval"] is None
    assert "2 blocks of frames are too few to tell members apart" in choosing.statements(few)
    assert choosing.about_blocks(few) == "2 blocks of 5 frames in their order"
    for frames in (2, 9):
        assert choosing.comparison_of(some(frames), [0, 1, 3], 1, None) is None


def test_single_member_is_compared_with_none(done: Finalized, results: list[Any]) -> None:
    assert choosing.comparison_of(results[:1], [0], 0, None) is None
    without = {**done.metadata, "comparison": None}
    text = lines(dataclasses.replace(done, metadata=without))
    assert "s.e." in text[1]
    assert "diff" not in text[1]
    assert "30 validation frames make a single block: members can't be compared" in text
    alone = dataclasses.replace(done, metadata=without, members=done.members[1:2])
    alone = dataclasses.replace(alone, statistics=statistics_of(alone.members))
    assert not any("compared" in line or "told apart" in line for line in lines(alone))


@pytest.mark.parametrize(("force", "energy"), [(1.0, 0.0), (0.0, 2.0), (0.5, 0.1)])
def test_ratios_make_up_the_loss(results: list[Any], force: float, energy: float) -> None:
    rng = np.random.default_rng(2)
    result = dataclasses.replace(results[0], energy_errors=rng.normal(size=30))
    gammas = GammasConfig(F=force, U=energy)
    errors, weights = statistics.ratios(result, gammas)
    assert errors.shape == weights.shape == ((force > 0) + (energy > 0), 30)
    arrays = (result.force_errors, result.energy_errors, result.components, result.beads)
    for chosen in (np.arange(30), np.array([3, 3, 7])):
        expected = statistics.scores(*(array[chosen] for array in arrays), gammas).loss
        found = (errors[:, chosen].sum(axis=1) / weights[:, chosen].sum(axis=1)).sum()
        assert found == pytest.approx(expected, rel=1e-14)


# -- at the terminal -------------------------------------------------------------------------------


def test_table_marks_who_may_be_used_and_says_it(done: Finalized) -> None:
    text = lines(done)
    first, best, worst = (line.split() for line in text[2:5])
    told = done.metadata["comparison"]["members"]
    assert first[:3] == ["=", "42", "3.0200"]
    shown = with_error(told[0]["difference"], told[0]["difference_error"])
    assert " ".join(first[3:6]) == shown
    assert first[6] == (f"{told[0]['probability_best']:.2f}")
    assert best[:4] == ["*", "43", "3.0000", "-"]
    assert worst[0] == "45"
    assert "<0.01" in worst
    assert "seed 42 (=) can't be told apart from it at 95 %: use either" in text
    corrected = done.metadata["comparison"]["corrected_loss"]
    assert any(line.startswith(f"expect {corrected:.5g} on new frames") for line in text)
    assert all(len(line) <= 80 for line in text if "/" not in line), "a path may be longer"
    assert "6 blocks of 5 frames in their order" in " ".join(" ".join(text).split())


def test_table_with_forces_and_energies_fits_80_columns(done: Finalized) -> None:
    wide = [
        dataclasses.replace(m, rmse_energy=0.00123, rmse_force=0.01234, loss=10.123, epochs=1000)
        for m in done.members
    ]
    training = msgspec.structs.replace(done.config.training, gammas=GammasConfig(F=1.0, U=0.1))
    config = msgspec.structs.replace(done.config, training=training)
    text = lines(dataclasses.replace(done, members=tuple(wide), config=config))
    assert text[1].split()[-7:] == ["F", "rmse", "U", "rmse", "best", "at", "attempts"]
    assert max(len(line) for line in text[1:5]) <= 80


def test_json_has_the_comparison(done: Finalized, capsys: pytest.CaptureFixture[str]) -> None:
    show(done, True)
    assert json.loads(capsys.readouterr().out)["comparison"] == done.metadata["comparison"]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([43], "all others can be told apart from it at 95 %"),
        ([42, 43], "seed 42 (=) can't be told apart from it at 95 %: use either"),
        ([42, 43, 44], "seeds 42 and 44 (=) can't be told apart from it at 95 %: use any of them"),
        (
            [42, 43, 44, 45, 46],
            "seeds 42, 44-46 (=) can't be told apart from it at 95 %: use any of them",
        ),
    ],
)
def test_sentences_name_the_seeds(seeds: list[int], said: str) -> None:
    told = {"best_seed": 43, "level": 0.95, "indistinguishable_seeds": seeds, "members": []}
    assert choosing.statements(told) == [said]


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.1591, 0.0704, "0.159 ± 0.070"),
        (0.16, 0.17, "0.16 ± 0.17"),
        (12.34, 3.21, "12.3 ± 3.2"),
        (1234.5, 99.6, "1234 ± 100"),
        (0.3, 0.0, "0.3 ± 0"),
        (3e-6, 1.23e-6, "3e-06 ± 1.2e-06"),
    ],
)
def test_values_have_the_digits_of_their_errors(value: float, error: float, shown: str) -> None:
    assert with_error(value, error) == shown
