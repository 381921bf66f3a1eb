"""From beads to the edges of a padded layout and back: each is the derivative of the other.

On a CPU JAX 0.4 sums over neighbours by a product with ones: XLA's own loop for a sum over an axis
that is not the last uses no vector instructions there, and took a seventh of a step. GPUs fuse the
sum with what is summed, and so does current JAX.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jaxtyping import Float

_BY_PRODUCT = jax.__version_info__ < (0, 5)  # on a CPU


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def to_edges(x: Float[Array, " *f A"], places: int) -> Float[Array, "*f M A"]:
    """[*f, A] to [*f, M, A]: each of the M places gets the value of its bead. Moves no memory."""
    return jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], places, x.shape[-1]))


@jax.custom_vjp
def sum_edges(x: Float[Array, "*f M A"]) -> Float[Array, " *f A"]:
    """[*f, M, A] to [*f, A]: the sum over a bead's places."""
    return _sum(x)


@custom_vmap
def _sum(x: Float[Array, "*f M A"]) -> Float[Array, " *f A"]:
    if not _BY_PRODUCT or jax.default_backend() != "cpu":
        return jnp.sum(x, axis=-2)
    *features, places, beads = x.shape
    flat = x.reshape(-1, places, beads)
    ones = jnp.ones((len(flat), 1, places), x.dtype)
    return (ones @ flat).reshape(*features, beads)


@_sum.def_vmap
def _sum_of_members(size: int, batched: list[bool], x: Array) -> tuple[Array, bool]:
    # members are features like others; JAX would put them behind the beads and back, with copies
    return _sum(x), batched[0]


def _to_edges_forward(x: Array, places: int) -> tuple[Array, None]:
    return to_edges(x, places), None


def _to_edges_backward(places: int, _: None, g: Array) -> tuple[Array]:
    return (sum_edges(g),)


def _sum_forward(x: Any) -> tuple[Array, tuple[Array, ...]]:
    # an empty array that remembers the number of places
    return sum_edges(x), (jnp.zeros((x.shape[-2], 0), x.dtype),)


def _sum_backward(kept: tuple[Array, ...], g: Array) -> tuple[Array]:
    return (to_edges(g, kept[0].shape[0]),)


to_edges.defvjp(_to_edges_forward, _to_edges_backward)
sum_edges.defvjp(_sum_forward, _sum_backward)
