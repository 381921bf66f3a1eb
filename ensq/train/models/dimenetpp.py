"""DimeNet++ of jax_md_mod on ensq's graphs (Gasteiger et al., arXiv:2011.14115).

The module itself is chemtrain's; what is here is the list of edges and angles that it wants.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import haiku as hk
import jax
import jax.numpy as jnp
import msgspec
from jax import Array
from jax_md_mod.model.neural_networks import DimeNetPP
from jax_md_mod.model.sparse_graph import SparseDirectionalGraph
from jaxtyping import Bool, Float, PRNGKeyArray

from ensq.config.model import DimeNetConfig
from ensq.errors import ExportError
from ensq.train.models.graph import Graph, PaddedGraph, edge_list

Params = Any  # a nested dict of arrays
SAME_POINT = 1e-4  # Angstrom: the way to a neighbour and back again is no angle
TINY = 1e-12


@dataclass(frozen=True)
class DimeNet:
    """The network of one configuration. It is a message-passing network: not strictly local."""

    config: DimeNetConfig
    cutoff: float
    n_species: int

    needs_rows: ClassVar[bool] = True  # angles are found by the rows that edges stand in

    @property
    def hops(self) -> int:
        """Each block of interactions brings in the neighbours' neighbours once more."""
        return self.config.n_interaction_blocks + 1

    def init(self, key: PRNGKeyArray, batch: Graph) -> Params:
        """Random parameters, a nested dict of arrays, in the precision of ``batch``."""
        with _quiet():
            params = self._module().init(key, _directional(batch))
        dtype = batch.vectors.dtype
        return jax.tree_util.tree_map(lambda leaf: leaf.astype(dtype), params)

    def per_bead_energy(self, params: Params, batch: Graph) -> Float[Array, " A"]:
        """Energy of each bead, in units of the energy scale."""
        with _quiet():
            return self._module().apply(params, _directional(batch))[:, 0]

    def _module(self) -> Any:
        settings = {
            key: value
            for key, value in msgspec.structs.asdict(self.config).items()
            if value is not None
        }

        def energies(graph: SparseDirectionalGraph) -> Float[Array, "A 1"]:
            return DimeNetPP(self.cutoff, self.n_species, num_targets=1, **settings)(graph)

        return hk.without_apply_rng(hk.transform(energies))


@contextmanager
def _quiet() -> Iterator[None]:
    """jax_md_mod sums in float64 where it can; where it can't, JAX would warn at each trace."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
        yield


def _directional(graph: Graph) -> SparseDirectionalGraph:
    """Edges j -> i and, for each, the edges k -> j with the angle between them.

    Edges in the padded layout [M, A] have the place ``m * A + a`` in the list, so the edges that
    end at bead j are the places ``m2 * A + j``: no search is needed.
    """
    if not isinstance(graph, PaddedGraph):
        raise ExportError("dimenetpp needs its neighbours in rows, not as a list of edges")
    edges = edge_list(graph)
    width, beads = graph.neighbour.shape
    second = jnp.arange(width, dtype=jnp.int32)[:, None] * beads + edges.senders[None, :]
    first = jnp.broadcast_to(jnp.arange(width * beads, dtype=jnp.int32), second.shape)
    first, second = first.reshape(-1), second.reshape(-1)
    to_neighbour, onward = edges.vectors[first], edges.vectors[second]
    returns = jnp.sum(jnp.square(to_neighbour + onward), axis=-1) < SAME_POINT**2
    real = edges.used[first] & edges.used[second] & ~returns
    squared = jnp.sum(jnp.square(edges.vectors), axis=-1)
    return SparseDirectionalGraph(
        species=graph.species,
        distance_ij=jnp.sqrt(squared),
        idx_i=edges.receivers,
        idx_j=edges.senders,
        angles=_angle(-to_neighbour, onward, real),
        reduce_to_ji=first,
        expand_to_kj=second,
        edge_mask=edges.used,
        triplet_mask=real,
    )


def _angle(
    a: Float[Array, "n 3"], b: Float[Array, "n 3"], real: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Angle between two vectors; pi/2 where not ``real`` or on a line (with no force)."""
    cross = jnp.cross(a, b)
    squared = jnp.sum(jnp.square(cross), axis=-1)
    along = jnp.sum(a * b, axis=-1)
    defined = real & (squared > TINY)
    sine = jnp.sqrt(jnp.where(defined, squared, 1.0))
    angle = jnp.arctan2(sine, jnp.where(defined, along, 0.0))
    straight = jnp.where(along > 0, 0.0, jnp.pi)
    return jnp.where(defined, angle, jnp.where(real, straight, jnp.pi / 2))
