"""Trained members as chemtrain-deploy model files for LAMMPS.

The file is chemtrain's ``chemsim.Model`` protocol buffer around a StableHLO module with symbolic
shapes; ``pair_style chemtrain_deploy`` reads it. The module takes one rank's atoms (its own first,
then ghosts, then padding) and the engine's list of neighbours; it returns the energy of the rank's
own atoms, as a sum over energies per bead, and forces on all atoms. ``train.module`` runs it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

from ensq.train.compat import enable_x64  # before chemtrain and jax_md

import jax
import jax.numpy as jnp
import numpy as np
from chemtrain.deploy import exporter, graphs
from jax import Array
from jax._src.interpreters import mlir as jax_mlir
from jax._src.lib.mlir import ir  # type: ignore[attr-defined]
from numpy.typing import NDArray

from ensq import config as configuration
from ensq.data import Data
from ensq.train.checkpoint import MemberResult
from ensq.train.models import DataStatistics, EnergyModel, build_model
from ensq.train.models.graph import PaddedGraph, sparse_graph
from ensq.train.module import RESTRICTION

UNIT_STYLES = {"kcal/mol": "real", "eV": "metal"}
EMBEDDED = (
    "the priors of a linear chain are inside this model: the atoms of the rank itself, in the "
    "order of its list, are the chain. Run one molecule on one rank, with atom_modify sort 0 0 "
    "and a boundary that it never crosses (boundary s s s); several ranks or sorted atoms give "
    "wrong energies and forces"
)


def model_of(result: MemberResult) -> EnergyModel:
    """The model of a trained member, reference energies included."""
    config = configuration.loads(result.config)
    return build_model(config.model, DataStatistics.from_plain(result.statistics))


def parameters_of(result: MemberResult) -> Any:
    """Parameters in float32, the precision of exported models."""
    return jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf, jnp.float32), result.params)


def without_reference_energies(result: MemberResult) -> MemberResult:
    """The same member with the energies as they were trained, small numbers in float32."""
    none = [0.0] * len(result.statistics["energy_shift"])
    return dataclasses.replace(result, statistics={**result.statistics, "energy_shift": none})


def reference_energies(result: MemberResult, frames: Data) -> NDArray[Any]:
    """The constant [T] that stands beside the trained energies of these frames, in float64."""
    shift = np.asarray(result.statistics["energy_shift"], np.float64)
    return np.asarray(np.where(frames.mask, shift[frames.species], 0.0).sum(axis=1))


def to_bytes(
    results: Sequence[MemberResult], *, embed_priors: bool, reference_energies: bool = True
) -> bytes:
    """The model file of a member, or of the mean energy of several members of one ensemble.

    The same parameters give the same bytes. Without ``embed_priors`` the file holds the network
    alone, with the reference energies unless they are to be left out.
    """
    config = configuration.loads(results[0].config)
    model = model_of(results[0] if reference_energies else without_reference_energies(results[0]))
    if not embed_priors:
        model = model.without_priors()
    kind = _RowsExporter if getattr(model.network, "needs_rows", False) else _Exporter
    source = kind(model, [parameters_of(result) for result in results])
    source.unit_style = UNIT_STYLES[config.unit]
    with warnings.catch_warnings(), enable_x64(False):
        # jax_md sums in float64 where it can, and says so where it can't.
        warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
        source.export()
    proto = source._proto
    proto.mlir_module = _finished(proto.mlir_module, EMBEDDED if model.priors else None)
    return bytes(proto.SerializeToString(deterministic=True))


class _Exporter(exporter.Exporter):
    """chemtrain's exporter over the mean energy of one or several sets of parameters."""

    graph_type = graphs.SimpleSparseNeighborList

    def __init__(self, model: EnergyModel, params: list[Any]) -> None:
        self.model, self.params = model, params
        # Reference energies are added to the sum, not to each bead: a sum of float32 numbers drifts
        # the further, the larger they are.
        none = (0.0,) * len(model.energy_shift)
        self.network = dataclasses.replace(model.without_priors(), energy_shift=none)
        self.r_cutoff = model.cutoff
        # Hops of neighbours that local forces depend on: with newton on, energies of local beads
        # need their own surroundings; with newton off, energies of ghosts are needed too.
        hops = max(1, model.hops)
        self.nbr_order = [hops, 2 * hops]
        self._valid = self._local = jnp.zeros(0, bool)
        # chemtrain keeps these on the class, where a second export would find the first one's.
        self._symbols: list[str] = []
        self._constraints: list[str] = []
        self._init_fns: list[Any] = []

    def _energy_fn(
        self, position: Any, species: Any, n_local: Any, n_ghost: Any, newton: Any, *graph_args: Any
    ) -> Any:
        # chemtrain hands no masks to energy_fn; padding must stay out of everything, and ghosts
        # out of the chain of the priors.
        place = jnp.arange(position.shape[0])
        self._valid, self._local = place < n_local + n_ghost, place < n_local
        graph_args = self._neighbours(n_local, *graph_args)
        force, (energy, *others) = super()._energy_fn(
            position, species, n_local, n_ghost, newton, *graph_args
        )
        return force, (energy + self._constant(species), *others)

    def _constant(self, species: Array) -> Array:
        """The reference energies of the rank's own atoms: how many there are of each species times
        its energy."""
        shift = self.model.energy_shift
        kind = jnp.clip(species, 0, len(shift) - 1)
        total = jnp.zeros((), jnp.float32)
        for number, energy in enumerate(shift):
            if energy:
                count = jnp.sum(jnp.where(self._local & (kind == number), 1.0, 0.0))
                total = total + jnp.float32(energy) * count
        return total

    def _neighbours(self, n_local: Array, *graph_args: Array) -> tuple[Array, ...]:
        """What the engine hands over, in chemtrain's form."""
        senders, receivers, capacity = graph_args
        return *_rows_first(senders, receivers, n_local), capacity

    def _of_network(self, params: Any, position: Array, species: Array, graph: Any) -> Array:
        # In the engine's list the atom of a row is the sender; here an edge belongs to the
        # receiver.
        return self.network.per_bead_energy_sparse(
            params, position, species, graph.receivers, graph.senders, self._valid
        )

    def energy_fn(self, position: Any, species: Any, graph: Any) -> Any:
        """Energies [n] of all beads; those of ghosts without their whole surroundings are wrong,
        and count for nothing that is used."""
        priors, local = self.model.priors, self._local

        def of_member(params: Any) -> Array:
            energy = self._of_network(params, position, species, graph)
            if priors is None:
                return energy
            chain = jnp.where(local[:, None], position, 0.0)
            prior = priors.per_bead_energy(params["priors"], chain, local, species)
            return energy + jnp.where(local, prior, 0.0)

        if len(self.params) == 1:
            return of_member(self.params[0])
        stacked = jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *self.params)
        return jnp.mean(jax.vmap(of_member)(stacked), axis=0)


