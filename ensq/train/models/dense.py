"""Linear maps of edges-last features whose derivatives are edges-last too.

JAX's own derivative of a matrix product returns its results transposed, [edges, features]; XLA
then copies nearly every array back. The two products here are each other's derivatives and keep
the long axis last in derivatives of any order, which makes a training step a fifth faster.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def linear(weight: Array, x: Array) -> Array:
    """[out, in] times [in, *e] to [out, *e]."""
    return jnp.tensordot(weight, x, axes=1)


@jax.custom_vjp
def outer(g: Array, x: Array) -> Array:
    """[out, *e] and [in, *e] to [out, in]: the sum over all edges of products."""
    return jnp.tensordot(g, x, axes=(tuple(range(1, g.ndim)), tuple(range(1, x.ndim))))


def _linear_forward(weight: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
    return linear(weight, x), (weight, x)


def _linear_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    weight, x = kept
    return outer(g, x), linear(weight.T, g)


def _outer_forward(g: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
    return outer(g, x), (g, x)


def _outer_backward(kept: tuple[Array, Array], h: Array) -> tuple[Array, Array]:
    g, x = kept
    return linear(h, x), linear(h.T, g)


linear.defvjp(_linear_forward, _linear_backward)
outer.defvjp(_outer_forward, _outer_backward)
