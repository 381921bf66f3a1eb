"""What the tests of the store share: a clock, an ensemble, workers, and short ways to write.

A test with the fixture ``engine_url`` (in conftest.py) runs on both engines: it is given the URL of
a fresh database with ensq's tables, once of an SQLite file and once of PostgreSQL, and opens it
with ``Store.open(engine_url)``. Where PostgreSQL isn't installed the second is skipped, and fails
with CI=true. The fixture ``postgres`` is the server itself, to stop, start or cut off: pg_tools.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from ensq import schema
from ensq.jobs import Checkpoint, Claim, EpochRecord, Job, Result, WorkerInfo
from ensq.store import Added, EpochWrite, Policy, Reaped, Store, opening, worker_info
from ensq.store.engine import Database
from ensq.store.target import Target

LEASE = 60.0
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # nothing waits for a disk here
AT_ONCE = Policy(pause=0.0)  # what failed is tried again without a pause


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, time: float = 1_000_000.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += seconds


class HandStore(Store):
    """A store that lives by the clock that it is given, where PostgreSQL's own would count too.

    Times by hand are for tests of what is stored; that leases need none is in test_store_watch.py.
    """

    def _time(self, connection: Connection) -> float:
        return self.clock()


def open_by_hand(
    url: str | Path, clock: Callable[[], float] | None = None, *, policy: Policy = AT_ONCE
) -> Store:
    """Open a database with one clock for times and leases, which stands until it is moved."""
    clock = clock or Clock()
    return HandStore.open(url, clock=clock, monotonic=clock, policy=policy)


_FRESH: list[bytes] = []


def fresh(
    path: Path, clock: Callable[[], float] | None = None, *, policy: Policy = AT_ONCE
) -> Store:
    """A fresh store, made once and copied, since making one waits for the disk many times."""
    return open_by_hand(fresh_file(path), clock, policy=policy)


def fresh_file(path: Path) -> Path:
    """The file of a fresh store, not open."""
    if not _FRESH:
        opening.make(Target.parse(path))
        _FRESH.append(path.read_bytes())
    path.write_bytes(_FRESH[0])
    return path


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


def made(path: Path) -> Path:
    """The file of a store with an ensemble, made as any user's is."""
    with Store.open(path, create=True) as store:
        add(store)
    return path


def register(store: Store, *names: str) -> None:
    for name in names:
        store.register_worker(worker_info(name))


def elsewhere(name: str) -> WorkerInfo:
    """A worker of another host: only its lease can tell whether it lives."""
    return replace(worker_info(name), host="elsewhere", boot_id="another boot")


def fall_silent(store: Store, seconds: float = LEASE + 1) -> list[Reaped]:
    """A lease passes without a sign of life, between two looks; what was taken back."""
    assert store.reap() == []
    store.clock.move(seconds)  # type: ignore[attr-defined]
    return store.reap()


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
        assert store.record_epochs([write(claim, epoch, at)]) == []


def result() -> Result:
    return Result(best_epoch=3, best_loss=0.5, final_loss=0.75, path="result", digest="r" * 64)


def dump(url: str | Path) -> dict[str, list[dict[str, Any]]]:
    """All that is in a database, to see that nothing changed."""
    database = Database(Target.parse(url))
    try:
        with database.read() as connection:
            return {
                table.name: [
                    dict(row._mapping)
                    for row in connection.execute(select(table).order_by(*table.primary_key))
                ]
                for table in schema.metadata.sorted_tables
            }
    finally:
        database.close()


def state_of(url: str | Path) -> dict[str, list[dict[str, Any]]]:
    """``dump`` without the workers' signs of life, which even a worker without a job gives."""
    whole = dump(url)
    for worker in whole["workers"]:
        del worker["last_seen"]
    return whole


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


def in_processes(count: int, path: str | Path, work: str) -> str:
    """Run ``work(number, meet)``, given as source, in processes of their own, on one database.

    Returns what they printed. The source knows ``path``, the path or URL of the database.

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
    return done.stdout
