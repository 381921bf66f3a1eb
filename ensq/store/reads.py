"""What is in the database: plain reads."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, func, select

from ensq.errors import UsageError
from ensq.jobs import Attempt, Ensemble, EpochRecord, Job, Result, State, WorkerInfo
from ensq.schema import attempts, ensembles, epochs, events, jobs, workers
from ensq.store.rows import (
    to_attempt,
    to_ensemble,
    to_epoch,
    to_event,
    to_job,
    to_result,
    to_worker,
)
from ensq.store.values import Event


def all_ensembles(connection: Connection) -> list[Ensemble]:
    rows = connection.execute(select(ensembles).order_by(ensembles.c.id))
    return [to_ensemble(row) for row in rows]


def ensemble(connection: Connection, name: str) -> Ensemble | None:
    row = connection.execute(select(ensembles).where(ensembles.c.name == name)).one_or_none()
    return None if row is None else to_ensemble(row)


def jobs_of(connection: Connection, ensemble_id: int) -> list[Job]:
    rows = connection.execute(
        select(jobs).where(jobs.c.ensemble_id == ensemble_id).order_by(jobs.c.position)
    )
    return [to_job(row) for row in rows]


def job(connection: Connection, job_id: int) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise UsageError(f"there is no job {job_id}")
    return to_job(row)


def result(connection: Connection, job_id: int) -> Result | None:
    row = connection.execute(
        select(jobs).where(jobs.c.id == job_id, jobs.c.state == State.DONE.value)
    ).one_or_none()
    return None if row is None else to_result(row)


def attempts_of(connection: Connection, job_id: int) -> list[Attempt]:
    rows = connection.execute(
        select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    )
    return [to_attempt(row) for row in rows]


def workers_of(connection: Connection, ids: Iterable[str]) -> dict[str, WorkerInfo]:
    rows = connection.execute(select(workers).where(workers.c.id.in_(sorted(set(ids)))))
    return {row.id: to_worker(row) for row in rows}


def epochs_of(connection: Connection, job_id: int) -> list[EpochRecord]:
    rows = connection.execute(
        select(epochs).where(epochs.c.job_id == job_id).order_by(epochs.c.epoch)
    )
    return [to_epoch(row) for row in rows]


def last_events(connection: Connection, ensemble_id: int | None, limit: int) -> list[Event]:
    query = select(events).order_by(events.c.id.desc()).limit(limit)
    if ensemble_id is not None:
        query = query.where(events.c.ensemble_id == ensemble_id)
    return [to_event(row) for row in connection.execute(query)][::-1]


def counts(connection: Connection, ensemble_id: int | None) -> dict[State, int]:
    query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    if ensemble_id is not None:
        query = query.where(jobs.c.ensemble_id == ensemble_id)
    found = {State(state): int(count) for state, count in connection.execute(query)}
    return {state: found.get(state, 0) for state in State}
