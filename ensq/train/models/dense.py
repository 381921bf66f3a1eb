"""Linear maps of edges-last features whose derivatives are edges-last too.

JAX's own derivative of a matrix product returns its results transposed, [edges, features]; XLA
then copies nearly every array back. The two products here are each other's derivatives and keep
the long axis last in derivatives of any order, which makes a training step a fifth faster.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

Weights = Array | np.ndarray  # parameters come from NumPy where they are constants


@jax.custom_vjp
def linear(weight: Float[Weights, "out in"], x: Float[Array, "in *e"]) -> Float[Array, " out *e"]:
    """A linear map of the features of every edge."""
    return jnp.tensordot(weight, x, axes=1)


@jax.custom_vjp
def outer(g: Float[Array, " out *e"], x: Float[Array, "in *e"]) -> Float[Array, "out in"]:
    """The sum over all edges of products."""
    return jnp.tensordot(g, x, axes=(tuple(range(1, g.ndim)), tuple(range(1, x.ndim))))


def _linear_forward(weight: Weights, x: Array) -> tuple[Array, tuple[Weights, Array]]:
    return linear(weight, x), (weight, x)


def _linear_backward(kept: tuple[Weights, Array], g: Array) -> tuple[Array, Array]:
    weight, x = kept
    return outer(g, x), linear(weight.T, g)


def _outer_forward(g: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
    return outer(g, x), (g, x)


def _outer_backward(kept: tuple[Array, Array], h: Array) -> tuple[Array, Array]:
    g, x = kept
    return linear(h, x), linear(h.T, g)


linear.defvjp(_linear_forward, _linear_backward)
outer.defvjp(_outer_forward, _outer_backward)
