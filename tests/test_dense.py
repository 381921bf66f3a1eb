"""Products and joints of edges-last features: their derivatives, and what these compile to."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_tools import chain, frames_of, make_model, parameters

from ensq.train.models import allegro, dense, edges

EDGES = (3, 4)  # axes of edges
# Runtimes of jaxlib: 0.4 has two.
OPTIONS = [{}, *([{"xla_cpu_use_thunk_runtime": False}] if jax.__version_info__ < (0, 5) else [])]


def mixture(linear: Any, split: Any, join: Any, weight: Any, x: Any) -> Any:
    """Something that no derivative leaves out: parts change places, one is used twice."""
    a, b, c = split(jnp.sin(linear(weight, x)), (2, 1, 3))
    y = join([c * b, a, jnp.cos(a)])
    return jnp.sum(linear(weight.T[:, :3], y[:3]) ** 2) + jnp.sum(y**3)


def test_derivatives_of_all_orders_are_those_of_jax() -> None:
    rng = np.random.default_rng(0)
    ours: tuple[Any, ...] = (dense.linear, dense.split, dense.join)
    plain: tuple[Any, ...] = (
        lambda w, x: jnp.tensordot(w, x, axes=1),
        lambda x, sizes: jnp.split(x, np.cumsum(sizes)[:-1]),
        jnp.concatenate,
    )

    def derivatives(functions: Any, weight: Any, x: Any) -> list[Any]:
        def value(weight: Any, x: Any) -> Any:
            return mixture(*functions, weight, x)

        def force(weight: Any, x: Any) -> Any:
            return jnp.sum(jax.grad(value, 1)(weight, x) ** 2)

        def third(weight: Any, x: Any) -> Any:
            return sum(jnp.sum(one**2) for one in jax.grad(force, (0, 1))(weight, x))

        return [jax.grad(one, (0, 1))(weight, x) for one in (value, force, third)]

    with enable_x64():
        weight, x = rng.normal(size=(6, 3)), rng.normal(size=(3, *EDGES))
        got, wanted = (
            jax.jit(lambda w, x, f=f: derivatives(f, w, x))(weight, x) for f in (ours, plain)
        )
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10)


def test_components_are_the_rows() -> None:
    x = np.arange(24.0).reshape(2, *EDGES)
    np.testing.assert_array_equal(np.stack(dense.components(jnp.asarray(x))), x)


@pytest.mark.parametrize("members", [None, 3])
def test_sums_over_edges_and_their_derivatives_are_those_of_jax(members: int | None) -> None:
    """Whether by a product with ones or not; for a pack's members, too."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*([members] if members else []), 2, 5, 4))

    def derivative(sums: Any, spread: Any, x: Any) -> Any:
        def value(x: Any) -> Any:
            return jnp.sum(sums(jnp.sin(x) * spread(jnp.cos(sums(x)))) ** 2)

        def second(x: Any) -> Any:
            return jnp.sum(jax.grad(value)(x) ** 3)

        return jax.grad(second)(x)

    ours = partial(derivative, edges.sum_edges, lambda x: edges.to_edges(x, 5))
    plain = partial(derivative, lambda x: jnp.sum(x, axis=-2), lambda x: x[..., None, :])
    with enable_x64():
        both = [jax.jit(jax.vmap(f) if members else f)(x) for f in (ours, plain)]
    np.testing.assert_allclose(*both, rtol=1e-10)


def padded_edges(network: Any) -> int:
    """Arrays of edges with zeros around them in the gradient of a loss of forces."""
    model = make_model(network)
    frames = frames_of(*chain(), dtype=np.float32)

    def loss(params: Any) -> Any:
        return jnp.sum(model.energy_and_forces(params, frames)[1] ** 2)

    text = jax.jit(jax.grad(loss)).lower(parameters(model, np.float32)).as_text()
    beads, width = frames.nbr.shape[1:]
    return len(re.findall(rf"stablehlo\.pad .*-> tensor<\d+x{width}x{beads}xf32>", text))


@pytest.mark.parametrize("network", [(2, 1, "so3"), (1, 2, "o3")])
def test_no_derivative_is_an_array_of_zeros_around_another(network: Any) -> None:
    # XLA asks at every element of such a sum where it is: a third of a step went into that
    assert padded_edges(network) == 0


def test_joints_of_jax_would_make_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allegro, "join", jnp.concatenate)
    # current JAX splits in the derivative of a concatenation, as ours does
    assert (padded_edges((2, 1, "so3")) > 0) == (jax.__version_info__ < (0, 5))


@pytest.mark.parametrize("options", OPTIONS)
def test_mixed_products_are_of_rounded_factors(options: dict[str, bool]) -> None:
    """The older runtime of jaxlib 0.4 leaves a mere conversion there and back out."""
    rng = np.random.default_rng(0)
    weight, x = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 16), (16, 100)))
    product = jax.jit(lambda w, x: dense.linear(w, jnp.sin(x), True), compiler_options=options)
    rounded = [np.asarray(one).astype(jnp.bfloat16) for one in (weight, np.sin(x))]
    wanted = rounded[0].astype(np.float64) @ rounded[1].astype(np.float64)
    got = np.asarray(product(weight, x))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.abs(got - weight @ np.sin(x)).max() > 1e-3
