"""Make the golden database of revision 0004. Runs with the ensq of that revision only: see README.

python make_0004.py CHECKOUT FOLDER, with PYTHONPATH=CHECKOUT
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensq import config as configuration
from ensq import schema
from ensq.jobs import (
    Checkpoint,
    Claim,
    EpochRecord,
    Outcome,
    Probe,
    ProbeKey,
    ProbeRow,
    Result,
    SlurmJob,
    State,
    WorkerInfo,
)
from ensq.rundir import checkpoint_name, sha256
from ensq.store import EpochWrite, Store

LEASE = 60.0
EPOCHS = 4
FIRST, SECOND = "chignolin_ca", "two.peptides+v2"
STRANGE = 'it\'s "odd": µ – 日本語 \\ %s ?\n\tsecond line; DROP TABLE jobs; --'

clock = [1_760_000_000.0]


def now() -> float:
    clock[0] += 0.125
    return clock[0]


def worker(name: str, host: str, **other: Any) -> WorkerInfo:
    values = {"pid": 4242, "pid_start": "987654", "boot_id": "0b00-7/pid:[4026531836]"}
    return WorkerInfo(id=name, host=host, **({"slurm_job": None} | values | other))


def take(store: Store, owner: str, seeds: list[int], ensemble: str | None = None) -> list[Claim]:
    """Claim as many jobs as there are seeds; they must be those."""
    found = store.claim(
        owner,
        limit=len(seeds),
        lease_seconds=LEASE,
        ensemble=ensemble,
        log_path=f"logs/{owner}.log",
    )
    assert [job.seed for job in found] == seeds, [job.seed for job in found]
    return [Claim(job_id=job.id, attempt=job.attempt, owner=owner) for job in found]


def point(claim: Claim, epoch: int, step: int = 0) -> Checkpoint:
    name = checkpoint_name(epoch, step)
    path = f"seed-{claim.job_id}/attempt-{claim.attempt}/{name}"
    return Checkpoint(path=path, digest=sha256(path.encode()), epoch=epoch, step=step)


def record(epoch: int, loss: float) -> EpochRecord:
    value = loss / epoch
    return EpochRecord(
        epoch=epoch,
        train_loss=2 * value,
        val_loss=value,
        val_rmse_force=None if epoch == 1 else 0.1 * value,
        val_rmse_energy=0.01 * value if epoch == 3 else None,
        learning_rate=1e-3 / epoch,
        seconds=1.25,
    )


def train(store: Store, claim: Claim, *epochs: int, saved: bool = True, loss: float = 1.5) -> None:
    for epoch in epochs:
        checkpoint = point(claim, epoch) if saved else None
        best = None if math.isnan(loss) else epoch
        write = EpochWrite(
            claim, record(epoch, loss), best, loss / epoch if best else None, checkpoint
        )
        assert store.record_epochs([write]) == []


def result(claim: Claim) -> Result:
    path = f"seed-{claim.job_id}/attempt-{claim.attempt}/result.safetensors"
    return Result(
        best_epoch=EPOCHS,
        best_loss=0.375,
        final_loss=0.375,
        path=path,
        digest=sha256(path.encode()),
    )


def add(store: Store, name: str, config: str, seeds: list[int], data: str) -> None:
    store.add_ensemble(
        name=name,
        config=config,
        config_digest=sha256(config.encode()),
        data_path=data,
        data_digest=sha256(data.encode()),
        run_path=f"runs/{name}",
        seeds=seeds,
        epochs=EPOCHS,
    )


def fill(store: Store, checkout: Path) -> None:
    chosen = ["training.stages.0.epochs=4"]
    config = configuration.dumps(configuration.load(checkout / "configs/chignolin.yaml", chosen))
    add(store, FIRST, config, list(range(40, 52)), "data/chignolin_ca.npz")
    store.register_worker(worker("w1", "node-a", device="cpu:0", lock_byte=2**40))
    first_attempts(store)
    slurm = worker(
        *("w2", "node-b"),
        pid=77,
        device="cuda:0",
        slurm_job="1234_5",
        slurm_cluster="klüster",
        slurm_job_id="1239",
        slurm_step="0",
        slurm_proc="3",
        slurm_restarts=2,
        slurm_node="node-b",
    )
    store.register_worker(slurm)
    store.register_worker(worker("w3", "nöde's", pid_start="", boot_id="", slurm_job="1240"))
    second_attempts(store)
    second_ensemble(store)
    last_words(store)


def first_attempts(store: Store) -> None:
    """One attempt at each of twelve members, ended in every way."""
    claims = take(store, "w1", list(range(40, 52)))
    train(store, claims[0], 1, 2)
    train(store, claims[1], 1, 2)
    train(store, claims[4], 1)
    train(store, claims[5], 1, 2)
    train(store, claims[6], 1, loss=math.nan)
    train(store, claims[9], 1)
    train(store, claims[9], 2, saved=False)
    store.release([claims[0]], Outcome.INTERRUPTED, "time limit: SIGUSR1")
    store.fail(claims[2], Outcome.FAILURE, STRANGE, retry=True, log_tail=STRANGE)
    store.fail(claims[3], Outcome.CRASH, "trainer died: SIGSEGV", retry=True, log_tail="a\nb")
    store.cancel(FIRST, [44])
    assert store.record_checkpoint([(claims[5], point(claims[5], 2, 17))]) == []
    store.release([claims[5]], Outcome.INTERRUPTED, "a person asked", asked=True)
    assert store.fail(claims[6], Outcome.FAILURE, "loss", retry=False) == State.FAILED
    store.release([claims[7]], Outcome.BLOCKED, "disk full")
    store.hold(FIRST, [50])
    store.release([claims[10]], Outcome.INTERRUPTED, "held by a person", asked=True)
    store.hold(FIRST, [51])
    assert store.reap() == []
    clock[0] += LEASE / 2
    store.renew([claims[1], claims[11]], "w1")
    clock[0] += LEASE
    assert len(store.reap()) == 2  # 48 and 49: their beats stood still
    store.release([claims[1]], Outcome.LOST, "worker w1 fell silent")
    store.release([claims[11]], Outcome.INTERRUPTED, "held by a person", asked=True)
    store.unhold(FIRST, [51])
    store.worker_ended("w1")


def second_attempts(store: Store) -> None:
    """Pauses are over. All but 41, which is to be held, are given back at the end."""
    clock[0] += 1000.0
    (within,) = take(store, "w2", [45])
    (done,) = take(store, "w2", [40])
    (running,) = take(store, "w3", [41])
    train(store, done, 3, 4)
    store.finish(done, result(done))
    train(store, running, 3)
    assert store.record_checkpoint([(running, point(running, 3, 5))]) == []
    (adopting,) = take(store, "w3", [49])
    store.stand_at(adopting, point(adopting, 2), [record(1, 1.5), record(2, 1.5)], "never recorded")
    store.stand_at(adopting, point(adopting, 1), [], STRANGE)
    store.hold(FIRST, [41])
    store.renew([running], "w3")
    others = take(store, "w2", [42, 43, 47, 48, 51])
    store.fail(others[1], Outcome.CRASH, "out of memory", retry=True)
    store.release([others[0], *others[2:4]], Outcome.INTERRUPTED, "pre-empted")
    store.fail(others[4], Outcome.FAILURE, f"configuration: {STRANGE}", retry=False)
    store.release([within, adopting], Outcome.INTERRUPTED, "pre-empted")


def second_ensemble(store: Store) -> None:
    config = json.dumps({"note": STRANGE}, ensure_ascii=False)
    add(store, SECOND, config, [2**53 + 1, 7, -3], "../data/two 'peptides' é.npz")
    (claim,) = take(store, "w3", [2**53 + 1], SECOND)
    train(store, claim, 1, 2, 3, 4)
    store.finish(claim, result(claim))
    (claim,) = take(store, "w3", [7], SECOND)
    train(store, claim, 1)
    store.retry(FIRST, [46])


def last_words(store: Store) -> None:
    """Workers of which one has left, and one is asked to."""
    store.register_worker(worker("w4", "node-d", pid=1))
    store.worker_ended("w4")
    said_by_slurm(store)
    remembered(store)
    assert store.drain(["w3"]) == ["w3"]


def remembered(store: Store) -> None:
    """How many members train together at best, on two devices."""
    rows = (ProbeRow(members=1, seconds=0.5, bytes=None), ProbeRow(members=2, seconds=0.3, bytes=9))
    for device in ("cuda:0", "nöde's"):
        key = ProbeKey(model="m" * 64, shape=STRANGE, device=device, versions="jax 0.4.37")
        store.remember_probe(Probe(key=key, size=2, most=4, rows=rows, worker="w2"))


def said_by_slurm(store: Store) -> None:
    """One cluster that answered, and one that was only asked."""
    assert store.may_ask("klüster", "w2") is not None
    job = SlurmJob(
        cluster="klüster",
        label="1234_5",
        restarts=2,
        job_id="1239",
        name="ensq-chignolin_ca",
        state="RUNNING",
        reason=None,
        node="node-b",
        submitted_at=clock[0] - 100.0,
        seen_at=clock[0],
    )
    waits = {"label": "1234_6", "restarts": 0, "state": "PENDING", "reason": STRANGE}
    assert store.note_slurm("klüster", "w2", [job, replace(job, node=None, **waits)])
    assert store.may_ask("", "w3") is not None


def rows_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    tables = {}
    for table in schema.metadata.sorted_tables:
        order = ", ".join(column.name for column in table.primary_key)
        found = connection.execute(f"SELECT * FROM {table.name} ORDER BY {order}")
        tables[table.name] = [dict(row) for row in found]
    connection.close()
    return tables


def main() -> None:
    assert schema.REVISION == "0004"
    numbers = itertools.count(1)
    secrets.token_hex = lambda count=None: f"pack-{next(numbers)}"  # ids of packs are drawn
    checkout, folder = Path(sys.argv[1]), Path(sys.argv[2])
    path = folder / "0004.db"
    path.unlink(missing_ok=True)
    with Store.open(path, create=True, clock=now, monotonic=now) as store:
        fill(store, checkout)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=DELETE")  # so that one file is all
    connection.close()
    whole = {"revision": schema.REVISION, "tables": rows_of(path)}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "0004.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
