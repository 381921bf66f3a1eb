"""Models of the package chemutils (MACE, PaiNN, its own Allegro), where it is installed.

chemutils is no part of ensq and is not on PyPI. Its models come as
``<name>_neighborlist_pp(displacement, r_cutoff, n_species, ..., per_particle=True)``, a pair of
``init(key, position, neighbor, species, mask)`` and ``apply(params, position, neighbor, ...)``
over a sparse neighbour list of jax_md; this module brings ensq's graphs into that form.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax.numpy as jnp
import msgspec
from jax import Array
from jax_md import partition, space
from jaxtyping import Float, Int, PRNGKeyArray

from ensq.config.model import ModelConfig, not_importable
from ensq.errors import ConfigError
from ensq.train.models.graph import Graph, edge_list

if TYPE_CHECKING:
    from ensq.train.models.base import DataStatistics

Params = Any  # a nested dict of arrays


@dataclass(frozen=True)
class ChemutilsNetwork:
    """One of chemutils' models behind ensq's interface."""

    name: str
    hops: int
    make: Callable[[], tuple[Callable[..., Params], Callable[..., Array]]]

    def init(self, key: PRNGKeyArray, batch: Graph) -> Params:
        """Random parameters, as chemutils draws them."""
        init, _ = self.make()
        position, neighbor, species = self._arguments(batch)
        return init(key, position, neighbor, species=species, mask=jnp.ones(species.shape, bool))

    def per_bead_energy(self, params: Params, batch: Graph) -> Float[Array, " A"]:
        """Energy of each bead, in units of the energy scale."""
        _, apply = self.make()
        position, neighbor, species = self._arguments(batch)
        mask = jnp.ones(species.shape, bool)
        energies = apply(params, position, neighbor, species=species, mask=mask)
        return jnp.reshape(energies, species.shape)

    def _arguments(self, batch: Graph) -> tuple[Float[Array, "A 3"], Any, Int[Array, " A"]]:
        if batch.periodic:
            raise ConfigError(
                f"model.ml_model: {self.name} of chemutils takes open boundaries only here; "
                "use allegro for periodic data"
            )
        edges = edge_list(batch)
        beads = batch.species.shape[0]
        # jax_md marks an unused edge by an index past the last bead
        index = jnp.stack(
            [
                jnp.where(edges.used, edges.receivers, beads),
                jnp.where(edges.used, edges.senders, beads),
            ]
        )
        position = batch.position.T
        neighbor = partition.NeighborList(
            index, position, None, None, index.shape[1], partition.Sparse, None, None, None
        )
        return position, neighbor, batch.species


def build(config: ModelConfig, stats: DataStatistics) -> ChemutilsNetwork:
    """The model that ``ml_model`` names. Raises ConfigError if chemutils is not installed."""
    name = config.ml_model
    try:
        module = importlib.import_module(f"chemutils.models.{name}")
    except ImportError as error:
        raise ConfigError(not_importable(name, error)) from error
    wanted = f"{name}_neighborlist_pp"
    if not hasattr(module, wanted):  # some versions keep it a level below
        module = importlib.import_module(f"chemutils.models.{name}.model")
    factory = getattr(module, wanted)
    settings = msgspec.structs.asdict(getattr(config, name))
    average = settings.pop("avg_num_neighbors", None) or max(stats.avg_num_neighbors, 1.0)
    displacement, _ = space.free()

    def make() -> tuple[Callable[..., Params], Callable[..., Array]]:
        init, apply = factory(
            displacement,
            config.cutoff,
            stats.n_species,
            avg_num_neighbors=average,
            mode="energy",
            per_particle=True,
            **settings,
        )
        return init, apply

    layers = settings.get("num_interactions") or settings.get("n_layers") or 1
    return ChemutilsNetwork(name, int(layers), make)
