"""Options that save memory or time: micro_batch and mixed precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_tools import settings

from ensq import config
from ensq.train.batches import batches_of_epoch
from ensq.train.dataset import Dataset
from ensq.train.pack import Program, lane, stack

WIDE = "model.allegro={n_channels: 16, mlp_n_hidden: 32, max_ell: 1}"


def made(dataset: Dataset, *overrides: str) -> Program:
    return Program(settings(WIDE, *overrides), dataset)


def after_some_steps(program: Program) -> Any:
    lanes = stack([program.new_member(seed) for seed in (1, 2)])
    batches = batches_of_epoch(program.dataset.sizes, program.batch, 0, 0)
    return program.run_steps(lanes, 0, batches, 0, program.steps_per_epoch)


def memory(program: Program) -> int:
    """Bytes that the gradient of one batch needs beside its arguments."""
    # many frames: the features of all edges must outweigh the parameters
    batch = jax.tree.map(
        lambda leaf: jnp.tile(leaf, (8, *[1] * (leaf.ndim - 1))), program.dataset.training[0]
    )
    stepper = program._steps(0, 1).__wrapped__.__self__  # type: ignore[attr-defined]
    gradient = jax.jit(lambda params: stepper._loss_and_gradient(params, batch, jnp.ones(240), 0))
    compiled = gradient.lower(program.new_member(1).params).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


@pytest.fixture(scope="module")
def plain(dataset: Dataset) -> Program:
    return made(dataset)


def test_steps_by_parts_of_a_batch_are_the_same_and_need_less_memory(
    plain: Program, dataset: Dataset
) -> None:
    program = made(dataset, "training.micro_batch=2")
    one, two = after_some_steps(plain), after_some_steps(program)
    np.testing.assert_allclose(two.batch_losses, one.batch_losses, rtol=1e-4)
    assert np.asarray(one.batch_losses).min() > 0
    assert memory(made(dataset, "training.micro_batch=30")) < 0.2 * memory(plain)


def test_the_last_batch_of_an_epoch_may_be_a_part_of_a_part(dataset: Dataset) -> None:
    """30 frames in batches of 8, looked at 3 by 3: parts are filled up with frames of weight 0."""
    one, two = (
        after_some_steps(made(dataset)),
        after_some_steps(made(dataset, "training.micro_batch=3")),
    )
    np.testing.assert_allclose(two.batch_losses, one.batch_losses, rtol=1e-4)


def test_mixed_precision_rounds_factors_in_steps_and_nowhere_else(
    plain: Program, dataset: Dataset
) -> None:
    program = made(dataset, "training.precision=mixed")
    lanes = after_some_steps(program)
    assert {leaf.dtype for leaf in jax.tree.leaves(lanes.params)} == {jnp.dtype("float32")}
    exact, rounded = (np.asarray(after_some_steps(p).batch_losses) for p in (plain, program))
    # of the first batch: from then on the parameters differ, too
    difference = np.abs(rounded - exact)[:, 0] / exact[:, 0]
    assert (difference > 1e-6).all() and (difference < 0.05).all()
    assert program.model == plain.model, "what is validated and exported is computed in float32"
    assert program.objective.model != plain.objective.model
    params = stack([lane(lanes, 0).params])
    one, two = plain.validate(params), program.validate(params)
    np.testing.assert_array_equal(one.force, two.force)


def test_what_saves_memory_makes_no_other_ensemble_and_mixed_precision_does() -> None:
    usual = config.digest(settings())
    assert config.digest(settings("training.micro_batch=4")) == usual
    assert config.digest(settings("training.precision=mixed")) != usual
