"""Distributions of a simulation against those of the data: how far apart, and how far apart the
data are from themselves.

Both are binned alike. Values come in groups (replicas of the simulation, blocks of the data) that
are drawn as a whole by the bootstrap, since values of one trajectory are correlated.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.dynamics.measures import Coordinate
from ensq.resampling import draws_of, interval
from ensq.simulation import Distribution

Array = NDArray[Any]

BINS = 60
DIHEDRAL_BINS = 72  # of 5 degrees
BLOCKS = 8  # of the data: long ones, since what is slow makes halves differ


def compare(
    coordinate: Coordinate,
    simulation: Array,
    replica: Array,
    data: Array,
    block: Array,
    *,
    molecule: str = "",
    draws: int = 1000,
    seed: int = 0,
) -> Distribution:
    """One coordinate's values in the simulation [S,n] of replicas [S], and in the data [T,n].

    ``block`` [T]: of the data's frames, from ``resampling.blocks_of``.
    Raises ValueError if one of them is empty.
    """
    if not simulation.size or not data.size:
        raise ValueError("no values to compare")
    periodic = coordinate.kind == "dihedral"
    edges = edges_of(simulation, data, periodic)
    own, theirs = counts(simulation, replica, edges), counts(data, block, edges)
    width = float(edges[1] - edges[0])
    p, q = (_normed(c.sum(axis=0)) for c in (own, theirs))
    drawn = (
        _normed(draws_of(len(own), draws, seed) @ own),
        _normed(draws_of(len(theirs), draws, seed + 1) @ theirs),
    )
    halves = _halves(theirs)
    noise = None if halves is None else divergence(*halves)
    moved = None if halves is None else wasserstein(*halves, width, periodic)
    return Distribution(
        molecule=molecule,
        kind=coordinate.kind,
        label=coordinate.label,
        unit=coordinate.unit,
        edges=edges,
        simulation=p / width,
        data=q / width,
        n_simulation=int(simulation.size),
        n_data=int(data.size),
        js=float(divergence(p, q)),
        js_interval=interval(divergence(*drawn)),
        js_noise=_range(noise),
        wasserstein=float(wasserstein(p, q, width, periodic)),
        wasserstein_interval=interval(wasserstein(*drawn, width, periodic)),
        wasserstein_noise=_range(moved),
    )


def edges_of(one: Array, other: Array, periodic: bool) -> Array:
    """Edges of bins that hold all values of both; -180 to 180 degrees where they are periodic."""
    if periodic:
        return np.asarray(np.linspace(-180.0, 180.0, DIHEDRAL_BINS + 1))
    low, high = min(one.min(), other.min()), max(one.max(), other.max())
    more = max(1e-6 * abs(high), 1e-9) if high - low < 1e-9 else 0.0
    return np.asarray(np.linspace(low - more, high + more, BINS + 1))


def counts(values: Array, group: Array, edges: Array) -> Array:
    """[K,B] how many values [T,n] of each group [T] (numbers from 0) fall into each bin."""
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, values, "right") - 1, 0, bins - 1)
    number = group[:, None] * bins + place
    groups = int(group.max()) + 1
    found = np.bincount(number.ravel(), minlength=groups * bins)
    return np.asarray(found.reshape(groups, bins))


def divergence(p: Array, q: Array) -> Array:
    """Jensen-Shannon divergence in bits of probabilities [...,B]: 0 for equal ones, 1 for those
    that share nothing (Lin, IEEE Trans. Inf. Theory 37, 145 (1991))."""
    middle = 0.5 * (p + q)
    return np.asarray(np.maximum(0.5 * (_relative(p, middle) + _relative(q, middle)), 0.0))


def _relative(p: Array, q: Array) -> Array:
    ratio = np.where(p > 0, p / np.where(q > 0, q, 1.0), 1.0)
    return np.asarray((p * np.log2(ratio)).sum(axis=-1))


def wasserstein(p: Array, q: Array, width: float, periodic: bool) -> Array:
    """The mean way by which probabilities [...,B] of bins must be moved, in the unit of ``width``.

    On a circle the cut is where the way is shortest: the median of the cumulative difference is
    taken off (Rabin, Delon and Gousseau, J. Math. Imaging Vis. 41, 147 (2011)).
    """
    ahead = np.cumsum(p - q, axis=-1)
    if periodic:
        ahead = ahead - np.median(ahead, axis=-1, keepdims=True)
    return np.asarray(np.abs(ahead).sum(axis=-1) * width)


def _normed(numbers: Array) -> Array:
    total = numbers.sum(axis=-1, keepdims=True)
    return np.asarray(numbers / np.maximum(total, 1))


def _halves(blocks: Array) -> tuple[Array, Array] | None:
    """All ways to make two halves of blocks [K,B]: probabilities [W,B] of each half."""
    number = len(blocks)
    if number < 2:
        return None
    ways = [way for way in combinations(range(number), number // 2) if number % 2 or 0 in way]
    one = np.array([blocks[list(way)].sum(axis=0) for way in ways])
    return _normed(one), _normed(blocks.sum(axis=0) - one)


def _range(values: Array | None) -> tuple[float, float] | None:
    """The median and the largest."""
    return None if values is None else (float(np.median(values)), float(values.max()))
