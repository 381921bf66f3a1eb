"""What the owner of a job writes about it. Every statement here carries the fence.

Each function may be called again after it was carried out, as happens when the connection breaks
while COMMIT is on its way: then it changes nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, case, func, insert, select, update

from ensq.errors import EnsqError
from ensq.jobs import Checkpoint, Claim, EarlyEnd, EpochRecord, Job, Outcome, Result, State
from ensq.schema import epochs, jobs
from ensq.store import claims, endings, fences, history
from ensq.store import early as early_stopping
from ensq.store.rows import from_checkpoint, from_epoch, number, to_epoch, to_job
from ensq.store.values import EpochWrite, EventKind


def record_epochs(connection: Connection, now: float, writes: Iterable[EpochWrite]) -> list[Claim]:
    """One epoch of a pack; returns the claims that are lost. See Store.record_epochs."""
    lost = []
    owners = set()
    for write in sorted(writes, key=lambda write: write.claim.job_id):  # one order, no deadlock
        if _record_epoch(connection, now, write):
            owners.add(write.claim.owner)
        else:
            lost.append(write.claim)
    claims.mark_seen(connection, now, owners)
    return lost


def _record_epoch(connection: Connection, now: float, write: EpochWrite) -> bool:
    held, record, checkpoint = write.claim, write.record, write.checkpoint
    if checkpoint is not None and (checkpoint.epoch, checkpoint.step) != (record.epoch, 0):
        raise EnsqError(
            f"job {held.job_id}: a checkpoint at epoch {checkpoint.epoch}, step {checkpoint.step} "
            f"can't be recorded with epoch {record.epoch}"
        )
    row = connection.execute(
        select(jobs.c.epoch, jobs.c.epochs).where(fences.held(held)).with_for_update()
    ).one_or_none()
    if row is None:
        return False
    before, total = row
    if record.epoch <= before:
        _require_recorded(connection, held, record)
        return True
    if record.epoch > before + 1 or record.epoch > total:
        raise EnsqError(
            f"job {held.job_id}: epoch {record.epoch} can't follow epoch {before} of {total}: "
            "losses must have no gaps"
        )
    connection.execute(
        insert(epochs).values(
            job_id=held.job_id,
            attempt=held.attempt,
            block_losses=early_stopping.packed(write.blocks),
            **from_epoch(record),
        )
    )
    values: dict[str, Any] = {
        "epoch": int(record.epoch),
        "train_loss": number(record.train_loss),
        "val_loss": number(record.val_loss),
        "best_epoch": None if write.best_epoch is None else int(write.best_epoch),
        "best_loss": number(write.best_loss),
        "seconds_per_epoch": float(record.seconds),
        "beat": jobs.c.beat + 1,
        "updated_at": now,
    }
    if checkpoint is not None:
        values |= _shift(checkpoint)
    connection.execute(update(jobs).where(fences.held(held)).values(values))
    return True


def _require_recorded(connection: Connection, held: Claim, record: EpochRecord) -> None:
    """Raise EnsqError unless this very epoch was recorded by this attempt."""
    row = connection.execute(
        select(epochs).where(epochs.c.job_id == held.job_id, epochs.c.epoch == record.epoch)
    ).one_or_none()
    if (
        row is None
        or row.attempt != held.attempt
        or from_epoch(to_epoch(row)) != from_epoch(record)
    ):
        raise EnsqError(
            f"job {held.job_id}: epoch {record.epoch} is recorded already, with other losses"
        )


def record_checkpoints(
    connection: Connection, now: float, writes: Iterable[tuple[Claim, Checkpoint]]
) -> list[Claim]:
    """Point jobs to new checkpoints; returns the claims that are lost."""
    lost = []
    for held, checkpoint in sorted(writes, key=lambda write: write[0].job_id):
        row = connection.execute(
            update(jobs)
            .where(fences.held(held))
            .values(updated_at=now, beat=jobs.c.beat + 1, **_shift(checkpoint))
            .returning(jobs.c.epoch, jobs.c.previous_epoch, jobs.c.previous_step)
        ).one_or_none()
        if row is None:
            lost.append(held)
        elif row.epoch != checkpoint.epoch:
            raise EnsqError(
                f"job {held.job_id}: a checkpoint at epoch {checkpoint.epoch} can't be recorded "
                f"while {row.epoch} epochs are"
            )
        elif (row.previous_epoch, row.previous_step) > _place(checkpoint):
            raise EnsqError(
                f"job {held.job_id}: a checkpoint at epoch {checkpoint.epoch}, step "
                f"{checkpoint.step} can't be recorded after a later one"
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


def stand_at(
    connection: Connection,
    now: float,
    held: Claim,
    checkpoint: Checkpoint | None,
    records: Sequence[EpochRecord],
    reason: str,
) -> Job:
    """Have the row stand where the training really goes on; see Store.stand_at."""
    job = _locked(connection, held)
    if checkpoint == job.checkpoint:
        return job
    start = checkpoint.epoch if checkpoint else 0
    newer = _place(checkpoint) > _place(job.checkpoint)
    _fill(connection, job, held, [record for record in records if record.epoch <= start])
    values = from_checkpoint(checkpoint, "checkpoint")
    if newer:
        # What was there is still a place to go on from. A job that gets further is no poison.
        values |= from_checkpoint(job.checkpoint, "previous") | {"strikes": 0, "stalls": 0}
    elif _place(checkpoint) <= _place(job.previous_checkpoint):
        values |= from_checkpoint(None, "previous")
    row = connection.execute(
        update(jobs)
        .where(fences.held(held))
        .values(updated_at=now, beat=jobs.c.beat + 1, **values)
        .returning(*jobs.c)
    ).one()
    job = claims.rewind_to(connection, to_job(row), start)
    _require_dense(connection, job, start)
    step = checkpoint.step if checkpoint else 0
    history.restart_attempt(connection, held.job_id, held.attempt, start, step)
    kind = EventKind.ADOPTED if newer else EventKind.FELL_BACK
    where = f"epoch {start}" + (f", step {step}" if step else "")
    history.note_job(
        connection, now, kind, job, f"{reason}; goes on from {where}", worker_id=held.owner
    )
    return job


def _fill(connection: Connection, job: Job, held: Claim, records: Sequence[EpochRecord]) -> None:
    """Insert the losses that the row doesn't know yet."""
    for record in sorted(records, key=lambda record: record.epoch):
        if record.epoch > job.epoch:
            connection.execute(
                insert(epochs).values(job_id=job.id, attempt=held.attempt, **from_epoch(record))
            )


