"""Keeps what SLURM says about the workers' jobs up to date, beside the worker's own business.

Nothing depends on it: whatever goes wrong here is unknown, and asked again a minute later.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ensq import slurm
from ensq.errors import DatabaseError
from ensq.jobs import SlurmCluster, SlurmJob, WorkerInfo
from ensq.progress import printable
from ensq.slurm.commands import TIMEOUT
from ensq.slurm.evidence import Question, Row
from ensq.store import Store, evidence
from ensq.store.values import Run

_LOOK = 10.0  # seconds between two looks at whose turn it is
_LONG = 0.5  # seconds after which a database counts as one that is better left alone for …
_ALONE = 60.0
_KEPT = 30.0  # seconds that an answer waits for a database that is busy


def with_task(info: WorkerInfo, task: slurm.SlurmTask | None) -> WorkerInfo:
    """The worker with its identity in SLURM."""
    if task is None:
        return info
    return replace(
        info,
        slurm_job=task.label,
        slurm_cluster=task.cluster,
        slurm_job_id=task.job_id,
        slurm_step=task.step_id,
        slurm_proc=task.proc_id,
        slurm_restarts=task.restarts,
        slurm_node=task.node,
    )


def jobs_from(rows: Sequence[Row], cluster: str) -> list[SlurmJob]:
    """The rows that are of this cluster, as the store keeps them."""
    return [
        SlurmJob(
            cluster=cluster,
            label=row.label,
            restarts=row.restarts,
            job_id=row.job_id,
            name=row.name,
            state=row.state,
            reason=row.reason,
            node=row.node,
            submitted_at=row.submitted_at,
        )
        for row in rows
        if not cluster or row.cluster in (None, cluster)
    ]


class Watcher:
    """Asks SLURM when it is this worker's turn. Does nothing outside a SLURM job."""

    def __init__(
        self,
        store: Store,
        worker_id: str,
        task: slurm.SlurmTask | None,
        log: Callable[[str], None],
        *,
        environment: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._id = worker_id
        self._cluster = (task.cluster or "") if task else None
        self._log = log
        self._environment = environment
        self._monotonic = monotonic
        self._next_look = monotonic()
        self._question: Question | None = None
        self._answer: list[SlurmJob] | None = None  # that the store does not have yet
        self._answered = 0.0
        self._accounting = True
        self._silent = False  # squeue did not answer: told once

    def poll(self) -> None:
        """Go on with it. Cheap; never raises, never waits."""
        if self._cluster is None:
            return
        began = self._monotonic()
        try:
            if self._question is not None:
                self._go_on(self._question)
            if self._answer is not None and began >= self._next_look:
                self._keep(self._answer, self._cluster)
            elif self._question is None and began >= self._next_look:
                self._look(self._cluster)
        except DatabaseError:
            # The worker's own writes say so where it matters.
            now = self._monotonic()
            self._next_look = now + (_ALONE if now - began > _LONG else 1.0)
        except Exception as error:  # advice is not worth a training
            self.close()
            self._next_look = self._monotonic() + _ALONE
            self._log(printable(f"SLURM was not asked: {type(error).__name__}: {error}"))

    def close(self) -> None:
        """End a question that is under way."""
        if self._question is not None:
            self._question.close()
            self._question = None

    def _look(self, cluster: str) -> None:
        self._next_look = self._monotonic() + _LOOK
        runs = self._store.may_ask(cluster, self._id)
        if runs is not None:
            self._question = Question(
                runs,
                self._environment,
                accounting=self._accounting,
                monotonic=self._monotonic,
            )

    def _go_on(self, question: Question) -> None:
        rows = question.poll()
        if rows is None:
            return
        self._question = None
        if question.answered:
            self._accounting = question.has_accounting
            self._answer = jobs_from(rows, self._cluster or "")
            self._answered = self._next_look = self._monotonic()
        elif not self._silent:
            self._log("squeue does not answer: what SLURM says of the jobs is unknown")
        self._silent = not question.answered

    def _keep(self, answer: list[SlurmJob], cluster: str) -> None:
        if self._monotonic() - self._answered <= _KEPT:
            self._store.note_slurm(cluster, self._id, answer)
        self._answer = None
        self._next_look = self._monotonic() + _LOOK


def ask_once(store: Store, environment: Mapping[str, str] = os.environ) -> None:
    """Ask SLURM for a person who looks now, unless somebody did within the last minute.

    Takes as long as squeue, 10 s at most. Raises DatabaseError, from a store that can't be written
    too; all else that goes wrong leaves what is known as it is.
    """
    if shutil.which("squeue", path=environment.get("PATH")) is None:
        return
    known = {cluster.cluster: cluster for cluster in store.slurm_said().clusters}
    now = store.now()
    # A time that lies ahead is of another clock, and says nothing.
    if any(0 <= now - cluster.asked_at < evidence.PAUSE for cluster in known.values()):
        return
    guess = environment.get("SLURM_CLUSTER_NAME") or (min(known) if len(known) == 1 else "")
    who = f"{socket.gethostname()}-{os.getpid()}-status"
    runs = _take(store, guess, who, known)
    if runs is None:
        return
    rows = _wait_for(Question(runs, environment))
    if rows is None:
        return
    # Outside a job its name is known from the answer only.
    for cluster in {row.cluster for row in rows if row.cluster} or {guess}:
        if cluster == guess or _take(store, cluster, who, known) is not None:
            store.note_slurm(cluster, who, jobs_from(rows, cluster))


def _take(
    store: Store, cluster: str, who: str, known: Mapping[str, SlurmCluster]
) -> list[Run] | None:
    seen = known[cluster].turn if cluster in known else None
    return store.ask_now(cluster, who, seen)


def _wait_for(question: Question) -> list[Row] | None:
    """The answer within 10 s, or what there is of it by then; None if squeue had none."""
    until = time.monotonic() + TIMEOUT
    try:
        rows = question.poll()
        while rows is None and time.monotonic() < until:
            time.sleep(0.02)
            rows = question.poll()
        return question.rows if question.answered else None
    finally:
        question.close()
