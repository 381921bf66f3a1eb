"""Early stopping in the queue: what is compared, what was decided, members that go on after all.

Whether a member may be stopped depends on the others of its ensemble. So all who decide in one
ensemble follow each other: on SQLite as all writers do, on PostgreSQL by the ensemble's row.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
)

from ensq.errors import DatabaseError
from ensq.jobs import Claim, Decision, EarlyEnd, Job, Outcome, State, Verdict
from ensq.schema import decisions, ensembles, epochs, jobs
from ensq.store import ensembles as people
from ensq.store import fences, history
from ensq.store.rows import to_job
from ensq.store.strict import made
from ensq.store.values import EarlyMember, EarlyView, EventKind

PLATEAU = "plateau"  # the rule that looks at a member alone: it counts as trained like any other
_GONE = (State.FAILED.value, State.CANCELLED.value)  # of no use to their ensemble, as it stands
_NUMBER = 8  # bytes


def packed(losses: Sequence[float] | None) -> bytes | None:
    """Losses by blocks as they are stored: float64, the lowest byte first."""
    if not losses:
        return None
    numbers = array("d", losses)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def unpacked(data: object) -> tuple[float, ...] | None:
    """The losses again; None for none. Raises DatabaseError."""
    if data is None:
        return None
    if not isinstance(data, bytes) or len(data) % _NUMBER:
        raise DatabaseError(
            "the database holds losses by blocks that ensq can't have written; see `ensq db check`"
        )
    numbers = array("d", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return tuple(numbers)


# What is read


def settings(connection: Connection, ensemble_id: int) -> str | None:
    """The section in force, as JSON; None where none was enqueued."""
    text: str | None = connection.execute(
        select(ensembles.c.early_stopping).where(ensembles.c.id == ensemble_id)
    ).scalar_one_or_none()
    return text


def view(connection: Connection, ensemble_id: int) -> EarlyView:
    """Where the members of an ensemble stand, and the section in force."""
    rows = connection.execute(
        select(
            jobs.c.id.label("job_id"),
            jobs.c.seed,
            jobs.c.epoch,
            jobs.c.epochs,
            jobs.c.exempt,
            _is_stopped().label("stopped"),
            jobs.c.state.in_(_GONE).label("gone"),
        )
        .where(jobs.c.ensemble_id == ensemble_id)
        .order_by(jobs.c.position)
    )
    members = tuple(
        EarlyMember(job_id, seed, epoch, of, bool(exempt), bool(stopped), bool(gone))
        for job_id, seed, epoch, of, exempt, stopped, gone in rows
    )
    return EarlyView(settings(connection, ensemble_id), members)


def losses(
    connection: Connection, job_ids: Collection[int], first: int, last: int
) -> dict[tuple[int, int], float | None]:
    """Validation losses of epochs ``first`` to ``last``, by job and epoch."""
    rows = connection.execute(
        select(epochs.c.job_id, epochs.c.epoch, epochs.c.val_loss).where(
            epochs.c.job_id.in_(sorted(job_ids)), epochs.c.epoch.between(first, last)
        )
    )
    return {(job, epoch): loss for job, epoch, loss in rows}


def blocks(
    connection: Connection, job_ids: Collection[int], first: int, last: int
) -> dict[tuple[int, int], tuple[float, ...]]:
    """Validation losses by blocks of frames, by job and epoch; those that have none are left out.

    Raises DatabaseError for what ensq can't have written.
    """
    rows = connection.execute(
        select(epochs.c.job_id, epochs.c.epoch, epochs.c.block_losses).where(
            epochs.c.job_id.in_(sorted(job_ids)),
            epochs.c.epoch.between(first, last),
            epochs.c.block_losses.is_not(None),
        )
    )
    return {(job, epoch): unpacked(data) or () for job, epoch, data in rows}


def decisions_of(connection: Connection, ensemble_id: int) -> list[Decision]:
    """All decisions about members of an ensemble, oldest first."""
    rows = connection.execute(
        select(decisions)
        .where(decisions.c.ensemble_id == ensemble_id)
        .order_by(decisions.c.time, decisions.c.job_id, decisions.c.rule, decisions.c.verdict)
    )
    return [made(Decision, row._mapping) for row in rows]


def orders(connection: Connection, job_ids: Collection[int]) -> dict[int, Decision]:
    """Decisions to stop that were not carried out, or not told of, by job."""
    rows = connection.execute(
        select(decisions)
        .join_from(decisions, jobs, jobs.c.id == decisions.c.job_id)
        .where(jobs.c.id.in_(sorted(job_ids)), jobs.c.exempt == 0)
        .where(decisions.c.verdict == Verdict.STOPPED.value)
    )
    return {row.job_id: made(Decision, row._mapping) for row in rows}


def _is_stopped() -> ColumnElement[bool]:
    """That a rule took the job from its ensemble, and no person gave it back.

    One that had come to its last epoch by then is trained like any other, and so is one that a
    plateau ended first.
    """
    mine = and_(
        decisions.c.job_id == jobs.c.id,
        decisions.c.verdict == Verdict.STOPPED.value,
        decisions.c.rule != PLATEAU,
    )
    ended = and_(jobs.c.early.is_not(None), jobs.c.early != PLATEAU)
    in_time = or_(jobs.c.state != State.DONE.value, ended)
    return and_(jobs.c.exempt == 0, in_time, exists().where(mine).correlate(jobs))


# What workers write


def decide(
    connection: Connection,
    now: float,
    held: Claim,
    *,
    rule: str,
    evidence: str,
    stop: bool,
    min_members: int,
) -> Verdict | None:
    """See Store.decide. None if the claim is lost."""
    _one_by_one(connection, held.job_id)
    row = connection.execute(select(jobs).where(fences.held(held)).with_for_update()).one_or_none()
    if row is None:
        return None
    job = to_job(row)
    rows = connection.execute(
        select(decisions.c.rule, decisions.c.verdict).where(decisions.c.job_id == job.id)
    )
    before = {(row.rule, row.verdict) for row in rows}
    if job.exempt:
        return Verdict.KEPT
    if any(verdict == Verdict.STOPPED.value for _, verdict in before):
        return Verdict.STOPPED
    verdict = Verdict.STOPPED if stop else Verdict.REPORTED
    if stop and rule != PLATEAU and _left(connection, job.ensemble_id) <= min_members:
        verdict = Verdict.KEPT
    if (rule, verdict.value) not in before:
        _insert(connection, now, held, job, rule, verdict, evidence)
    return verdict


def _one_by_one(connection: Connection, job_id: int) -> None:
    """Wait for others that decide in the same ensemble, and have them wait.

    Not for those that only refer to the ensemble's row, as every event does.
    """
    if connection.dialect.name == "postgresql":
        mine = select(jobs.c.ensemble_id).where(jobs.c.id == job_id).scalar_subquery()
        lock = select(ensembles.c.id).where(ensembles.c.id == mine)
        connection.execute(lock.with_for_update(key_share=True)).all()


def _left(connection: Connection, ensemble_id: int) -> int:
    """Members that are trained to their end, as it stands."""
    return int(
        connection.execute(
            select(func.count()).where(
                jobs.c.ensemble_id == ensemble_id, jobs.c.state.not_in(_GONE), not_(_is_stopped())
            )
        ).scalar_one()
    )


def _insert(
    connection: Connection,
    now: float,
    held: Claim,
    job: Job,
    rule: str,
    verdict: Verdict,
    evidence: str,
) -> None:
    connection.execute(
        insert(decisions).values(
            job_id=job.id,
            rule=rule,
            verdict=verdict.value,
            ensemble_id=job.ensemble_id,
            attempt=held.attempt,
            epoch=job.epoch,
            evidence=evidence,
            worker_id=held.owner,
            time=now,
        )
    )
    message = f"seed {job.seed}: rule {rule} at epoch {job.epoch}: {verdict}"
    history.note_job(connection, now, EventKind.DECIDED, job, message, worker_id=held.owner)


def ended(connection: Connection, now: float, held: Claim, job: Job, early: EarlyEnd) -> None:
    """Note the decision that ended a member, where it isn't recorded yet."""
    known = connection.execute(
        select(decisions.c.rule).where(
            decisions.c.job_id == job.id,
            decisions.c.rule == early.rule,
            decisions.c.verdict == Verdict.STOPPED.value,
        )
    ).one_or_none()
    if known is None:
        _insert(connection, now, held, job, early.rule, Verdict.STOPPED, early.evidence or "{}")


def outcome_of(early: EarlyEnd | None) -> tuple[Outcome, str | None]:
    """How an attempt ended that left a result, and why."""
    if early is None:
        return Outcome.DONE, None
    return Outcome.EARLY, f"stopped early by the rule {early.rule}, after epoch {early.epoch}"


# What people do


def resume(connection: Connection, now: float, name: str, seeds: Sequence[int] | None) -> list[int]:
    """done early -> queued, to be trained to the end; see Store.resume."""
    changed = []
    for job in people.chosen(connection, name, seeds):
        if job.state is not State.DONE or job.early is None:
            continue
        no_result = dict.fromkeys(("early", "result_path", "result_digest", "final_loss"))
        people.requeue(connection, now, job, exempt=1, **no_result)
        history.note_job(
            connection, now, EventKind.RESUMED, job, f"was stopped early by the rule {job.early}"
        )
        changed.append(job.seed)
    return changed