def _place(checkpoint: Checkpoint | None) -> tuple[int, int]:
    return (checkpoint.epoch, checkpoint.step) if checkpoint else (0, 0)


def _locked(connection: Connection, held: Claim) -> Job:
    row = connection.execute(select(jobs).where(fences.held(held)).with_for_update()).one_or_none()
    if row is None:
        raise fences.lost(held)
    return to_job(row)


def finish(
    connection: Connection,
    now: float,
    held: Claim,
    result: Result,
    records: Sequence[EpochRecord] = (),
    early: EarlyEnd | None = None,
) -> None:
    """running -> done; see Store.finish."""
    outcome, reason = early_stopping.outcome_of(early)
    if _was_finished(connection, held, result, outcome):
        return
    job = _locked(connection, held)
    values: dict[str, Any] = {}
    if records:  # of a result that was never recorded
        _fill(connection, job, held, records)
        last = records[-1]
        values = {
            "epoch": int(last.epoch),
            "train_loss": number(last.train_loss),
            "val_loss": number(last.val_loss),
            "seconds_per_epoch": float(last.seconds),
        }
    if early is not None:
        values |= {"early": early.rule}
        if early.checkpoint is not None:
            values |= _shift(early.checkpoint)
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
            **endings.LEFT,
            **values,
        )
        .returning(*jobs.c)
    ).one()
    job = to_job(row)
    _require_dense(connection, job, job.epochs if early is None else early.epoch)
    if early is not None:
        early_stopping.ended(connection, now, held, job, early)
    history.end_attempt(connection, now, job.id, job.attempt, outcome, reason)
    message = f"seed {job.seed}, best epoch {result.best_epoch}, best loss {result.best_loss:.6g}"
    if early is not None:
        message += f"; {reason}"
    if records:
        message += "; the result of an earlier attempt, which was never recorded"
    history.note_job(connection, now, EventKind.DONE, job, message, worker_id=held.owner)


def _was_finished(connection: Connection, held: Claim, result: Result, outcome: Outcome) -> bool:
    digest = connection.execute(
        select(jobs.c.result_digest).where(
            jobs.c.id == held.job_id,
            jobs.c.state == State.DONE.value,
            jobs.c.attempt == held.attempt,
        )
    ).scalar_one_or_none()
    return digest == result.digest and endings.was_ended(connection, held, outcome)


def _require_dense(connection: Connection, job: Job, wanted: int) -> None:
    count, last = connection.execute(
        select(func.count(), func.max(epochs.c.epoch)).where(epochs.c.job_id == job.id)
    ).one()
    if count != wanted or (last or 0) != wanted:
        raise EnsqError(
            f"job {job.id} (seed {job.seed}) can't stand at epoch {wanted}: the losses of {count} "
            f"epochs are recorded, {wanted} are needed, each once"
        )
