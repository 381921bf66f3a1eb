"""Losses per step: the same batches through chemtrain's ForceMatching and through ensq.

chemtrain shuffles by itself, so its trainer is told our batches: its own ``_update`` then predicts,
computes its own default loss (its plain ``mse_loss``, so no bead may be padding), differentiates,
and steps the optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from chemtrain.trainers import ForceMatching
from jax_md import partition, space
from jax_md_mod.model.neural_networks import dimenetpp_neighborlist

from ensq import data
from ensq.config import RunConfig
from ensq.train import environment, optimizers
from ensq.train.batches import batches_of_epoch
from ensq.train.dataset import prepare
from ensq.train.labelled import Labelled
from ensq.train.models import EnergyModel, Frames
from ensq.train.pack import Program, stack

SEED = 7
SKIN = 0.5  # Angstrom, of jax_md's neighbour list
LAYOUT = ("species", "mask", "rev", "nbr_mask")


class Told(NamedTuple):
    """What chemtrain's trainer gets to train a model: its energy, neighbour list and data."""

    energy_fn_template: Any  # params -> energy(R, neighbor, **frame)
    neighbours: Any  # jax_md's list, updated by chemtrain for each frame; None: the frame has one
    dataset: Mapping[str, Any]  # arrays [T, ...]


def program_of(config: RunConfig, path: Path) -> Program:
    """The compiled functions of ensq for a data file, all of whose beads must be real."""
    environment.set_precision(config.training.precision)
    program = Program(config, prepare(path, data.digest(path), config, lambda text: None))
    for part in (*program.dataset.training, *program.dataset.validation):
        assert np.asarray(part.frames.mask).all(), "chemtrain's plain loss counts padding"
    assert program.dataset.n_training % program.batch == 0, "chemtrain drops what fills no batch"
    return program


def same_function(model: EnergyModel, labelled: Labelled) -> Told:
    """ensq's own energy function and neighbour layout in chemtrain's trainer."""

    def energy_fn_template(params: Any) -> Any:
        def energy_fn(R: Any, neighbor: Any, **frame: Any) -> Any:
            layout = {key: frame[key][None] for key in LAYOUT}
            frames = Frames(R=R[None], nbr=neighbor[None], **layout)
            return model.per_bead_energy(params, frames).sum()

        return energy_fn

    frames = {key: getattr(labelled.frames, key) for key in ("R", *LAYOUT)}
    dataset = {**frames, "neighbor": labelled.frames.nbr, "F": labelled.F, "U": labelled.U}
    return Told(energy_fn_template, None, dataset)


def chemtrains_dimenet(program: Program) -> Told:
    """DimeNet++ as chemtrain has it: its model function on jax_md's neighbour list."""
    config, statistics = program.config.model, program.dataset.statistics
    [part] = program.dataset.training
    displacement, _ = space.free()
    chosen = msgspec.structs.asdict(config.dimenetpp).items()
    _, energy_of = dimenetpp_neighborlist(
        displacement,
        config.cutoff,
        statistics.n_species,
        **{key: value for key, value in chosen if value is not None},
    )

    def energy_fn_template(params: Any) -> Any:
        def energy_fn(R: Any, neighbor: Any, species: Any, **_frame: Any) -> Any:
            energy = energy_of(params["network"], R, neighbor, species=species)
            return statistics.energy_scale * energy[0]

        return energy_fn

    dataset = {"R": part.frames.R, "species": part.frames.species, "F": part.F, "U": part.U}
    return Told(energy_fn_template, _jax_md_list(displacement, config.cutoff, part), dataset)


def _jax_md_list(displacement: Any, cutoff: float, part: Labelled) -> Any:
    """A dense list with room for every frame."""
    functions = partition.neighbor_list(
        displacement,
        1.0,  # no box: cells are off
        cutoff,
        SKIN,
        disable_cell_list=True,
        format=partition.NeighborListFormat.Dense,
    )
    crowded = int(np.argmax(np.asarray(part.frames.nbr_mask).sum(axis=(1, 2))))
    neighbours = functions.allocate(part.frames.R[crowded], extra_capacity=2)
    for position in part.frames.R:
        assert not functions.update(position, neighbours).did_buffer_overflow
    return neighbours


def optimizer_of(program: Program, stretch: int = 1) -> Any:
    """The optimiser of the one stage; ``stretch`` makes its cosine that many times as long."""
    [stage] = program.config.training.stages
    steps = stretch * stage.epochs * program.steps_per_epoch
    return optimizers.build(program.config.optimizer, stage, steps)


def trainer_of(program: Program, told: Told, folder: Path, optimizer: Any, seed: int = SEED) -> Any:
    """chemtrain's trainer at the initial parameters of ensq's member."""
    gammas = program.config.training.gammas
    return ForceMatching(
        program.new_member(seed).params,
        optimizer,
        told.energy_fn_template,
        told.neighbours,
        gammas={"F": gammas.F, "U": gammas.U},
        batch_per_device=program.batch,
        log_file=str(folder / "chemtrain.log"),
        checkpoint_path=folder / "checkpoints",
    )


def losses_of_ensq(program: Program) -> list[float]:
    """Of every batch, in order."""
    lanes, losses = stack([program.new_member(SEED)]), []
    lanes = program.begin_stage(lanes, 0)
    for epoch in range(program.config.epochs):
        batches = batches_of_epoch(program.dataset.sizes, program.batch, 0, epoch)
        lanes = program.run_steps(lanes, epoch, batches, 0, program.steps_per_epoch)
        losses += np.asarray(lanes.batch_losses[0], np.float64).tolist()
    return losses


def losses_of_chemtrain(program: Program, trainer: Any, told: Told) -> list[float]:
    """Of the same batches."""
    for epoch in range(program.config.epochs):
        for index in batches_of_epoch(program.dataset.sizes, program.batch, 0, epoch).index:
            trainer._update({key: value[index] for key, value in told.dataset.items()})
    assert not trainer._diverged
    return [float(loss) for loss in trainer.train_batch_losses]


def start_again(program: Program, trainer: Any, factor: float) -> None:
    """The trainer at its start once more, with the parameters multiplied by ``factor``."""
    params = jax.tree_util.tree_map(
        lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), program.new_member(SEED).params
    )
    opt_state = trainer.optimizer.init(params)
    trainer.state = trainer.state.replace(params=params, opt_state=opt_state)
    trainer.train_batch_losses.clear()


def difference(one: list[float], two: list[float]) -> float:
    """Largest relative difference."""
    return float(np.max(np.abs(np.divide(one, two) - 1)))
