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
    """Programs by name, each with the members of every size of pack that was asked for."""

    def __init__(self, config: str, sets: Sequence[str] = ()) -> None:
        self.config, self.sets = config, list(sets)
        self.opened: dict[str, _Opened] = {}
        self.about: dict[str, Any] = self.open("", ())

    def open(self, name: str, sets: Sequence[str]) -> dict[str, Any]:
        """Make a program of the same configuration with more settings replaced."""
        self.opened[name] = _Opened(self.config, [*self.sets, *sets])
        return self.opened[name].about()

    def drop(self, name: str) -> dict[str, Any]:
        """Give its memory back."""
        del self.opened[name]
        return {}

    def warm(self, pack: int = 1, name: str = "") -> dict[str, Any]:
        """Compile all that ``pack`` members need."""
        began = time.perf_counter()
        self.opened[name].warm(pack)
        return {"seconds": time.perf_counter() - began, **_memory()}

    def steps(self, count: int, pack: int = 1, name: str = "") -> dict[str, Any]:
        """So many steps of all members together."""
        return {"seconds": self.opened[name].steps(count, pack)}

    def epochs(self, count: int, pack: int = 1, name: str = "") -> dict[str, Any]:
        """So many epochs, each with its validation, all members together."""
        each = [self.opened[name].epoch(pack) for _ in range(count)]
        return {"seconds": sum(each), "each": each}


class _Opened:
    """One program and its members."""

    def __init__(self, config: str, sets: Sequence[str]) -> None:
        self.program = program_of(config, sets)
        seed = self.program.config.data.seed
        self.batches = batches_of_epoch(self.program.dataset.sizes, self.program.batch, seed, 0)
        self.lanes: dict[int, Lanes] = {}

    def about(self) -> dict[str, Any]:
        frames = self.program.dataset.training[0].frames
        return {
            "frames": self.program.dataset.n_training,
            "beads": int(frames.R.shape[1]),
            "neighbours": float(np.asarray(frames.nbr_mask).sum(axis=-1).mean()),
            "batch": self.program.batch,
            "steps_per_epoch": self.program.steps_per_epoch,
        }

    def warm(self, pack: int) -> None:
        lanes = stack([self.program.new_member(seed) for seed in range(pack)])
        lanes = self.program.begin_stage(lanes, 0)
        self.lanes[pack] = self.program.compile(lanes, 0, self.batches)
        self.epoch(pack, steps=1)

    def steps(self, count: int, pack: int) -> float:
        lanes, left = self.lanes[pack], count
        began = time.perf_counter()
        while left:
            now = min(left, self.program.steps_per_epoch)
            lanes = self.program.run_steps(lanes, 0, self.batches, 0, now)
            left -= now
        jax.block_until_ready(lanes.alive)
        seconds = time.perf_counter() - began
        self._keep(pack, lanes)
        return seconds

    def epoch(self, pack: int, steps: int | None = None) -> float:
        program, lanes = self.program, self.lanes[pack]
        began = time.perf_counter()
        lanes = program.run_steps(lanes, 0, self.batches, 0, steps or program.steps_per_epoch)
        errors = program.validate(program.evaluated(lanes))
        lanes = program.keep_best(lanes, errors.force.sum(axis=1) > 0)
        jax.block_until_ready(lanes.best)
        seconds = time.perf_counter() - began
        self._keep(pack, lanes)
        return seconds

    def _keep(self, pack: int, lanes: Lanes) -> None:
        """A member that stands still would be fast."""
        if not np.asarray(lanes.alive).all():
            raise FloatingPointError("a member's loss is not finite: nothing was trained")
        self.lanes[pack] = lanes


def _memory() -> dict[str, Any]:
    """Bytes of the device in use at most so far, where JAX knows them."""
    known = jax.devices()[0].memory_stats() or {}
    return {"peak_bytes": known["peak_bytes_in_use"]} if "peak_bytes_in_use" in known else {}
