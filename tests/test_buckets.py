"""Frames of several sizes: groups, their batches, and losses that do not depend on the grouping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_tools import settings, tiny_arrays

from ensq.data import digest
from ensq.train import pack as pack_module
from ensq.train.batches import batches_of_epoch
from ensq.train.buckets import choose_bounds, frame_sizes, members_of
from ensq.train.dataset import prepare
from ensq.train.pack import Program, stack
from ensq.train.statistics import scores

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def test_the_size_of_a_frame_reaches_to_its_last_real_bead() -> None:
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]])
    assert frame_sizes(mask).tolist() == [2, 3, 4]


def bounds_of(training: list[int], groups: int = 4, fewest: int = 1) -> tuple[int, ...]:
    sizes = np.array(training)
    return choose_bounds(sizes, sizes, groups=groups, fewest=fewest)


def test_two_proteins_get_a_group_each() -> None:
    assert bounds_of([10] * 100 + [50] * 100, fewest=32) == (10, 50)


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ([10] * 100, "one size"),
        ([48] * 100 + [50] * 100, "a saving of 2 % is worth no compilation"),
        ([10] * 20 + [50] * 200, "too few for a batch"),
    ],
)
def test_a_group_that_does_not_pay_is_not_made(sizes: list[int], why: str) -> None:
    assert bounds_of(sizes, fewest=32) == (max(sizes),), why


def test_no_more_groups_than_asked_for() -> None:
    sizes = [10, 20, 40, 80, 160] * 50
    assert bounds_of(sizes, groups=1) == (160,)
    assert len(bounds_of(sizes, groups=3)) == 3


def test_a_larger_validation_frame_finds_room() -> None:
    bounds = choose_bounds(np.array([10] * 9 + [30] * 9), np.array([10, 70]), groups=4, fewest=1)
    assert bounds == (10, 70)


@given(SIZES, SIZES, st.integers(1, 6), st.integers(1, 20))
def test_every_frame_is_in_the_smallest_group_that_it_fits_into(
    training: list[int], validation: list[int], groups: int, fewest: int
) -> None:
    sizes, every = np.array(training), np.array(training + validation)
    bounds = choose_bounds(sizes, every, groups=groups, fewest=fewest)
    assert list(bounds) == sorted(set(bounds)) and len(bounds) <= groups
    members = members_of(every, bounds)
    assert sorted(np.concatenate(members).tolist()) == list(range(len(every)))
    for low, bound, chosen in zip((0, *bounds), bounds, members, strict=False):
        assert ((low < every[chosen]) & (every[chosen] <= bound)).all()
    if len(bounds) > 1:
        assert min(map(len, members_of(sizes, bounds))) >= fewest
        padded = sum(b * len(m) for b, m in zip(bounds, members_of(sizes, bounds), strict=True))
        assert padded < max(every) * len(sizes)


def test_batches_visit_each_frame_of_each_group_once_in_mixed_order() -> None:
    batches = batches_of_epoch((30, 17), 8, seed=0, epoch=1)
    assert batches.group.tolist() != sorted(batches.group.tolist())
    for group, size in enumerate((30, 17)):
        chosen = batches.group == group
        real = batches.index[chosen][batches.weight[chosen] > 0]
        assert sorted(real.tolist()) == list(range(size))
    again = batches_of_epoch((30, 17), 8, seed=0, epoch=1)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


# -- training ----------------------------------------------------------------------------------


def two_sizes() -> dict[str, Any]:
    """Chains of 3 and of 6 beads, as two proteins."""
    arrays = tiny_arrays(fewest=6)
    protein = np.arange(len(arrays["R"])) % 2
    mask = np.where(protein[:, None] == 1, 1.0, np.arange(6)[None] < 3)
    arrays["F"] = np.where(mask[..., None] > 0, arrays["F"], 77.0).astype(np.float32)
    return {**arrays, "mask": mask, "protein": protein, "protein_names": np.array(["s", "l"])}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Program]:
    """The same data in one group and in two."""
    path = tmp_path_factory.mktemp("sizes") / "tiny.npz"
    np.savez(path, **two_sizes())
    made = {}
    for groups in (1, 4):
        config = settings(f"data.max_buckets={groups}", "training.gammas={F: 1.0, U: 0.1}")
        made[groups] = Program(config, prepare(path, digest(path), config, lambda text: None))
    return made


def test_small_frames_are_stored_without_padding(programs: dict[int, Program]) -> None:
    shapes = {g: [p.F.shape[1] for p in made.dataset.training] for g, made in programs.items()}
    assert shapes == {1: [6], 4: [3, 6]}


def test_validation_is_the_same_in_any_grouping(programs: dict[int, Program]) -> None:
    one, two = programs[1], programs[4]
    params = stack([one.new_member(1).params, one.new_member(2).params])
    left, right = one.validate(params), two.validate(params)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    assert np.array_equal(one.dataset.validated.index, two.dataset.validated.index)


def test_without_the_order_of_the_groups_frames_would_be_mixed_up(
    programs: dict[int, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = programs[1], programs[4]
    params = stack([one.new_member(1).params])
    expected = one.validate(params).force
    validated = replace(two.dataset.validated, place=np.arange(two.dataset.n_validation))
    monkeypatch.setattr(two, "dataset", replace(two.dataset, validated=validated))
    assert not np.allclose(two.validate(params).force, expected, rtol=1e-3)


def gradient_of_epoch(program: Program, params: Any) -> Any:
    """The gradient of the mean of all batch losses, weighed as the trainer weighs them."""
    batches = batches_of_epoch(program.dataset.sizes, program.batch, 0, 0)

    def total(params: Any) -> Any:
        losses = []
        for group, index, weight in zip(*batches, strict=True):
            part = program.dataset.training[int(group)]
            batch = jax.tree.map(lambda leaf, index=index: leaf[index], part)
            loss = program.batch_loss(params, batch, weight, int(group))
            losses.append(loss * weight.sum() / program.dataset.n_training)
        return sum(losses)

    return jax.jit(jax.grad(total))(params)


def test_groups_weigh_every_force_component_alike(
    programs: dict[int, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch's gradient is that of the loss over the whole set, however it is grouped."""
    one, two = programs[1], programs[4]
    params = one.new_member(3).params
    whole = one.dataset.training[0]

    def loss_of_all(params: Any) -> Any:
        return one.batch_loss(params, whole, np.ones(whole.n_frames, np.float32))

    expected = jax.tree.leaves(jax.jit(jax.grad(loss_of_all))(params))
    found = jax.tree.leaves(gradient_of_epoch(two, params))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    monkeypatch.setattr(pack_module, "_shares", lambda real, frames: [1.0] * len(real))
    unweighed = Program(two.config, two.dataset)
    wrong = jax.tree.leaves(gradient_of_epoch(unweighed, params))
    assert any(
        not np.allclose(a, b, rtol=1e-2, atol=1e-3 * np.abs(b).max())
        for a, b in zip(wrong, expected, strict=True)
    )


