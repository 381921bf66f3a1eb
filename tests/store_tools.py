"""What the tests of the store share: a clock, an ensemble, workers, and short ways to write."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensq.jobs import Checkpoint, Claim, EpochRecord, Job, Result
from ensq.store import Added, EpochWrite, Store, worker_info

LEASE = 60.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, time: float = 1_000_000.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += seconds


_FRESH: list[bytes] = []


def fresh(path: Path, clock: Callable[[], float] = time.time) -> Store:
    """A fresh store, made once and copied, since making one waits for the disk many times."""
    if not _FRESH:
        Store.open(path, create=True).close()
        _FRESH.append(path.read_bytes())
    path.write_bytes(_FRESH[0])
    return Store.open(path, clock=clock)


def add(store: Store, name: str = "chignolin", seeds: Any = (42, 43, 44), **other: Any) -> Added:
    values: dict[str, Any] = {
        "config": "{}",
        "config_digest": "c" * 64,
        "data_path": "data/set.npz",
        "data_digest": "d" * 64,
        "run_path": f"runs/{name}",
        "epochs": 3,
    }
    return store.add_ensemble(name=name, seeds=seeds, **(values | other))


def register(store: Store, *names: str) -> None:
    for name in names:
        store.register_worker(worker_info(name))


def claim_of(job: Job) -> Claim:
    assert job.owner is not None
    return Claim(job_id=job.id, attempt=job.attempt, owner=job.owner)


def take(store: Store, worker: str = "w1", limit: int = 1, **other: Any) -> list[Claim]:
    return [claim_of(job) for job in store.claim(worker, limit=limit, lease_seconds=LEASE, **other)]


def record(epoch: int, val_loss: float = 1.0) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        train_loss=2.0,
        val_loss=val_loss,
        val_rmse_force=0.5,
        val_rmse_energy=None,
        learning_rate=1e-3,
        seconds=0.25,
    )


def point(epoch: int, step: int = 0, folder: str = "attempt-1") -> Checkpoint:
    return Checkpoint(path=f"{folder}/{epoch}-{step}", digest=f"{epoch}", epoch=epoch, step=step)


def write(
    claim: Claim, epoch: int, checkpoint: Checkpoint | None = None, val_loss: float = 1.0
) -> EpochWrite:
    return EpochWrite(claim, record(epoch, val_loss), epoch, val_loss, checkpoint)


def train(store: Store, claim: Claim, epochs: range, *, saved: bool = True) -> None:
    """Record epochs of a job, each with a checkpoint if ``saved``."""
    for epoch in epochs:
        at = point(epoch, folder=f"attempt-{claim.attempt}") if saved else None
        assert store.record_epochs([write(claim, epoch, at)], LEASE) == []


def result() -> Result:
    return Result(best_epoch=3, best_loss=0.5, final_loss=0.75, path="result", digest="r" * 64)


def dump(path: Path) -> list[str]:
    """All that is in a database, to see that nothing changed."""
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


_MANY = """
import os, sys
from multiprocessing import get_context
from ensq.store import Store, worker_info
import store_tools as tools
count, path = int(sys.argv[1]), sys.argv[2]
%s
if __name__ == "__main__":
    context = get_context("fork")
    barrier = context.Barrier(count, timeout=120)
    started = [context.Process(target=work, args=(n, barrier.wait)) for n in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in started))
"""


def in_processes(count: int, path: Path, work: str) -> None:
    """Run ``work(number, meet)``, given as source, in processes of their own, on one database.

    One process imports everything and forks the others before any connection is made: the imports
    of many would take most of the time. ``meet()`` returns when all have called it.
    """
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _MANY % work, str(count), str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
