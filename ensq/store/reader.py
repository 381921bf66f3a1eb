"""What anyone may read of an open queue, also without the right to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from sqlalchemy import Connection

from ensq.jobs import (
    Attempt,
    Decision,
    Ensemble,
    EpochRecord,
    Job,
    Result,
    State,
    WorkerInfo,
)
from ensq.store import early, evidence, process, reads
from ensq.store.engine import Database
from ensq.store.target import Target
from ensq.store.values import Event, SlurmSaid, Standing

T = TypeVar("T")


class Reader:
    """The reading half of ``Store``. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _read(self, work: Callable[[Connection], T]) -> T:
        return self._database.run(work, write=False)

    @property
    def target(self) -> Target:
        """The place of the database; its URL may hold a password."""
        return self._database.target

    def is_gone(self, worker: WorkerInfo) -> bool:
        """Whether the worker's process is provably gone; False if it lives or can't be judged."""
        return process.is_gone(worker, self._database.target)

    def ensembles(self) -> list[Ensemble]:
        """All ensembles, oldest first."""
        return self._read(lambda c: reads.all_ensembles(c))

    def ensemble(self, name: str) -> Ensemble | None:
        """The ensemble of that name."""
        return self._read(lambda c: reads.ensemble(c, name))

    def jobs(self, ensemble_id: int) -> list[Job]:
        """The members of an ensemble, by index."""
        return self._read(lambda c: reads.jobs_of(c, ensemble_id))

    def job(self, job_id: int) -> Job:
        """One job. Raises UsageError if there is none."""
        return self._read(lambda c: reads.job(c, job_id))

    def result(self, job_id: int) -> Result | None:
        """What a done job left; None if it isn't done."""
        return self._read(lambda c: reads.result(c, job_id))

    def attempts(self, job_id: int) -> list[Attempt]:
        """The attempts at a job, first to last."""
        return self._read(lambda c: reads.attempts_of(c, job_id))

    def workers(self, ids: Iterable[str]) -> dict[str, WorkerInfo]:
        """The workers of these ids that are known, by id."""
        return self._read(lambda c: reads.workers_of(c, ids))

    def epochs(self, job_id: int) -> list[EpochRecord]:
        """The losses of a job, epoch by epoch; NaN where a loss was not a number."""
        return self._read(lambda c: reads.epochs_of(c, job_id))

    def events(self, ensemble_id: int | None = None, limit: int = 50) -> list[Event]:
        """The last ``limit`` events, oldest first."""
        return self._read(lambda c: reads.last_events(c, ensemble_id, limit))

    def events_of(self, job_id: int) -> list[Event]:
        """All events of a job, oldest first."""
        return self._read(lambda c: reads.events_of(c, job_id))

    def fallbacks(self, ensemble_id: int) -> list[Event]:
        """For each job of an ensemble the last time that a checkpoint was not used."""
        return self._read(lambda c: reads.fallbacks(c, ensemble_id))

    def job_of(self, ensemble: str, seed: int) -> Job:
        """The member of that seed. Raises UsageError if there is none."""
        return self._read(lambda c: reads.job_of(c, ensemble, seed))

    def living_workers(self) -> list[WorkerInfo]:
        """The workers that have not signed off, oldest first; some of them may be dead."""
        return self._read(reads.living_workers)

    def counts(self, ensemble_id: int | None = None) -> dict[State, int]:
        """How many jobs are in each state; every state is a key."""
        return self._read(lambda c: reads.counts(c, ensemble_id))

    def decisions(self, ensemble_id: int) -> list[Decision]:
        """What rules of early stopping found about members of an ensemble, oldest first."""
        return self._read(lambda c: early.decisions_of(c, ensemble_id))

    def standings(self) -> list[Standing]:
        """How far each ensemble is, oldest first, without reading its members one by one."""
        return self._read(reads.standings)

    def slurm_said(self) -> SlurmSaid:
        """All that SLURM said last, and when it was asked."""
        return self._read(lambda c: SlurmSaid(evidence.clusters(c), evidence.jobs_of(c)))
