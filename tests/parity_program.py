"""Trains by chemtrain's ForceMatching and by ensq on the same batches; writes both losses as JSON.

Run as ``python parity_program.py FOLDER``. chemtrain shuffles by itself, so its
trainer is told our batches: its own ``_update`` then predicts, computes its own default loss (its
plain ``mse_loss``; no bead is padding here), differentiates, and steps the optimiser.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from train_tools import BEADS, settings, tiny_arrays

from ensq.data import digest
from ensq.train import environment, optimizers
from ensq.train.dataset import prepare
from ensq.train.models import Frames
from ensq.train.pack import Program, batches_of_epoch, stack

EPOCHS, BATCH = 3, 10  # 30 frames: no batch needs filling
LAYOUT = ("species", "mask", "rev", "nbr_mask")


def prepared(folder: Path, precision: str, max_ell: str) -> Program:
    path = folder / "full.npz"
    np.savez(path, **tiny_arrays(fewest=BEADS))
    made = settings(
        f"training.precision={precision}",
        f"training.batch_per_device={BATCH}",
        f"training.stages=[{{optimizer: adam, epochs: {EPOCHS}}}]",
        f"model.allegro.max_ell={max_ell}",
        "optimizer.adam={lr: 2.0e-3, peak_lr: 1.0e-2, warmup_steps: 3}",
    )
    return Program(made, prepare(path, digest(path), made, lambda text: None))


def losses_of_ensq(program: Program) -> list[float]:
    lanes, losses = stack([program.new_member(7)]), []
    for epoch in range(EPOCHS):
        batches = batches_of_epoch(30, BATCH, 0, epoch)
        lanes = program.run_steps(lanes, epoch, batches, 0, program.steps_per_epoch)
        losses += np.asarray(lanes.batch_losses[0], np.float64).tolist()
    return losses


def chemtrains(program: Program, folder: Path, optimizer: Any) -> Any:
    """chemtrain's trainer with our model as its energy function."""
    import jax_md_mod  # noqa: F401  (before jax_md and chemtrain's trainers)
    from chemtrain.trainers import ForceMatching

    def energy_fn_template(params: Any) -> Any:
        def energy_fn(R: Any, neighbor: Any, **frame: Any) -> Any:
            layout = {key: frame[key][None] for key in LAYOUT}
            frames = Frames(R=R[None], nbr=neighbor[None], **layout)
            return program.model.per_bead_energy(params, frames).sum()

        return energy_fn

    gammas = program.config.training.gammas
    return ForceMatching(
        program.new_member(7).params,
        optimizer,
        energy_fn_template,
        None,  # no neighbour list to update: each frame brings its own, under "neighbor"
        gammas={"F": gammas.F, "U": gammas.U},
        batch_per_device=BATCH,
        log_file=str(folder / "chemtrain.log"),
        checkpoint_path=folder / "checkpoints",
    )


def losses_of_chemtrain(program: Program, trainer: Any) -> list[float]:
    training = program.dataset.training
    whole = {**training.frames._asdict(), "F": training.F, "U": training.U}
    whole["neighbor"] = whole.pop("nbr")
    for epoch in range(EPOCHS):
        for index in batches_of_epoch(30, BATCH, 0, epoch).index:
            trainer._update({key: value[index] for key, value in whole.items()})
    assert not trainer._diverged
    return [float(loss) for loss in trainer.train_batch_losses]


def compare(folder: Path, precision: str, max_ell: str, *, control: bool) -> dict[str, Any]:
    """Losses of all batches by both trainers in one precision."""
    environment.set_precision(precision)
    program = prepared(folder, precision, max_ell)
    steps = EPOCHS * program.steps_per_epoch
    [stage], config = program.config.training.stages, program.config.optimizer
    trainer = chemtrains(program, folder, optimizers.build(config, stage, steps))
    told = {
        "ensq": losses_of_ensq(program),
        "chemtrain": losses_of_chemtrain(program, trainer),
        "dtypes": [str(leaf.dtype) for leaf in jax.tree.leaves(trainer.params)],
    }
    if control:  # a cosine twice as long
        other = chemtrains(program, folder, optimizers.build(config, stage, 2 * steps))
        told["other"] = losses_of_chemtrain(program, other)
    return told


def main() -> None:
    folder = Path(sys.argv[1])
    told = {
        "float64": compare(folder, "float64", "1", control=True),
        "float32": compare(folder, "float32", "0", control=False),
    }
    (folder / "losses.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
