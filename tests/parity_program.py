"""Trains by chemtrain and by ensq in small; writes what ``test_parity.py`` compares, as JSON.

Run as ``python parity_program.py FOLDER`` with ``scripts`` on the path: the checks are those of
``scripts/parity.py``, whose full-size figures are in docs/parity.md. It is a process of its own,
since the precision of JAX is one for the process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from parity_checks import members, packs, seeds, steps
from train_tools import BEADS, settings, tiny_arrays

from ensq.train import environment
from ensq.train.pack import Program

# 30 frames, so that no batch needs filling
COMMON = (
    "training.batch_per_device=10",
    "training.stages=[{optimizer: adam, epochs: 3}]",
    "optimizer.adam={lr: 2.0e-3, peak_lr: 1.0e-2, warmup_steps: 3}",
)
DIMENET = (
    "model.ml_model=dimenetpp",
    "model.dimenetpp={embed_size: 8, n_interaction_blocks: 1, num_sbf: 3, num_rbf: 3, "
    "num_residual_before_skip: 0, num_residual_after_skip: 1, num_dense_out: 1}",
)
ENSEMBLE = (*COMMON[:1], "training.stages=[{optimizer: adam, epochs: 12}]")
RATE = "optimizer.adam={{lr: {0}, end_lr: {0}}}"
SEEDS = (1, 2, 3, 4)


def program_of(folder: Path, *overrides: str) -> Program:
    path = folder / "full.npz"
    if not path.exists():
        np.savez(path, **tiny_arrays(fewest=BEADS))
    return steps.program_of(settings(*overrides), path)


def by_both(program: Program, told: steps.Told, folder: Path) -> tuple[dict[str, Any], Any]:
    """Losses of all batches by both trainers, and chemtrain's trainer."""
    trainer = steps.trainer_of(program, told, folder, steps.optimizer_of(program))
    ours = steps.losses_of_ensq(program)
    found = {"ensq": ours, "chemtrain": steps.losses_of_chemtrain(program, trainer, told)}
    found["dtypes"] = [str(leaf.dtype) for leaf in jax.tree.leaves(trainer.params)]
    return found, trainer


def allegro(folder: Path, precision: str, max_ell: int, *, control: bool) -> dict[str, Any]:
    chosen = (f"training.precision={precision}", f"model.allegro.max_ell={max_ell}")
    program = program_of(folder, *COMMON, *chosen)
    told = steps.same_function(program.model, program.dataset.training[0])
    found, _ = by_both(program, told, folder)
    if control:
        other = steps.trainer_of(program, told, folder, steps.optimizer_of(program, stretch=2))
        found["other"] = steps.losses_of_chemtrain(program, other, told)
    return found


def dimenet(folder: Path) -> dict[str, Any]:
    program = program_of(folder, *COMMON, *DIMENET)
    told = steps.chemtrains_dimenet(program)
    found, trainer = by_both(program, told, folder)
    steps.start_again(program, trainer, 1.001)
    found["other"] = steps.losses_of_chemtrain(program, trainer, told)
    return found


def ensemble(folder: Path) -> dict[str, Any]:
    program = program_of(folder, *ENSEMBLE, RATE.format(1e-2))
    theirs = seeds.train_by_chemtrain(program, SEEDS, folder / "chemtrain")
    ours = members.train(program, SEEDS, folder / "ensq", len(SEEDS))
    slow_program = program_of(folder, *ENSEMBLE, RATE.format(1e-2 / 20))
    slow = members.train(slow_program, SEEDS, folder / "slow", len(SEEDS))
    alone = members.train(program, SEEDS[:1], folder / "alone", 1)

    def losses(params: list[Any]) -> list[float]:
        return seeds.validation_losses(program, params).tolist()

    return {
        "chemtrain": losses(theirs.params),
        "chemtrain_own": theirs.own_losses.tolist(),
        "ensq": losses([ours[seed].params for seed in SEEDS]),
        "ensq_own": [ours[seed].best_loss for seed in SEEDS],
        "slow": losses([slow[seed].params for seed in SEEDS]),
        "alone": packs.spread(ours, alone)._asdict(),
        "another_seed": packs.spread({1: ours[2]}, alone)._asdict(),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    environment.use_compile_cache(folder / "cache")
    made = {
        "float64": lambda: allegro(folder, "float64", 1, control=True),
        "float32": lambda: allegro(folder, "float32", 0, control=False),
        "dimenet": lambda: dimenet(folder),
        "ensemble": lambda: ensemble(folder),
    }
    told, began = {}, time.monotonic()
    for part, make in made.items():
        told[part] = make()
        print(f"{part}: done after {time.monotonic() - began:.1f} s", file=sys.stderr)
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
