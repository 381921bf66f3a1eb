"""Jobs are taken back from workers that are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from ensq.jobs import Claim, Outcome, State, WorkerInfo
from ensq.schema import jobs, workers
from ensq.store import endings, evidence
from ensq.store.policy import Ending, Policy
from ensq.store.rows import to_worker
from ensq.store.values import Reaped
from ensq.store.watch import Watch

_RUNNING = select(jobs.c.id, jobs.c.attempt, jobs.c.owner, jobs.c.beat, jobs.c.lease_seconds).where(
    jobs.c.state == State.RUNNING.value
)
_RUNNING_LOCKED = _RUNNING.with_for_update(skip_locked=True)
_OWNERS = select(workers).where(workers.c.id.in_(bindparam("p_owners", expanding=True)))

Lost = tuple[Row[*tuple[Any, ...]], str]  # a running job, and why its worker is lost
Gone = Callable[[WorkerInfo], bool]  # whether the worker's process is provably gone


def reap(
    connection: Connection, now: float, *, watch: Watch, gone: Gone, policy: Policy
) -> list[Reaped]:
    """Take running jobs back from workers that are lost; see Store.reap."""
    reaped = []
    for row, reason in _with_evidence(connection, now, lost(connection, watch, gone, lock=True)):
        held = Claim(job_id=row.id, attempt=row.attempt, owner=row.owner)
        ending = Ending(outcome=Outcome.LOST, reason=reason)
        job = endings.end(connection, now, held, ending, policy)
        if job is not None:
            reaped.append(
                Reaped(
                    claim=held,
                    ensemble_id=job.ensemble_id,
                    seed=job.seed,
                    state=job.state,
                    reason=reason,
                )
            )
    return reaped


def _with_evidence(connection: Connection, now: float, found: list[Lost]) -> list[Lost]:
    """Add what SLURM said last of each worker to the reasons; who is lost was decided without."""
    owners = {row.owner for row, _ in found}
    if not owners:
        return found
    infos = {
        row.id: to_worker(row) for row in connection.execute(_OWNERS, {"p_owners": sorted(owners)})
    }
    labels = {info.slurm_job for info in infos.values() if info.slurm_job}
    said = evidence.jobs_of(connection, labels)
    return [
        (row, reason + evidence.about_lost(infos[row.owner], said, now)) for row, reason in found
    ]


def lost(connection: Connection, watch: Watch, gone: Gone, *, lock: bool = False) -> list[Lost]:
    """Running jobs (id, attempt, owner, beat, lease_seconds) of lost workers, and why they are.

    Each call is a look of ``watch`` at all running jobs. With ``lock``, rows that another
    transaction is writing now are left out: somebody is alive there.
    """
    found_rows = connection.execute(_RUNNING_LOCKED if lock else _RUNNING).all()
    # Sorted here: an ORDER BY may lead SQLite to walk through all jobs by their ids.
    rows = sorted(found_rows, key=lambda row: row.id)
    watch.forget_others({(row.id, row.attempt) for row in rows})
    if not rows:
        return []
    owners = connection.execute(_OWNERS, {"p_owners": sorted({row.owner for row in rows})})
    causes = {row.id: _why_lost(to_worker(row), gone) for row in owners}
    found: list[Lost] = []
    for row in rows:
        silence = watch.silence((row.id, row.attempt), row.beat)
        reason = causes[row.owner]
        if reason is None and silence > row.lease_seconds:
            reason = f"no sign of life of worker {row.owner} for {silence:.0f} s"
        if reason is not None:
            found.append((row, reason))
    return found


def _why_lost(worker: WorkerInfo, gone: Gone) -> str | None:
    """Why the worker can't hold a job any more, whatever its lease says; None if it may."""
    if worker.ended_at is not None:
        return f"worker {worker.id} has ended"
    if gone(worker):
        return f"worker {worker.id}: process {worker.pid} on {worker.host} is gone"
    return None
