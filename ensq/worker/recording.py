"""What the trainer says becomes fenced rows: one write of the ledger for each event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ensq.errors import DatabaseError, EnsqError, LeaseLost
from ensq.jobs import Checkpoint, Claim, EarlyEnd, Job, Outcome, Result, State
from ensq.progress import loss, printable
from ensq.rundir import RunDir
from ensq.store import EpochWrite, Renewal, Store
from ensq.worker import protocol as say
from ensq.worker.child import ProtocolError
from ensq.worker.ledger import Ledger
from ensq.worker.members import Member, epoch_line, names, record_of

_KEPT = 2  # recorded checkpoints of an attempt after which those of earlier ones are not needed


class Recorder:
    """The members of one claim and their rows. Writes wait in the ledger if the database is away.

    A write that is held back by the fence ends the member here: nothing more is written for it.
    """

    def __init__(
        self,
        *,
        store: Store,
        run_dir: RunDir,
        jobs: Sequence[Job],
        worker_id: str,
        on_lost: Callable[[Sequence[Member]], None],
        log: Callable[[str], None],
    ) -> None:
        self._store = store
        self._run_dir = run_dir
        self._on_lost = on_lost
        self._log = log
        self.ledger = Ledger(log)
        self._worker_id = worker_id
        self.held: dict[int, Member] = {}
        self.add(jobs)
        self.finished = 0  # members that are done
        self.epochs = 0  # recorded
        self.last_failure = ""
        self.failed = 0  # members that failed or crashed, and were to be tried again

    @property
    def open(self) -> list[Member]:
        """Members that are still to be trained."""
        return [member for member in self.held.values() if not member.over]

    def add(self, jobs: Sequence[Job]) -> None:
        """Members that were claimed."""
        for job in jobs:
            claim = Claim(job_id=job.id, attempt=job.attempt, owner=self._worker_id)
            self.held[job.id] = Member(job, claim)

    # What the trainer says

    def resumed(self, event: say.Resumed) -> None:
        """Have the row stand where the member really goes on."""
        member = self.held.get(event.job_id)
        if member is None:
            return
        for name in event.rejected:
            self._log(
                f"{member.name}: a checkpoint did not verify and is not used: {printable(name)}"
            )
        found = None if event.checkpoint is None else self._checkpoint(event.checkpoint)
        if found is not None:
            step = f", step {found.step}" if found.step else ""
            self._log(f"{member.name}: going on after epoch {found.epoch}{step}")
        if found == member.job.checkpoint:
            return
        reason = "a checkpoint that was never recorded"
        if event.rejected:
            reason = f"a checkpoint did not verify: {printable(event.rejected[0])[:300]}"
        records = [record_of(losses) for losses in event.history]

        def write() -> None:
            if member.job.id in self.held:
                with self.fenced(member):
                    member.job = self._store.stand_at(member.claim, found, records, reason)

        self.ledger.add(write)

    def epoch(self, event: say.EpochDone) -> None:
        """One transaction for the epoch of all members that are still held."""

        def write() -> None:
            records = [record for record in event.members if record.job_id in self.held]
            if not records:
                return
            try:
                lost = self._store.record_epochs([self._epoch_write(item) for item in records])
            except DatabaseError:
                raise
            except EnsqError as error:  # an epoch left out, or a checkpoint of another one
                raise ProtocolError(str(error)) from error
            self.lose(lost)
            self.epochs += 1
            for record in records:
                self._after_epoch(record)

        self.ledger.add(write)

    def _after_epoch(self, record: say.MemberEpoch) -> None:
        member = self.held.get(record.job_id)
        if member is None:
            return
        self._log(epoch_line(member, record))
        if record.checkpoint is None:
            return
        member.checkpoints += 1
        if member.checkpoints == _KEPT:
            # Only now, by a fenced write, is it sure that nobody else goes on from those.
            self._run_dir.prune(member.job.seed, member.job.attempt, ())

    def _epoch_write(self, record: say.MemberEpoch) -> EpochWrite:
        written = record.checkpoint
        return EpochWrite(
            claim=self.held[record.job_id].claim,
            record=record_of(record),
            best_epoch=record.best_epoch,
            best_loss=record.best_loss,
            checkpoint=None if written is None else self._checkpoint(written),
            blocks=record.blocks,
        )

    def done(self, event: say.MemberDone) -> None:
        member = self._take_over(event.job_id)
        if member is None:
            return
        result = Result(
            best_epoch=event.best_epoch,
            best_loss=event.best_loss,
            final_loss=event.final_loss,
            path=self._relative(event.path),
            digest=event.digest,
        )
        records = [record_of(losses) for losses in event.adopted]
        early = self._early_end(event.early)
        how = "" if early is None else f", stopped early by the rule {early.rule}"
        how += ", by an earlier attempt whose result was never recorded" if records else ""

        def write() -> None:
            try:
                with self.fenced(member):
                    self._store.finish(member.claim, result, records, early=early)
                    self.finished += 1
                    self.held.pop(member.job.id, None)
                    best = f"best {loss(event.best_loss)} at epoch {event.best_epoch}"
                    self._log(f"{member.name} is done{how}: {best}")
            except DatabaseError:
                raise
            except EnsqError as error:  # refused: its losses have gaps
                raise ProtocolError(str(error)) from error

        self.ledger.add(write)

    def stopped(self, event: say.Stopped) -> None:
        """The checkpoints that were written on the way out."""
        written = {
            member.claim: self._checkpoint(last)
            for job_id, member in self.held.items()
            if (last := event.checkpoints.get(str(job_id))) is not None
        }

        def write() -> None:
            mine = [(claim, at) for claim, at in written.items() if claim.job_id in self.held]
            if not mine:
                return
            try:
                self.lose(self._store.record_checkpoint(mine))
            except DatabaseError:
                raise
            except EnsqError as error:  # the checkpoints before are as good
                self._log(f"the last checkpoints are not used: {error}")

        self.ledger.add(write)

    # Ends

    def release(
        self, reason: str, outcome: Outcome = Outcome.INTERRUPTED, *, asked: bool = False
    ) -> None:
        """Give back what is still held; it goes on from its last checkpoint."""
        members = [taken for m in self.open if (taken := self._take_over(m.job.id))]
        if not members:
            return

        def write() -> None:
            mine = [member for member in members if member.job.id in self.held]
            claims = [member.claim for member in mine]
            lost = self._store.release(claims, outcome, reason, asked=asked)
            given = [member for member in mine if member.claim not in lost]
            self.lose(lost)
            for member in given:
                self.held.pop(member.job.id, None)
            if given:
                self._log(f"gave back {names(given)}: {reason}")
            for member in given:
                self._say_if_failed(member)

        self.ledger.add(write)

    def _say_if_failed(self, member: Member) -> None:
        """Tell of a member that was given back once too often."""
        with suppress(EnsqError):  # the log alone needs it
            job = self._store.job(member.job.id)
            if job.state is State.FAILED:
                self._log(f"{member.name}: it has failed for good: {printable(str(job.error))}")

    def fail(
        self,
        members: Sequence[Member],
        outcome: Outcome,
        reason: str,
        *,
        retry: bool,
        log_tail: str | None = None,
    ) -> None:
        """An attempt failed or crashed."""
        reason = printable(" ".join(reason.split()))
        self.failed += len(members) if retry else 0
        self.last_failure = reason[:300]
        for member in members:
            if self._take_over(member.job.id) is not None:
                self.ledger.add(self._fail_write(member, outcome, reason, retry, log_tail))

    def _fail_write(
        self, member: Member, outcome: Outcome, reason: str, retry: bool, tail: str | None
    ) -> Callable[[], None]:
        def write() -> None:
            with self.fenced(member):
                state = self._store.fail(member.claim, outcome, reason, retry=retry, log_tail=tail)
                self.held.pop(member.job.id, None)
                then = "it has failed for good" if state is State.FAILED else "it is tried again"
                self._log(f"{member.name}: {reason}; {then}")

        return write

    def renew(self) -> Renewal:
        """Give a sign of life. Raises DatabaseError."""
        claims = [member.claim for member in self.held.values()]
        renewal = self._store.renew(claims)
        self.lose([claim for claim in claims if claim not in renewal.held])
        return renewal

    def lose(self, claims: Sequence[Claim]) -> None:
        """Members that belong to someone else now; publish nothing of them."""
        gone = [self.held.pop(claim.job_id) for claim in claims if claim.job_id in self.held]
        for member in gone:
            state = None
            with suppress(EnsqError):
                state = self._store.job(member.job.id).state
            why = "was cancelled" if state is State.CANCELLED else "belongs to another attempt now"
            self._log(
                f"{member.name}: superseded; the member {why}, and nothing more is written for "
                f"attempt {member.job.attempt}"
            )
        if gone:
            self._on_lost(gone)

    # Small things

    def _take_over(self, job_id: int) -> Member | None:
        """The member, if its end is not on its way yet; from now on it is."""
        member = self.held.get(job_id)
        if member is None or member.over:
            return None
        member.over = True
        return member

    def fenced(self, member: Member) -> _Fence:
        """A context in which a write that the fence holds back loses the member."""
        return _Fence(self, member)

    def _early_end(self, told: say.Early | None) -> EarlyEnd | None:
        if told is None:
            return None
        written = told.checkpoint
        return EarlyEnd(
            rule=told.rule,
            epoch=told.epoch,
            evidence=told.evidence,
            checkpoint=None if written is None else self._checkpoint(written),
        )

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


class _Fence:
    """Inside, a write that is held back by the fence loses the member instead of raising."""

    def __init__(self, recorder: Recorder, member: Member) -> None:
        self._recorder, self._member = recorder, member

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, LeaseLost):
            return False
        self._recorder.lose([self._member.claim])
        return True
