"""One pack in training: events of the child in, fenced rows out, leases kept alive.

The session ends when the child says so, dies, or is stopped. By then each member that was claimed
is done, failed, given back, or lost to another worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ensq.errors import DatabaseError, EnsqError, LeaseLost
from ensq.jobs import Checkpoint, Claim, Ensemble, EpochRecord, Job, Outcome, Result, State
from ensq.progress import loss, printable
from ensq.rundir import RunDir
from ensq.store import EpochWrite, Store
from ensq.worker import protocol as say
from ensq.worker.child import ProtocolError, TrainerChild, describe_end
from ensq.worker.members import Member, epoch_line, names, with_last_lines
from ensq.worker.options import WorkerOptions
from ensq.worker.signals import STOP_SIGNALS

_FENCE = 0.7  # share of the lease after which a worker that could not renew stops by itself
_LINGER = 5.0  # seconds that a child may take to end after its last event
_STEP_LINES = 30.0  # seconds between signs of life of a long epoch in the log
_RETRIED = frozenset({"exception", "checkpoint"})  # the other failures would come again
_STOPPED = frozenset(-number for number in STOP_SIGNALS)  # as return codes


class Stopper(Protocol):
    """What the session asks of ``Stopping``."""

    def reason(self) -> str | None: ...
    def wait(self, seconds: float, child: TrainerChild | None = None) -> None: ...


class TrainerNotStarted(EnsqError):
    """The trainer ended before it could take any work: no fault of the members."""


class PackSession:
    """Train the members of one claim with a child, and record it."""

    def __init__(
        self,
        *,
        store: Store,
        options: WorkerOptions,
        ensemble: Ensemble,
        jobs: Sequence[Job],
        worker_id: str,
        stopper: Stopper,
        log: Callable[[str], None],
    ) -> None:
        self._store = store
        self._options = options
        self._ensemble = ensemble
        self._run_dir = RunDir(store.root / ensemble.run_path)
        self._stopper = stopper
        self._log = log
        self._held = {
            job.id: Member(job, Claim(job_id=job.id, attempt=job.attempt, owner=worker_id))
            for job in jobs
        }
        self._child: TrainerChild | None = None  # set while it trains
        self._over = False
        self._stop_reason: str | None = None
        self._kill_at: float | None = None  # monotonic
        self._renewed = self._beat = time.monotonic()
        self._step_line = 0.0
        self.mismatch = False  # a member was refused since data or configuration changed

    def train(self, child: TrainerChild) -> None:
        """Train until each member is settled. The child may be dead afterwards: see its ``ended``.

        Raises DatabaseError where rows can't be written, and TrainerNotStarted.
        """
        self._child = child
        child.send(self._command())
        while not self._over:
            self._keep_leases()
            self._mind_the_clock(child)
            if not child.ended:
                self._listen(child)

    def _listen(self, child: TrainerChild) -> None:
        """Sleep until something happens; deal with what the child says, or with its end."""
        self._stopper.wait(self._patience(), child)
        child.flush()
        try:
            for event in child.read_events():
                self._handle(event)
        except ProtocolError as error:
            child.kill()
            self._crashed(str(error), child)
        else:
            if child.ended and not self._over:
                self._child_ended(child)

    def release(self, reason: str) -> None:
        """Give back what is still held; it goes on from its last recorded checkpoint."""
        if not self._held:
            return
        members = list(self._held.values())
        self._held.clear()
        claims = [member.claim for member in members]
        self._store.release(claims, Outcome.INTERRUPTED, reason)
        self._log(f"gave back {names(members)}: {reason}")

    # Commands

    def make_folders(self) -> None:
        """Make each attempt's folder. Raises OSError."""
        for member in self._held.values():
            self._folder(member.job).mkdir(parents=True, exist_ok=True)

    def _folder(self, job: Job) -> Path:
        return self._run_dir.attempt(job.seed, job.attempt)

    def _command(self) -> say.Train:
        return say.Train(
            members=tuple(
                say.MemberTask(
                    job_id=member.job.id,
                    seed=member.job.seed,
                    attempt=member.job.attempt,
                    folder=str(self._folder(member.job)),
                    resume=self._resume(member),
                )
                for member in self._held.values()
            ),
            config=self._ensemble.config,
            run_folder=str(self._run_dir.path),
            # An absolute path stays as it is.
            data_path=str(self._store.root / self._ensemble.data_path),
            data_digest=self._ensemble.data_digest,
        )

    def _resume(self, member: Member) -> tuple[say.ResumeFrom, ...]:
        found = []
        for checkpoint in (member.job.checkpoint, member.job.previous_checkpoint):
            if checkpoint is None:
                continue
            try:
                path = self._run_dir.inside(checkpoint.path)
            except EnsqError as error:
                self._log(f"{member.name}: {error}; not used")
                continue
            found.append(say.ResumeFrom(path=str(path), digest=checkpoint.digest))
        return tuple(found)

    # Time

    def _patience(self) -> float:
        due = self._beat + self._options.lease_seconds / 4
        if self._kill_at is not None:
            due = min(due, self._kill_at)
        return due - time.monotonic()

    def _keep_leases(self) -> None:
        """Renew the leases when it is time; members that are lost are dropped."""
        now = time.monotonic()
        if now - self._beat < self._options.lease_seconds / 4:
            return
        self._beat = now
        claims = [member.claim for member in self._held.values()]
        try:
            still = self._store.renew(claims, self._options.lease_seconds)
        except DatabaseError as error:
            if now - self._renewed > _FENCE * self._options.lease_seconds:
                raise
            self._log(f"the leases could not be renewed, trying again: {error}")
            return
        self._renewed = now
        self._lose([claim for claim in claims if claim not in still])

    def _mind_the_clock(self, child: TrainerChild) -> None:
        """Pass a wish to stop on to the child; put an end to one that does not answer."""
        if self._stop_reason is None:
            self._stop_reason = self._stopper.reason()
            if self._stop_reason is not None:
                self._stop(child, self._stop_reason)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            child.kill()
            self._over = True
            if self._held:
                self._log(f"the trainer did not answer within {self._options.grace:g} s: killed")
            self.release(self._stop_reason or "the trainer did not end")

    def _stop(self, child: TrainerChild, reason: str) -> None:
        grace = self._options.grace
        if child.ready is None:
            # It has not begun, so there's nothing to save and nothing to wait for.
            child.kill()
            self._over = True
            self.release(reason)
            return
        self._log(f"stopping ({reason}): the step is finished and saved, {grace:g} s at most")
        child.send(say.Stop(reason=reason))
        self._kill_at = time.monotonic() + grace

    # Events

    def _handle(self, event: say.Event) -> None:
        match event:
            case say.Ready():
                self._on_ready(event)
            case say.Phase():
                self._log(printable(event.text))
            case say.Resumed():
                self._on_resumed(event)
            case say.StepDone():
                self._on_step(event)
            case say.EpochDone():
                self._on_epoch(event)
            case say.MemberDone():
                self._on_done(event)
            case say.MemberFailed():
                self._on_failed(event)
            case say.Stopped():
                self._on_stopped(event)
            case say.TrainEnded():
                self._on_ended()

    def _on_ready(self, event: say.Ready) -> None:
        versions = ", ".join(f"{name} {version}" for name, version in event.versions.items())
        self._log(printable(f"trainer {event.pid} is ready: {event.device}; {versions}"))

    def _on_resumed(self, event: say.Resumed) -> None:
        for name in event.rejected:
            self._log(f"a checkpoint did not verify and is not used: {printable(name)}")
        if event.epoch or event.step:
            self._log(f"going on after epoch {event.epoch}, step {event.step}")

    def _settle(self, member: Member, epoch: int) -> bool:
        """Have the row stand at ``epoch``, where the member really went on; False if it is lost.

        A trainer that finds a checkpoint damaged goes on from the one before. The losses after
        that one will come again, and each must be there once.
        """
        try:
            while not member.settled and member.job.epoch > max(epoch, 0):
                member.job = self._store.fall_back(member.claim, "a checkpoint did not verify")
        except LeaseLost:
            self._lose([member.claim])
            return False
        member.settled = True
        return True

    def _on_step(self, event: say.StepDone) -> None:
        now = time.monotonic()
        if now - self._step_line >= _STEP_LINES:
            self._step_line = now
            self._log(f"epoch {event.epoch}: step {event.step} of {event.steps}")

    def _on_epoch(self, event: say.EpochDone) -> None:
        """One transaction for the epoch of all members that are still held."""
        records = [
            record
            for record in event.members
            if record.job_id in self._held
            and self._settle(self._held[record.job_id], record.epoch - 1)
        ]
        writes = [self._epoch_write(record) for record in records]
        if not writes:
            return
        try:
            lost = self._store.record_epochs(writes, self._options.lease_seconds)
        except DatabaseError:
            raise
        except EnsqError as error:  # an epoch left out, or a checkpoint of another one
            raise ProtocolError(str(error)) from error
        self._renewed = self._beat = self._step_line = time.monotonic()
        self._lose(lost)
        for record in records:
            member = self._held.get(record.job_id)
            if member is not None:
                self._log(epoch_line(member, record))

    def _epoch_write(self, record: say.MemberEpoch) -> EpochWrite:
        written = record.checkpoint
        return EpochWrite(
            claim=self._held[record.job_id].claim,
            record=EpochRecord(
                epoch=record.epoch,
                train_loss=record.train_loss,
                val_loss=record.val_loss,
                val_rmse_force=record.val_rmse_force,
                val_rmse_energy=record.val_rmse_energy,
                learning_rate=record.learning_rate,
                seconds=record.seconds,
            ),
            best_epoch=record.best_epoch,
            best_loss=record.best_loss,
            checkpoint=None if written is None else self._checkpoint(written),
        )

    def _on_done(self, event: say.MemberDone) -> None:
        member = self._held.get(event.job_id)
        if member is None:
            return
        result = Result(
            best_epoch=event.best_epoch,
            best_loss=event.best_loss,
            final_loss=event.final_loss,
            path=self._relative(event.path),
            digest=event.digest,
        )
        try:
            self._store.finish(member.claim, result)
        except LeaseLost:
            self._lose([member.claim])
        except DatabaseError:
            raise
        except EnsqError as error:  # refused: its losses have gaps
            self._fail([member], Outcome.FAILURE, str(error), retry=True)
        else:
            del self._held[event.job_id]
            best = f"best {loss(event.best_loss)} at epoch {event.best_epoch}"
            self._log(f"{member.name} is done: {best}")

    def _on_failed(self, event: say.MemberFailed) -> None:
        member = self._held.get(event.job_id)
        if member is None:
            return
        self.mismatch |= event.kind == "mismatch"
        reason = f"{event.kind}: {event.message}"
        self._fail([member], Outcome.FAILURE, reason, retry=event.kind in _RETRIED)

    def _on_stopped(self, event: say.Stopped) -> None:
        self._over = True
        try:
            written = []
            for job_id, member in list(self._held.items()):
                last = event.checkpoints.get(str(job_id))
                if last is not None and self._settle(member, last.epoch):
                    written.append((member.claim, self._checkpoint(last)))
            self._lose(self._store.record_checkpoint(written) if written else [])
        except DatabaseError:
            raise
        except EnsqError as error:  # the checkpoints before are as good
            self._log(f"the last checkpoints are not used: {error}")
        self.release(self._stop_reason or "the trainer stopped")

    def _on_ended(self) -> None:
        self._over = True
        if self._held:
            reason = "the trainer ended its work without a result"
            self._fail(list(self._held.values()), Outcome.FAILURE, reason, retry=True)

    def _checkpoint(self, written: say.Written) -> Checkpoint:
        return Checkpoint(
            path=self._relative(written.path),
            digest=written.digest,
            epoch=written.epoch,
            step=written.step,
        )

    def _relative(self, path: str) -> str:
        try:
            return self._run_dir.relative(Path(path))
        except ValueError:
            raise ProtocolError(
                f"the trainer wrote {path!r}, which is not in {self._run_dir.path}"
            ) from None

    # Ends

    def _child_ended(self, child: TrainerChild) -> None:
        code = child.reap(_LINGER)
        end = f"the trainer {describe_end(code)}"
        if self._stop_reason is not None or code in _STOPPED:
            # Someone wants it to stop; that is no crash.
            self._over = True
            self.release(self._stop_reason or end)
        elif child.ready is None:
            self._over = True
            self.release("the trainer did not start")
            raise TrainerNotStarted(with_last_lines(f"{end} before it was ready", child))
        else:
            self._crashed(end, child)

    def _crashed(self, end: str, child: TrainerChild) -> None:
        self._over = True
        reason = with_last_lines(end, child)
        self._fail(list(self._held.values()), Outcome.CRASH, reason, retry=True)

    def _fail(
        self, members: Sequence[Member], outcome: Outcome, reason: str, *, retry: bool
    ) -> None:
        reason = printable(" ".join(reason.split()))
        for member in members:
            self._held.pop(member.job.id, None)
            try:
                state = self._store.fail(member.claim, outcome, reason, retry=retry)
            except LeaseLost:
                self._superseded([member])
                continue
            then = "it is tried again" if state is State.QUEUED else "it has failed for good"
            self._log(f"{member.name}: {reason}; {then}")

    def _lose(self, claims: Sequence[Claim]) -> None:
        """Stop work for members that belong to someone else now; publish nothing of them."""
        gone = [self._held.pop(claim.job_id) for claim in claims if claim.job_id in self._held]
        if not gone:
            return
        self._superseded(gone)
        if self._child is None or self._child.ended:
            return
        self._child.send(say.Drop(job_ids=tuple(member.job.id for member in gone)))
        if not self._held and self._kill_at is None:
            # Nothing is left to train: a child that is compiling is not worth the wait.
            self._kill_at = time.monotonic() + self._options.grace

    def _superseded(self, members: Sequence[Member]) -> None:
        for member in members:
            state = None
            with suppress(EnsqError):
                state = self._store.job(member.job.id).state
            why = "was cancelled" if state is State.CANCELLED else "belongs to another attempt now"
            self._log(
                f"{member.name}: superseded; the member {why}, and nothing more is written for "
                f"attempt {member.job.attempt}"
            )
