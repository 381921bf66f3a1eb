"""Fitting the priors alone: known parameters come back, and nothing gets worse."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec.structs import replace
from test_priors import chain

from ensq.config.model import ModelConfig, PriorsConfig, PriorWeights, SplineConfig, SplinesConfig
from ensq.errors import ConfigError
from ensq.train.models import DataStatistics, EnergyModel, Frames, build_model
from ensq.train.models.priors import unphysical
from ensq.train.pretrain import Report, fit_priors

CHIGNOLIN = Path(__file__).parent.parent / "data" / "chignolin_ca.npz"
ONE = PriorWeights(bond=1.0, angle=1.0, dihedral=1.0)
TRUE = PriorsConfig(
    weights=ONE, r0=3.8, kr=120.0, a=(4.0, -1.5), b=(-3.0, 0.8), k_dih=(0.9,), gamma_dih=(0.7,)
)
START = replace(TRUE, r0=3.7, kr=60.0, a=(0.5, 0.5), b=(0.5, 0.5), k_dih=(0.2,), gamma_dih=(0.0,))
# Boltzmann inversion of the file's chains at 350 K, by `ensq priors fit`.
INVERTED = PriorsConfig(
    weights=ONE,
    r0=3.873,
    kr=193.1,
    a=(95.2, -40.8),
    b=(-211.7, -46.4),
    k_dih=(0.536, 0.596, 0.256),
    gamma_dih=(1.31, -1.71, -0.07),
)


@functools.cache
def model_of(priors: PriorsConfig) -> EnergyModel:
    config = ModelConfig(
        cutoff=8.0, prior_only=True, use_priors=True, train_priors=True, priors=priors
    )
    return build_model(config, DataStatistics(20, 4.0, np.zeros(20), 1.0))


def frames_of(positions: np.ndarray, dtype: Any) -> Frames:
    none = jnp.zeros((*positions.shape[:2], 0), jnp.int32)
    shape = positions.shape[:2]
    return Frames(
        *(jnp.asarray(positions, dtype), jnp.zeros(shape, jnp.int32), jnp.ones(shape, dtype)),
        *(none, none, none),
    )


def force_loss(model: EnergyModel) -> Any:
    def loss(params: Any, data: tuple[Frames, Any]) -> Any:
        return jnp.mean(jnp.square(model.energy_and_forces(params, data[0])[1] - data[1]))

    return loss


def fit(model: EnergyModel, data: Any, **options: Any) -> tuple[dict[str, Any], Report]:
    dtype = data[1].dtype
    limits = {"min_steps": 1, "max_steps": 100, "tol_grad": 1e-7, **options}
    return fit_priors({"priors": model.priors.init(dtype)}, force_loss(model), data, **limits)


def made_by(priors: PriorsConfig) -> tuple[Frames, Any]:
    frames = frames_of(np.stack([chain(beads=8, seed=seed) for seed in range(20)]), np.float64)
    model = model_of(priors)
    _, forces = jax.jit(model.energy_and_forces)({"priors": model.priors.init(np.float64)}, frames)
    return frames, forces


def test_the_parameters_that_made_the_data_are_found_again():
    said: list[str] = []
    with enable_x64():
        found, report = fit(model_of(START), made_by(TRUE), say=said.append)
    assert report.stopped == "converged" and report.gradient_norm <= 1e-7
    assert report.last_loss < 1e-12 < 1.0 < report.first_loss
    assert report.steps < 60
    for key in ("r0", "kr", "a", "b"):
        np.testing.assert_allclose(found[key], getattr(TRUE, key), rtol=1e-6)
    # k at gamma is -k at gamma + pi
    for wave in (np.cos, np.sin):
        component = found["k_dih"] * wave(found["gamma_dih"])
        np.testing.assert_allclose(component, 0.9 * wave(0.7), rtol=1e-6)
    assert said[-1] == str(report) and "converged" in said[-1]


def test_without_training_of_the_priors_there_is_no_gradient_to_follow():
    """Negative control: what ``train_priors`` stops is the gradient that the fit needs."""
    data = chignolin(31)
    norms = []
    for trained in (True, False):
        model = dataclasses.replace(model_of(START), train_priors=trained)
        found, report = fit(model, data, max_steps=0)
        assert report.steps == 0 and float(found["kr"]) == START.kr
        norms.append(report.gradient_norm)
    assert norms[0] > 1.0 and norms[1] == 0.0


def chignolin(count: int) -> tuple[Frames, Any]:
    with np.load(CHIGNOLIN, allow_pickle=False) as archive:
        every = len(archive["R"]) // count
        R, F = archive["R"][::every], archive["F"][::every]
    return frames_of(R, np.float32), jnp.asarray(F, jnp.float32)


def test_forces_of_chignolin_are_fitted_better_than_by_boltzmann_inversion():
    """In single precision."""
    data, model = chignolin(620), model_of(INVERTED)
    found, report = fit(model, data, max_steps=20)
    assert report.last_loss < report.first_loss - 0.1
    assert float(force_loss(model)({"priors": found}, data)) == pytest.approx(report.last_loss)
    bond = model_of(PriorsConfig(weights=ONE, r0=3.873, kr=193.1))
    alone = force_loss(bond)({"priors": bond.priors.init()}, data)
    assert report.first_loss < float(alone) < 10.0**2
    assert not unphysical(found)


def quadratic(params: Any, data: Any) -> Any:
    return jnp.sum(jnp.square(params["priors"]["x"] - data))


def test_the_number_of_steps_is_bounded_on_both_sides():
    def valley(params: Any, data: Any) -> Any:  # of Rosenbrock
        x, y = params["priors"]["x"]
        return jnp.square(1 - x) + data * jnp.square(y - x * x)

    start = {"priors": {"x": jnp.array([-1.2, 1.0])}}
    options = {"min_steps": 0, "tol_grad": 1e-3}
    _, report = fit_priors(start, valley, 100.0, max_steps=3, **options)
    assert (report.steps, report.stopped) == (3, "max_steps")
    best, report = fit_priors(start, valley, 100.0, max_steps=100, **options)
    again, second = fit_priors(start, valley, 100.0, max_steps=100, **options)
    assert report == second and np.array_equal(best["x"], again["x"])
    assert report.stopped == "converged" and report.steps > 3
    np.testing.assert_allclose(best["x"], [1.0, 1.0], atol=1e-2)
    at_minimum = {"priors": {"x": jnp.ones(2)}}
    _, report = fit_priors(at_minimum, quadratic, 1.0, min_steps=3, max_steps=9, tol_grad=1e-3)
    assert (report.steps, report.stopped) == (3, "converged")


def test_a_loss_that_becomes_nan_leaves_the_last_finite_parameters():
    def cliff(params: Any, data: Any) -> Any:
        x = params["priors"]["x"]
        return jnp.where(x > data, jnp.nan, jnp.square(x - 5.0))

    start = {"priors": {"x": jnp.zeros(())}}
    found, report = fit_priors(start, cliff, 3.0, min_steps=5, max_steps=30, tol_grad=1e-6)
    assert math.isfinite(report.last_loss) and report.last_loss <= report.first_loss == 25.0
    assert float(found["x"]) <= 3.0 and report.stopped == "no_progress"


def test_a_start_that_is_not_finite_comes_back_as_it_was():
    start = {"priors": {"x": jnp.array([jnp.inf])}}
    found, report = fit_priors(start, quadratic, 1.0, min_steps=5, max_steps=30, tol_grad=1e-6)
    assert np.isinf(found["x"]).all() and (report.steps, report.stopped) == (0, "no_progress")


def test_priors_without_parameters_cannot_be_fitted():
    flat = SplineConfig(knots=(3.0, 5.0), coeffs=((0.0, 0.0, 0.0, 0.0),))
    splines = PriorsConfig(use_spline_priors=True, splines=SplinesConfig(bond=flat))
    with pytest.raises(ConfigError, match="splines have none"):
        fit(model_of(splines), chignolin(3))


def test_negative_constants_are_named():
    odd = unphysical({"r0": jnp.array(3.8), "kr": jnp.array(-2.0), "epsilon": jnp.array(-0.1)})
    assert [text.split()[2] for text in odd] == ["kr", "epsilon"]
    said: list[str] = []
    start = {"priors": {"kr": jnp.ones(())}}
    loss = lambda params, data: jnp.square(params["priors"]["kr"] - data)  # noqa: E731
    fit_priors(start, loss, -2.0, min_steps=1, max_steps=9, tol_grad=1e-3, say=said.append)
    assert "kr has become negative (-2)" in said[-1]
