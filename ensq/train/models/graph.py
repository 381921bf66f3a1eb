"""The two graph operations of a strictly local network, for two storage layouts.

Arrays are *edges-last*: features first, the long axis of beads or edges last, which a CPU's vector
units like best. ``expand`` copies bead values to the edges of each bead; ``collect`` sums edge
values over the edges of each bead. In the padded layout edges are [M, A] (A beads of all frames,
M places for neighbours): expand is a broadcast, collect a sum over an axis. In the sparse layout,
which an exported model uses, edges are a list [E].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

# Squared length below which a pair has no direction and is left out (1e-5 of the unit of length).
COINCIDENT = 1e-10


class Frames(NamedTuple):
    """A batch of B frames of N beads with at most M neighbours each (see ``train.neighbours``).

    R [B, N, 3] positions; species [B, N] int32; mask [B, N] float, 1 real and 0 padding;
    nbr [B, N, M] int32 neighbour's bead; rev [B, N, M] int32 place of the reverse edge
    ``j * M + m'``; nbr_mask [B, N, M] float or bool.
    """

    R: Array
    species: Array
    mask: Array
    nbr: Array
    rev: Array
    nbr_mask: Array


class Graph(Protocol):
    """What the network sees. ``*e`` are the axes of edges, the last axis of beads is A."""

    vectors: Array  # [3, *e] from the bead to its neighbour; of some fixed length if unused
    used: Array  # [*e] bool
    species: Array  # [A] int32
    neighbour_species: Array  # [*e] int32

    def expand(self, x: Array) -> Array:
        """[..., A] to [..., *e], broadcastable: each edge gets the value of its bead."""
        ...

    def collect(self, x: Array) -> Array:
        """[..., *e] to [..., A]: the sum over each bead's edges, unused ones included."""
        ...


@dataclass(frozen=True)
class PaddedGraph:
    """Edges [M, A]."""

    vectors: Array
    used: Array
    species: Array
    neighbour_species: Array

    def expand(self, x: Array) -> Array:
        """A broadcast over the axis of neighbours: no memory is moved."""
        return x[..., None, :]

    def collect(self, x: Array) -> Array:
        """A sum over the axis of neighbours."""
        return jnp.sum(x, axis=-2)


@dataclass(frozen=True)
class SparseGraph:
    """Edges [E] with the centre of each; unused edges have any centre and are masked."""

    vectors: Array
    used: Array
    species: Array
    neighbour_species: Array
    centre: Array

    def expand(self, x: Array) -> Array:
        """A gather; an index past the end is clamped, and its edge is masked elsewhere."""
        return jnp.take(x, self.centre, axis=-1, mode="clip")

    def collect(self, x: Array) -> Array:
        """A segment sum; an index past the end is dropped."""
        out = jnp.zeros((*x.shape[:-1], self.species.shape[0]), x.dtype)
        return out.at[..., self.centre].add(x, mode="drop")


@jax.custom_vjp
def edge_vectors(x: Array, nbr: Array, rev: Array, mask: Array) -> Array:
    """Vectors [3, M, A] from each bead to its neighbours, 0 where ``mask`` [M, A] is False.

    ``x`` [3, A]; ``nbr``, ``rev`` [M, A]: the neighbour among the A beads, and the reverse edge
    among the M * A places. Linear in x, and the transpose of ``bead_sums``: each is the other's
    derivative, so that derivatives of any order are gathers.
    """
    return jnp.where(mask, jnp.take(x, nbr, axis=1, mode="clip") - x[:, None, :], 0.0)


@jax.custom_vjp
def bead_sums(g: Array, nbr: Array, rev: Array, mask: Array) -> Array:
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


def _usable(vectors: Array, mask: Array, cutoff: float) -> tuple[Array, Array]:
    """Edges within the cutoff, and vectors of a harmless length in place of the others."""
    squared = jnp.sum(jnp.square(vectors), axis=0)
    used = mask & (squared > COINCIDENT) & (squared < cutoff * cutoff)
    # The constant replaces the value before any root or quotient: a mask behind them would still
    # give 0 * inf = NaN in the derivative.
    return jnp.where(used, vectors, 0.5 * cutoff), used


def padded_graph(frames: Frames, cutoff: float) -> PaddedGraph:
    """The graph of a batch: its B * N beads side by side on the last axis."""
    batch, beads, width = frames.nbr.shape
    every = batch * beads
    frame = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    nbr = (frames.nbr + frame * beads).reshape(every, width).T
    # j * M + m' within a frame becomes m' * A + (frame * N + j)
    place = frames.rev % width * every + frame * beads + frames.rev // width
    rev = place.reshape(every, width).T
    mask = frames.nbr_mask.reshape(every, width).T.astype(bool)
    x = frames.R.reshape(every, 3).T
    vectors = edge_vectors(x, nbr, rev, mask)
    vectors, used = _usable(vectors, mask, cutoff)
    species = frames.species.reshape(every)
    return PaddedGraph(vectors, used, species, jnp.take(species, nbr, mode="clip"))


def sparse_graph(
    position: Array, species: Array, senders: Array, receivers: Array, valid: Array, cutoff: float
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
    neighbour_species = jnp.take(species, senders, mode="clip")
    return SparseGraph(vectors, used, species, neighbour_species, receivers)
