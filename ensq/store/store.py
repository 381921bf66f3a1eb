"""The class that the rest of ensq sees. Each method is one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import Connection

from ensq.jobs import (
    Checkpoint,
    Claim,
    EarlyEnd,
    Ensemble,
    EpochRecord,
    Job,
    Outcome,
    Result,
    State,
    WorkerInfo,
)
from ensq.store import (
    claims,
    endings,
    ensembles,
    fences,
    opening,
    reads,
    reaping,
    writes,
)
from ensq.store.deciding import Deciding
from ensq.store.engine import BUSY_TIMEOUT, Database
from ensq.store.policy import Ending, Policy
from ensq.store.target import Target
from ensq.store.values import Added, EpochWrite, Outlook, Reaped, Renewal
from ensq.store.watch import Watch

Clock = Callable[[], float]
T = TypeVar("T")


class Store(Deciding):
    """An open queue. Any method may raise errors.DatabaseError.

    Writes about a job carry a ``Claim``. One that is superseded (another attempt, another owner,
    cancelled, taken back) changes nothing: methods for one job raise errors.LeaseLost, methods
    for a pack do the others' part and return the claims that are lost.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock = time.time,
        *,
        monotonic: Clock = time.monotonic,
        policy: Policy = Policy(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(database, clock, monotonic, policy)
        self._watch = Watch(monotonic)
        self._handed_out: set[tuple[int, int]] = set()  # attempts that claims returned
        self._claim_unsure = False  # a claim may have been carried out without an answer

    @classmethod
    def open(
        cls,
        url: str | PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
        busy_timeout: float = BUSY_TIMEOUT,
        policy: Policy = Policy(),  # noqa: B008  (frozen)
    ) -> Self:
        """Open the database at ``url``: a path, ``sqlite:///path`` or ``postgresql://…``.

        ``create`` makes one where there is none, or an empty one. ``read_only`` changes nothing
        and works in a folder that can't be written. ``clock`` gives seconds since 1970
        (PostgreSQL's own counts where there is one); ``monotonic`` is the clock of leases.

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
        database = Database(target, read_only=read_only, busy_timeout=busy_timeout)
        return cls(database, clock, monotonic=monotonic, policy=policy)

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
        super().close()
        self._database.close()

    @property
    def root(self) -> Path:
        """The folder that paths of runs and data are relative to; absolute."""
        return self._database.target.root

    @property
    def where(self) -> str:
        """Where the database is, for messages: no password shows."""
        return self._database.target.where

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
        early_stopping: str | None = None,
    ) -> Added:
        """Add an ensemble with one queued job for each seed, each of ``epochs`` epochs.

        If it is there already, with the same digests, only seeds that are new are added: twice is
        the same as once. ``early_stopping`` is the section as JSON; another one than before is in
        force from then on. Raises MismatchError if its configuration or data differ, UsageError if
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
            early_stopping=early_stopping,
            created_at=self.now(),
        )
        return self._write(lambda c, now: ensembles.add(c, now, wanted, seeds, epochs))

    def cancel(self, ensemble: str, seeds: Sequence[int] | None = None) -> list[int]:
        """Cancel members of the ensemble of that name; all with ``seeds=None``.

        Members that are done or cancelled stay as they are. The worker of a running one learns it
        at its next write. Returns the seeds that changed. Raises UsageError for an unknown name
        or seed.
        """
        return self._write(lambda c, now: ensembles.cancel(c, now, ensemble, seeds))

    def retry(self, ensemble: str, seeds: Sequence[int] | None = None) -> list[int]:
        """Queue failed and cancelled members again, with all their counts at 0.

        Returns the seeds that changed. Raises UsageError for an unknown name or seed.
        """
        return self._write(lambda c, now: ensembles.retry(c, now, ensemble, seeds))

    def hold(self, ensemble: str, seeds: Sequence[int] | None = None) -> list[int]:
        """Keep members from being claimed, until ``unhold``.

        The worker of a running one saves it and gives it back once it learns of it, when it next
        renews its lease. Returns the seeds that changed. Raises UsageError as ``cancel`` does.
        """
        return self._write(lambda c, now: ensembles.hold(c, now, ensemble, seeds))

    def unhold(self, ensemble: str, seeds: Sequence[int] | None = None) -> list[int]:
        """Queue held members again. Returns the seeds that changed."""
        return self._write(lambda c, now: ensembles.unhold(c, now, ensemble, seeds))

    def drain(self, worker_ids: Sequence[str] | None = None) -> list[str]:
        """Ask workers (all with None) to finish their epoch and leave; returns their ids."""
        return self._write(lambda c, now: claims.drain(c, now, worker_ids))

    # What workers do

    def register_worker(self, worker: WorkerInfo) -> None:
        """Make a worker known, before its first claim; see ``worker_info``.

        The same worker again updates its device and SLURM job; another process under the same id
        is an IntegrityError.
        """
        self._write(lambda c, now: claims.register(c, now, worker))

    def worker_ended(self, worker_id: str) -> None:
        """Note that a worker ended; what it still holds is taken back at the next claim."""
        self._write(lambda c, now: claims.unregister(c, now, worker_id))

    def claim(
        self,
        worker_id: str,
        *,
        limit: int,
        lease_seconds: float,
        ensemble: str | None = None,
        log_path: str | None = None,
        whole_pack: bool = False,
        beside: Claim | None = None,
    ) -> list[Job]:
        """Take up to ``limit`` queued jobs that can train as one pack; [] if there are none.

        Lost workers' jobs are taken back first. All jobs are of one ensemble and stand at the
        same checkpoint (epoch, step): the first ensemble with queued jobs, its furthest trained
        first, then by index. Each has a new attempt number; losses recorded after its checkpoint
        are dropped, since they will be computed again. Jobs that pause after a failure are left.

        Members of one claim that wait with a checkpoint are taken together again, never with
        others; ``whole_pack``: all of them, whatever the limit. ``beside`` takes a fair share of
        the members that stand where that claim stands, to train in one pack with it.

        Raises EnsqError if the worker is not registered, UsageError for an unknown ensemble.
        """

        def work(connection: Connection, now: float) -> list[Job]:
            if self._claim_unsure:
                mine = claims.unacknowledged(connection, worker_id, self._handed_out)
                if mine:
                    return mine
            # From here on the claim may be carried out without our learning of it.
            self._claim_unsure = True
            self._reap(connection, now)
            return claims.claim(
                connection,
                now,
                worker_id,
                limit=limit,
                lease_seconds=lease_seconds,
                policy=self.policy,
                ensemble=ensemble,
                log_path=log_path,
                whole_pack=whole_pack,
                beside=beside,
            )

        taken = self._write(work)
        self._claim_unsure = False
        self._handed_out |= {(job.id, job.attempt) for job in taken}
        return taken

    def reap(self) -> list[Reaped]:
        """Take running jobs back from lost workers; returns them.

        Lost is a worker that has ended, or whose process on this host is gone (now), or that gave
        no sign of life for the length of its lease while this store watched: so a worker of
        another host is lost at the earliest that long after the first look.
        """
        return self._write(self._reap)

    def _reap(self, connection: Connection, now: float) -> list[Reaped]:
        return reaping.reap(
            connection, now, watch=self._watch, gone=self.is_gone, policy=self.policy
        )

    def outlook(self, ensemble: str | None = None) -> Outlook:
        """What a worker without work can expect of all ensembles, or of one; changes nothing.

        Each call is a look at running jobs: see ``reap``.
        """

        def work(connection: Connection) -> Outlook:
            lost = reaping.lost(connection, self._watch, self.is_gone)
            gone = {row.id for row, _ in lost}
            return reads.outlook(
                connection, self._time(connection), self.policy, ensemble, gone, self._watch
            )

        return self._read(work)

    def renew(self, held: Sequence[Claim], worker_id: str | None = None) -> Renewal:
        """Give a sign of life for jobs; says which are still held, and what people want.

        ``worker_id`` is for a worker that may hold nothing at the moment.
        """
        return self._write(lambda c, now: claims.renew(c, now, held, worker_id))

    def record_epoch(
        self,
        claim: Claim,
        record: EpochRecord,
        *,
        best_epoch: int | None,
        best_loss: float | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        """``record_epochs`` for one member. Raises LeaseLost."""
        write = EpochWrite(claim, record, best_epoch, best_loss, checkpoint)
        if self.record_epochs([write]):
            raise fences.lost(claim)

    def record_epochs(
        self,
        members: Iterable[
            EpochWrite | tuple[Claim, EpochRecord, int | None, float | None, Checkpoint | None]
        ],
    ) -> list[Claim]:
        """Record one epoch of a pack, a sign of life too; returns the claims that are lost.

        A checkpoint, which must be of that epoch at step 0, becomes the job's, and the present
        one its fallback. The same epoch again changes nothing; with other losses, or after a gap,
        it is an EnsqError, and nothing is written.
        """
        all_writes = [EpochWrite(*member) for member in members]
        return self._write(lambda c, now: writes.record_epochs(c, now, all_writes))

    def record_checkpoint(self, members: Iterable[tuple[Claim, Checkpoint]]) -> list[Claim]:
        """Record checkpoints within an epoch, as on a signal; returns the claims that are lost.

        Raises EnsqError (nothing is written) if a checkpoint's epochs are not those recorded.
        """
        all_writes = list(members)
        return self._write(lambda c, now: writes.record_checkpoints(c, now, all_writes))

    def stand_at(
        self,
        claim: Claim,
        checkpoint: Checkpoint | None,
        records: Sequence[EpochRecord],
        reason: str,
    ) -> Job:
        """The trainer goes on from another checkpoint than the row says: have the row stand there.

        An older one (or none) is used where the newer ones are damaged; losses after it are
        dropped. A newer one was written and never recorded; ``records``, its losses from the
        first epoch on, fill what the rows lack. Returns the job. Raises LeaseLost; EnsqError if
        losses would have gaps.
        """
        return self._write(
            lambda c, now: writes.stand_at(c, now, claim, checkpoint, records, reason)
        )

    def finish(
        self,
        claim: Claim,
        result: Result,
        records: Sequence[EpochRecord] = (),
        *,
        early: EarlyEnd | None = None,
    ) -> None:
        """running -> done. Raises LeaseLost; EnsqError unless each epoch was recorded once.

        ``records`` are all epochs of a result that an earlier attempt left unrecorded; ``early``:
        it ends before its last epoch.
        """
        self._write(lambda c, now: writes.finish(c, now, claim, result, records, early))

    def release(
        self,
        held: Iterable[Claim],
        outcome: Outcome = Outcome.INTERRUPTED,
        reason: str = "",
        *,
        asked: bool = False,
    ) -> list[Claim]:
        """Give jobs back: running -> queued (or held); returns the claims that are lost.

        ``outcome`` is INTERRUPTED, BLOCKED or LOST; ``asked``: a person wanted the interruption.
        See ``ensq.store.policy`` for when a job is set aside instead.
        """
        if outcome not in (Outcome.INTERRUPTED, Outcome.BLOCKED, Outcome.LOST):
            raise ValueError(f"a job is not released as {outcome}: use fail")
        ending = Ending(outcome=outcome, reason=reason, asked=asked)
        all_held = list(held)
        return self._write(lambda c, now: endings.release(c, now, all_held, ending, self.policy))

    def fail(
        self,
        claim: Claim,
        outcome: Outcome,
        reason: str,
        *,
        retry: bool,
        log_tail: str | None = None,
    ) -> State:
        """A try failed, by FAILURE or CRASH, which are counted apart; returns the new state.

        Queued again after a pause if ``retry`` and its budget is not used up, else failed for
        good, with the reason as the error. Raises LeaseLost.
        """
        if outcome not in (Outcome.FAILURE, Outcome.CRASH):
            raise ValueError(f"a job fails by failure or crash, not by {outcome}: use release")
        ending = Ending(outcome=outcome, reason=reason, retry=retry, log_tail=log_tail)
        job = self._write(lambda c, now: endings.end(c, now, claim, ending, self.policy))
        if job is None:
            raise fences.lost(claim)
        return job.state
