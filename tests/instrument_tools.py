"""Random frames and periodic images in float64, for models to be held against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ensq.train.compat import enable_x64

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax_md_mod.model import layers
from model_tools import BEADS, CUTOFF, SPECIES, frames_of

from ensq.train.models import Frames

# so short along x that a bead is its own neighbour
CELL = np.array([[3.6, 0.0, 0.0], [1.0, 5.5, 0.0], [-0.7, 0.9, 6.0]])
INSIDE = np.array([[0.2, 0.3, 0.1], [1.9, 0.8, 2.0], [3.4, 3.1, 4.0]])  # 3 beads


def exact_float64() -> Iterator[None]:
    """A fixture of a module: float64 everywhere.

    DimeNet++ of jax_md_mod rounds its sums to float32; here they keep what they get.
    """
    rounding = layers.high_precision_segment_sum

    def exact(data: Any, *others: Any, **more: Any) -> Any:
        return rounding(data, *others, **more, out_type=lambda x: x)

    with pytest.MonkeyPatch.context() as patch, enable_x64():
        patch.setattr(layers, "high_precision_segment_sum", exact)
        yield


class Batch(NamedTuple):
    """Two frames; padding stands anywhere."""

    R: np.ndarray  # [2, N, 3]
    species: np.ndarray  # [2, N]
    mask: np.ndarray  # [2, N] bool
    rng: np.random.Generator  # for what else a test draws

    def frames(self, cutoff: float = CUTOFF) -> Frames:
        return frames_of(self.R, self.species, self.mask, cutoff)


def scattered(rng: np.random.Generator, mask: np.ndarray, spread: float) -> np.ndarray:
    """Positions [N, 3] with no two real beads nearer than 1; padding is at the origin."""
    positions = np.zeros((BEADS, 3))
    placed: list[np.ndarray] = []
    for bead in np.flatnonzero(mask):
        new = rng.uniform(-spread, spread, size=3)
        while placed and np.linalg.norm(np.array(placed) - new, axis=1).min() < 1.0:
            new = rng.uniform(-spread, spread, size=3)
        positions[bead] = new
        placed.append(new)
    return positions


@st.composite
def batches(draw: st.DrawFn, most: int = BEADS - 1) -> Batch:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks, positions = [], []
    for _ in range(2):
        count = draw(st.integers(2, most))
        places = range(count) if draw(st.booleans()) else draw(st.permutations(range(BEADS)))
        masks.append(np.isin(np.arange(BEADS), list(places)[:count]))
        positions.append(scattered(rng, masks[-1], draw(st.sampled_from([2.0, 3.0, 6.0]))))
    kinds = st.lists(st.integers(0, SPECIES - 1), min_size=BEADS, max_size=BEADS)
    species = [draw(kinds), draw(kinds)]
    return Batch(np.array(positions), np.array(species), np.array(masks), rng)


def images(reach: float) -> tuple[np.ndarray, np.ndarray]:
    """All images within ``reach`` of a bead of the cell: positions, and the bead of each.

    The beads themselves come first.
    """
    steps = [np.array(n) for n in np.ndindex(9, 9, 9)]
    steps = sorted((n - 4 for n in steps), key=lambda n: np.abs(n).sum())
    positions, bead = [], []
    for n in steps:
        for k, x in enumerate(INSIDE):
            image = x + n @ CELL
            if np.linalg.norm(INSIDE - image, axis=1).min() < reach:
                positions.append(image)
                bead.append(k)
    return np.array(positions), np.array(bead)


def listed(positions: np.ndarray) -> Frames:
    """The layout of open boundaries by plain loops."""
    n = len(positions)
    rows = [
        [j for j in range(n) if j != i and np.linalg.norm(positions[i] - positions[j]) < CUTOFF]
        for i in range(n)
    ]
    width = max(len(row) for row in rows)
    nbr, rev = np.zeros((1, n, width), np.int32), np.zeros((1, n, width), np.int32)
    mask = np.zeros((1, n, width), bool)
    for i, row in enumerate(rows):
        for m, j in enumerate(row):
            nbr[0, i, m], rev[0, i, m], mask[0, i, m] = j, j * width + rows[j].index(i), True
    species = np.zeros((1, n), np.int32)
    return Frames(*map(jnp.asarray, (positions[None], species, np.ones((1, n)), nbr, rev, mask)))
