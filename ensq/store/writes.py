"""What the owner of a job writes about it. Every statement here carries the fence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, case, false, func, insert, select, update

from ensq.errors import EnsqError
from ensq.jobs import Checkpoint, Claim, Job, Outcome, Result, State
from ensq.schema import epochs, jobs
from ensq.store import claims, fences, history
from ensq.store.rows import from_checkpoint, from_epoch, number, one_line, to_job
from ensq.store.values import MAX_FAILURES, EpochWrite, EventKind

_LEFT = {"owner": None, "lease_until": None}  # a job that no one holds


def record_epochs(
    connection: Connection, now: float, writes: Iterable[EpochWrite], lease_seconds: float
) -> list[Claim]:
    """One epoch of a pack; returns the claims that are lost. See Store.record_epochs."""
    lost = []
    owners = set()
    for write in writes:
        if _record_epoch(connection, now, write, now + lease_seconds):
            owners.add(write.claim.owner)
        else:
            lost.append(write.claim)
    claims.mark_seen(connection, now, owners)
    return lost


def _record_epoch(
    connection: Connection, now: float, write: EpochWrite, lease_until: float
) -> bool:
    held, record, checkpoint = write.claim, write.record, write.checkpoint
    if checkpoint is not None and (checkpoint.epoch, checkpoint.step) != (record.epoch, 0):
        raise EnsqError(
            f"job {held.job_id}: a checkpoint at epoch {checkpoint.epoch}, step {checkpoint.step} "
            f"can't be recorded with epoch {record.epoch}"
        )
    values: dict[str, Any] = {
        "epoch": int(record.epoch),
        "train_loss": number(record.train_loss),
        "val_loss": number(record.val_loss),
        "best_epoch": None if write.best_epoch is None else int(write.best_epoch),
        "best_loss": number(write.best_loss),
        "seconds_per_epoch": float(record.seconds),
        "lease_until": lease_until,
        "updated_at": now,
    }
    if checkpoint is not None:
        values |= _shift(checkpoint)
    before = connection.execute(
        select(jobs.c.epoch).where(fences.held(held)).with_for_update()
    ).scalar_one_or_none()
    if before is None:
        return False
    if record.epoch > before + 1:
        raise EnsqError(
            f"job {held.job_id}: epoch {record.epoch} can't follow epoch {before}: losses must "
            "have no gaps"
        )
    # An epoch that is there already is a bug of the caller: the primary key refuses it.
    connection.execute(
        insert(epochs).values(job_id=held.job_id, attempt=held.attempt, **from_epoch(record))
    )
    connection.execute(update(jobs).where(fences.held(held)).values(values))
    return True


def record_checkpoints(
    connection: Connection, now: float, writes: Iterable[tuple[Claim, Checkpoint]]
) -> list[Claim]:
    """Point jobs to new checkpoints; returns the claims that are lost."""
    lost = []
    for held, checkpoint in writes:
        row = connection.execute(
            update(jobs)
            .where(fences.held(held))
            .values(updated_at=now, **_shift(checkpoint))
            .returning(jobs.c.epoch)
        ).one_or_none()
        if row is None:
            lost.append(held)
        elif row.epoch != checkpoint.epoch:
            raise EnsqError(
                f"job {held.job_id}: a checkpoint at epoch {checkpoint.epoch} can't be recorded "
                f"while {row.epoch} epochs are"
            )
    return lost


def _shift(checkpoint: Checkpoint) -> dict[str, Any]:
    """The new checkpoint in, the present one back; recorded twice, it is not its own fallback."""
    again = jobs.c.checkpoint_path == checkpoint.path
    values = from_checkpoint(checkpoint, "checkpoint")
    for part in ("path", "digest", "epoch", "step"):
        previous, present = jobs.c[f"previous_{part}"], jobs.c[f"checkpoint_{part}"]
        values[previous.name] = case((again, previous), else_=present)
    return values


def fall_back(connection: Connection, now: float, held: Claim, reason: str) -> Job:
    """Use the checkpoint before, or none; see Store.fall_back."""
    row = connection.execute(select(jobs).where(fences.held(held)).with_for_update()).one_or_none()
    if row is None:
        raise fences.lost(held)
    present = to_job(row)
    row = connection.execute(
        update(jobs)
        .where(fences.held(held))
        .values(
            updated_at=now,
            **from_checkpoint(present.previous_checkpoint, "checkpoint"),
            **from_checkpoint(None, "previous"),
        )
        .returning(*jobs.c)
    ).one()
    start = row.checkpoint_epoch
    job = claims.rewind_to(connection, to_job(row), start)
    history.restart_attempt(connection, held.job_id, held.attempt, start)
    message = f"{reason}; goes on from epoch {start}"
    history.note_job(connection, now, EventKind.FELL_BACK, job, message, worker_id=held.owner)
    return job


def finish(connection: Connection, now: float, held: Claim, result: Result) -> None:
    """running -> done; see Store.finish."""
    row = connection.execute(
        update(jobs)
        .where(fences.held(held))
        .values(
            state=State.DONE.value,
            best_epoch=int(result.best_epoch),
            best_loss=number(result.best_loss),
            final_loss=number(result.final_loss),
            result_path=result.path,
            result_digest=result.digest,
            error=None,
            updated_at=now,
            **_LEFT,
        )
        .returning(*jobs.c)
    ).one_or_none()
    if row is None:
        raise fences.lost(held)
    job = to_job(row)
    _require_dense(connection, job)
    history.end_attempt(connection, now, job.id, job.attempt, Outcome.DONE, None)
    message = f"seed {job.seed}, best epoch {result.best_epoch}, best loss {result.best_loss:.6g}"
    history.note_job(connection, now, EventKind.DONE, job, message, worker_id=held.owner)


def _require_dense(connection: Connection, job: Job) -> None:
    count, last = connection.execute(
        select(func.count(), func.max(epochs.c.epoch)).where(epochs.c.job_id == job.id)
    ).one()
    if count != job.epochs or last != job.epochs:
        raise EnsqError(
            f"job {job.id} (seed {job.seed}) can't be done: the losses of {count} epochs are "
            f"recorded, {job.epochs} are needed, each once"
        )


def release(
    connection: Connection, now: float, held: Iterable[Claim], outcome: Outcome, reason: str
) -> list[Claim]:
    """running -> queued; returns the claims that are lost."""
    if outcome not in (Outcome.INTERRUPTED, Outcome.LOST):
        raise ValueError(f"a job is released as interrupted or lost, not as {outcome}: use fail")
    return [
        claim for claim in held if not claims.give_back(connection, now, claim, outcome, reason)
    ]


def fail(
    connection: Connection, now: float, held: Claim, outcome: Outcome, reason: str, retry: bool
) -> State:
    """running -> queued or failed; see Store.fail."""
    if outcome not in (Outcome.FAILURE, Outcome.CRASH):
        raise ValueError(f"a job fails by failure or crash, not by {outcome}: use release")
    column = jobs.c.crashes if outcome is Outcome.CRASH else jobs.c.failures
    again = (column + 1 < MAX_FAILURES) if retry else false()
    row = connection.execute(
        update(jobs)
        .where(fences.held(held))
        .values(
            {
                column.name: column + 1,
                "state": case((again, State.QUEUED.value), else_=State.FAILED.value),
                "error": case((again, None), else_=one_line(reason)),
                "updated_at": now,
                **_LEFT,
            }
        )
        .returning(*jobs.c)
    ).one_or_none()
    if row is None:
        raise fences.lost(held)
    job = to_job(row)
    history.end_attempt(connection, now, job.id, job.attempt, outcome, reason)
    kind = EventKind.REQUEUED if job.state is State.QUEUED else EventKind.FAILED
    history.note_job(connection, now, kind, job, reason, worker_id=held.owner)
    return job.state
