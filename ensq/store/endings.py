"""The end of an attempt that did not finish its job: queued again, held, or failed for good."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, func, select, update

from ensq.jobs import Claim, Job, Outcome, State
from ensq.schema import attempts, jobs
from ensq.store import fences, history
from ensq.store.policy import TIME_LIMIT, Ending, Policy, judge
from ensq.store.rows import to_job
from ensq.store.values import EventKind

LEFT: dict[str, Any] = {"owner": None, "lease_seconds": None, "wish": None}  # no one holds it

_KINDS = {
    Outcome.LOST: EventKind.LOST,
    Outcome.INTERRUPTED: EventKind.INTERRUPTED,
    Outcome.BLOCKED: EventKind.BLOCKED,
}


def end(
    connection: Connection, now: float, held: Claim, ending: Ending, policy: Policy
) -> Job | None:
    """End an attempt, fenced; the job as it is then, or None if the claim no longer holds.

    Done again after it was carried out, it changes nothing.
    """
    row = connection.execute(select(jobs).where(fences.held(held)).with_for_update()).one_or_none()
    if row is None:
        return _ended_before(connection, held, ending.outcome)
    job = to_job(row)
    if ending.by_time_limit:
        ending = replace(ending, limits_before=_ended_by_time_limit(connection, job))
    verdict = judge(policy, job, ending, progressed=_progressed(connection, job))
    after = verdict.job
    row = connection.execute(
        update(jobs)
        .where(fences.held(held))
        .values(
            state=after.state.value,
            not_before=now + verdict.pause if verdict.pause else 0.0,
            failures=after.failures,
            crashes=after.crashes,
            losses=after.losses,
            interruptions=after.interruptions,
            strikes=after.strikes,
            stalls=after.stalls,
            pack=after.pack,
            error=after.error,
            updated_at=now,
            **LEFT,
        )
        .returning(*jobs.c)
    ).one()
    history.end_attempt(
        connection, now, held.job_id, held.attempt, ending.outcome, ending.reason, ending.log_tail
    )
    kind = _KINDS.get(ending.outcome, EventKind.REQUEUED)
    message = ending.reason
    if after.state is State.FAILED:
        kind, message = EventKind.FAILED, after.error or ending.reason
    after = to_job(row)
    history.note_job(connection, now, kind, after, message, worker_id=held.owner)
    return after


def release(
    connection: Connection, now: float, held: Iterable[Claim], ending: Ending, policy: Policy
) -> list[Claim]:
    """``end`` for several claims; returns those that are lost."""
    ordered = sorted(held, key=lambda claim: claim.job_id)
    return [claim for claim in ordered if end(connection, now, claim, ending, policy) is None]


def _progressed(connection: Connection, job: Job) -> bool:
    """Whether the attempt recorded a checkpoint newer than the one it began from."""
    began = connection.execute(
        select(attempts.c.start_epoch, attempts.c.start_step).where(
            attempts.c.job_id == job.id, attempts.c.number == job.attempt
        )
    ).one()
    if job.checkpoint is None:
        return False
    return (job.checkpoint.epoch, job.checkpoint.step) > (began.start_epoch, began.start_step)


def _ended_by_time_limit(connection: Connection, job: Job) -> int:
    """Earlier attempts from the place where this one began that a time limit ended.

    An attempt that got on would have had the next one begin elsewhere.
    """
    began = connection.execute(
        select(attempts.c.start_epoch, attempts.c.start_step).where(
            attempts.c.job_id == job.id, attempts.c.number == job.attempt
        )
    ).one()
    return int(
        connection.execute(
            select(func.count())
            .select_from(attempts)
            .where(
                attempts.c.job_id == job.id,
                attempts.c.number < job.attempt,
                attempts.c.start_epoch == began.start_epoch,
                attempts.c.start_step == began.start_step,
                attempts.c.outcome == Outcome.INTERRUPTED.value,
                attempts.c.reason.startswith(TIME_LIMIT),
            )
        ).scalar_one()
    )


def _ended_before(connection: Connection, held: Claim, outcome: Outcome) -> Job | None:
    """The job, if this very end was recorded before: its acknowledgement was lost on the way."""
    if not was_ended(connection, held, outcome):
        return None
    return to_job(connection.execute(select(jobs).where(jobs.c.id == held.job_id)).one())


def was_ended(connection: Connection, held: Claim, outcome: Outcome) -> bool:
    """Whether this attempt of this owner has ended with this outcome."""
    row = connection.execute(
        select(attempts.c.worker_id, attempts.c.outcome).where(
            attempts.c.job_id == held.job_id, attempts.c.number == held.attempt
        )
    ).one_or_none()
    return row is not None and (row.worker_id, row.outcome) == (held.owner, outcome.value)
