"""The loss of a batch, optimisers and learning rates, without a whole training."""

from __future__ import annotations

from typing import Any

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chemtrain.learn import max_likelihood
from train_tools import settings

from ensq.config.structs import OPTIMIZERS, GammasConfig, OptimizerConfig, StageConfig
from ensq.train import loss, optimizers, statistics
from ensq.train.batches import batches_of_epoch
from ensq.train.neighbours import build_neighbours
from ensq.train.pack import Program

# -- batches -----------------------------------------------------------------------------------


def test_an_epoch_shows_every_frame_once() -> None:
    batches = batches_of_epoch((30,), 8, seed=0, epoch=3)
    assert batches.index.shape == (4, 8)
    assert sorted(batches.index[batches.weight == 1]) == list(range(30))
    assert set(np.unique(batches.weight)) == {0, 1}
    assert batches.frames.tolist() == [8, 8, 8, 6]


def test_the_order_depends_on_data_seed_and_epoch_only() -> None:
    def order(*place: int) -> list[int]:
        return batches_of_epoch((30,), 8, *place).index.ravel().tolist()

    assert order(5, 2) == order(5, 2)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(one) for one in orders}) == 9


# -- the loss of a batch -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss_of(program: Program) -> Any:
    """The loss of a batch and its predicted forces, compiled."""

    def evaluate(batch: Any, weight: Any) -> Any:
        params = program.model.init(jax.random.PRNGKey(0), batch.frames)
        force = program.model.energy_and_forces(params, batch.frames)[1]
        return program.objective.batch_loss(params, batch, weight), force

    return jax.jit(evaluate)


def test_places_that_fill_the_last_batch_do_not_count(program: Program, loss_of: Any) -> None:
    batches = batches_of_epoch((30,), 8, 0, 0)
    index, weight = batches.index[3], batches.weight[3]

    def frames(chosen: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[chosen], program.dataset.training[0])

    filled = float(loss_of(frames(index), weight)[0])
    alone = float(loss_of(frames(index[:6]), np.ones(6, np.float32))[0])
    assert filled == pytest.approx(alone, rel=1e-5)
    plain = float(loss_of(frames(index), np.ones(8, np.float32))[0])
    assert abs(plain - alone) > 1e-3 * alone  # without the weights it would differ


def test_more_padding_does_not_change_the_loss(program: Program, loss_of: Any) -> None:
    batch = jax.tree.map(lambda leaf: leaf[:8], program.dataset.training[0])
    wide = {
        key: np.pad(np.asarray(value), [(0, 0), (0, 3), *[(0, 0)] * (value.ndim - 2)])
        for key, value in (*batch.frames._asdict().items(), ("F", batch.F))
        if key in ("R", "species", "mask", "F")
    }
    layout = build_neighbours(wide["R"], wide["mask"], 4.0)
    padded = batch._replace(
        F=jnp.asarray(wide["F"]),
        frames=batch.frames._replace(
            **{key: jnp.asarray(wide[key]) for key in ("R", "species", "mask")},
            nbr=jnp.asarray(layout.index),
            rev=jnp.asarray(layout.reverse),
            nbr_mask=jnp.asarray(layout.mask, jnp.float32),
        ),
    )
    weight = np.ones(8, np.float32)
    (loss, force), (loss_padded, force_padded) = loss_of(batch, weight), loss_of(padded, weight)
    assert float(loss_padded) == pytest.approx(float(loss), rel=1e-5)
    plain = max_likelihood.mse_loss(force, batch.F)
    assert max_likelihood.mse_loss(force_padded, padded.F) < 0.8 * plain  # it would be diluted


def test_the_loss_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    F, F_ref = rng.normal(size=(2, 3, 5, 4, 3))[:, 0]
    U, U_ref = rng.normal(size=(2, 5))
    real = rng.integers(0, 2, size=(5, 4)).astype(float)
    frames = np.array([1.0, 1, 1, 0, 0])
    weight = real * frames[:, None]
    expected = 2.0 * np.mean((F - F_ref)[weight > 0] ** 2) + 0.5 * np.mean((U - U_ref)[:3] ** 2)
    targets = {"F": F_ref, "U": U_ref, "F_weight": weight, "U_weight": frames}
    of_batch = loss.init_loss(GammasConfig(F=2.0, U=0.5))
    assert of_batch({"F": F, "U": U}, targets) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_set_is_the_mean_of_its_frames_losses() -> None:
    rng = np.random.default_rng(0)
    force, energy = rng.uniform(size=(2, 7))
    beads = rng.integers(1, 9, size=7)
    for gammas in (GammasConfig(), GammasConfig(F=2.0, U=0.5), GammasConfig(F=0.0, U=1.0)):
        whole = statistics.scores(force, energy, 3 * beads, beads, gammas)
        frames = statistics.frame_losses(force, energy, 3 * beads, gammas)
        assert np.mean(frames) == pytest.approx(whole.loss, rel=1e-12)
        assert (whole.rmse_force is None) == (gammas.F == 0)
        assert (whole.rmse_energy is None) == (gammas.U == 0)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_error_of_a_loss_is_that_of_drawn_frames_whatever_their_sizes(weight: float) -> None:
    rng = np.random.default_rng(3)
    components = 3.0 * rng.choice([5, 20], 400)
    force = rng.uniform(0.5, 1.5, 400) * components
    energy = weight * rng.uniform(size=400)
    errors, weights = np.stack([force, energy]), np.stack([components, np.ones(400)])
    drawn = rng.integers(0, 400, (4000, 400))
    losses = (errors[:, drawn].sum(axis=2) / weights[:, drawn].sum(axis=2)).sum(axis=0)
    assert statistics.error_of_ratios(errors, weights) == pytest.approx(losses.std(), rel=0.05)
    assert statistics.error_of_ratios(errors[:, :1], weights[:, :1]) is None
    # the control: a mean of the frames' shares takes the sizes for errors
    gammas = GammasConfig(F=1.0, U=1.0)
    shares = statistics.frame_losses(force, np.sqrt(energy), components, gammas)
    assert shares.std() / np.sqrt(400) > 1.5 * losses.std()


