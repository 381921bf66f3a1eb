"""The potential: network plus priors, energies per bead and forces."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from ensq.config.model import ModelConfig
from ensq.train.models.allegro import Allegro
from ensq.train.models.graph import Frames, Graph, padded_graph, sparse_graph
from ensq.train.models.network import Network, Params, build_network
from ensq.train.models.priors import ChainPriors


class DataStatistics(NamedTuple):
    """What the model takes from the training frames.

    ``energy_shift`` [n_species] is added for each bead; ``energy_scale`` multiplies the network's
    output, so that it works with numbers of order 1 (the rms force times 1 Angstrom serves well);
    ``elements`` tells that the species are chemical elements.
    """

    n_species: int
    avg_num_neighbors: float
    energy_shift: npt.NDArray[np.floating]
    energy_scale: float
    elements: bool = False

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
            elements=bool(plain["elements"]),
        )


@dataclass(frozen=True)
class EnergyModel:
    """Energy = sum over beads of scale * network + shift[species] + priors. See ``build_model``.

    Parameters are a dict: ``network``, unless the priors are alone, and ``priors``, if there are
    any; the latter get no gradient unless ``train_priors``.
    """

    network: Network | None
    priors: ChainPriors | None
    cutoff: float
    energy_shift: tuple[float, ...]
    energy_scale: float
    train_priors: bool = False

    @property
    def hops(self) -> int:
        """Steps from neighbour to neighbour that a bead's energy depends on, priors apart."""
        return 0 if self.network is None else self.network.hops

    def in_mixed_precision(self) -> EnergyModel:
        """The same, multiplying matrices in bfloat16; a network of one's own is left as it is."""
        if not isinstance(self.network, Allegro):
            return self
        return dataclasses.replace(self, network=dataclasses.replace(self.network, mixed=True))

    def without_priors(self) -> EnergyModel:
        """The network alone."""
        return dataclasses.replace(self, priors=None)

    def init(self, key: PRNGKeyArray, frames: Frames) -> Params:
        """Random parameters for the network, in the precision of ``frames``, and the priors' own.

        ``frames`` may be any frames of the data set: their shapes matter, not their values.
        """
        params: Params = {}
        if self.network is not None:
            params["network"] = self.network.init(key, padded_graph(frames, self.cutoff))
        if self.priors is not None:
            params["priors"] = self.priors.init(frames.R.dtype)
        return params

    def per_bead_energy(self, params: Params, frames: Frames) -> Float[Array, "B N"]:
        """Energies, 0 on padding."""
        real = frames.mask > 0
        # padding may hold anything, NaN too, and 0 * NaN would reach the forces of real beads
        frames = frames._replace(R=jnp.where(real[..., None], frames.R, 0.0))
        if self.network is None:
            energy = self._shift(frames.species, frames.R.dtype)
        else:
            graph = padded_graph(frames, self.cutoff)
            energy = self._of_network(params, graph).reshape(frames.mask.shape)
        energy = energy + self._of_priors(params, frames.R, real, frames.species)
        return jnp.where(real, energy, 0.0)

    def energy_and_forces(
        self, params: Params, frames: Frames
    ) -> tuple[Float[Array, " B"], Float[Array, "B N 3"]]:
        """Energies and forces (the negative gradient, 0 on padding)."""

        def total(
            positions: Float[Array, "B N 3"],
        ) -> tuple[Float[Array, ""], Float[Array, " B"]]:
            energy = self.per_bead_energy(params, frames._replace(R=positions)).sum(axis=1)
            return energy.sum(), energy

        gradient, energy = jax.grad(total, has_aux=True)(frames.R)
        return energy, jnp.where(frames.mask[..., None] > 0, -gradient, 0.0)

    def per_bead_energy_sparse(
        self,
        params: Params,
        position: Float[Array, "n 3"],
        species: Int[Array, " n"],
        senders: Int[Array, " E"],
        receivers: Int[Array, " E"],
        valid: Bool[Array, " n"],
    ) -> Float[Array, " n"]:
        """Energies of one system, 0 where not ``valid``, from a list of edges.

        The list of edges holds both directions of a pair, and an edge belongs to the bead in
        ``receivers``; an index of n or more marks an unused edge. n and E may be symbolic
        dimensions of ``jax.export``. The chain of the priors is that of the valid beads in the
        order of their indices.
        """
        position = jnp.where(valid[:, None], position, 0.0)
        if self.network is None:
            energy = self._shift(species, position.dtype)
        else:
            graph = sparse_graph(position, species, senders, receivers, valid, self.cutoff)
            energy = self._of_network(params, graph)
        energy = energy + self._of_priors(params, position, valid, species)
        return jnp.where(valid, energy, 0.0)

    def _of_network(self, params: Params, graph: Graph) -> Float[Array, " A"]:
        assert self.network is not None
        energy = self.network.per_bead_energy(params["network"], graph) * self.energy_scale
        return energy + self._shift(graph.species, energy.dtype)

    def _shift(self, species: Int[Array, " *beads"], dtype: Any) -> Float[Array, " *beads"]:
        return jnp.take(jnp.asarray(self.energy_shift, dtype), species, mode="clip")

    def _of_priors(
        self,
        params: Params,
        position: Float[Array, " *beads 3"],
        real: Bool[Array, " *beads"],
        species: Int[Array, " *beads"],
    ) -> Float[Array, " *beads"] | float:
        if self.priors is None:
            return 0.0
        own = params["priors"]
        if not self.train_priors:
            own = lax.stop_gradient(own)
        return self.priors.per_bead_energy(own, position, real, species)


def build_model(config: ModelConfig, stats: DataStatistics) -> EnergyModel:
    """The model of a configuration for data with the given statistics.

    ``avg_num_neighbors`` of a network's section, if set, goes before that of the data.
    Raises ValueError if the statistics do not fit together, ConfigError if the network can't be
    had here.
    """
    shift = tuple(float(s) for s in np.asarray(stats.energy_shift, float))
    if len(shift) != stats.n_species:
        raise ValueError(
            f"energy_shift has {len(shift)} entries for {stats.n_species} species: give one each"
        )
    return EnergyModel(
        network=build_network(config, stats),
        priors=ChainPriors(config.priors) if config.use_priors else None,
        cutoff=config.cutoff,
        energy_shift=shift,
        energy_scale=float(stats.energy_scale),
        train_priors=config.train_priors,
    )
