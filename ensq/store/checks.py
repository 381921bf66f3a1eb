"""Is a database sound? SQLite's own checks and the invariants of the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, not_, or_, select

from ensq.errors import DatabaseError, UsageError
from ensq.jobs import Outcome, State, Verdict
from ensq.rundir import RunDir, sha256_file
from ensq.schema import (
    attempts,
    decisions,
    ensembles,
    epochs,
    jobs,
    slurm_clusters,
    slurm_jobs,
    workers,
)
from ensq.store import opening
from ensq.store.engine import Database
from ensq.store.target import Target

Rules = dict[str, ColumnElement[bool]]  # what must never be true of a row, by the text for it
_PLACE = ("epoch", "step")


def check(url: str | PathLike[str]) -> list[str]:
    """What is wrong with a database, one line for each problem; empty if it is sound.

    Reads only. Raises DatabaseError or MismatchError if it can't be opened at all, as with triggers
    or views of strangers; damage that is met later is a problem like others.
    """
    return _look(url, _everything)


def check_files(url: str | PathLike[str]) -> list[str]:
    """Which recorded checkpoints and results are missing or changed, and what comes of it."""
    root = Target.parse(url).root
    return _look(url, lambda connection: _files(connection, root))


def _look(
    url: str | PathLike[str], problems_of: Callable[[Connection], Iterator[str]]
) -> list[str]:
    target = Target.parse(url)
    found, revision = opening.look(target)
    if found is not opening.Found.ENSQ:
        raise opening.missing(found, target)
    opening.require_revision(revision, target)
    database = Database(target, read_only=target.path is not None)
    problems: list[str] = []
    try:
        with database.read() as connection:
            problems.extend(problems_of(connection))
    except DatabaseError as error:
        problems.append(str(error))
    finally:
        database.close()
    return problems


def _everything(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        yield from _sqlite(connection)
    for text, broken in (_state_rules() | _number_rules() | _attempts_rules()).items():
        query = select(jobs.c.id, jobs.c.seed).where(broken).order_by(jobs.c.id)
        for row in connection.execute(query):
            yield f"job {row.id} (seed {row.seed}): {text}"
    yield from _attempts(connection)
    yield from _losses(connection)
    yield from _decisions(connection)
    yield from _slurm(connection)


def _sqlite(connection: Connection) -> Iterator[str]:
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
        if line != "ok":
            yield f"integrity: {line}"
    for table, rowid, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"foreign key: row {rowid} of {table} points to a row of {parent} that is not there"


def _state_rules() -> Rules:
    running = jobs.c.state == State.RUNNING.value
    done = jobs.c.state == State.DONE.value
    held = and_(jobs.c.owner.is_not(None), jobs.c.lease_seconds.is_not(None))
    free = and_(jobs.c.owner.is_(None), jobs.c.lease_seconds.is_(None))
    return {
        "its state is not one that ensq knows": jobs.c.state.not_in([s.value for s in State]),
        "runs without owner or lease": and_(running, not_(held)),
        "does not run, but has an owner or a lease": and_(not_(running), not_(free)),
        "its wish is not one that ensq knows": jobs.c.wish.not_in(["hold"]),
        "is done without a result": and_(
            done, or_(jobs.c.result_path.is_(None), jobs.c.result_digest.is_(None))
        ),
        "is done, but not all epochs are": and_(
            done, jobs.c.early.is_(None), jobs.c.epoch != jobs.c.epochs
        ),
        "is stopped early, but has all epochs, or none": and_(
            jobs.c.early.is_not(None),
            or_(jobs.c.epoch < 1, jobs.c.epoch >= jobs.c.epochs),
        ),
        "is stopped early without being done": and_(jobs.c.early.is_not(None), not_(done)),
        "is stopped early though a person exempted it": and_(
            jobs.c.early.is_not(None), jobs.c.exempt != 0
        ),
        "is neither exempt from early stopping nor not": jobs.c.exempt.not_in([0, 1]),
        "is stopped early without a decision": and_(
            jobs.c.early.is_not(None),
            not_(
                exists().where(
                    decisions.c.job_id == jobs.c.id,
                    decisions.c.rule == jobs.c.early,
                    decisions.c.verdict == Verdict.STOPPED.value,
                )
            ),
        ),
    }


def _number_rules() -> Rules:
    counts = ("attempt", "epoch", "beat", "failures", "crashes", "losses", "interruptions")
    more = ("strikes", "stalls", "not_before", "checkpoint_step", "previous_step")
    rules = {f"its {name} is negative": jobs.c[name] < 0 for name in (*counts, *more)}
    return rules | {
        "its lease has no length": jobs.c.lease_seconds <= 0,
        "it has more strikes than crashes and losses": (
            jobs.c.strikes > jobs.c.crashes + jobs.c.losses
        ),
        "it has more stalls than interruptions": jobs.c.stalls > jobs.c.interruptions,
        "its checkpoint is newer than its losses": jobs.c.checkpoint_epoch > jobs.c.epoch,
        "its checkpoint is older than the one before": _before(jobs, "checkpoint", "previous"),
        "it has half a checkpoint": or_(_half("checkpoint"), _half("previous")),
    }


def _before(table: Table, this: str, that: str) -> ColumnElement[bool]:
    """Whether the place ``this`` (epoch, step) comes before the place ``that``."""
    (epoch, step), (other, other_step) = (
        [table.c[f"{x}_{y}"] for y in _PLACE] for x in (this, that)
    )
    return or_(epoch < other, and_(epoch == other, step < other_step))


def _half(prefix: str) -> ColumnElement[bool]:
    """A path without a digest, or a place without a path."""
    path, digest = jobs.c[f"{prefix}_path"], jobs.c[f"{prefix}_digest"]
    somewhere = or_(*(jobs.c[f"{prefix}_{name}"] != 0 for name in _PLACE))
    return or_(path.is_(None) != digest.is_(None), and_(path.is_(None), somewhere))


def _attempts_rules() -> Rules:
    """Of a job and its attempts together."""
    running = jobs.c.state == State.RUNNING.value
    done = jobs.c.state == State.DONE.value
    mine = attempts.c.job_id == jobs.c.id
    last = and_(mine, attempts.c.number == jobs.c.attempt)
    ended_done = attempts.c.outcome == Outcome.DONE.value
    ended_early = attempts.c.outcome == Outcome.EARLY.value
    opened = select(func.count()).where(mine, attempts.c.ended_at.is_(None)).scalar_subquery()
    tries = select(func.count()).where(mine).scalar_subquery()
    newest = select(func.coalesce(func.max(attempts.c.number), 0)).where(mine).scalar_subquery()
    oldest = select(func.coalesce(func.min(attempts.c.number), 1)).where(mine).scalar_subquery()
    completed = select(func.count()).where(mine, ended_done).scalar_subquery()
    by_owner = exists().where(
        last, attempts.c.ended_at.is_(None), attempts.c.worker_id == jobs.c.owner
    )
    return {
        "runs without an open attempt, or with several": and_(running, opened != 1),
        "its open attempt is not its owner's, or not its last": and_(running, not_(by_owner)),
        "does not run, but has an open attempt": and_(not_(running), opened != 0),
        "its number of attempts is not that of its attempts' rows": or_(
            jobs.c.attempt != tries, jobs.c.attempt != newest
        ),
        "its attempts are not numbered from 1 on without gaps": or_(tries != newest, oldest != 1),
        "it was completed more than once": completed > 1,
        "is done, but its last attempt did not end so": and_(
            done,
            or_(
                and_(jobs.c.early.is_(None), not_(exists().where(last, ended_done))),
                and_(jobs.c.early.is_not(None), not_(exists().where(last, ended_early))),
            ),
        ),
        "was completed, but is not done": and_(not_(done), completed != 0),
        "has losses of attempts that were never made": exists().where(
            epochs.c.job_id == jobs.c.id,
            or_(epochs.c.attempt < 1, epochs.c.attempt > jobs.c.attempt),
        ),
    }


def _attempts(connection: Connection) -> Iterator[str]:
    """Rules of an attempt alone."""
    ended = attempts.c.ended_at.is_not(None)
    rules: Rules = {
        "its outcome is not one that ensq knows": attempts.c.outcome.not_in(
            [outcome.value for outcome in Outcome]
        ),
        "it ended without an outcome, or has one without an end": (
            ended != attempts.c.outcome.is_not(None)
        ),
        "it ended before the place where it began": and_(ended, _before(attempts, "end", "start")),
    }
    for text, broken in rules.items():
        query = (
            select(attempts.c.job_id, attempts.c.number, jobs.c.seed)
            .join_from(attempts, jobs, jobs.c.id == attempts.c.job_id)
            .where(broken)
            .order_by(attempts.c.job_id, attempts.c.number)
        )
        for row in connection.execute(query):
            yield f"job {row.job_id} (seed {row.seed}), attempt {row.number}: {text}"


def _decisions(connection: Connection) -> Iterator[str]:
    """Rules of what early stopping decided."""
    rules: Rules = {
        "its verdict is not one that ensq knows": decisions.c.verdict.not_in(
            [verdict.value for verdict in Verdict]
        ),
        "it was made before any epoch": decisions.c.epoch < 1,
        "it was made in an attempt that never was": or_(
            decisions.c.attempt < 1, decisions.c.attempt > jobs.c.attempt
        ),
        "there is no such job": jobs.c.id.is_(None),
        "its ensemble is not its member's": decisions.c.ensemble_id != jobs.c.ensemble_id,
    }
    for text, broken in rules.items():
        query = (
            select(decisions.c.job_id, decisions.c.rule, jobs.c.seed)
            .select_from(decisions.outerjoin(jobs, jobs.c.id == decisions.c.job_id))
            .where(broken)
            .order_by(decisions.c.job_id, decisions.c.rule)
        )
        for row in connection.execute(query):
            yield f"job {row.job_id} (seed {row.seed}), decision of rule {row.rule!r}: {text}"


def _slurm(connection: Connection) -> Iterator[str]:
    """Rules of what is advice: broken ones harm no member, but were not written by ensq."""
    parts = [workers.c[f"slurm_{name}"] for name in ("cluster", "job_id", "step", "proc", "node")]
    some = or_(*(part.is_not(None) for part in (*parts, workers.c.slurm_restarts)))
    rules: Rules = {
        "is part of a SLURM job without a label": and_(workers.c.slurm_job.is_(None), some),
        "its SLURM job was restarted a negative number of times": workers.c.slurm_restarts < 0,
    }
    for text, broken in rules.items():
        query = select(workers.c.id).where(broken).order_by(workers.c.id)
        for (name,) in connection.execute(query):
            yield f"worker {name}: {text}"
    bad = slurm_jobs.c.restarts < 0
    bad = or_(bad, slurm_jobs.c.state == "", slurm_jobs.c.label == "")
    for row in connection.execute(select(slurm_jobs.c.cluster, slurm_jobs.c.label).where(bad)):
        yield f"SLURM job {row.label!r} of cluster {row.cluster!r}: it is none that SLURM can name"
    answered = exists().where(slurm_jobs.c.cluster == slurm_clusters.c.cluster)
    never = or_(slurm_clusters.c.turn < 1, and_(slurm_clusters.c.answered_at.is_(None), answered))
    for (name,) in connection.execute(select(slurm_clusters.c.cluster).where(never)):
        yield f"SLURM cluster {name!r}: has answers, or a turn, without a question"


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


def _files(connection: Connection, root: Path) -> Iterator[str]:
    query = (
        select(jobs, ensembles.c.run_path)
        .join_from(jobs, ensembles, ensembles.c.id == jobs.c.ensemble_id)
        .order_by(jobs.c.id)
    )
    for row in connection.execute(query):
        job = f"job {row.id} (seed {row.seed})"
        if row.state == State.DONE.value:
            # Its checkpoints are of no more use.
            wrong = _wrong(root, row.run_path, row.result_path, row.result_digest)
            if wrong is not None:
                yield f"{job}: its result {wrong}; bring the file back, or it can't be exported"
            continue
        newest = _wrong(root, row.run_path, row.checkpoint_path, row.checkpoint_digest)
        before = _wrong(root, row.run_path, row.previous_path, row.previous_digest)
        if newest is not None:
            usable = row.previous_path is not None and before is None
            place = f"epoch {row.previous_epoch}" if usable else "its beginning"
            instead = "the one before is used" if usable else "there is no sound one before"
            yield f"{job}: its checkpoint {newest}; {instead}: it goes on from {place}"
        if before is not None:
            yield f"{job}: the checkpoint before its last, {before}"


def _wrong(root: Path, run: str, path: str | None, digest: str | None) -> str | None:
    """The name of a recorded file and what is wrong; None if nothing is, or none is recorded."""
    if path is None:
        return None
    name = f"{run}/{path}"
    if not name.isprintable():  # somebody else may have written it; a terminal obeys some
        name = repr(name)
    try:
        same = sha256_file(RunDir(root / run).inside(path)) == digest
    except UsageError:
        return f"{name!r} leads out of its run folder"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} can't be read ({error.strerror})"
    return None if same else f"{name} is damaged: its SHA-256 is not the recorded one"
