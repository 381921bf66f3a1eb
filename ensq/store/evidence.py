"""What SLURM says about the jobs of workers: who asks, and what was answered last.

All of it is advice for people. No lease is shortened or lengthened by it, and nobody loses a job.

One worker of a cluster asks in a minute. Clocks of hosts are not compared for that: who asks moves
a counter, the *turn*, and each worker measures by its own clock how long the turn has stood still.
The move is fenced by the turn that was seen, so of those that find it is time, one asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    Connection,
    Float,
    bindparam,
    delete,
    exists,
    insert,
    or_,
    select,
    text,
    update,
)

from ensq.jobs import SlurmCluster, SlurmJob, State, WorkerInfo
from ensq.schema import jobs, slurm_clusters, slurm_jobs, workers
from ensq.store.rows import to_slurm_cluster, to_slurm_job, to_worker
from ensq.store.values import Run

PAUSE = 60.0  # seconds between two questions about a cluster
LONGEST = 300.0  # an answer that is older may be of a time when the job's state was another
MOST_JOBS = 2000  # rows of one answer that are kept, those of workers first
_MOST_WORKERS = 1000  # workers that are asked about at a time, those seen last first
_DAY = 86400.0  # more than clocks are apart
_WEEK = 7 * _DAY

# States that a run does not leave.
FINAL = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REQUEUED", "REVOKED", "SPECIAL_EXIT", "TIMEOUT"),
    )
)


def job_name(ensemble: str) -> str:
    """What `ensq submit` calls the SLURM jobs of an ensemble."""
    return f"ensq-{ensemble}"


# ON CONFLICT stands the same in the languages of both engines.
_FIRST = text(
    "INSERT INTO slurm_clusters (cluster, turn, asked_at, asked_by) "
    "VALUES (:cluster, 1, :now, :who) ON CONFLICT DO NOTHING"
)
_KEY = ("cluster", "label", "restarts")


@dataclass
class _Sight:
    turn: int
    since: float  # by the observer's clock


@dataclass
class Turns:
    """What one observer has seen of the turns of clusters, and those that are its own."""

    monotonic: Callable[[], float]
    own: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, _Sight] = field(default_factory=dict)

    def is_due(self, cluster: str, turn: int) -> bool:
        """Look at a turn: has it stood still for long enough? Not at the first look."""
        now = self.monotonic()
        seen = self._seen.get(cluster)
        if seen is None or seen.turn != turn:
            self._seen[cluster] = _Sight(turn, now)
            return False
        return now - seen.since >= PAUSE


def clusters(connection: Connection) -> list[SlurmCluster]:
    """Each cluster that was asked about."""
    rows = connection.execute(select(slurm_clusters).order_by(slurm_clusters.c.cluster))
    return [to_slurm_cluster(row) for row in rows]


def turn_of(connection: Connection, cluster: str) -> int | None:
    """The turn of a cluster; None before the first."""
    query = select(slurm_clusters.c.turn).where(slurm_clusters.c.cluster == cluster)
    return connection.execute(query).scalar_one_or_none()


def take_turn(
    connection: Connection, now: float, cluster: str, who: str, seen: int | None
) -> int | None:
    """Move the turn of a cluster on from ``seen``; the new one, or None if another was faster.

    Done twice, since the answer to the first time was lost, it is the same as once.
    """
    wanted = 1 if seen is None else seen + 1
    if seen is None:
        connection.execute(_FIRST, {"cluster": cluster, "now": now, "who": who})
    else:
        connection.execute(
            update(slurm_clusters)
            .where(slurm_clusters.c.cluster == cluster, slurm_clusters.c.turn == seen)
            .values(turn=wanted, asked_at=now, asked_by=who)
        )
    mine = connection.execute(
        select(slurm_clusters.c.asked_by).where(
            slurm_clusters.c.cluster == cluster, slurm_clusters.c.turn == wanted
        )
    ).scalar_one_or_none()
    return wanted if mine == who else None


def runs_to_ask(connection: Connection, now: float, cluster: str | None) -> list[Run]:
    """Runs of the jobs of workers that have not signed off, unless SLURM said how they ended.

    Workers that died never sign off, so those that were not seen for a day are left out, unless
    they hold a job. ``cluster=None``: of all clusters.
    """
    holds = exists().where(jobs.c.owner == workers.c.id, jobs.c.state == State.RUNNING.value)
    query = (
        select(workers)
        .where(workers.c.ended_at.is_(None), workers.c.slurm_job.is_not(None))
        .where(or_(workers.c.last_seen > now - _DAY, holds))
        .order_by(workers.c.last_seen.desc(), workers.c.id)
        .limit(_MOST_WORKERS)
    )
    if cluster is not None:
        of = workers.c.slurm_cluster
        query = query.where(or_(of == cluster, of.is_(None)))
    found = [to_worker(row) for row in connection.execute(query)]
    said = jobs_of(connection, {worker.slurm_job for worker in found if worker.slurm_job})
    open_ = [worker for worker in found if not is_over(run_of(worker, said))]
    runs = (Run(one.slurm_job, one.slurm_restarts) for one in open_ if one.slurm_job)
    return list(dict.fromkeys(runs))


def note(
    connection: Connection,
    now: float,
    cluster: str,
    rows: Sequence[SlurmJob],
    *,
    turn: int,
    who: str,
) -> bool:
    """Keep an answer, unless it is not (or no longer) ours to give: a stopped worker's is old."""
    mine = connection.execute(
        update(slurm_clusters)
        .where(slurm_clusters.c.cluster == cluster)
        .where(slurm_clusters.c.turn == turn, slurm_clusters.c.asked_by == who)
        .values(answered_at=now)
    )
    if mine.rowcount != 1:
        return False
    values: dict[tuple[str, int], dict[str, Any]] = {
        (row.label, row.restarts): vars(replace(row, cluster=cluster, seen_at=now))
        for row in rows[:MOST_JOBS]
    }
    if values:
        same = [slurm_jobs.c[name] == bindparam(f"p_{name}") for name in _KEY]
        keys = [{f"p_{name}": row[name] for name in _KEY} for row in values.values()]
        connection.execute(delete(slurm_jobs).where(*same), keys)
        connection.execute(insert(slurm_jobs), list(values.values()))
    old = bindparam("p_old", type_=Float)
    connection.execute(
        delete(slurm_jobs).where(slurm_jobs.c.cluster == cluster, slurm_jobs.c.seen_at < old),
        {"p_old": now - _WEEK},
    )
    return True


