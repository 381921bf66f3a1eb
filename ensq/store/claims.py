"""Who holds a job: claims, leases, and taking jobs back from workers that are lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from ensq.errors import EnsqError
from ensq.jobs import Claim, Job, Outcome, State, WorkerInfo
from ensq.schema import attempts, ensembles, epochs, jobs, workers
from ensq.store import fences, history
from ensq.store.ensembles import require
from ensq.store.process import is_gone
from ensq.store.rows import to_job, to_worker
from ensq.store.values import EventKind

_QUEUED = State.QUEUED.value
_RUNNING = State.RUNNING.value


def claim(
    connection: Connection,
    now: float,
    worker_id: str,
    *,
    limit: int,
    lease_seconds: float,
    ensemble: str | None = None,
    log_path: str | None = None,
) -> list[Job]:
    """Reap, then take up to ``limit`` queued jobs that can train as one pack; see Store.claim."""
    if limit < 1:  # SQLite takes a negative one for no limit
        raise ValueError(f"a claim takes at least one job, not {limit}")
    reap(connection, now)
    known = connection.execute(
        update(workers)
        .where(workers.c.id == worker_id, workers.c.ended_at.is_(None))
        .values(last_seen=now)
    )
    if known.rowcount != 1:
        raise EnsqError(f"worker {worker_id!r} is not registered, or has ended")
    taken = _take(connection, now, worker_id, limit, now + lease_seconds, ensemble)
    if not taken and ensemble is not None:
        require(connection, ensemble)
    jobs_taken = sorted((_rewind(connection, job) for job in taken), key=lambda job: job.index)
    for job in jobs_taken:
        connection.execute(
            insert(attempts).values(
                job_id=job.id,
                number=job.attempt,
                worker_id=worker_id,
                started_at=now,
                start_epoch=job.epoch,
                log_path=log_path,
            )
        )
        history.note_job(
            connection,
            now,
            EventKind.CLAIMED,
            job,
            f"seed {job.seed}, from epoch {job.epoch}",
            worker_id=worker_id,
        )
    return jobs_taken


def _take(
    connection: Connection,
    now: float,
    worker_id: str,
    limit: int,
    lease_until: float,
    ensemble: str | None,
) -> list[Job]:
    """The one statement that hands out jobs.

    ``head`` is the first job of the queue; ``pack`` are the queued jobs of its ensemble at its
    checkpoint. Both are CTEs and locked, so that PostgreSQL works each out once: as a plain
    subquery it may be run again and take more than ``limit``. SQLite ignores the locks: there,
    the transaction is the only writer.
    """
    queue = select(
        jobs.c.ensemble_id, jobs.c.checkpoint_epoch, jobs.c.checkpoint_step, jobs.c.position
    ).where(jobs.c.state == _QUEUED)
    if ensemble is not None:
        wanted = select(ensembles.c.id).where(ensembles.c.name == ensemble).scalar_subquery()
        queue = queue.where(jobs.c.ensemble_id == wanted)
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
        .where(jobs.c.state == _QUEUED)
        .where(jobs.c.ensemble_id == select(head.c.ensemble_id).scalar_subquery())
        .where(jobs.c.checkpoint_epoch == select(head.c.checkpoint_epoch).scalar_subquery())
        .where(jobs.c.checkpoint_step == select(head.c.checkpoint_step).scalar_subquery())
        .order_by(jobs.c.position)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("pack")
    )
    statement = (
        update(jobs)
        .where(jobs.c.id.in_(select(pack.c.id)))
        .values(
            state=_RUNNING,
            attempt=jobs.c.attempt + 1,
            owner=worker_id,
            lease_until=lease_until,
            error=None,
            updated_at=now,
        )
        .returning(*jobs.c)
    )
    return [to_job(row) for row in connection.execute(statement)]


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


def reap(connection: Connection, now: float) -> list[Claim]:
    """Take running jobs back from workers that are lost; see Store.reap."""
    rows = connection.execute(
        select(jobs.c.id, jobs.c.attempt, jobs.c.owner, jobs.c.lease_until)
        .where(jobs.c.state == _RUNNING)
        .order_by(jobs.c.id)
        .with_for_update(skip_locked=True)
    ).all()
    if not rows:
        return []
    owners = connection.execute(
        select(workers).where(workers.c.id.in_({row.owner for row in rows}))
    )
    causes = {row.id: _why_lost(to_worker(row)) for row in owners}
    reaped = []
    for row in rows:
        reason = causes[row.owner]
        if reason is None and row.lease_until < now:
            reason = f"lease of worker {row.owner} ended {now - row.lease_until:.0f} s ago"
        if reason is not None:
            held = Claim(job_id=row.id, attempt=row.attempt, owner=row.owner)
            give_back(connection, now, held, Outcome.LOST, reason)
            reaped.append(held)
    return reaped


def _why_lost(worker: WorkerInfo) -> str | None:
    """Why the worker can't hold a job any more, whatever its lease says; None if it may."""
    if worker.ended_at is not None:
        return f"worker {worker.id} has ended"
    if is_gone(worker):
        return f"worker {worker.id}: process {worker.pid} on {worker.host} is gone"
    return None


def give_back(
    connection: Connection, now: float, held: Claim, outcome: Outcome, reason: str
) -> bool:
    """running -> queued, fenced. False if the claim no longer holds."""
    row = connection.execute(
        update(jobs)
        .where(fences.held(held))
        .values(
            state=_QUEUED,
            owner=None,
            lease_until=None,
            interruptions=jobs.c.interruptions + 1,
            updated_at=now,
        )
        .returning(*jobs.c)
    ).one_or_none()
    if row is None:
        return False
    history.end_attempt(connection, now, held.job_id, held.attempt, outcome, reason)
    kind = EventKind.LOST if outcome is Outcome.LOST else EventKind.INTERRUPTED
    history.note_job(connection, now, kind, to_job(row), reason, worker_id=held.owner)
    return True


def renew(
    connection: Connection,
    now: float,
    claims: Sequence[Claim],
    lease_seconds: float,
    worker_id: str | None = None,
) -> list[Claim]:
    """Prolong leases; returns those that are still held."""
    still = []
    for held in claims:
        done = connection.execute(
            update(jobs).where(fences.held(held)).values(lease_until=now + lease_seconds)
        )
        if done.rowcount == 1:
            still.append(held)
    seen = {held.owner for held in claims} | ({worker_id} if worker_id else set())
    mark_seen(connection, now, seen)
    return still


def mark_seen(connection: Connection, now: float, worker_ids: set[str]) -> None:
    """Note a sign of life of workers."""
    if worker_ids:
        connection.execute(
            update(workers).where(workers.c.id.in_(worker_ids)).values(last_seen=now)
        )


def register(connection: Connection, now: float, worker: WorkerInfo) -> None:
    """Insert the worker, or note its device and SLURM job if it is there; see Store."""
    known = connection.execute(
        update(workers)
        .where(workers.c.id == worker.id, workers.c.host == worker.host)
        .where(workers.c.pid == worker.pid, workers.c.pid_start == worker.pid_start)
        .values(slurm_job=worker.slurm_job, device=worker.device, last_seen=now)
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
            slurm_job=worker.slurm_job,
            device=worker.device,
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


def unregister(connection: Connection, now: float, worker_id: str) -> None:
    """Note that the worker has ended."""
    done = connection.execute(
        update(workers)
        .where(workers.c.id == worker_id, workers.c.ended_at.is_(None))
        .values(ended_at=now, last_seen=now)
    )
    if done.rowcount == 1:
        history.note(connection, now, EventKind.WORKER_ENDED, "", worker_id=worker_id)
