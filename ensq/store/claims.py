"""Who holds a job: claims and leases."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Float,
    Integer,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from ensq.errors import EnsqError
from ensq.jobs import Claim, Job, State, WorkerInfo
from ensq.schema import attempts, ensembles, epochs, jobs, workers
from ensq.store import fences, history
from ensq.store.ensembles import require
from ensq.store.policy import Policy
from ensq.store.rows import to_job
from ensq.store.values import EventKind, Renewal

_QUEUED = State.QUEUED.value
_RUNNING = State.RUNNING.value


# Statements of every claim are made once, with names for what changes: building them anew, and
# finding out that they are the same as before, takes longer than running them.
_NOW = bindparam("p_now", type_=Float)
_LATEST = bindparam("p_latest", type_=Float)
_SEEN = (
    update(workers)
    .where(workers.c.id == bindparam("p_worker"), workers.c.ended_at.is_(None))
    .values(last_seen=_NOW)
)
_NEW_ATTEMPT = insert(attempts)


def claimable() -> ColumnElement[bool]:
    """That a job is queued, and no pause after a failure holds it back; see ``times``.

    ``not_before`` was set by another host's clock. If that is far ahead, the pause would be long;
    so a time that no pause of ours can lead to is no reason to wait.
    """
    paused = and_(jobs.c.not_before > _NOW, jobs.c.not_before <= _LATEST)
    return and_(jobs.c.state == _QUEUED, ~paused)


def times(now: float, policy: Policy) -> dict[str, Any]:
    """The parameters of ``claimable``."""
    return {"p_now": now, "p_latest": now + policy.longest_pause}


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
) -> list[Job]:
    """Take up to ``limit`` queued jobs that can train as one pack; see Store.claim."""
    if limit < 1:  # SQLite takes a negative one for no limit
        raise ValueError(f"a claim takes at least one job, not {limit}")
    known = connection.execute(_SEEN, {"p_worker": worker_id, "p_now": now})
    if known.rowcount != 1:
        raise EnsqError(f"worker {worker_id!r} is not registered, or has ended")
    taken = _take(connection, now, worker_id, limit, lease_seconds, policy, ensemble)
    if not taken and ensemble is not None:
        require(connection, ensemble)
    jobs_taken = sorted((_rewind(connection, job) for job in taken), key=lambda job: job.index)
    for job in jobs_taken:
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
        history.note_job(
            connection,
            now,
            EventKind.CLAIMED,
            job,
            f"seed {job.seed}, from epoch {job.epoch}"
            + (f", step {start_step}" * bool(start_step)),
            worker_id=worker_id,
        )
    return jobs_taken


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


def _take(
    connection: Connection,
    now: float,
    worker_id: str,
    limit: int,
    lease_seconds: float,
    policy: Policy,
    ensemble: str | None,
) -> list[Job]:
    """The one statement that hands out jobs.

    ``head`` is the first job of the queue; ``pack`` are the queued jobs of its ensemble at its
    checkpoint. Both are CTEs and locked, so that PostgreSQL works each out once: as a plain
    subquery it may be run again and take more than ``limit``. SQLite ignores the locks: there,
    the transaction is the only writer.
    """
    parameters = times(now, policy) | {
        "p_worker": worker_id,
        "p_limit": limit,
        "p_lease": lease_seconds,
    }
    if ensemble is not None:
        parameters["p_ensemble"] = ensemble
    rows = connection.execute(_take_statement(ensemble is not None), parameters)
    return [to_job(row) for row in rows]


@functools.cache
def _take_statement(of_one_ensemble: bool) -> Executable:
    queue = select(
        jobs.c.ensemble_id, jobs.c.checkpoint_epoch, jobs.c.checkpoint_step, jobs.c.position
    ).where(claimable())
    if of_one_ensemble:
        wanted = select(ensembles.c.id).where(ensembles.c.name == bindparam("p_ensemble"))
        queue = queue.where(jobs.c.ensemble_id == wanted.scalar_subquery())
    head = (
        queue.order_by(
            jobs.c.ensemble_id,
            jobs.c.checkpoint_epoch.desc(),
            jobs.c.checkpoint_step.desc(),
            jobs.c.position,
        )
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("head")
    )
    pack = (
        select(jobs.c.id)
        .where(claimable())
        .where(jobs.c.ensemble_id == select(head.c.ensemble_id).scalar_subquery())
        .where(jobs.c.checkpoint_epoch == select(head.c.checkpoint_epoch).scalar_subquery())
        .where(jobs.c.checkpoint_step == select(head.c.checkpoint_step).scalar_subquery())
        .order_by(jobs.c.position)
        .limit(bindparam("p_limit", type_=Integer))
        .with_for_update(skip_locked=True)
        .cte("pack")
    )
    return (
        update(jobs)
        .where(jobs.c.id.in_(select(pack.c.id)))
        .values(
            state=_RUNNING,
            attempt=jobs.c.attempt + 1,
            owner=bindparam("p_worker"),
            lease_seconds=bindparam("p_lease", type_=Float),
            beat=jobs.c.beat + 1,
            not_before=0.0,
            wish=None,
            error=None,
            updated_at=_NOW,
        )
        .returning(*jobs.c)
    )


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
