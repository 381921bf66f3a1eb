"""The priors' parameters alone, fitted by L-BFGS to the loss of all training frames."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray
from optax.tree_utils import tree_get, tree_set

from ensq.errors import ConfigError
from ensq.train.models.network import Params
from ensq.train.models.priors import NOTHING, unphysical

PriorParams = dict[str, Array]
Loss = Callable[[Params, Any], Array]
FLATTEST = 1e-7  # curvature, against the largest, below which a direction counts as flat
PATIENCE = 5  # steps in a row without a lower loss, after which there is nothing more to gain


@dataclass(frozen=True)
class Report:
    """What a fit did: losses of the parameters given and of those that came back, and the norm of
    the gradient at the latter."""

    steps: int
    first_loss: float
    last_loss: float
    gradient_norm: float
    stopped: Literal["converged", "max_steps", "no_progress"]

    def __str__(self) -> str:
        reason = {
            "converged": "converged",
            "max_steps": "stopped at the largest number of steps",
            "no_progress": "stopped where no step lowers the loss",
        }[self.stopped]
        return (
            f"priors fitted: loss {self.first_loss:.6g} to {self.last_loss:.6g} in {self.steps} "
            f"steps, gradient {self.gradient_norm:.2g}; {reason}"
        )


class _Axes(NamedTuple):
    """Flat parameters [P] are origin + directions x: the loss curves about equally along all x."""

    origin: Array  # [P]
    directions: Array  # [P, P]

    def at(self, x: Array) -> Array:
        return self.origin + self.directions @ x


class _Point(NamedTuple):
    """Where the fit stands along its axes [P], and what the optimiser remembers."""

    x: Array
    memory: Any


def fit_priors(
    params: Params,
    loss: Loss,
    data: Any,
    *,
    min_steps: int,
    max_steps: int,
    tol_grad: float,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[PriorParams, Report]:
    """Lower a loss by L-BFGS with a zoom line search (Nocedal & Wright, algorithms 3.5 and 7.4).

    Deterministic. The parameters that come back are the best that were met: never worse than those
    given, and finite where those were. Nothing bounds them; oddities are told.

    Args:
        params: Of a model; ``params["priors"]`` is where the fit starts, the rest is left alone.
        loss: ``loss(params, data)``, a scalar, under ``jax.jit``. Its model must not stop the
            priors' gradient (``train_priors``), and should have no network, so that the priors
            explain as much of the labels as they can.
        data: What else the loss needs, a pytree: constants of a compiled program are costly.
        min_steps: Steps before a small gradient may end the fit.
        max_steps: Steps at most.
        tol_grad: Norm of the gradient at which the fit has converged.
        say: Told how it goes.

    Returns:
        What ``params["priors"]`` becomes, and how it went.

    Raises:
        ConfigError: The priors have no parameters.
    """
    start = params.get("priors")
    if not start or set(start) == {NOTHING}:
        raise ConfigError(
            "training.pretrain_prior: no term of the priors has parameters that could be fitted "
            "(splines have none)"
        )
    flat, unflatten = ravel_pytree(start)

    def of_flat(values: Array, params: Params, data: Any) -> Array:
        return loss({**params, "priors": unflatten(values)}, data)

    first, gradient, curvature = jax.jit(functools.partial(_look, of_flat))(flat, params, data)
    axes = _Axes(flat, jnp.asarray(_whitening(np.asarray(curvature), np.asarray(flat)), flat.dtype))
    x = jnp.zeros_like(flat)
    # value and gradient are known: told to the optimiser, they need not be in its program
    memory = tree_set(_SOLVER.init(x), value=first, grad=axes.directions.T @ gradient)
    point, step = _Point(x, memory), jax.jit(functools.partial(_step, of_flat))
    value, norm = float(first), float(jnp.linalg.norm(gradient))
    first, best, best_norm, kept, done, idle = value, value, norm, flat, 0, 0
    while not (stopped := _why_stop(value, norm, done, idle, (min_steps, max_steps, tol_grad))):
        point, value, norm = step(axes, point, params, data)
        value, norm, done, idle = float(value), float(norm), done + 1, idle + 1
        if value < best and math.isfinite(norm):
            best, best_norm, kept, idle = value, norm, axes.at(point.x), 0
        if done % 10 == 0:
            say(f"fitting the priors: step {done}, loss {best:.6g}")
    report = Report(done, first, best, best_norm, stopped)
    fitted: PriorParams = unflatten(kept)
    for line in (str(report), *unphysical(fitted)):
        say(line)
    return fitted, report


def _why_stop(
    value: float, norm: float, done: int, idle: int, limits: tuple[int, int, float]
) -> Literal["converged", "max_steps", "no_progress"] | None:
    """The reason to stop after ``done`` steps, or None to go on."""
    min_steps, max_steps, tol_grad = limits
    if not (math.isfinite(value) and math.isfinite(norm)):
        return "no_progress"
    if norm <= tol_grad and (done >= min_steps or idle >= PATIENCE):
        return "converged"
    if idle >= PATIENCE:
        return "no_progress"
    return "max_steps" if done >= max_steps else None


_SOLVER = optax.lbfgs()
FlatLoss = Callable[[Array, Params, Any], Array]


def _look(loss: FlatLoss, x: Array, params: Params, data: Any) -> tuple[Array, Array, Array]:
    """The loss, its gradient [P] and its second derivatives [P, P].

    One column after another, so that memory does not grow with the number of parameters.
    """
    value, gradient = jax.value_and_grad(loss)(x, params, data)

    def column(along: Array) -> Array:
        return jax.jvp(lambda y: jax.grad(loss)(y, params, data), (x,), (along,))[1]

    return value, gradient, lax.map(column, jnp.eye(x.size, dtype=x.dtype))


def _whitening(curvature: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Directions [P, P] along which a loss of this curvature curves about equally.

    Neighbouring orders of a Fourier series look alike over the angles that occur, and a force
    constant is many times a radius: without this L-BFGS needs hundreds of steps.
    """
    scale = np.maximum(np.abs(x), 1.0).astype(np.float64)
    scaled = 0.5 * (curvature + curvature.T) * np.outer(scale, scale)
    if not np.isfinite(scaled).all():
        return np.diag(scale)
    values, vectors = np.linalg.eigh(scaled)
    largest = np.abs(values).max() or 1.0
    # a direction that hardly matters, as epsilon against sigma, is not followed far
    width = 1.0 / np.sqrt(np.maximum(np.abs(values), FLATTEST * largest))
    return scale[:, None] * vectors * width


def _step(
    loss: FlatLoss, axes: _Axes, point: _Point, params: Params, data: Any
) -> tuple[_Point, Array, Array]:
    """One step; also the loss and the norm of its gradient by the parameters after it."""

    def of_x(x: Array) -> Array:
        return loss(axes.at(x), params, data)

    value, gradient = tree_get(point.memory, "value"), tree_get(point.memory, "grad")
    updates, memory = _SOLVER.update(
        gradient, point.memory, point.x, value=value, grad=gradient, value_fn=of_x
    )
    after = _Point(optax.apply_updates(point.x, updates), memory)
    along = tree_get(memory, "grad")  # by x: directions' transpose times that by the parameters
    by_parameters = jnp.linalg.solve(axes.directions.T, along)
    return after, tree_get(memory, "value"), jnp.linalg.norm(by_parameters)
