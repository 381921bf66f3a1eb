"""What every network offers, and which one a configuration asks for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float, PRNGKeyArray

from ensq.config.model import ModelConfig, not_importable
from ensq.errors import ConfigError
from ensq.train.models.allegro import Allegro
from ensq.train.models.graph import Graph

if TYPE_CHECKING:
    from ensq.train.models.base import DataStatistics

Params = Any  # a nested dict of arrays


@runtime_checkable
class Network(Protocol):
    """A network of one configuration. Parameters are handed in, so that it may be shared.

    ``batch`` holds the beads of all frames side by side; ``train.models.graph`` tells what is in
    it, and turns it into a list of edges for packages that want one.
    """

    # Steps from neighbour to neighbour that the energy of a bead depends on; 1 is strictly local.
    @property
    def hops(self) -> int: ...

    def init(self, key: PRNGKeyArray, batch: Graph) -> Params:
        """Random parameters, in the precision of ``batch.vectors``."""
        ...

    def per_bead_energy(self, params: Params, batch: Graph) -> Float[Array, " A"]:
        """Energy of each bead in units of the energy scale, anything on padding."""
        ...


def build_network(config: ModelConfig, stats: DataStatistics) -> Network | None:
    """The network of a configuration; None for a prior-only model.

    Raises ConfigError if it can't be had here.
    """
    if config.prior_only:
        return None
    if config.ml_model == "allegro":
        return _allegro(config, stats)
    if config.ml_model == "dimenetpp":
        from ensq.train.models.dimenetpp import DimeNet

        return DimeNet(config.dimenetpp, config.cutoff, stats.n_species)
    if ":" not in config.ml_model:
        from ensq.train.models import chemutils_adapter

        return chemutils_adapter.build(config, stats)
    return _own(config, stats)


def _allegro(config: ModelConfig, stats: DataStatistics) -> Allegro:
    average = config.allegro.avg_num_neighbors or max(stats.avg_num_neighbors, 1.0)
    symmetry = config.allegro.symmetry
    if symmetry == "auto":
        # distances alone have no handedness, so max_ell 0 has nothing to keep apart
        symmetry = "o3" if stats.elements or config.allegro.max_ell == 0 else "so3"
    return Allegro(config.allegro, config.cutoff, stats.n_species, float(average), symmetry == "o3")


def _own(config: ModelConfig, stats: DataStatistics) -> Network:
    """What the factory "package.module:factory" makes of the configuration and the statistics."""
    module, _, name = config.ml_model.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(not_importable(config.ml_model, error)) from error
    except AttributeError:
        raise ConfigError(f"model.ml_model: {module} has no {name}") from None
    network: Network = factory(config, stats)
    missing = [n for n in ("init", "per_bead_energy", "hops") if not hasattr(network, n)]
    if missing:
        raise ConfigError(
            f"model.ml_model: what {config.ml_model} returns has no {', '.join(missing)}; "
            "docs/models.md describes the interface"
        )
    return network
