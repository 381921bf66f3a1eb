"""Packs on several devices, in a process that has them: run by tests/test_grid.py.

Prints as JSON the losses [epoch, batch] and validation errors of each member for several grids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from train_tools import settings

from ensq import data
from ensq.train import environment, stepping
from ensq.train.batches import batches_of_epoch
from ensq.train.dataset import prepare
from ensq.train.pack import Program, lane, stack

ONE_STAGE = ("training.stages=[{optimizer: adam, epochs: 2}]", "training.ema_decay=0.9")
# name: devices, members, more settings
CASES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "1x1": (1, 4, ()),
    "4x1": (4, 4, ()),
    "1x4": (4, 1, ()),
    "2x2": (4, 2, ()),
    "4x2": (8, 4, ()),
    "2x2 in parts": (4, 2, ("data.placement=host", "training.micro_batch=3")),
}


def train(program: Program, members: int, spoil: int | None = None) -> dict[str, Any]:
    lanes = stack([program.new_member(seed) for seed in range(1, members + 1)])
    if spoil is not None:
        params = jax.tree.map(lambda leaf: leaf.at[spoil].multiply(1e30), lanes.params)
        lanes = lanes._replace(params=params)
    lanes = program.spread(lanes)
    told: list[Any] = []
    for epoch in range(2):
        batches = batches_of_epoch(program.dataset.sizes, program.batch, 0, epoch)
        if program.starts_stage(epoch):
            lanes = program.begin_stage(lanes, epoch)
        lanes = program.compile(lanes, epoch, batches)
        lanes = program.run_steps(lanes, epoch, batches, 0, 2)
        lanes = program.run_steps(lanes, epoch, batches, 2, program.steps_per_epoch)
        errors = program.validate(program.evaluated(lanes))
        told.append(np.asarray(lanes.batch_losses))
    params = [
        float(sum(np.sum(np.abs(leaf)) for leaf in jax.tree.leaves(lane(lanes, place).params)))
        for place in range(members)
    ]
    return {
        "losses": np.stack(told, axis=1).tolist(),
        "force": errors.force.tolist(),
        "energy": errors.energy.tolist(),
        "species": errors.species.tolist(),
        "params": params,
        "alive": np.asarray(lanes.alive).tolist(),
    }


def main(folder: Path, precision: str, psum: bool, names: list[str]) -> None:
    if not psum:  # the negative control: each device goes by its own frames
        stepping.jax.lax.psum = lambda value, axis: value  # type: ignore[assignment]
    environment.set_precision(precision)
    path = folder / "tiny.npz"
    found = {}
    for name in names:
        devices, members, more = CASES[name.removesuffix(" spoilt")]
        config = settings(f"training.precision={precision}", *ONE_STAGE, *more)
        dataset = prepare(path, data.digest(path), config, lambda text: None)
        program = Program(config, dataset, jax.devices()[:devices])
        found[name] = train(program, members)
        if name == "2x2":
            found["2x2 spoilt"] = train(program, members, spoil=0)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "psum", sys.argv[4:])
