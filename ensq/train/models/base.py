"""The potential: network plus priors, energies per bead and forces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from ensq.config.structs import ModelConfig
from ensq.train.models.allegro import Allegro, Params
from ensq.train.models.graph import Frames, padded_graph, sparse_graph
from ensq.train.models.priors import ChainPriors


class DataStatistics(NamedTuple):
    """What the model takes from the training frames.

    ``energy_shift`` [n_species] is added for each bead; ``energy_scale`` multiplies the network's
    output, so that it works with numbers of order 1 (the rms force times 1 Angstrom serves well).
    """

    n_species: int
    avg_num_neighbors: float
    energy_shift: npt.NDArray[np.floating]
    energy_scale: float

    def as_plain(self) -> dict[str, Any]:
        """The same for JSON; ``from_plain`` takes it back without loss."""
        shift = [float(value) for value in np.asarray(self.energy_shift, np.float64)]
        return {**self._asdict(), "energy_shift": shift}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> DataStatistics:
        """From ``as_plain``. Raises KeyError if something is missing."""
        return cls(
            n_species=int(plain["n_species"]),
            avg_num_neighbors=float(plain["avg_num_neighbors"]),
            energy_shift=np.asarray(plain["energy_shift"], np.float64),
            energy_scale=float(plain["energy_scale"]),
        )


@dataclass(frozen=True)
class EnergyModel:
    """Energy = sum over beads of scale * network + shift[species] + priors. See ``build_model``."""

    network: Allegro
    priors: ChainPriors | None
    energy_shift: tuple[float, ...]
    energy_scale: float

    def init(self, key: Array, dtype: Any = jnp.float32) -> Params:
        """Random parameters, a nested dict of arrays."""
        return self.network.init(key, dtype)

    def per_bead_energy(self, params: Params, frames: Frames) -> Array:
        """Energies [B, N], 0 on padding."""
        real = frames.mask > 0
        # padding may hold anything, NaN too, and 0 * NaN would reach the forces of real beads
        frames = frames._replace(R=jnp.where(real[..., None], frames.R, 0.0))
        graph = padded_graph(frames, self.network.cutoff)
        energy = self._of_beads(params, graph).reshape(frames.mask.shape)
        if self.priors is not None:
            energy = energy + self.priors.per_bead_energy(frames.R, real)
        return jnp.where(real, energy, 0.0)

    def energy_and_forces(self, params: Params, frames: Frames) -> tuple[Array, Array]:
        """Energies [B] and forces [B, N, 3] (the negative gradient, 0 on padding)."""

        def total(positions: Array) -> tuple[Array, Array]:
            energy = self.per_bead_energy(params, frames._replace(R=positions)).sum(axis=1)
            return energy.sum(), energy

        gradient, energy = jax.grad(total, has_aux=True)(frames.R)
        return energy, jnp.where(frames.mask[..., None] > 0, -gradient, 0.0)

    def per_bead_energy_sparse(
        self,
        params: Params,
        position: Array,
        species: Array,
        senders: Array,
        receivers: Array,
        valid: Array,
    ) -> Array:
        """Energies [n] of one system, 0 where not ``valid``, from a list of edges.

        position [n, 3]; species [n] int; senders, receivers [E] int: the list holds both
        directions of a pair, and an edge belongs to the bead in ``receivers``; an index of n or
        more marks an unused edge. n and E may be symbolic dimensions of ``jax.export``. The chain
        of the priors is that of the valid beads in the order of their indices.
        """
        cutoff = self.network.cutoff
        position = jnp.where(valid[:, None], position, 0.0)
        graph = sparse_graph(position, species, senders, receivers, valid, cutoff)
        energy = self._of_beads(params, graph)
        if self.priors is not None:
            energy = energy + self.priors.per_bead_energy(position, valid)
        return jnp.where(valid, energy, 0.0)

    def _of_beads(self, params: Params, graph: Any) -> Array:
        energy = self.network.bead_energies(params, graph) * self.energy_scale
        shift = jnp.asarray(self.energy_shift, energy.dtype)
        return energy + jnp.take(shift, graph.species, mode="clip")


def build_model(config: ModelConfig, stats: DataStatistics) -> EnergyModel:
    """The model of a configuration for data with the given statistics.

    ``model.allegro.avg_num_neighbors``, if set, goes before that of the data.
    Raises ValueError if the statistics do not fit together.
    """
    shift = tuple(float(s) for s in np.asarray(stats.energy_shift, float))
    if len(shift) != stats.n_species:
        raise ValueError(
            f"energy_shift has {len(shift)} entries for {stats.n_species} species: give one each"
        )
    average = config.allegro.avg_num_neighbors or max(stats.avg_num_neighbors, 1.0)
    network = Allegro(config.allegro, config.cutoff, stats.n_species, float(average))
    priors = ChainPriors(config.priors) if config.use_priors else None
    return EnergyModel(network, priors, shift, float(stats.energy_scale))
