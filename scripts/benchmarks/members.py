"""ensq's side: steps and epochs of members that train together, one process, nothing recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.programs import program_of
from ensq.train.batches import batches_of_epoch
from ensq.train.pack import Lanes, stack


class Members:
    """A program, and the members of each size of pack that was asked for."""

    def __init__(self, config: str, sets: Sequence[str] = ()) -> None:
        self.program = program_of(config, sets)
        sizes = self.program.dataset.sizes
        self.batches = batches_of_epoch(
            sizes, self.program.batch, self.program.config.data.seed, 0
        )
        self.lanes: dict[int, Lanes] = {}
        frames = self.program.dataset.training[0].frames
        self.about: dict[str, Any] = {
            "frames": self.program.dataset.n_training,
            "beads": int(frames.R.shape[1]),
            "neighbours": float(np.asarray(frames.nbr_mask).sum(axis=-1).mean()),
            "batch": self.program.batch,
            "steps_per_epoch": self.program.steps_per_epoch,
        }

    def warm(self, pack: int = 1) -> dict[str, Any]:
        """Compile all that ``pack`` members need."""
        began = time.perf_counter()
        lanes = stack([self.program.new_member(seed) for seed in range(pack)])
        lanes = self.program.begin_stage(lanes, 0)
        self.lanes[pack] = self.program.compile(lanes, 0, self.batches)
        self.epochs(1, pack, steps=min(2, self.program.steps_per_epoch))
        return {"seconds": time.perf_counter() - began, **_memory()}

    def steps(self, count: int, pack: int = 1) -> dict[str, Any]:
        """So many steps of all members together."""
        lanes, left = self.lanes[pack], count
        began = time.perf_counter()
        while left:
            now = min(left, self.program.steps_per_epoch)
            lanes = self.program.run_steps(lanes, 0, self.batches, 0, now)
            left -= now
        jax.block_until_ready(lanes.alive)
        seconds = time.perf_counter() - began
        self.lanes[pack] = lanes
        return self._checked({"seconds": seconds}, lanes)

    def epochs(self, count: int, pack: int = 1, steps: int | None = None) -> dict[str, Any]:
        """So many epochs, each with its validation, all members together."""
        program, lanes, each = self.program, self.lanes[pack], []
        for _ in range(count):
            began = time.perf_counter()
            lanes = program.run_steps(
                lanes, 0, self.batches, 0, steps or program.steps_per_epoch
            )
            errors = program.validate(program.evaluated(lanes))
            lanes = program.keep_best(lanes, errors.force.sum(axis=1) > 0)
            jax.block_until_ready(lanes.best)
            each.append(time.perf_counter() - began)
        self.lanes[pack] = lanes
        return self._checked({"seconds": sum(each), "each": each}, lanes)

    def _checked(self, answer: dict[str, Any], lanes: Lanes) -> dict[str, Any]:
        """A member that stands still would be fast."""
        if not np.asarray(lanes.alive).all():
            raise FloatingPointError("a member's loss is not finite: nothing was trained")
        return answer


def _memory() -> dict[str, Any]:
    """Bytes of the device in use at most so far, where JAX knows them."""
    known = jax.devices()[0].memory_stats() or {}
    return {"peak_bytes": known["peak_bytes_in_use"]} if "peak_bytes_in_use" in known else {}
