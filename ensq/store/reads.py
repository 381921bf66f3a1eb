"""What is in the database: plain reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import Connection, case, func, select, true

from ensq.errors import UsageError
from ensq.jobs import Attempt, Ensemble, EpochRecord, Job, Result, State, WorkerInfo
from ensq.schema import attempts, ensembles, epochs, events, jobs, workers
from ensq.store import packs, process
from ensq.store.ensembles import require
from ensq.store.policy import Policy
from ensq.store.rows import (
    to_attempt,
    to_ensemble,
    to_epoch,
    to_event,
    to_job,
    to_result,
    to_worker,
)
from ensq.store.values import Event, EventKind, Outlook, Standing, Tally
from ensq.store.watch import Watch


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


def job_of(connection: Connection, name: str, seed: int) -> Job:
    ensemble_id = require(connection, name)
    row = connection.execute(
        select(jobs).where(jobs.c.ensemble_id == ensemble_id, jobs.c.seed == seed)
    ).one_or_none()
    if row is None:
        raise UsageError(f"ensemble {name!r} has no seed {seed}")
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


def living_workers(connection: Connection) -> list[WorkerInfo]:
    rows = connection.execute(
        select(workers).where(workers.c.ended_at.is_(None)).order_by(workers.c.started_at)
    )
    return [to_worker(row) for row in rows]


def outlook(
    connection: Connection,
    now: float,
    policy: Policy,
    name: str | None,
    lost: Collection[int],
    watch: Watch,
) -> Outlook:
    """See Store.outlook. ``lost`` are jobs of lost workers."""
    mine = true() if name is None else jobs.c.ensemble_id == require(connection, name)
    may = packs.claimable()
    claimable, queued, due = connection.execute(
        select(
            func.coalesce(func.sum(case((may, 1), else_=0)), 0),
            func.count(),
            func.min(case((may, None), else_=jobs.c.not_before)),
        ).where(mine, jobs.c.state == State.QUEUED.value),
        packs.times(now, policy),
    ).one()
    rows = connection.execute(select(jobs).where(mine, jobs.c.state == State.RUNNING.value))
    running = [to_job(row) for row in rows]
    owners = workers_of(connection, (job.owner for job in running if job.owner))
    return Outlook(
        claimable=int(claimable),
        due_in=None if queued == claimable else max(0.0, due - now),
        running=len(running),
        unsure=tuple(
            job
            for job in running
            if job.id not in lost
            and not watch.has_moved((job.id, job.attempt))
            and not process.is_alive(owners[job.owner or ""])
        ),
        lost=sum(job.id in lost for job in running),
    )


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


def events_of(connection: Connection, job_id: int) -> list[Event]:
    rows = connection.execute(select(events).where(events.c.job_id == job_id).order_by(events.c.id))
    return [to_event(row) for row in rows]


def fallbacks(connection: Connection, ensemble_id: int) -> list[Event]:
    last = (
        select(func.max(events.c.id))
        .where(events.c.ensemble_id == ensemble_id, events.c.kind == EventKind.FELL_BACK.value)
        .group_by(events.c.job_id)
    )
    rows = connection.execute(select(events).where(events.c.id.in_(last)).order_by(events.c.id))
    return [to_event(row) for row in rows]


def counts(connection: Connection, ensemble_id: int | None) -> dict[State, int]:
    query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    if ensemble_id is not None:
        query = query.where(jobs.c.ensemble_id == ensemble_id)
    found = {State(state): int(count) for state, count in connection.execute(query)}
    return {state: found.get(state, 0) for state in State}


def standings(connection: Connection) -> list[Standing]:
    """How far each ensemble is, by one look at all jobs."""
    rows = connection.execute(
        select(
            jobs.c.ensemble_id,
            jobs.c.state,
            func.count(),
            func.sum(jobs.c.epoch),
            func.sum(case((jobs.c.early.is_(None), jobs.c.epochs), else_=jobs.c.epoch)),
            func.min(jobs.c.best_loss),
        ).group_by(jobs.c.ensemble_id, jobs.c.state)
    )
    found: dict[int, list[Tally]] = {}
    for ensemble_id, state, *numbers in rows:
        found.setdefault(ensemble_id, []).append(Tally(State(state), *numbers))
    names = connection.execute(select(ensembles.c.id, ensembles.c.name).order_by(ensembles.c.id))
    return [Standing(name, tuple(found.get(id_, ()))) for id_, name in names]
