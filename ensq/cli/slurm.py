"""What ``ensq status`` and ``ensq show`` tell of SLURM."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensq.jobs import SlurmJob, WorkerInfo
    from ensq.store import SlurmSaid


def ask_once(url: str) -> None:
    """Ask SLURM now if nobody did within a minute. It changes what is known, and nothing else."""
    from ensq.errors import EnsqError
    from ensq.store import Store
    from ensq.worker import evidence

    # Who may not write asks nothing either: each look would ask again.
    with suppress(EnsqError, OSError), Store.open(url) as store:
        evidence.ask_once(store)


def identity(worker: WorkerInfo) -> str | None:
    """Who a worker is in SLURM, in words: ``lab 120_3 (job 123), step 0, process 2, restart 1``."""
    if worker.slurm_job is None:
        return None
    text = f"{worker.slurm_cluster} " if worker.slurm_cluster else ""
    text += worker.slurm_job
    if worker.slurm_job_id not in (None, worker.slurm_job):
        text += f" (job {worker.slurm_job_id})"
    for word, value in (
        ("step", worker.slurm_step),
        ("process", worker.slurm_proc),
        ("restart", worker.slurm_restarts or None),
        ("node", worker.slurm_node),
    ):
        text += f", {word} {value}" if value is not None else ""
    return text


def identity_json(worker: WorkerInfo | None) -> dict[str, Any] | None:
    """The same for programs."""
    if worker is None or worker.slurm_job is None:
        return None
    return {
        "job": worker.slurm_job,
        **{
            name: getattr(worker, f"slurm_{name}")
            for name in ("cluster", "job_id", "step", "proc", "restarts", "node")
        },
    }


class SlurmView:
    """What SLURM said last, for one look at an ensemble."""

    def __init__(self, said: SlurmSaid, now: float, workers: Iterable[WorkerInfo] = ()) -> None:
        """``workers`` that train: their jobs wait no more, whatever SLURM said before."""
        self._said = said
        self._now = now
        self._began = {(one.slurm_job, one.slurm_job_id, one.slurm_restarts) for one in workers}

    def of_worker(self, worker: WorkerInfo) -> str | None:
        """SLURM's word on a worker's job, with its age; None outside SLURM."""
        from ensq.store import evidence

        if worker.slurm_job is None:
            return None
        run = evidence.run_of(worker, self._said.jobs)
        after = evidence.run_after(worker, self._said.jobs)
        if after is not None:
            ended = f"{run.state}, " if run is not None and evidence.is_over(run) else ""
            return f"{ended}requeued: {self._words(after)}"
        if run is None:
            return "nothing yet" if self._is_new(worker) else "unknown"
        return self._words(run)

    def _is_new(self, worker: WorkerInfo) -> bool:
        """Whether a worker began after SLURM had answered last."""
        answers = [
            cluster.answered_at
            for cluster in self._said.clusters
            if worker.slurm_cluster in (None, cluster.cluster) and cluster.answered_at is not None
        ]
        return bool(answers) and worker.started_at >= max(answers)

    def of_worker_json(self, worker: WorkerInfo) -> dict[str, Any] | None:
        from ensq.store import evidence

        identity = identity_json(worker)
        if identity is None:
            return None
        run = evidence.run_of(worker, self._said.jobs)
        after = evidence.run_after(worker, self._said.jobs)
        return {**identity, "said": self._json(run), "requeued": self._json(after)}

    def waiting(self, ensemble: str | None) -> list[str]:
        """Lines about jobs that wait in SLURM's queue; arrays are drawn together."""
        groups: dict[tuple[str, str], list[SlurmJob]] = {}
        for job in self._waiting(ensemble):
            groups.setdefault((job.label.partition("_")[0], job.reason or ""), []).append(job)
        lines = []
        for (number, _), jobs in groups.items():
            text = f"waits in SLURM: {_labels(number, jobs)}: {self._words(jobs[0])}"
            lines += wrapped(text)
        return lines

    def waiting_json(self, ensemble: str | None) -> list[dict[str, Any]]:
        return [
            {"job": job.label, "name": job.name, "restarts": job.restarts} | (self._json(job) or {})
            for job in self._waiting(ensemble)
        ]

    def _waiting(self, ensemble: str | None) -> list[SlurmJob]:
        from ensq.store import evidence

        name = None if ensemble is None else evidence.job_name(ensemble)
        found = evidence.latest_waiting(self._said.clusters, self._said.jobs, name)
        return [job for job in found if (job.label, job.job_id, job.restarts) not in self._began]

    def _words(self, job: SlurmJob) -> str:
        """``PENDING (Priority), 40 s ago``"""
        from ensq.progress import duration

        reason = f" ({job.reason})" if job.reason else ""
        return f"{job.state}{reason}, {duration(max(0.0, self._now - job.seen_at))} ago"

    def _json(self, job: SlurmJob | None) -> dict[str, Any] | None:
        if job is None:
            return None
        return {
            "state": job.state,
            "reason": job.reason,
            "node": job.node,
            "restarts": job.restarts,
            "seconds_since_seen": max(0.0, self._now - job.seen_at),
        }


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """Lines of 80 columns without control characters."""
    from ensq.progress import printable

    return textwrap.wrap(
        printable(text), 80, initial_indent=indent, subsequent_indent=f"{indent}  "
    )


def _labels(number: str, jobs: Sequence[SlurmJob]) -> str:
    """``120_[3-7]``, or ``120``."""
    from ensq.text import ranges

    elements = [int(job.label.partition("_")[2]) for job in jobs if "_" in job.label]
    if not elements:
        return number
    return f"{number}_[{ranges(elements)}]" if len(elements) > 1 else f"{number}_{elements[0]}"