def jobs_of(connection: Connection, labels: set[str] | None = None) -> list[SlurmJob]:
    """What SLURM said last of the jobs with these labels; of all with None."""
    query = select(slurm_jobs).order_by(*slurm_jobs.primary_key)
    if labels is not None:
        if not labels:
            return []
        query = query.where(slurm_jobs.c.label.in_(sorted(labels)))
    return [to_slurm_job(row) for row in connection.execute(query)]


# What it means for a worker: pure functions


def _candidates(worker: WorkerInfo, said: Sequence[SlurmJob]) -> list[SlurmJob]:
    """The runs of the worker's job. Its id may belong to another job: ids are used again."""
    return [
        job
        for job in said
        if job.label == worker.slurm_job
        and worker.slurm_cluster in (None, job.cluster)
        and (worker.slurm_job_id is None or worker.slurm_job_id == job.job_id)
        # A job that was queued long after the worker began is another; a run after a requeue is
        # queued anew, but is told by its number.
        and (
            job.restarts > (worker.slurm_restarts or 0)
            or job.submitted_at is None
            or job.submitted_at < worker.started_at + _DAY
        )
    ]


def run_of(worker: WorkerInfo, said: Sequence[SlurmJob]) -> SlurmJob | None:
    """What SLURM said of the run that the worker is, or was, part of; None if that is unknown.

    Of a worker that was registered without its number of restarts, the newest run counts.
    """
    runs = [
        job
        for job in _candidates(worker, said)
        # An answer from before the worker began, while its job still waited, says nothing of it.
        if not (job.state == "PENDING" and job.seen_at < worker.started_at)
    ]
    if worker.slurm_restarts is None:
        return max(runs, key=lambda job: job.restarts, default=None)
    return next((job for job in runs if job.restarts == worker.slurm_restarts), None)


def run_after(worker: WorkerInfo, said: Sequence[SlurmJob]) -> SlurmJob | None:
    """The newest run of the worker's job, if it is a later one than the worker's: a requeue."""
    if worker.slurm_restarts is None:
        return None
    later = [job for job in _candidates(worker, said) if job.restarts > worker.slurm_restarts]
    return max(later, key=lambda job: job.restarts, default=None)


def is_over(run: SlurmJob | None) -> bool:
    """Whether SLURM says that this run has ended. It may be wrong: the process may live."""
    return run is not None and run.state in FINAL


def about_lost(worker: WorkerInfo, said: Sequence[SlurmJob], now: float) -> str:
    """What to add to the reason for which a worker is lost: '; SLURM says NODE_FAIL', or ''."""
    run, after = run_of(worker, said), run_after(worker, said)
    if run is not None and is_over(run):
        return f"; SLURM says {run.state}"
    if after is not None:
        return f"; SLURM has requeued its job ({after.state})"
    if run is None or not -LONGEST < now - run.seen_at < LONGEST:
        return ""
    return f"; SLURM said {run.state} {max(0.0, now - run.seen_at):.0f} s before"


def latest_waiting(
    found: Sequence[SlurmCluster], said: Sequence[SlurmJob], name: str | None
) -> list[SlurmJob]:
    """Jobs of that name (of any name with None) that waited when SLURM answered last."""
    answers = {cluster.cluster: cluster.answered_at for cluster in found}
    return [
        job
        for job in said
        # The same transaction noted both times, so clocks don't come into it.
        if job.state == "PENDING" and job.seen_at == answers.get(job.cluster)
        if name is None or job.name == name
    ]
