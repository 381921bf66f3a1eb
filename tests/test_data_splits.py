"""Which frames train and which validate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_tools import T, arrays, load, run_config, save

from ensq import data
from ensq.data import splitting
from ensq.errors import DataError


@pytest.fixture
def loaded(tmp_path: Path) -> data.Data:
    return load(save(tmp_path / "d.npz", arrays()))


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
    monkeypatch.setattr(splitting, "_without_copies", lambda R, t, v: (v, v[:0]))
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


def test_validation_frames_that_are_copies_are_told(loaded: data.Data) -> None:
    one = loaded.take(np.zeros(T, int))
    message = "0 validation frames are left, at least 2 are needed: 3 more are copies of training"
    with pytest.raises(DataError, match=message):
        data.split(one, run_config(), "d.npz")


def test_a_trajectory_that_is_not_there_is_named(loaded: data.Data) -> None:
    config = run_config(data__split="{by: replica, validation: [2, 5]}")
    with pytest.raises(DataError, match="names trajectory 5; there are 0, 1, 2"):
        data.split(loaded, config, "d.npz")
    bare = data.Data(**{**vars(loaded), "replica": None})
    with pytest.raises(DataError, match="needs the key replica in the file"):
        data.split(bare, config, "d.npz")


# -- several proteins --------------------------------------------------------------------------


def with_proteins(loaded: data.Data, protein: list[int]) -> data.Data:
    names = tuple(map(str, range(max(protein) + 1)))
    return data.Data(**{**vars(loaded), "protein": np.array(protein), "protein_names": names})


def test_each_protein_has_its_share_of_validation_frames(loaded: data.Data) -> None:
    few = with_proteins(loaded, [1] * 4 + [0] * 8)
    kept = with_proteins(loaded, [0] * T)
    uneven = 0
    for seed in range(20):
        config = run_config(data__seed=seed)
        validation = data.split(few, config, "d.npz").validation
        assert (validation < 4).sum() == 1
        assert len(validation) == 3
        plain = data.split(loaded, config, "d.npz").validation
        uneven += (plain < 4).sum() != 1
        # one protein alone changes nothing
        assert data.split(kept, config, "d.npz").validation.tolist() == plain.tolist()
    assert uneven > 5  # chance alone would not do it


def test_many_small_proteins_give_as_many_validation_frames_as_one(loaded: data.Data) -> None:
    many = with_proteins(loaded, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    split = data.split(many, run_config(), "d.npz")
    assert len(split.validation) == 3  # a rounded share of each would be none


def test_a_split_by_frame_is_the_one_of_older_versions(loaded: data.Data) -> None:
    split = data.split(loaded, run_config(data__seed=5), "d.npz")
    order = np.random.default_rng([5, 0]).permutation(T)
    assert split.validation.tolist() == sorted(order[:3])


def test_a_tail_is_of_each_trajectory_of_each_protein(loaded: data.Data) -> None:
    # Trajectory 0 is of both proteins, as when two sets that count from 0 were put together.
    proteins = with_proteins(loaded, [0] * 4 + [1] * 8)
    both = data.Data(**{**vars(proteins), "replica": np.repeat([0, 0, 1], 4)})
    split = data.split(both, run_config(data__split="{by: tail}"), "d.npz")
    assert split.validation.tolist() == [3, 7, 11]
    alone = data.Data(**{**vars(both), "protein": None, "protein_names": ()})
    split = data.split(alone, run_config(data__split="{by: tail}"), "d.npz")
    assert split.validation.tolist() == [6, 7, 11]
