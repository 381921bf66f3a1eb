#!/usr/bin/env python3
"""Hold ensq against chemtrain and against itself; print the table of docs/parity.md.

    python scripts/parity.py [--part PART] [--json]

Parts: allegro, dimenet (losses per step against chemtrain's ForceMatching), ensemble (losses over
seeds against its EnsembleOfModels), restart (a killed worker), pack (members in packs of 1, 2 and
4), all. It uses one core. The exit code is 1 if a row does not hold. ensq must be installed for
this Python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from parity_checks.rows import Row, heading, markdown, of_bound, plain

ROOT = Path(__file__).resolve().parent.parent
ALA2, CHIGNOLIN = ROOT / "configs" / "ala2.yaml", ROOT / "configs" / "chignolin.yaml"
# 90 frames to train on in 9 batches of 10, forces and energies in the loss
STEPS = (
    *("data.max_frames=120", "training.val_fraction=0.25", "training.batch_per_device=10"),
    *("training.gammas={F: 1.0, U: 0.01}", "training.ema_decay=null"),
    "training.stages=[{optimizer: adam, epochs: 3}]",
    "optimizer.adam={lr: 1.0e-3, peak_lr: 5.0e-3, warmup_steps: 5}",
)
DIMENET = "model.dimenetpp={embed_size: 16, n_interaction_blocks: 1, num_sbf: 3, num_rbf: 4}"
# 800 frames to train on in 40 batches of 20, 200 to validate
SMALL = (
    *("data.max_frames=1000", "data.split.by=frame", "training.batch_per_device=20"),
    *("model.allegro.n_channels=8", "model.allegro.mlp_n_hidden=16", "training.ema_decay=null"),
    "training.stages=[{optimizer: adam, epochs: 8}]",
)
SEEDS, PACK_SEEDS = tuple(range(100, 124)), (42, 43, 44, 45)
SLOW_RATE = "optimizer.adam={lr: 2.5e-4, end_lr: 2.5e-6}"  # a twentieth: the control
# Over 27 steps each rounding error of float32 is carried on by all steps after it.
STEP_BOUNDS = {"float64": 1e-12, "float32": 1e-4}
DIMENET_BOUND = 1e-7  # float64 with chemtrain's float32 cut-off
PACK_BOUNDS = {"float32": (1e-6, 1e-5), "float64": (1e-13, 1e-12)}  # after first and last epoch
LEVEL = 0.05


def load(config: Path, *overrides: str) -> Any:
    """A configuration of the repository and its data file."""
    from ensq.config import load

    made = load(config, overrides)
    return made, (config.parent / made.data.path).resolve()


# -- parts -------------------------------------------------------------------------------------


def allegro(folder: Path) -> list[Row]:
    from parity_checks import steps

    rows = []
    for precision, bound in STEP_BOUNDS.items():
        program = steps.program_of(*load(ALA2, *STEPS, f"training.precision={precision}"))
        told = steps.same_function(program.model, program.dataset.training[0])
        found = step_difference(program, told, folder / precision)
        rows.append(of_steps("allegro", "Allegro", program, found, bound))
    return rows


def dimenet(folder: Path) -> list[Row]:
    import numpy as np
    from jax_md_mod.model import neural_networks
    from parity_checks import steps

    rows = []
    for precision, kept, bound in (
        ("float64", True, STEP_BOUNDS["float64"]),
        ("float64", False, DIMENET_BOUND),
        ("float32", False, STEP_BOUNDS["float32"]),
    ):
        chosen = ("model.ml_model=dimenetpp", DIMENET, f"training.precision={precision}")
        program = steps.program_of(*load(ALA2, *STEPS, *chosen))
        patch = mock.patch.object(neural_networks.util, "f32", np.float64)
        with patch if kept else contextlib.nullcontext():
            told = steps.chemtrains_dimenet(program)
        found = step_difference(program, told, folder / f"{precision}-{kept}")
        what = "DimeNet++ (cut-off in float64)" if kept else "DimeNet++"
        rows.append(of_steps("dimenet", what, program, found, bound))
    return rows


def step_difference(program: Any, told: Any, folder: Path) -> tuple[float, float]:
    """Relative difference of the losses before the first step, and the largest of all."""
    from parity_checks import steps

    folder.mkdir(parents=True)
    ours = steps.losses_of_ensq(program)
    assert ours[-1] < ours[0], "nothing was learned"
    trainer = steps.trainer_of(program, told, folder, steps.optimizer_of(program))
    theirs = steps.losses_of_chemtrain(program, trainer, told)
    return steps.difference(ours[:1], theirs[:1]), steps.difference(ours, theirs)


def of_steps(
    part: str, network: str, program: Any, found: tuple[float, float], bound: float
) -> Row:
    config = program.config
    count = config.epochs * program.steps_per_epoch
    return Row(
        part=part,
        check=f"losses per step against ForceMatching, {network}",
        setting=f"{config.training.precision}, alanine dipeptide, {count} steps in 3 epochs",
        found=f"largest relative difference {found[1]:.1e} (first step {found[0]:.1e})",
        tolerance=f"{bound:.0e}",
        holds=found[1] < bound,
    )


def ensemble(folder: Path) -> list[Row]:
    from parity_checks import members, seeds, steps

    program = steps.program_of(*load(CHIGNOLIN, *SMALL))
    theirs = seeds.train_by_chemtrain(program, SEEDS, folder / "chemtrain")
    chemtrain = seeds.validation_losses(program, theirs.params)
    losses = []
    for name, change in (("ensq", ()), ("slow", (SLOW_RATE,))):
        own = steps.program_of(*load(CHIGNOLIN, *SMALL, *change))
        results = members.train(own, SEEDS, folder / name, 8)
        params = [results[seed].params for seed in SEEDS]
        losses.append(seeds.validation_losses(program, params))
    setting = f"chignolin, {len(SEEDS)} seeds, {program.config.epochs} epochs of 40 steps"
    print("losses of chemtrain", *chemtrain.round(4), file=sys.stderr)
    print("losses of ensq", *losses[0].round(4), file=sys.stderr)
    same, control = (seeds.compare(chemtrain, found) for found in losses)
    return [
        of_comparison(
            "losses over seeds against EnsembleOfModels", setting, same, told_apart=False
        ),
        of_comparison("control: learning rate / 20", setting, control, told_apart=True),
    ]


def of_comparison(check: str, setting: str, told: Any, *, told_apart: bool) -> Row:
    pairs = zip(told.means, told.stds, strict=True)
    chemtrain, ensq = (f"{mean:.3f} ± {std:.3f}" for mean, std in pairs)
    means = (told.mann_whitney, told.kolmogorov_smirnov, told.permutation)
    values = ", ".join(f"{value:.2g}" for value in (*means, told.paired, told.levene))
    return Row(
        part="ensemble",
        check=check,
        setting=setting,
        found=f"chemtrain {chemtrain}, ensq {ensq}; difference {told.difference:+.3f} ± "
        f"{told.error:.3f}; p (U, KS, permutation, paired, Levene) = {values}",
        tolerance=f"p of U, KS, permutation < {LEVEL}" if told_apart else f"every p > {LEVEL}",
        holds=max(means) < LEVEL if told_apart else min(*means, told.paired, told.levene) > LEVEL,
    )


def restart(folder: Path) -> list[Row]:
    from parity_checks import restart

    restart.clean_environment()
    overrides = (*SMALL, "ensemble.n_models=2", "data.max_frames=3100")
    told = restart.check(CHIGNOLIN, overrides, folder)
    resumed = told.start_epochs == [0, restart.KILL_AFTER]
    return [
        Row(
            part="restart",
            check="worker killed (SIGKILL) in the middle of an epoch, another goes on, against an "
            "undisturbed run in another database",
            setting=f"chignolin, command line, {told.members} members, 8 epochs; of the killed one "
            f"the attempts began after {' and '.join(map(str, told.start_epochs))} epochs",
            found=f"{told.arrays - told.different} of {told.arrays} arrays bit-identical",
            tolerance="all",
            holds=told.different == 0 and resumed and told.other_seed_differs,
        )
    ]


def pack(folder: Path) -> list[Row]:
    from parity_checks import packs, steps

    rows = []
    for precision, bounds in PACK_BOUNDS.items():
        program = steps.program_of(*load(CHIGNOLIN, *SMALL, f"training.precision={precision}"))
        found = packs.spreads(program, PACK_SEEDS, folder / precision, (2, 4))
        for size, spread in found.items():
            rows += [
                of_bound(
                    "pack",
                    f"losses of 4 members in packs of {size} against packs of 1",
                    f"chignolin, {precision}, {place}",
                    value,
                    bound,
                )
                for place, value, bound in (
                    ("first epoch", spread.first, bounds[0]),
                    (f"epoch {program.config.epochs}", spread.last, bounds[1]),
                )
            ]
    return rows


PARTS: dict[str, Callable[[Path], list[Row]]] = {
    "allegro": allegro,
    "dimenet": dimenet,
    "ensemble": ensemble,
    "restart": restart,
    "pack": pack,
}


def one_core() -> None:
    """What ensq's workers set for their trainers; to be called before JAX is imported."""
    for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    flags = os.environ.get("XLA_FLAGS", "")
    if "multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def use_compile_cache(folder: Path) -> None:
    """Each of chemtrain's trainers compiles the same functions again."""
    from ensq.train import environment

    environment.use_compile_cache(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    one_core()
    warnings.simplefilter("ignore")  # of chemtrain and jax_md on their pinned versions
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ensq-parity-") as folder:
        for part in PARTS if options.part == "all" else [options.part]:
            print(f"{part} ...", file=sys.stderr)
            began = time.monotonic()
            with contextlib.redirect_stdout(sys.stderr):  # chemtrain prints every epoch
                use_compile_cache(Path(folder) / "compiled")
                rows += PARTS[part](Path(folder) / part)
            seconds[part] = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps(plain(rows, seconds), indent=1))
    else:
        print(f"{heading()}\n\n{markdown(rows)}")
    sys.exit(not all(row.holds for row in rows))


if __name__ == "__main__":
    main()
