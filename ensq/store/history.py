"""What every change of state leaves behind: an event, and the end of the attempt."""

from __future__ import annotations

from sqlalchemy import Connection, case, insert, select, update

from ensq.jobs import Job, Outcome
from ensq.schema import attempts, events, jobs
from ensq.store.values import EventKind

_EVENT = insert(events)  # made once: see ensq.store.claims


def note(
    connection: Connection,
    now: float,
    kind: EventKind,
    message: str,
    *,
    ensemble_id: int | None = None,
    worker_id: str | None = None,
) -> None:
    """Write an event that is not about a job."""
    connection.execute(
        _EVENT,
        {
            "time": now,
            "kind": kind.value,
            "message": message,
            "ensemble_id": ensemble_id,
            "worker_id": worker_id,
        },
    )


def note_job(
    connection: Connection,
    now: float,
    kind: EventKind,
    job: Job,
    message: str,
    *,
    worker_id: str | None = None,
) -> None:
    """Write an event about a job's present or last attempt."""
    connection.execute(
        _EVENT,
        {
            "time": now,
            "kind": kind.value,
            "message": message,
            "ensemble_id": job.ensemble_id,
            "job_id": job.id,
            "attempt": job.attempt or None,
            "worker_id": worker_id,
        },
    )


def end_attempt(
    connection: Connection,
    now: float,
    job_id: int,
    number: int,
    outcome: Outcome,
    reason: str | None,
    log_tail: str | None = None,
) -> None:
    """Close an attempt's row, at the place that the job's row stands at."""
    place = select(
        jobs.c.epoch,
        case((jobs.c.checkpoint_epoch == jobs.c.epoch, jobs.c.checkpoint_step), else_=0),
    ).where(jobs.c.id == job_id)
    epoch, step = connection.execute(place).one()
    connection.execute(
        update(attempts)
        .where(attempts.c.job_id == job_id, attempts.c.number == number)
        .where(attempts.c.ended_at.is_(None))
        .values(
            ended_at=now,
            outcome=outcome.value,
            end_epoch=epoch,
            end_step=step,
            reason=reason,
            log_tail=log_tail,
        )
    )


def restart_attempt(
    connection: Connection, job_id: int, number: int, epoch: int, step: int
) -> None:
    """Note that an attempt goes on from another place than it was given."""
    connection.execute(
        update(attempts)
        .where(attempts.c.job_id == job_id, attempts.c.number == number)
        .values(start_epoch=epoch, start_step=step)
    )
