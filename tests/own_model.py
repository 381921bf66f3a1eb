"""A small network over the distances of pairs of beads, behind ensq's interface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ensq.config.model import ModelConfig
from ensq.train.models import DataStatistics
from ensq.train.models.graph import Graph

WAVES = 4


@dataclass(frozen=True)
class PairNetwork:
    cutoff: float
    n_species: int
    hidden: int
    hops: int = 1  # a bead's energy depends on its own neighbours only

    def init(self, key: Array, batch: Graph) -> Any:
        """Random parameters, in the precision of the data."""

        def normal(number: int, *shape: int) -> Array:
            return jax.random.normal(jax.random.fold_in(key, number), shape, batch.vectors.dtype)

        return {
            "distance": normal(0, self.hidden, WAVES),
            "centre": normal(1, self.hidden, self.n_species),
            "neighbour": normal(2, self.hidden, self.n_species),
            "energy": normal(3, self.hidden) / math.sqrt(self.hidden),
        }

    def per_bead_energy(self, params: Any, batch: Graph) -> Array:
        """Energy [A] of each bead. Edges are on the last axes, features on the first."""
        # Unused edges have a harmless length: no root or quotient here can give NaN.
        x = jnp.sqrt(jnp.sum(batch.vectors**2, axis=0)) / self.cutoff
        envelope = jnp.where(batch.used, (1 - x**2) ** 3, 0.0)  # smooth at the cutoff
        waves = jnp.stack([jnp.sin(n * math.pi * x) / x for n in range(1, WAVES + 1)])
        own, other = self._one_hot(batch.species, x), self._one_hot(batch.neighbour_species, x)
        hidden = jax.nn.silu(
            jnp.tensordot(params["distance"], waves, 1)
            + batch.expand(jnp.tensordot(params["centre"], own, 1))  # from beads to their edges
            + jnp.tensordot(params["neighbour"], other, 1)
        )
        energies = envelope * jnp.tensordot(params["energy"], hidden, 1)
        return batch.collect(energies)  # the sum over the edges of each bead

    def _one_hot(self, species: Array, x: Array) -> Array:
        return jax.nn.one_hot(species, self.n_species, axis=0, dtype=x.dtype)


def build(config: ModelConfig, stats: DataStatistics) -> PairNetwork:
    """Called with the model section of the configuration and what the data tell."""
    return PairNetwork(config.cutoff, stats.n_species, int(config.options.get("hidden", 16)))
