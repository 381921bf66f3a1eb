"""Is a database sound? SQLite's own checks and the invariants of the queue."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike

from sqlalchemy import ColumnElement, Connection, and_, func, not_, or_, select

from ensq.errors import DatabaseError
from ensq.jobs import State
from ensq.schema import attempts, epochs, jobs
from ensq.store import opening
from ensq.store.engine import Database
from ensq.store.target import Target


def check(url: str | PathLike[str]) -> list[str]:
    """What is wrong with a database, one line for each problem; empty if it is sound.

    Reads only. Raises DatabaseError or MismatchError if it can't be opened at all; damage that
    is met later is a problem like others.
    """
    target = Target.parse(url)
    found, revision = opening.look(target)
    if found is not opening.Found.ENSQ:
        raise opening.missing(found, target)
    opening.require_revision(revision, target)
    database = Database(target, read_only=target.path is not None)
    problems: list[str] = []
    try:
        with database.read() as connection:
            if connection.dialect.name == "sqlite":
                problems.extend(_sqlite(connection))
            problems.extend(_rows(connection))
            problems.extend(_losses(connection))
    except DatabaseError as error:
        problems.append(str(error))
    finally:
        database.close()
    return problems


def _sqlite(connection: Connection) -> Iterator[str]:
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
        if line != "ok":
            yield f"integrity: {line}"
    for table, rowid, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"foreign key: row {rowid} of {table} points to a row of {parent} that is not there"


def _rules() -> dict[str, ColumnElement[bool]]:
    """What must never be true of a job's row, by the text that says so."""
    running = jobs.c.state == State.RUNNING.value
    done = jobs.c.state == State.DONE.value
    mine = attempts.c.job_id == jobs.c.id
    opened = select(func.count()).where(mine, attempts.c.ended_at.is_(None)).scalar_subquery()
    tries = select(func.count()).where(mine).scalar_subquery()
    newest = select(func.coalesce(func.max(attempts.c.number), 0)).where(mine).scalar_subquery()
    held = and_(jobs.c.owner.is_not(None), jobs.c.lease_until.is_not(None))
    free = and_(jobs.c.owner.is_(None), jobs.c.lease_until.is_(None))
    return {
        "its state is not one that ensq knows": jobs.c.state.not_in([s.value for s in State]),
        "runs without owner or lease": and_(running, not_(held)),
        "does not run, but has an owner or a lease": and_(not_(running), not_(free)),
        "runs without an open attempt, or with several": and_(running, opened != 1),
        "does not run, but has an open attempt": and_(not_(running), opened != 0),
        "its number of attempts is not that of its attempts' rows": or_(
            jobs.c.attempt != tries, jobs.c.attempt != newest
        ),
        "is done without a result": and_(
            done, or_(jobs.c.result_path.is_(None), jobs.c.result_digest.is_(None))
        ),
        "is done, but not all epochs are": and_(done, jobs.c.epoch != jobs.c.epochs),
        "its checkpoint is newer than its losses": jobs.c.checkpoint_epoch > jobs.c.epoch,
        "its checkpoint is older than the one before": or_(
            jobs.c.previous_epoch > jobs.c.checkpoint_epoch,
            and_(
                jobs.c.previous_epoch == jobs.c.checkpoint_epoch,
                jobs.c.previous_step > jobs.c.checkpoint_step,
            ),
        ),
    }


def _rows(connection: Connection) -> Iterator[str]:
    for text, broken in _rules().items():
        query = select(jobs.c.id, jobs.c.seed).where(broken).order_by(jobs.c.id)
        for row in connection.execute(query):
            yield f"job {row.id} (seed {row.seed}): {text}"


def _losses(connection: Connection) -> Iterator[str]:
    """Losses must be dense: one row for each epoch from 1 to the job's."""
    query = (
        select(
            jobs.c.id,
            jobs.c.seed,
            jobs.c.epoch,
            func.count(epochs.c.epoch).label("rows"),
            func.coalesce(func.max(epochs.c.epoch), 0).label("last"),
        )
        .select_from(jobs.outerjoin(epochs, epochs.c.job_id == jobs.c.id))
        .group_by(jobs.c.id, jobs.c.seed, jobs.c.epoch)
        .order_by(jobs.c.id)
    )
    for row in connection.execute(query):
        if not row.rows == row.last == row.epoch:
            yield (
                f"job {row.id} (seed {row.seed}): losses are not dense: {row.rows} rows up to "
                f"epoch {row.last}, the job stands at {row.epoch}"
            )