# -- optimisers --------------------------------------------------------------------------------


def first_update(name: Any, gradient: Any, **changed: Any) -> Any:
    made = settings(*(f"optimizer.{name}.{key}={value}" for key, value in changed.items()))
    optimizer = optimizers.build(made.optimizer, StageConfig(optimizer=name, epochs=1), 100)
    params = jax.tree.map(lambda leaf: 2.0 * jnp.ones_like(leaf), gradient)
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    return update


GRADIENT = {"a": jnp.array([0.3, -0.4]), "b": {"c": jnp.array([0.0])}}  # norm 0.5: not clipped


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_takes_a_finite_step_down(name: Any) -> None:
    update = first_update(name, GRADIENT, lr="1.0e-2")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(update))
    assert update["a"][0] < 0 < update["a"][1]
    assert update["b"]["c"] == pytest.approx(0, abs=1e-5)  # yogi starts from 1e-6, not from 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adam", [-0.01, 0.01]),
        ("adamw", [-0.01, 0.01]),
        ("lion", [-0.01, 0.01]),
        ("fromage", [-0.003, 0.004]),
        ("polyak_sgd", [-0.003, 0.004]),
        ("sgd_nesterov", [-0.0057, 0.0076]),  # (1 + momentum) times the gradient
    ],
)
def test_first_steps_are_those_of_the_formulas(name: Any, expected: list[float]) -> None:
    update = first_update(name, GRADIENT, lr="1.0e-2")
    np.testing.assert_allclose(update["a"], expected, rtol=1e-4)


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    without = first_update("adamw", GRADIENT, lr="1.0e-2")
    decayed = first_update("adamw", GRADIENT, lr="1.0e-2", weight_decay=0.5)
    for one, two in zip(jax.tree.leaves(decayed), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(one - two, -0.01 * 0.5 * 2.0, rtol=1e-4)


def test_decay_by_gradient_goes_through_the_optimiser() -> None:
    """With plain SGD both ways agree; adam scales a decayed gradient to the same size of step."""
    same = [
        first_update("fromage", GRADIENT, weight_decay=0.5, decay_by_gradient=way)["a"]
        for way in ("false", "true")
    ]
    np.testing.assert_allclose(same[0], same[1], rtol=1e-6)
    step = first_update("adam", GRADIENT, lr="1.0e-2", weight_decay=0.5, decay_by_gradient="true")
    np.testing.assert_allclose(step["a"], [-0.01, -0.01], rtol=1e-4)  # signs of g + 0.5 * 2


def test_gradients_are_clipped_by_their_global_norm_unless_that_is_off() -> None:
    large = jax.tree.map(lambda leaf: 100 * leaf, GRADIENT)
    stage = StageConfig(optimizer="fromage", epochs=1)
    norms = {}
    for clip in (2.0, None):
        optimizer = optimizers.build(OptimizerConfig(grad_clip=clip), stage, 100)
        update, _ = optimizer.update(large, optimizer.init(large), large)
        norms[clip] = float(optax.global_norm(update))
    assert norms == pytest.approx({2.0: 2e-3, None: 50e-3})


# -- learning rate -----------------------------------------------------------------------------


def rates(**changed: Any) -> Any:
    made = settings(*(f"optimizer.adam.{key}={value}" for key, value in changed.items()))
    return optimizers.schedule(made.optimizer.adam, 100)


def test_the_rate_warms_up_and_then_falls_along_a_cosine() -> None:
    rate = rates(lr=0.1, peak_lr=0.5, end_lr=0.02, warmup_steps=10, total_steps=50)
    at = {0: 0.1, 5: 0.3, 10: 0.5, 30: 0.26, 50: 0.02, 99: 0.02}
    assert {step: float(rate(step)) for step in at} == pytest.approx(at, rel=1e-5)


def test_by_default_the_cosine_ends_with_the_stage_at_a_tenth() -> None:
    rate = rates(lr=0.1)
    at = {0: 0.1, 50: 0.055, 100: 0.01}
    assert {step: float(rate(step)) for step in at} == pytest.approx(at, rel=1e-5)


def test_the_reported_rate_counts_from_the_start_of_its_stage(program: Program) -> None:
    assert program.learning_rate(0, 0) == pytest.approx(1e-2)
    assert program.learning_rate(1, 0) == pytest.approx(5.5e-3)  # half of two epochs of 4 steps
    assert program.learning_rate(2, 0) == pytest.approx(0.5)  # lion's first