def test_a_pack_trains_on_both_groups(programs: dict[int, Program]) -> None:
    two = programs[4]
    lanes = stack([two.new_member(1), two.new_member(2)])
    before = two.validate(lanes.params)
    for epoch in range(2):
        batches = batches_of_epoch(two.dataset.sizes, two.batch, 0, epoch)
        lanes = two.run_steps(lanes, epoch, batches, 0, two.steps_per_epoch)
    after = two.validate(lanes.params)
    for protein in (0, 1):
        chosen = two.dataset.validated.protein == protein
        assert after.force[:, chosen].sum() < before.force[:, chosen].sum()


def test_errors_by_protein_and_species_add_up_to_the_loss(programs: dict[int, Program]) -> None:
    program = programs[4]
    errors = program.validate(stack([program.new_member(5).params]))
    validated = program.dataset.validated
    np.testing.assert_allclose(errors.species[0].sum(), errors.force[0].sum(), rtol=1e-6)
    for protein in (0, 1):
        chosen = validated.protein == protein
        np.testing.assert_allclose(
            errors.species[0, protein].sum(), errors.force[0, chosen].sum(), rtol=1e-6
        )
        assert validated.species_components[protein].sum() == validated.components[chosen].sum()
    gammas = program.config.training.gammas
    whole = scores(errors.force[0], errors.energy[0], validated.components, validated.beads, gammas)
    assert whole.rmse_force == pytest.approx(
        np.sqrt(errors.species[0].sum() / validated.species_components.sum())
    )


def test_the_file_keeps_proteins_apart(tmp_path: Path) -> None:
    path = tmp_path / "tiny.npz"
    np.savez(path, **two_sizes())
    config = settings()
    dataset = prepare(path, digest(path), config, lambda text: None)
    assert dataset.protein_names == ("s", "l")
    beads = dataset.validated.beads
    assert (beads[dataset.validated.protein == 0] == 3).all()
    assert (beads[dataset.validated.protein == 1] == 6).all()
