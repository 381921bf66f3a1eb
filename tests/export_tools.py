"""Members with random parameters, made without a trainer, for the tests of exports."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from model_tools import compile_fast

from ensq import config as configuration
from ensq import data
from ensq.config import RunConfig
from ensq.train.checkpoint import HISTORY_COLUMNS, Identity, MemberResult
from ensq.train.labelled import frames_of
from ensq.train.models import DataStatistics, build_model
from ensq.train.neighbours import build_neighbours

ROOT = Path(__file__).parent.parent
CHIGNOLIN = ROOT / "data" / "chignolin_ca.npz"
ALL_TERMS = (
    "model.priors.epsilon=0.8",
    "model.priors.sigma=5.0",
    "model.priors.epsilon_ex=0.3",
    "model.priors.sigma_ex=4.0",
)


def chignolin(*overrides: str) -> RunConfig:
    """The example's configuration with a smaller network."""
    small = ("model.allegro.n_channels=2", "model.allegro.mlp_n_hidden=8")
    return configuration.load(ROOT / "configs" / "chignolin.yaml", (*small, *overrides))


@functools.cache
def chignolin_frames(count: int = 8) -> data.Data:
    config = chignolin()
    whole = data.load(CHIGNOLIN, config.data, config.training.gammas, config.unit)
    return whole.take(np.linspace(0, whole.n_frames - 1, count).astype(int))


def member(
    config: RunConfig, frames: data.Data, seed: int = 42, shift: Sequence[float] | None = None
) -> MemberResult:
    """A member whose network has random weights, of forces that matter beside the priors'."""
    n_species = len(frames.species_names)
    layout = build_neighbours(frames.R, frames.mask, config.model.cutoff, frames.cell)
    statistics = DataStatistics(
        n_species=n_species,
        avg_num_neighbors=layout.average,
        energy_shift=np.linspace(-1, 1, n_species) if shift is None else np.asarray(shift),
        energy_scale=20.0,
        elements=frames.elements,
    )
    model = build_model(config.model, statistics)
    first = frames_of(frames.R[:1], frames.species[:1], frames.mask[:1], layout, np.float32)
    params = compile_fast(model.init)(
        jax.random.key(seed),
        first._replace(
            nbr=first.nbr[:1],
            rev=first.rev[:1],
            nbr_mask=first.nbr_mask[:1],
            offset=None if first.offset is None else first.offset[:1],
        ),
    )
    beads = frames.mask.sum(axis=1)
    zeros = np.zeros(frames.n_frames)
    return MemberResult(
        params=jax.tree_util.tree_map(np.asarray, params),
        seed=seed,
        best_epoch=1,
        best_loss=0.0,
        final_loss=0.0,
        force_errors=zeros,
        energy_errors=zeros,
        components=3 * beads,
        beads=beads,
        protein=np.zeros(frames.n_frames, np.int64),
        species_errors=np.zeros((1, n_species)),
        species_components=np.ones((1, n_species)),
        validation_index=np.arange(frames.n_frames),
        history=np.ones((1, len(HISTORY_COLUMNS))),
        statistics=statistics.as_plain(),
        species_names=frames.species_names,
        protein_names=("all",),
        config=configuration.dumps(config),
        identity=Identity("", ""),
        versions={},
    )


def with_params(result: MemberResult, **priors: Any) -> MemberResult:
    """The same member with other numbers in its priors."""
    import dataclasses

    own = {**result.params["priors"], **{k: np.asarray(v, np.float32) for k, v in priors.items()}}
    return dataclasses.replace(result, params={**result.params, "priors": own})


# -- systems with ghosts -----------------------------------------------------------------------

CUTOFF = 3.0
BOX = 8.0
SPECIES = ("A", "B", "C")
CELLS = {
    "open": None,
    "orthogonal": np.diag([BOX, BOX, BOX]),
    "triclinic": np.array([[BOX, 0.0, 0.0], [2.0, BOX, 0.0], [-1.5, 1.0, BOX]]),
    "slab": np.diag([BOX, BOX, 0.0]),  # the third direction is open
}


class TwoHops:
    """A small network whose energies depend on neighbours of neighbours."""

    hops = 2

    def __init__(self, cutoff: float) -> None:
        self.cutoff = cutoff

    def init(self, key: Any, batch: Any) -> dict[str, Any]:
        return {"w": jax.random.uniform(key, (2,), batch.vectors.dtype, 0.5, 1.0)}

    def per_bead_energy(self, params: dict[str, Any], graph: Any) -> Any:
        squared = jnp.sum(jnp.square(graph.vectors), axis=0) / self.cutoff**2
        near = jnp.where(graph.used, 1.0 - squared, 0.0)
        density = graph.collect(near * params["w"][0])
        other = jnp.take(density, graph.neighbour, mode="clip")
        # the square makes forces depend on all that is within four hops
        return jnp.square(graph.collect(near * jnp.tanh(params["w"][1] * other)))


def two_hops(config: Any, stats: Any) -> TwoHops:
    """For ``model.ml_model: export_tools:two_hops``."""
    return TwoHops(config.cutoff)


def small(ml_model: str = "allegro", *overrides: str) -> RunConfig:
    """A configuration for the systems below."""
    text = f"""
data: {{path: nowhere.npz}}
model:
  cutoff: {CUTOFF}
  ml_model: {ml_model}
  allegro: {{n_channels: 2, mlp_n_hidden: 6, n_radial_basis: 4, max_ell: 1}}
training: {{stages: [{{optimizer: adam, epochs: 1}}]}}
"""
    return configuration.parse(text, "test", overrides)


def crowd(boundary: str, frames: int = 2) -> data.Data:
    """27 beads, well apart, filling a cell of this kind; some outside it, as unwrapped data are."""
    rng = np.random.default_rng(7)
    grid = (np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) + 0.5) / 3
    cell = CELLS[boundary]
    full = (
        np.diag([BOX] * 3)
        if cell is None
        else np.where(np.eye(3, dtype=bool) & (cell == 0), BOX, cell)
    )
    position = grid @ full + rng.uniform(-0.6, 0.6, (frames, 27, 3))
    if cell is not None:
        position[:, ::5] += cell[0]
    return data.Data(
        R=position.astype(np.float32),
        F=None,
        U=None,
        species=np.tile(rng.integers(0, len(SPECIES), 27), (frames, 1)).astype(np.int32),
        mask=np.ones((frames, 27), bool),
        replica=None,
        species_names=SPECIES,
        cell=None if cell is None else np.tile(cell, (frames, 1, 1)).astype(float),
    )
