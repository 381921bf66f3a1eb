"""Who holds a job: claims and leases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from ensq.errors import EnsqError
from ensq.jobs import Claim, Job, State, WorkerInfo
from ensq.schema import attempts, epochs, jobs, workers
from ensq.store import fences, history, packs
from ensq.store.ensembles import require
from ensq.store.policy import Policy
from ensq.store.rows import to_job
from ensq.store.values import EventKind, Renewal

_RUNNING = State.RUNNING.value

# Made once: see ``ensq.store.packs``.
_SEEN = (
    update(workers)
    .where(workers.c.id == bindparam("p_worker"), workers.c.ended_at.is_(None))
    .values(last_seen=packs.NOW)
)
_NEW_ATTEMPT = insert(attempts)


def claim(
    connection: Connection,
    now: float,
    worker_id: str,
    *,
    limit: int,
    lease_seconds: float,
    policy: Policy,
    ensemble: str | None = None,
    log_path: str | None = None,
    whole_pack: bool = False,
    beside: Claim | None = None,
) -> list[Job]:
    """Take up to ``limit`` queued jobs that can train as one pack; see Store.claim."""
    if limit < 1:  # SQLite takes a negative one for no limit
        raise ValueError(f"a claim takes at least one job, not {limit}")
    known = connection.execute(_SEEN, {"p_worker": worker_id, "p_now": now})
    if known.rowcount != 1:
        raise EnsqError(f"worker {worker_id!r} is not registered, or has ended")
    packs.one_by_one(connection)
    given = packs.taking(now, policy, worker_id, lease_seconds)
    if beside is not None:
        taken = packs.take_beside(connection, given, beside, limit=limit, policy=policy)
    else:
        taken = packs.take(connection, given, limit=limit, ensemble=ensemble, whole=whole_pack)
        if not taken and ensemble is not None:
            require(connection, ensemble)
    jobs_taken = sorted((_rewind(connection, job) for job in taken), key=lambda job: job.index)
    for job in jobs_taken:
        _begin_attempt(connection, now, job, worker_id, log_path)
    return jobs_taken


def _begin_attempt(
    connection: Connection, now: float, job: Job, worker_id: str, log_path: str | None
) -> None:
    start_step = job.checkpoint.step if job.checkpoint else 0
    connection.execute(
        _NEW_ATTEMPT,
        {
            "job_id": job.id,
            "number": job.attempt,
            "worker_id": worker_id,
            "started_at": now,
            "start_epoch": job.epoch,
            "start_step": start_step,
            "log_path": log_path,
        },
    )
    where = f"epoch {job.epoch}" + (f", step {start_step}" if start_step else "")
    message = f"seed {job.seed}, from {where}"
    history.note_job(connection, now, EventKind.CLAIMED, job, message, worker_id=worker_id)


def unacknowledged(
    connection: Connection, worker_id: str, known: Collection[tuple[int, int]]
) -> list[Job]:
    """Jobs that this worker claimed without learning of it: the connection broke at COMMIT.

    ``known`` are the attempts (job, number) that it did learn of.
    """
    rows = connection.execute(
        select(jobs)
        .where(jobs.c.state == _RUNNING, jobs.c.owner == worker_id)
        .order_by(jobs.c.position)
    )
    return [job for job in map(to_job, rows) if (job.id, job.attempt) not in known]


def _rewind(connection: Connection, job: Job) -> Job:
    """Drop what was recorded after the job's checkpoint: it will be computed again.

    So losses stay dense, with one row for each epoch. The last and best losses are worked out
    from what remains.
    """
    start = job.checkpoint.epoch if job.checkpoint else 0
    if job.epoch == start:
        return job
    return rewind_to(connection, job, start)


def rewind_to(connection: Connection, job: Job, start: int) -> Job:
    """Delete the losses after epoch ``start`` and set the job's row back to it."""
    connection.execute(delete(epochs).where(epochs.c.job_id == job.id, epochs.c.epoch > start))
    rows = select(epochs.c.epoch, epochs.c.train_loss, epochs.c.val_loss, epochs.c.seconds).where(
        epochs.c.job_id == job.id
    )
    last = connection.execute(rows.where(epochs.c.epoch == start)).one_or_none()
    best = connection.execute(
        rows.where(epochs.c.val_loss.is_not(None))
        .order_by(epochs.c.val_loss, epochs.c.epoch)
        .limit(1)
    ).one_or_none()
    changes: dict[str, Any] = {
        "epoch": start,
        "train_loss": last.train_loss if last else None,
        "val_loss": last.val_loss if last else None,
        "best_epoch": best.epoch if best else None,
        "best_loss": best.val_loss if best else None,
    }
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(changes))
    return replace(job, **changes)