def _rows_first(senders: Array, receivers: Array, n_local: Array) -> tuple[Array, Array]:
    """The list with the atoms of its rows as senders, whichever way round the engine names them.

    Without rows of ghosts a ghost is never the atom of a row, so that the list itself tells; a list
    that has them holds both directions, or will hold them, and either way round does.
    """
    ghost_sends = (senders >= n_local) & (receivers < n_local)
    ghost_receives = (senders < n_local) & (receivers >= n_local)
    swap = jnp.any(ghost_sends) & ~jnp.any(ghost_receives)
    return jnp.where(swap, receivers, senders), jnp.where(swap, senders, receivers)


class _Rows(graphs.SimpleDenseNeighborList):
    """A row of neighbours for each atom, always a full list; places past the last hold n or more.

    chemtrain's own form leaves nothing out either, and counts edges and angles for buffers that no
    model here needs.
    """

    @staticmethod
    def create_from_args(
        r_cutoff: Any, nbr_order: Any, position: Any, species: Any, *others: Any
    ) -> Any:
        *_, rows, edges, triplets = others
        one = jnp.ones((), jnp.int32)
        return graphs.SimpleDenseNeighborList(rows, edges, triplets), (one, one)


class _RowsExporter(_Exporter):
    """For networks that find the angles between edges by the rows that these stand in."""

    graph_type = _Rows

    def _neighbours(self, n_local: Array, *graph_args: Array) -> tuple[Array, ...]:
        return graph_args

    def _of_network(self, params: Any, position: Array, species: Array, graph: Any) -> Array:
        rows = graph.nbrs.T  # [M, n]
        centre = jnp.broadcast_to(jnp.arange(rows.shape[1], dtype=rows.dtype), rows.shape)
        # padding may hold anything, and the engine leaves its rows as they are
        position = jnp.where(self._valid[:, None], position, 0.0)
        edges = sparse_graph(
            position,
            species,
            rows.reshape(-1),
            centre.reshape(-1),
            self._valid,
            self.model.cutoff,
        )
        made = PaddedGraph(
            position=edges.position,
            vectors=edges.vectors.reshape(3, *rows.shape),
            used=edges.used.reshape(rows.shape),
            species=species,
            centre=centre,
            neighbour=rows,
            neighbour_species=edges.neighbour_species.reshape(rows.shape),
            periodic=False,
        )
        return jnp.where(self._valid, self.network._of_network(params, made), 0.0)


def _finished(module: str, restriction: str | None) -> str:
    """The module without the paths of the machine it was made on, with what its user must know.

    The restriction is an attribute of the module, beside JAX's own ``jax.uses_shape_polymorphism``:
    programs that don't know it pass it by.
    """
    with jax_mlir.make_ir_context():
        parsed = ir.Module.parse(module)
        if restriction is not None:
            parsed.operation.attributes[RESTRICTION] = ir.StringAttr.get(restriction)
        return str(parsed.operation.get_asm(enable_debug_info=False))
