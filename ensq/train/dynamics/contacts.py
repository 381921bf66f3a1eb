"""The nearest pair of beads that no bond holds, of all replicas, among the neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from ensq.train.dynamics.step import Layout


def nearest(position: Array, layout: Layout) -> tuple[Array, Array]:
    """[R] the smallest distance of a free pair (infinite where none are neighbours, 0 where none
    is watched), and the pair as i * N + j.

    Neighbours hold all pairs within the cutoff: what is beyond may be there, or not.
    """
    replicas, beads = position.shape[:2]
    if layout.free is None:
        return jnp.zeros(replicas, position.dtype), jnp.zeros(replicas, jnp.int32)
    vector = jax.vmap(lambda one, place: one[place])(position, layout.nbr) - position[:, :, None]
    if layout.offset is not None:
        vector = vector + layout.offset
    squared = jnp.where(layout.free, jnp.square(vector).sum(axis=-1), jnp.inf)
    flat = squared.reshape(replicas, -1)
    place = flat.argmin(axis=1)
    bead = place // layout.nbr.shape[2]
    other = jnp.take_along_axis(layout.nbr.reshape(replicas, -1), place[:, None], axis=1)[:, 0]
    distance = jnp.sqrt(jnp.take_along_axis(flat, place[:, None], axis=1)[:, 0])
    return distance, (bead * beads + other).astype(jnp.int32)
