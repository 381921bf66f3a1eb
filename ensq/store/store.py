"""The class that the rest of ensq sees. Each method is one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

from ensq.jobs import (
    Attempt,
    Checkpoint,
    Claim,
    Ensemble,
    EpochRecord,
    Job,
    Outcome,
    Result,
    State,
    WorkerInfo,
)
from ensq.store import claims, ensembles, fences, opening, reads, writes
from ensq.store.engine import BUSY_TIMEOUT, Database
from ensq.store.target import Target
from ensq.store.values import Added, EpochWrite, Event

Clock = Callable[[], float]


class Store:
    """An open queue. Any method may raise errors.DatabaseError.

    Writes about a job carry a ``Claim``. One that is superseded (another attempt, another owner,
    cancelled, taken back) changes nothing: methods for one job raise errors.LeaseLost, methods
    for a pack do the others' part and return the claims that are lost.
    """

    def __init__(self, database: Database, clock: Clock = time.time) -> None:
        self._database = database
        self.clock = clock

    @classmethod
    def open(
        cls,
        url: str | PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        clock: Clock = time.time,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> Self:
        """Open the database at ``url``: a path, ``sqlite:///path`` or ``postgresql://…``.

        ``create`` makes one where there is none, or an empty one. ``read_only`` changes nothing
        and works in a folder that can't be written. ``clock`` gives seconds since 1970.

        Raises UsageError for a URL that can't be used; DatabaseError if there is no database, or
        it isn't ensq's; MismatchError if it has another revision.
        """
        target = Target.parse(url)
        found, revision = opening.look(target, busy_timeout)
        if found is opening.Found.ENSQ:
            opening.require_revision(revision, target)
        elif create and not read_only:
            opening.make(target, busy_timeout)
        else:
            raise opening.missing(found, target)
        return cls(Database(target, read_only=read_only, busy_timeout=busy_timeout), clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    @property
    def root(self) -> Path:
        """The folder that paths of runs and data are relative to; absolute."""
        return self._database.target.root

    @property
    def where(self) -> str:
        """Where the database is, for messages: no password shows."""
        return self._database.target.where

    def now(self) -> float:
        """The store's time: seconds since 1970."""
        return self.clock()

    # What people do

    def add_ensemble(
        self,
        *,
        name: str,
        config: str,
        config_digest: str,
        data_path: str,
        data_digest: str,
        run_path: str,
        seeds: Sequence[int],
        epochs: int,
    ) -> Added:
        """Add an ensemble with one queued job for each seed, each of ``epochs`` epochs.

        If it is there already, with the same digests, only seeds that are new are added: twice is
        the same as once. Raises MismatchError if its configuration or data differ, UsageError if
        a seed stands twice.
        """
        wanted = Ensemble(
            id=0,
            name=name,
            config=config,
            config_digest=config_digest,
            data_path=data_path,
            data_digest=data_digest,
            run_path=run_path,
            created_at=self.now(),
        )
        with self._database.write() as connection:
            return ensembles.add(connection, wanted.created_at, wanted, seeds, epochs)

    def cancel(self, ensemble: str, seeds: Sequence[int] | None = None) -> list[int]:
        """Cancel members of the ensemble of that name; all with ``seeds=None``.

        Members that are done or cancelled stay as they are. The worker of a running one learns it
        at its next write. Returns the seeds that changed. Raises UsageError for an unknown name
        or seed.
        """
        with self._database.write() as connection:
            return ensembles.cancel(connection, self.now(), ensemble, seeds)

    def retry(self, ensemble: str, seeds: Sequence[int] | None = None) -> list[int]:
        """Queue failed and cancelled members again, with their counts of failures at 0.

        Returns the seeds that changed. Raises UsageError for an unknown name or seed.
        """
        with self._database.write() as connection:
            return ensembles.retry(connection, self.now(), ensemble, seeds)

    # What workers do

    def register_worker(self, worker: WorkerInfo) -> None:
        """Make a worker known, before its first claim; see ``worker_info``.

        The same worker again updates its device and SLURM job; another process under the same id
        is an IntegrityError.
        """
        with self._database.write() as connection:
            claims.register(connection, self.now(), worker)

    def worker_ended(self, worker_id: str) -> None:
        """Note that a worker ended; what it still holds is taken back at the next claim."""
        with self._database.write() as connection:
            claims.unregister(connection, self.now(), worker_id)

    def claim(
        self,
        worker_id: str,
        *,
        limit: int,
        lease_seconds: float,
        ensemble: str | None = None,
        log_path: str | None = None,
    ) -> list[Job]:
        """Take up to ``limit`` queued jobs that can train as one pack; [] if there are none.

        Lost workers' jobs are taken back first. All jobs are of one ensemble and stand at the
        same checkpoint (epoch, step): the first ensemble with queued jobs, its furthest trained
        first, then by index. Each has a new attempt number; losses recorded after its checkpoint
        are dropped, since they will be computed again.

        Raises EnsqError if the worker is not registered, UsageError for an unknown ensemble.
        """
        with self._database.write() as connection:
            return claims.claim(
                connection,
                self.now(),
                worker_id,
                limit=limit,
                lease_seconds=lease_seconds,
                ensemble=ensemble,
                log_path=log_path,
            )

    def reap(self, now: float | None = None) -> list[Claim]:
        """Queue again the running jobs of lost workers; returns the claims that ended.

        Lost is a worker that has ended, or whose process on this host is gone (now), or whose
        lease ended before ``now``. Counted as an interruption.
        """
        with self._database.write() as connection:
            return claims.reap(connection, self.now() if now is None else now)

    def renew(
        self, held: Sequence[Claim], lease_seconds: float, worker_id: str | None = None
    ) -> list[Claim]:
        """Prolong leases; returns the claims that still hold. Also the workers' sign of life.

        ``worker_id`` is for a worker that may hold nothing at the moment.
        """
        with self._database.write() as connection:
            return claims.renew(connection, self.now(), held, lease_seconds, worker_id)

    def record_epoch(
        self,
        claim: Claim,
        record: EpochRecord,
        *,
        best_epoch: int | None,
        best_loss: float | None,
        checkpoint: Checkpoint | None,
        lease_seconds: float,
    ) -> None:
        """``record_epochs`` for one member. Raises LeaseLost."""
        write = EpochWrite(claim, record, best_epoch, best_loss, checkpoint)
        if self.record_epochs([write], lease_seconds):
            raise fences.lost(claim)

    def record_epochs(
        self,
        members: Iterable[
            EpochWrite | tuple[Claim, EpochRecord, int | None, float | None, Checkpoint | None]
        ],
        lease_seconds: float,
    ) -> list[Claim]:
        """Record one epoch of a pack and prolong the leases; returns the claims that are lost.

        A checkpoint, which must be of that epoch at step 0, becomes the job's, and the present
        one its fallback. An epoch recorded twice is an IntegrityError, a gap an EnsqError; then
        nothing is written.
        """
        all_writes = [EpochWrite(*member) for member in members]
        with self._database.write() as connection:
            return writes.record_epochs(connection, self.now(), all_writes, lease_seconds)

    def record_checkpoint(self, members: Iterable[tuple[Claim, Checkpoint]]) -> list[Claim]:
        """Record checkpoints within an epoch, as on a signal; returns the claims that are lost.

        Raises EnsqError (nothing is written) if a checkpoint's epochs are not those recorded.
        """
        with self._database.write() as connection:
            return writes.record_checkpoints(connection, self.now(), members)

    def fall_back(self, claim: Claim, reason: str) -> Job:
        """The job's checkpoint is damaged: use the one before, or none; returns the job.

        Losses recorded after the older checkpoint are dropped. Raises LeaseLost.
        """
        with self._database.write() as connection:
            return writes.fall_back(connection, self.now(), claim, reason)

    def finish(self, claim: Claim, result: Result) -> None:
        """running -> done. Raises LeaseLost; EnsqError unless each epoch was recorded once."""
        with self._database.write() as connection:
            writes.finish(connection, self.now(), claim, result)

    def release(
        self, held: Iterable[Claim], outcome: Outcome = Outcome.INTERRUPTED, reason: str = ""
    ) -> list[Claim]:
        """Give jobs back: running -> queued; returns the claims that are lost.

        ``outcome`` is INTERRUPTED (or LOST); it never counts as a failure.
        """
        with self._database.write() as connection:
            return writes.release(connection, self.now(), held, outcome, reason)

    def fail(self, claim: Claim, outcome: Outcome, reason: str, *, retry: bool) -> State:
        """A try failed, by FAILURE or CRASH, which are counted apart; returns the new state.

        Queued again if ``retry`` and it is not the third of its kind, else failed for good, with
        ``reason`` as the error. Raises LeaseLost.
        """
        with self._database.write() as connection:
            return writes.fail(connection, self.now(), claim, outcome, reason, retry)

    # What anyone may read

    def ensembles(self) -> list[Ensemble]:
        """All ensembles, oldest first."""
        with self._database.read() as connection:
            return reads.all_ensembles(connection)

    def ensemble(self, name: str) -> Ensemble | None:
        """The ensemble of that name."""
        with self._database.read() as connection:
            return reads.ensemble(connection, name)

    def jobs(self, ensemble_id: int) -> list[Job]:
        """The members of an ensemble, by index."""
        with self._database.read() as connection:
            return reads.jobs_of(connection, ensemble_id)

    def job(self, job_id: int) -> Job:
        """One job. Raises UsageError if there is none."""
        with self._database.read() as connection:
            return reads.job(connection, job_id)

    def result(self, job_id: int) -> Result | None:
        """What a done job left; None if it isn't done."""
        with self._database.read() as connection:
            return reads.result(connection, job_id)

    def attempts(self, job_id: int) -> list[Attempt]:
        """The attempts at a job, first to last."""
        with self._database.read() as connection:
            return reads.attempts_of(connection, job_id)

    def workers(self, ids: Iterable[str]) -> dict[str, WorkerInfo]:
        """The workers of these ids that are known, by id."""
        with self._database.read() as connection:
            return reads.workers_of(connection, ids)

    def epochs(self, job_id: int) -> list[EpochRecord]:
        """The losses of a job, epoch by epoch; NaN where a loss was not a number."""
        with self._database.read() as connection:
            return reads.epochs_of(connection, job_id)

    def events(self, ensemble_id: int | None = None, limit: int = 50) -> list[Event]:
        """The last ``limit`` events, oldest first."""
        with self._database.read() as connection:
            return reads.last_events(connection, ensemble_id, limit)

    def counts(self, ensemble_id: int | None = None) -> dict[State, int]:
        """How many jobs are in each state; every state is a key."""
        with self._database.read() as connection:
            return reads.counts(connection, ensemble_id)
