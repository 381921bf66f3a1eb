"""A trainer's work on one data set in a process of its own, and the memory that it took.

    memory_program.py SET CACHE PLACEMENT SECONDS

Prints JSON: resident memory before the data were looked at and its peak, in bytes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ensq import config, data

SETTINGS = """
data: {path: set}
model: {cutoff: 2.0, ml_model: "own_model:build", options: {hidden: 5}}
training:
  stages: [{optimizer: adam, epochs: 1}]
  val_fraction: 0.002
  batch_per_device: 32
"""


def status(key: str) -> int:
    """A line of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Clock:
    """Asks the trainer to stop after so many seconds of training."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end, self.steps = seconds, 0.0, 0

    def stop_wanted(self) -> bool:
        self.end = self.end or time.monotonic() + self.seconds
        return time.monotonic() > self.end

    def dropped(self) -> frozenset[int]:
        return frozenset()

    def finishing(self) -> dict[int, str]:
        return {}

    def send(self, message: Any) -> None:
        self.steps = getattr(message, "step", self.steps)


def main(path: Path, cache: Path, place: str, seconds: float) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from train_tools import task

    from ensq.train.dataset import prepare
    from ensq.train.pack import Program
    from ensq.train.trainer import Trainer

    settings = config.parse(SETTINGS, "settings", [f"data.placement={place}"])
    np.asarray(jax.jit(lambda x: x @ x)(jnp.ones((64, 64))))
    before = status("VmRSS")
    forget_the_peak()
    began = time.monotonic()
    digest = data.digest(path)
    dataset = prepare(path, digest, settings, lambda text: None, cache)
    prepared, peak = time.monotonic() - began, status("VmHWM")
    program, clock = Program(settings, dataset), Clock(seconds)
    began = time.monotonic()
    program.validate(jax.tree.map(lambda leaf: leaf[None], program.new_member(1).params))
    validated = time.monotonic() - began
    Trainer(program, settings, digest).train([task(cache, 1)], clock)
    return {
        "placement": "device" if dataset.hosted is None else "host",
        "before": before,
        "peak_of_preparation": peak,
        "peak": status("VmHWM"),
        "anonymous_at_the_end": status("RssAnon"),
        "frames": dataset.n_training + dataset.n_validation,
        "width": dataset.hosted.training[0].width if dataset.hosted else 0,
        "seconds_of_preparation": prepared,
        "seconds_of_validation": validated,
        "steps": clock.steps,
        "steps_per_epoch": program.steps_per_epoch,
        "seconds_of_training": seconds,
    }


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
    print(json.dumps(found))
