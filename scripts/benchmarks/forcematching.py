"""chemtrain's side: ``ForceMatching`` and ``EnsembleOfModels``.

Both train ensq's network, from ensq's initial parameters, with ensq's optimiser (without its moving
average, which chemtrain's trainer has no place for), on the same frames. What differs is the energy
function: chemtrain's own kind (``edgelist``), or the very function that ensq trains.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.programs import program_of  # before chemtrain: ensq sees to it that it loads
from ensq.train import optimizers
from ensq.train.labelled import Labelled
from ensq.train.models import EnergyModel, Frames
from ensq.train.pack import Program

from benchmarks import edgelist  # isort: skip
from chemtrain.trainers import EnsembleOfModels, ForceMatching  # isort: skip

SAME, OWN, LISTED = "same", "own", "listed"
LAYOUT = ("species", "mask", "rev", "nbr_mask")


class Told(NamedTuple):
    """What chemtrain's trainer needs to know of a model."""

    energy_fn_template: Any  # params -> energy(R, neighbor, **frame)
    neighbours: Any  # jax_md's list, which chemtrain updates for each frame; None: frames have one


def told(program: Program, function: str) -> Told:
    """The energy function of one of the kinds."""
    [part] = program.dataset.training
    if function == SAME:
        return Told(_same_function(program.model), None)
    energies = {OWN: edgelist.channels_last, LISTED: edgelist.listed}[function]
    neighbours = edgelist.neighbour_list(program.model.cutoff, np.asarray(part.frames.R))
    return Told(energies(program.model), neighbours)


def _same_function(model: EnergyModel) -> Any:
    """ensq's energy function on ensq's neighbour layout, which comes with the data."""

    def energy_fn_template(params: Any) -> Any:
        def energy_fn(R: Any, neighbor: Any, **frame: Any) -> Any:
            layout = {key: frame[key][None] for key in LAYOUT}
            frames = Frames(R=R[None], nbr=neighbor[None], **layout)
            return model.per_bead_energy(params, frames).sum()

        return energy_fn

    return energy_fn_template


def _arrays(program: Program, part: Labelled, function: str) -> dict[str, Any]:
    """The data set as chemtrain wants it."""
    frames = part.frames
    if not np.asarray(frames.mask).all():
        raise ValueError("chemtrain's loss counts padding: all beads must be real")
    found = {"R": frames.R, "species": frames.species, "F": part.F}
    if program.config.training.gammas.U:
        found["U"] = part.U
    if function == SAME:
        found |= {key: getattr(frames, key) for key in LAYOUT} | {"neighbor": frames.nbr}
    return {key: np.asarray(value) for key, value in found.items()}


def trainer_of(program: Program, function: str, seed: int, folder: Path) -> Any:
    """A trainer with its data, as a user of chemtrain makes it."""
    [stage] = program.config.training.stages
    gammas = program.config.training.gammas
    known = told(program, function)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = ForceMatching(
        program.new_member(seed).params,
        optimizers.build(program.config.optimizer, stage, stage.epochs * program.steps_per_epoch),
        known.energy_fn_template,
        known.neighbours,
        gammas={"F": gammas.F, "U": gammas.U} if gammas.U else {"F": gammas.F},
        batch_per_device=program.batch // jax.device_count(),
        log_file=str(folder / "chemtrain.log"),
        checkpoint_path=folder / "checkpoints",
    )
    [training], [validation] = program.dataset.training, program.dataset.validation
    trainer.set_dataset(_arrays(program, training, function), stage="training", seed=seed)
    trainer.set_dataset(
        _arrays(program, validation, function), stage="validation", include_all=True, seed=seed
    )
    return trainer


class Singles:
    """A trainer for each kind of energy function that was asked for: so many steps or epochs at a
    time, as ``train`` makes them."""

    def __init__(self, config: str, folder: str, sets: Sequence[str] = ()) -> None:
        self.program = program_of(config, sets)
        self.folder = Path(folder)
        self.trainers: dict[str, Any] = {}
        self.about: dict[str, Any] = {}

    def warm(self, function: str) -> dict[str, Any]:
        """A trainer and its first epoch: tracing and compiling. Nothing if there is one."""
        if function in self.trainers:
            return {"seconds": 0.0}
        edgelist.check(self.program, told(self.program, function).energy_fn_template, function)
        began = time.perf_counter()
        self.trainers[function] = trainer_of(self.program, function, 0, self.folder / function)
        self.epochs(function, 1)
        return {"seconds": time.perf_counter() - began}

    def steps(self, function: str, count: int) -> dict[str, Any]:
        """The next batches from its loader, each followed by an update."""
        trainer, left = self.trainers[function], count
        began = time.perf_counter()
        while left:
            for batch in trainer._get_batch():
                trainer._update(batch)
                left -= 1
                if not left:
                    break
        jax.block_until_ready(trainer.params)
        return _checked(trainer, time.perf_counter() - began)

    def epochs(self, function: str, count: int) -> dict[str, Any]:
        trainer = self.trainers[function]
        began = time.perf_counter()
        trainer.train(count)
        jax.block_until_ready(trainer.params)
        return _checked(trainer, time.perf_counter() - began)


def _checked(trainer: Any, seconds: float) -> dict[str, Any]:
    """chemtrain prints an error, out of memory too, and returns as if all were well."""
    if trainer._diverged or not np.isfinite(trainer.train_batch_losses[-1]):
        raise FloatingPointError("chemtrain's trainer gave up; its log says why")
    return {"seconds": seconds}


def ensemble_of(trainers: list[Any]) -> Any:
    """EnsembleOfModels without its ``__init__``, which fails: it makes a path of None."""
    ensemble = EnsembleOfModels.__new__(EnsembleOfModels)
    ensemble.trainers = trainers
    return ensemble
