"""The two graph operations of a strictly local network, for two storage layouts.

Arrays are *edges-last*: features first, the long axis of beads or edges last, which a CPU's vector
units like best. ``expand`` copies bead values to the edges of each bead; ``collect`` sums edge
values over the edges of each bead. In the padded layout edges are [M, A] (A beads of all frames,
M places for neighbours): expand is a broadcast, collect a sum over an axis. In the sparse layout,
which an exported model uses, edges are a list [E].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ensq.train.models.edges import sum_edges, to_edges

# Squared length below which a pair has no direction and is left out (1e-5 of the unit of length).
COINCIDENT = 1e-10


class Frames(NamedTuple):
    """A batch of B frames of N beads with at most M neighbours each (see ``train.neighbours``).

    R [B, N, 3] positions; species [B, N] int32; mask [B, N] float, 1 real and 0 padding;
    nbr [B, N, M] int32 neighbour's bead; rev [B, N, M] int32 place of the reverse edge
    ``j * M + m'``; nbr_mask [B, N, M] float or bool; offset [B, N, M, 3], what a periodic image of
    the neighbour is shifted by (0 on padding), or None where all boundaries are open.
    """

    R: Float[Array, "B N 3"]
    species: Int[Array, "B N"]
    mask: Float[Array, "B N"]
    nbr: Int[Array, "B N M"]
    rev: Int[Array, "B N M"]
    nbr_mask: Float[Array, "B N M"] | Bool[Array, "B N M"]
    offset: Float[Array, "B N M 3"] | None = None


@dataclass(frozen=True)
class Graph(ABC):
    """What the network sees. ``*e`` are the axes of edges, the last axis of beads is A."""

    position: Float[Array, "3 A"]
    # from the bead to its neighbour; of some fixed length if unused
    vectors: Float[Array, " 3 *e"]
    used: Bool[Array, " *e"]
    species: Int[Array, " A"]
    centre: Int[Array, " *e"]  # the place of the bead that the edge belongs to
    neighbour: Int[Array, " *e"]  # its place among the A beads; any number if unused
    neighbour_species: Int[Array, " *e"]
    periodic: bool  # whether vectors may lead to images, so that positions alone don't tell them

    @abstractmethod
    def expand(self, x: Float[Array, " *f A"]) -> Float[Array, " ..."]:
        """[*f, A] to [*f, *e], broadcastable: each edge gets the value of its bead."""

    @abstractmethod
    def collect(self, x: Float[Array, " ..."]) -> Float[Array, " *f A"]:
        """[*f, *e] to [*f, A]: the sum over each bead's edges, unused ones included."""


@dataclass(frozen=True)
class PaddedGraph(Graph):
    """Edges [M, A]."""

    def expand(self, x: Float[Array, " *f A"]) -> Float[Array, "*f M A"]:
        """A broadcast over the axis of neighbours: no memory is moved."""
        return to_edges(x, self.used.shape[0])

    def collect(self, x: Float[Array, "*f M A"]) -> Float[Array, " *f A"]:
        """A sum over the axis of neighbours."""
        return sum_edges(x)


@dataclass(frozen=True)
class SparseGraph(Graph):
    """Edges [E]; unused ones have any centre and are masked."""

    def expand(self, x: Float[Array, " *f A"]) -> Float[Array, " *f E"]:
        """A gather; an index past the end is clamped, and its edge is masked elsewhere."""
        return jnp.take(x, self.centre, axis=-1, mode="clip")

    def collect(self, x: Float[Array, " *f E"]) -> Float[Array, " *f A"]:
        """A segment sum; an index past the end is dropped."""
        out = jnp.zeros((*x.shape[:-1], self.species.shape[0]), x.dtype)
        return out.at[..., self.centre].add(x, mode="drop")


class EdgeList(NamedTuple):
    """A graph as most packages want it: E edges in a list, all indices valid."""

    senders: Int[Array, " E"]  # the neighbour; 0 where unused
    receivers: Int[Array, " E"]  # the bead that the edge belongs to; 0 where unused
    vectors: Float[Array, "E 3"]  # from the receiver to the sender
    used: Bool[Array, " E"]


def edge_list(graph: Graph) -> EdgeList:
    """The edges of either layout in one list."""
    used = graph.used.reshape(-1)
    return EdgeList(
        senders=jnp.where(used, graph.neighbour.reshape(-1), 0),
        receivers=jnp.where(used, graph.centre.reshape(-1), 0),
        vectors=graph.vectors.reshape(3, -1).T,
        used=used,
    )


@jax.custom_vjp
def edge_vectors(
    x: Float[Array, "3 A"], nbr: Int[Array, "M A"], rev: Int[Array, "M A"], mask: Bool[Array, "M A"]
) -> Float[Array, "3 M A"]:
    """Vectors [3, M, A] from each bead to its neighbours, 0 where ``mask`` [M, A] is False.

    ``x`` [3, A]; ``nbr``, ``rev`` [M, A]: the neighbour among the A beads, and the reverse edge
    among the M * A places. Linear in x, and the transpose of ``bead_sums``: each is the other's
    derivative, so that derivatives of any order are gathers.
    """
    return jnp.where(mask, jnp.take(x, nbr, axis=1, mode="clip") - x[:, None, :], 0.0)