def renew(
    connection: Connection,
    now: float,
    claims: Sequence[Claim],
    worker_id: str | None = None,
) -> Renewal:
    """Move the beats of jobs that are still held; see Store.renew."""
    still, hold = [], set()
    for held in sorted(claims, key=lambda claim: claim.job_id):  # one order, so no deadlock
        row = connection.execute(
            update(jobs)
            .where(fences.held(held))
            .values(beat=jobs.c.beat + 1)
            .returning(jobs.c.wish)
        ).one_or_none()
        if row is not None:
            still.append(held)
            hold |= {held.job_id} if row.wish == "hold" else set()
    seen = {held.owner for held in claims} | ({worker_id} if worker_id else set())
    drained = mark_seen(connection, now, seen)
    return Renewal([held for held in claims if held in still], frozenset(hold), drained)


def mark_seen(connection: Connection, now: float, worker_ids: set[str]) -> bool:
    """Note a sign of life of workers; whether one of them was asked to leave."""
    if not worker_ids:
        return False
    rows = connection.execute(
        update(workers)
        .where(workers.c.id.in_(worker_ids))
        .values(last_seen=now)
        .returning(workers.c.drain)
    )
    return any(drain for (drain,) in rows)


def register(connection: Connection, now: float, worker: WorkerInfo) -> None:
    """Insert the worker, or note its device and SLURM job if it is there; see Store."""
    known = connection.execute(
        update(workers)
        .where(workers.c.id == worker.id, workers.c.host == worker.host)
        .where(workers.c.pid == worker.pid, workers.c.pid_start == worker.pid_start)
        .values(_slurm(worker) | {"device": worker.device, "last_seen": now})
    )
    if known.rowcount == 1:
        return
    connection.execute(
        insert(workers).values(
            id=worker.id,
            host=worker.host,
            pid=worker.pid,
            pid_start=worker.pid_start,
            boot_id=worker.boot_id,
            **_slurm(worker),
            device=worker.device,
            lock_byte=worker.lock_byte,
            drain=0,
            started_at=worker.started_at or now,
            last_seen=worker.last_seen or now,
        )
    )
    history.note(
        connection,
        now,
        EventKind.WORKER_STARTED,
        f"process {worker.pid} on {worker.host}",
        worker_id=worker.id,
    )


def _slurm(worker: WorkerInfo) -> dict[str, Any]:
    return {name: value for name, value in vars(worker).items() if name.startswith("slurm_")}


def unregister(connection: Connection, now: float, worker_id: str) -> None:
    """Note that the worker has ended."""
    done = connection.execute(
        update(workers)
        .where(workers.c.id == worker_id, workers.c.ended_at.is_(None))
        .values(ended_at=now, last_seen=now)
    )
    if done.rowcount == 1:
        history.note(connection, now, EventKind.WORKER_ENDED, "", worker_id=worker_id)


def drain(connection: Connection, now: float, worker_ids: Sequence[str] | None) -> list[str]:
    """Ask workers to leave; see Store.drain."""
    query = update(workers).where(workers.c.ended_at.is_(None), workers.c.drain == 0)
    if worker_ids is not None:
        query = query.where(workers.c.id.in_(sorted(worker_ids)))
    asked = sorted(connection.execute(query.values(drain=1).returning(workers.c.id)).scalars())
    for worker_id in asked:
        history.note(connection, now, EventKind.DRAINED, "by a person", worker_id=worker_id)
    return asked
