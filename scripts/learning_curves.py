#!/usr/bin/env python3
"""Force error against the number of training frames, as a table and a figure.

    python scripts/learning_curves.py configs/chignolin.yaml --sizes 155 310 620 1240 2480
    python scripts/learning_curves.py configs/ala2.yaml --sizes 50 100 200 400 800

The validation frames are those of the configuration; of its training frames n are drawn at random.
A seed decides both the frames that are drawn (a smaller set is part of a larger one) and the
initial weights. All frames train for the configuration's gradient steps, n of them for a share
(n / all frames) ** POWER of these: with --power 0 as many for every size, good for exact labels;
with --power 1 as many epochs, good for noisy ones, where small sets soon overfit. A model is scored
like a member of an ensemble, by its epoch of lowest validation loss.

What the table has is not trained again: delete it to start anew. Without --sizes the figure alone
is drawn.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path

import msgspec
import numpy as np

from ensq import config as configuration
from ensq import data
from ensq.config import RunConfig
from ensq.errors import EnsqError

DOCS = Path(__file__).resolve().parent.parent / "docs"
VALIDATIONS = 50  # about how often at most


@dataclass(frozen=True)
class Row:
    """One trained model."""

    config: str
    molecule: str
    unit: str  # of forces
    frames: int  # to train
    seed: int
    steps: int  # gradient steps
    best_step: int
    force_rmse: float  # per component
    cpu_seconds: float


def train(
    whole: data.Data, split: data.Split, frames: int, config: RunConfig, seed: int
) -> tuple[float, int, int]:
    """Train one member on ``frames`` training frames, drawn by the seed.

    Returns force RMSE and step of its best epoch, and its steps in all.
    """
    from ensq.train import environment, statistics
    from ensq.train.batches import batches_of_epoch
    from ensq.train.dataset import lay_out
    from ensq.train.pack import Program, stack

    environment.set_precision(config.training.precision)
    drawn = np.sort(np.random.default_rng(seed).permutation(split.training)[:frames])
    validation = whole.take(split.validation)
    dataset = lay_out(whole.take(drawn), validation, split.validation, config)
    program = Program(config, dataset)
    lanes = stack([program.new_member(seed)])
    every = max(1, config.epochs // VALIDATIONS)
    best_loss, best_rmse, best_epoch = math.inf, math.nan, 0
    for epoch in range(config.epochs):
        if program.starts_stage(epoch):
            lanes = program.begin_stage(lanes, epoch)
        batches = batches_of_epoch(dataset.sizes, program.batch, config.data.seed, epoch)
        lanes = program.run_steps(lanes, epoch, batches, 0, program.steps_per_epoch)
        if (epoch + 1) % every and epoch + 1 < config.epochs:
            continue
        errors = program.validate(program.evaluated(lanes))
        per_frame = errors.force[0], errors.energy[0]
        counts = dataset.validated.components, dataset.validated.beads
        scores = statistics.scores(*per_frame, *counts, config.training.gammas)
        if scores.rmse_force is not None and scores.loss < best_loss:
            best_loss, best_rmse, best_epoch = scores.loss, scores.rmse_force, epoch + 1
    steps = program.steps_per_epoch
    return best_rmse, best_epoch * steps, config.epochs * steps


def curve(path: Path, options: argparse.Namespace) -> None:
    """Train what the table lacks of one configuration, and add it."""
    config = configuration.load(path, options.set)
    if len(config.training.stages) != 1 or not config.training.gammas.F:
        sys.exit(f"{path}: learning curves need one training stage, and forces in the loss")
    source = path.parent / config.data.path
    whole = data.load(source, config.data, config.training.gammas, config.unit)
    split = data.split(whole, config, str(source))
    available, batch = len(split.training), config.training.batch_per_device
    steps = config.epochs * math.ceil(available / batch)
    if max(options.sizes) > available:
        sys.exit(f"{path}: there are {available} training frames, not {max(options.sizes)}")
    rows = read(options.table)
    done = {(row.frames, row.seed) for row in rows if row.config == path.stem}
    for frames, seed in sorted(set(product(options.sizes, options.seeds)) - done):
        own_steps = steps * (frames / available) ** options.power
        epochs = max(1, round(own_steps / math.ceil(frames / batch)))
        own = configuration.load(path, [*options.set, f"training.stages.0.epochs={epochs}"])
        began = time.process_time()
        rmse, best, total = train(whole, split, frames, own, seed)
        molecule, unit = config.protein_name or path.stem, f"{config.unit}/Angstrom"
        result = total, best, round(rmse, 6), round(time.process_time() - began, 1)
        rows.append(Row(path.stem, molecule, unit, frames, seed, *result))
        write(options.table, rows)
        print(f"{path.stem}: {frames} frames, seed {seed}: force RMSE {rmse:.4f} {unit}")


def read(table: Path) -> list[Row]:
    """The rows of the table; none if there is no such file."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return msgspec.convert(list(csv.DictReader(file)), list[Row], strict=False)


def write(table: Path, rows: Sequence[Row]) -> None:
    """The table anew."""
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each configuration: every seed as a point, a line through their means."""
    if not rows:
        sys.exit("no results to draw: give configurations and --sizes")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    names = list(dict.fromkeys(row.config for row in rows))
    figure = Figure(figsize=(4.4 * len(names), 3.4), layout="tight")
    panels = figure.subplots(1, len(names), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        own = [row for row in rows if row.config == name]
        sizes = sorted({row.frames for row in own})
        means = [np.mean([row.force_rmse for row in own if row.frames == n]) for n in sizes]
        panel.plot(sizes, means, "-", color="tab:blue", label="mean")
        values = [row.force_rmse for row in own]
        panel.plot([row.frames for row in own], values, "o", ms=4, color="k", label="one model")
        panel.set(xscale="log", yscale="log", xlabel="training frames", title=own[0].molecule)
        panel.set_ylabel(f"force RMSE ({own[0].unit.replace('Angstrom', 'Å')})")
        panel.xaxis.set_major_locator(FixedLocator(sizes))
        panel.yaxis.set_major_locator(MaxNLocator(9))
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", nargs="*", type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, help="numbers of training frames")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43])
    parser.add_argument("--power", type=float, default=0.0, help="steps go with frames ** POWER")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="as in ensq")
    parser.add_argument("--table", type=Path, default=DOCS / "learning_curves.csv")
    parser.add_argument("--figure", type=Path, default=DOCS / "learning_curves.png")
    options = parser.parse_args()
    try:
        for path in options.config if options.sizes else []:
            curve(path, options)
    except EnsqError as error:
        print(f"learning_curves: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    draw(read(options.table), options.figure)


if __name__ == "__main__":
    main()