@jax.custom_vjp
def bead_sums(
    g: Float[Array, "3 M A"],
    nbr: Int[Array, "M A"],
    rev: Int[Array, "M A"],
    mask: Bool[Array, "M A"],
) -> Float[Array, "3 A"]:
    """Sum [3, A] of ``g`` [3, M, A] over the edges that end at a bead less those that start there.

    Every edge that ends at a bead is the reverse of one that starts there, so this is a gather.
    """
    back = jnp.take(g.reshape(3, -1), rev, axis=1, mode="clip")
    return jnp.sum(jnp.where(mask, back - g, 0.0), axis=1)


def _vectors_forward(
    x: Array, nbr: Array, rev: Array, mask: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return edge_vectors(x, nbr, rev, mask), (nbr, rev, mask)


def _vectors_backward(
    edges: tuple[Array, Array, Array], g: Array
) -> tuple[Array, None, None, None]:
    return bead_sums(g, *edges), None, None, None


def _sums_forward(
    g: Array, nbr: Array, rev: Array, mask: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return bead_sums(g, nbr, rev, mask), (nbr, rev, mask)


def _sums_backward(edges: tuple[Array, Array, Array], g: Array) -> tuple[Array, None, None, None]:
    return edge_vectors(g, *edges), None, None, None


edge_vectors.defvjp(_vectors_forward, _vectors_backward)
bead_sums.defvjp(_sums_forward, _sums_backward)


def _usable(
    vectors: Float[Array, " 3 *e"], mask: Bool[Array, " *e"], cutoff: float
) -> tuple[Float[Array, " 3 *e"], Bool[Array, " *e"]]:
    """Edges within the cutoff, and vectors of a harmless length in place of the others."""
    squared = jnp.sum(jnp.square(vectors), axis=0)
    used = mask & (squared > COINCIDENT) & (squared < cutoff * cutoff)
    # The constant replaces the value before any root or quotient: a mask behind them would still
    # give 0 * inf = NaN in the derivative.
    return jnp.where(used, vectors, 0.5 * cutoff), used


def padded_graph(frames: Frames, cutoff: float) -> PaddedGraph:
    """The graph of a batch: its B * N beads side by side on the last axis."""
    return _side_by_side(*frames, cutoff=cutoff)


def _side_by_side(
    R: Float[Array, "B N 3"],
    species: Int[Array, "B N"],
    mask: Float[Array, "B N"],
    nbr: Int[Array, "B N M"],
    rev: Int[Array, "B N M"],
    nbr_mask: Float[Array, "B N M"] | Bool[Array, "B N M"],
    offset: Float[Array, "B N M 3"] | None,
    *,
    cutoff: float,
) -> PaddedGraph:
    """The same from the arrays of a batch, where their shapes stand to be checked."""
    batch, beads, width = nbr.shape
    every = batch * beads
    frame = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    place = (nbr + frame * beads).reshape(every, width).T
    # j * M + m' within a frame becomes m' * A + (frame * N + j)
    back = rev % width * every + frame * beads + rev // width
    back = back.reshape(every, width).T
    edges = nbr_mask.reshape(every, width).T.astype(bool)
    x = R.reshape(every, 3).T
    vectors = edge_vectors(x, place, back, edges)
    if offset is not None:
        vectors = vectors + offset.reshape(every, width, 3).T
    vectors, used = _usable(vectors, edges, cutoff)
    kinds = species.reshape(every)
    others = jnp.take(kinds, place, mode="clip")
    # the last axis itself
    centre = jnp.broadcast_to(jnp.arange(every, dtype=jnp.int32), place.shape)
    return PaddedGraph(x, vectors, used, kinds, centre, place, others, periodic=offset is not None)


def sparse_graph(
    position: Float[Array, "n 3"],
    species: Int[Array, " n"],
    senders: Int[Array, " E"],
    receivers: Int[Array, " E"],
    valid: Bool[Array, " n"],
    cutoff: float,
) -> SparseGraph:
    """The graph of one system of n beads [n, 3] with edges [E] that centre on ``receivers``.

    Edges with an index outside 0..n-1, or at a bead that is not ``valid``, are unused. n and E may
    be symbolic.
    """
    n = position.shape[0]

    def real(index: Array) -> Array:
        inside = (index >= 0) & (index < n)
        return inside & jnp.take(valid, index, mode="clip")

    def end(index: Array) -> Array:
        return jnp.take(position, index, axis=0, mode="clip")

    mask = real(senders) & real(receivers)
    vectors, used = _usable((end(senders) - end(receivers)).T, mask, cutoff)
    others = jnp.take(species, senders, mode="clip")
    return SparseGraph(
        position.T, vectors, used, species, receivers, senders, others, periodic=False
    )
