"""What people do to the queue: add an ensemble; cancel, retry, hold members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from ensq.errors import MismatchError, UsageError
from ensq.jobs import Ensemble, Job, Outcome, State
from ensq.schema import ensembles, jobs
from ensq.store import history
from ensq.store.rows import from_checkpoint, to_ensemble, to_job
from ensq.store.values import Added, EventKind

_COUNTS = ("failures", "crashes", "losses", "interruptions", "strikes", "stalls")
NO_COUNTS = dict.fromkeys(_COUNTS, 0)


def add(
    connection: Connection,
    now: float,
    wanted: Ensemble,
    seeds: Sequence[int],
    epochs: int,
) -> Added:
    """Add an ensemble, or seeds to one; see Store.add_ensemble. ``wanted.id`` is not used."""
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"ensemble {wanted.name!r}: a seed stands twice in {list(seeds)}")
    if not seeds or epochs < 1:
        raise UsageError(f"ensemble {wanted.name!r} needs at least one seed and one epoch")
    ensemble = _insert_or_find(connection, wanted)
    _require_same(ensemble, wanted)
    ensemble = _follow(connection, now, ensemble, wanted)
    places = {
        row.seed: row.position
        for row in connection.execute(
            select(jobs.c.seed, jobs.c.position).where(jobs.c.ensemble_id == ensemble.id)
        )
    }
    new = [seed for seed in seeds if seed not in places]
    for place, seed in enumerate(new, start=len(places)):
        _insert_job(connection, now, ensemble, place, seed, epochs)
    if new:
        listed = ", ".join(map(str, new))
        history.note(connection, now, EventKind.ADDED, f"seeds {listed}", ensemble_id=ensemble.id)
    return Added(
        ensemble=ensemble,
        new_seeds=tuple(new),
        existing_seeds=tuple(seed for seed in seeds if seed in places),
    )


def _insert_or_find(connection: Connection, wanted: Ensemble) -> Ensemble:
    query = select(ensembles).where(ensembles.c.name == wanted.name).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is not None:
        return to_ensemble(row)
    values = {
        column.name: getattr(wanted, column.name)
        for column in ensembles.c
        if not column.primary_key
    }
    try:
        # On PostgreSQL another process may add the same name between the two statements.
        with connection.begin_nested():
            statement = insert(ensembles).values(values).returning(*ensembles.c)
            return to_ensemble(connection.execute(statement).one())
    except IntegrityError:
        return to_ensemble(connection.execute(query).one())


def _follow(connection: Connection, now: float, present: Ensemble, wanted: Ensemble) -> Ensemble:
    """Put another section early_stopping into force."""
    text = wanted.early_stopping
    if text is None or text == present.early_stopping:
        return present
    connection.execute(
        update(ensembles).where(ensembles.c.id == present.id).values(early_stopping=text)
    )
    message = "early_stopping was changed"
    history.note(connection, now, EventKind.SETTINGS, message, ensemble_id=present.id)
    return replace(present, early_stopping=text)


def _require_same(present: Ensemble, wanted: Ensemble) -> None:
    if present.config_digest != wanted.config_digest:
        raise MismatchError(
            f"ensemble {wanted.name!r} was enqueued with another configuration; "
            "choose another name with --name, or use the same configuration"
        )
    if present.data_digest != wanted.data_digest:
        raise MismatchError(
            f"ensemble {wanted.name!r} was enqueued with other data: SHA-256 "
            f"{present.data_digest[:12]}… of {present.data_path}, now {wanted.data_digest[:12]}… "
            f"of {wanted.data_path}; choose another name with --name, or bring the data back"
        )


def _insert_job(
    connection: Connection, now: float, ensemble: Ensemble, place: int, seed: int, epochs: int
) -> None:
    values: dict[str, Any] = {
        "ensemble_id": ensemble.id,
        "position": place,
        "seed": int(seed),
        "state": State.QUEUED.value,
        "attempt": 0,
        "epochs": int(epochs),
        "epoch": 0,
        "beat": 0,
        "not_before": 0.0,
        **NO_COUNTS,
        "updated_at": now,
        **from_checkpoint(None, "checkpoint"),
        **from_checkpoint(None, "previous"),
    }
    connection.execute(insert(jobs).values(values))


def cancel(connection: Connection, now: float, name: str, seeds: Sequence[int] | None) -> list[int]:
    """Any member that is not done or cancelled -> cancelled; see Store.cancel."""
    changed = []
    for job in chosen(connection, name, seeds):
        if job.state in (State.DONE, State.CANCELLED):
            continue
        # The row was locked when it was read: nobody can have changed it since.
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job.id)
            .values(
                state=State.CANCELLED.value,
                owner=None,
                lease_seconds=None,
                wish=None,
                error=None,
                updated_at=now,
            )
        )
        if job.state is State.RUNNING:
            history.end_attempt(
                connection, now, job.id, job.attempt, Outcome.CANCELLED, "cancelled by a person"
            )
        history.note_job(
            connection, now, EventKind.CANCELLED, job, f"was {job.state}", worker_id=job.owner
        )
        changed.append(job.seed)
    return changed


def retry(connection: Connection, now: float, name: str, seeds: Sequence[int] | None) -> list[int]:
    """failed, cancelled -> queued; see Store.retry."""
    changed = []
    for job in chosen(connection, name, seeds):
        if job.state not in (State.FAILED, State.CANCELLED):
            continue
        requeue(connection, now, job, error=None)
        history.note_job(connection, now, EventKind.RETRIED, job, f"was {job.state}")
        changed.append(job.seed)
    return changed


def hold(connection: Connection, now: float, name: str, seeds: Sequence[int] | None) -> list[int]:
    """queued -> held; a running one is asked to become so. See Store.hold."""
    changed = []
    for job in chosen(connection, name, seeds):
        if job.state is State.QUEUED:
            _set(connection, now, job, state=State.HELD.value)
        elif job.state is State.RUNNING and job.wish is None:
            _set(connection, now, job, wish="hold")
        else:
            continue
        history.note_job(connection, now, EventKind.HELD, job, f"was {job.state}")
        changed.append(job.seed)
    return changed


def unhold(connection: Connection, now: float, name: str, seeds: Sequence[int] | None) -> list[int]:
    """held -> queued; the wish on a running one is taken back. See Store.unhold."""
    changed = []
    for job in chosen(connection, name, seeds):
        if job.state is State.HELD:
            _set(connection, now, job, state=State.QUEUED.value, not_before=0.0)
        elif job.wish == "hold":
            _set(connection, now, job, wish=None)
        else:
            continue
        history.note_job(connection, now, EventKind.UNHELD, job, f"was {job.state}")
        changed.append(job.seed)
    return changed


def requeue(connection: Connection, now: float, job: Job, **values: Any) -> None:
    """Queue a member that has ended again, with nothing counted against it."""
    again = {"state": State.QUEUED.value, "not_before": 0.0, **NO_COUNTS}
    _set(connection, now, job, **again, **values)


def _set(connection: Connection, now: float, job: Job, **values: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(updated_at=now, **values))


def chosen(connection: Connection, name: str, seeds: Sequence[int] | None) -> list[Job]:
    """The members that a person named, locked. Raises UsageError for what is not there."""
    ensemble_id = require(connection, name)
    rows = connection.execute(
        select(jobs)
        .where(jobs.c.ensemble_id == ensemble_id)
        .order_by(jobs.c.position)
        .with_for_update()
    )
    members = [to_job(row) for row in rows]
    if seeds is None:
        return members
    unknown = sorted(set(seeds) - {job.seed for job in members})
    if unknown:
        there = ", ".join(str(job.seed) for job in members)
        raise UsageError(
            f"ensemble {name!r} has no seed {', '.join(map(str, unknown))}; its seeds: {there}"
        )
    return [job for job in members if job.seed in set(seeds)]


def require(connection: Connection, name: str) -> int:
    """The id of the ensemble of that name. Raises UsageError, listing the names there are."""
    ids = {
        row.name: row.id
        for row in connection.execute(
            select(ensembles.c.name, ensembles.c.id).order_by(ensembles.c.id)
        )
    }
    if name not in ids:
        there = ", ".join(repr(other) for other in ids) or "none"
        raise UsageError(f"no ensemble is called {name!r}; there are: {there}")
    return int(ids[name])
