"""From beads to the edges of a padded layout and back: each is the derivative of the other.

On a CPU JAX 0.4 sums over neighbours by a product with ones: XLA's own loop for a sum over an axis
that is not the last uses no vector instructions there, and took a seventh of a step. GPUs fuse the
sum with what is summed, and so does current JAX.
"""

from __future__ import annotations

from functools import partial

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


def sum_edges(x: Float[Array, "*f M A"]) -> Float[Array, " *f A"]:
    """[*f, M, A] to [*f, A]: the sum over a bead's places."""
    return _sum_edges(x, x.shape[-2])


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum_edges(x: Array, places: int) -> Array:
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
    return (_sum_edges(g, places),)


def _sum_forward(x: Array, places: int) -> tuple[Array, None]:
    return _sum_edges(x, places), None


def _sum_backward(places: int, _: None, g: Array) -> tuple[Array]:
    return (to_edges(g, places),)


to_edges.defvjp(_to_edges_forward, _to_edges_backward)
_sum_edges.defvjp(_sum_forward, _sum_backward)
