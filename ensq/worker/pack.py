"""One pack in training: the child is heard and minded, leases are kept alive.

The session ends when the child says so, dies, or is stopped, and all of it is recorded. By then
each member that was claimed is done, failed, given back, or lost to another worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ensq.errors import DatabaseError
from ensq.jobs import Ensemble, Job, Outcome
from ensq.progress import duration, printable
from ensq.rundir import RunDir
from ensq.store import Store
from ensq.store.policy import TIME_LIMIT
from ensq.worker import protocol as say
from ensq.worker.child import ProtocolError, TrainerChild, TrainerNotStarted, describe_end
from ensq.worker.health import oom_in_words, oom_kills, pulse_of
from ensq.worker.leases import LeaseClock
from ensq.worker.members import (
    FAILED,
    Member,
    make_folders_or_refuse,
    train_command,
    with_last_lines,
)
from ensq.worker.options import WorkerOptions
from ensq.worker.packing import Packing
from ensq.worker.recording import Recorder
from ensq.worker.referee import Referee
from ensq.worker.signals import STOP_SIGNALS
from ensq.worker.stopping import Reason, Stopper
from ensq.worker.timing import Timing

_LINGER = 5.0  # seconds that a child may take to end after its last event
_DUMP = 5.0  # seconds that a hanging child may take to write its stacks
_STEP_LINES = 30.0  # seconds between signs of life of a long epoch in the log
_STOPPED = frozenset(-number for number in STOP_SIGNALS)  # as return codes
_TAIL = 40  # lines of the log that are kept with an attempt that failed


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
        timing: Timing,
        log: Callable[[str], None],
        packing: Packing | None = None,
    ) -> None:
        """``packing``: others may join the member that was claimed."""
        self._packing = packing  # until the pack is complete
        self._timing = timing
        self._reached_place = "the trainer was starting"  # how far it got, for people
        self._store = store
        self._options = options
        self._ensemble = ensemble
        self._stopper = stopper
        self._log = log
        self._run_dir = RunDir.of(store.root, ensemble.run_path)
        self.recorder = Recorder(
            store=store,
            run_dir=self._run_dir,
            jobs=jobs,
            worker_id=worker_id,
            on_lost=self._lost,
            log=log,
        )
        self._referee = Referee(store=store, ensemble=ensemble, recorder=self.recorder, log=log)
        self._child: TrainerChild | None = None  # set while it trains
        self._over = False
        self._stop: Reason | None = None
        self._kill_at: float | None = None  # monotonic
        self._granted = 0.0  # seconds that the child got until then
        self._leases = LeaseClock(options.lease_seconds, log)
        self._step_line = 0.0
        self._oom_kills = oom_kills()
        self._pulse = pulse_of(jobs, options)
        self.mismatch = False  # a member was refused since data or configuration changed
        self.blocked: str | None = None  # why nothing can be trained on this host now
        self.draining = False  # a person wants this worker to leave

    def train(self, child: TrainerChild) -> None:
        """Train until each member is settled. The child may be dead afterwards: see its ``ended``.

        Raises DatabaseError if rows could not be written for too long (what was trained lies in
        the attempts' folders, and the next attempt takes it up), and TrainerNotStarted.
        """
        self._child = child
        command = self._train_command(child)
        if self._packing is None:
            child.send(command)
        else:
            self._packing.begin(command)
            if child.ready is not None:
                self._next(child.ready)  # it served others before
        while not (self._over and not self.recorder.ledger.has_writes()):
            self._keep_leases(child)
            self._mind_the_clock(child)
            self._mind_the_child(child)
            if child.ended or self._over:
                if self.recorder.ledger.has_writes():
                    self._give_up_on_database()
                    self._stopper.wait(max(0.02, min(1.0, self._patience())))
            else:
                self._listen(child)

    @property
    def stopped(self) -> bool:
        """Whether the child was told to stop; it may say more, and can't train again."""
        return self._stop is not None

    def _listen(self, child: TrainerChild) -> None:
        """Sleep until something happens; deal with what the child says, or with its end."""
        self._stopper.wait(self._patience(), child)
        child.flush()
        try:
            for event in child.read_events():
                self._pulse.sign()
                self._handle(event)
        except ProtocolError as error:
            self._gone_mad(error, child)
        else:
            if child.ended and not self._over:
                self._child_ended(child)

    def release(self, reason: str) -> None:
        """Give back what is still held since this worker can't go on; no fault of the members."""
        self.recorder.release(reason, Outcome.BLOCKED)

    # Time

    def _patience(self) -> float:
        now = time.monotonic()
        times = [_STEP_LINES]
        if self.recorder.held:
            times.append(self._leases.left())
        if not self._over and self._stop is None:
            times.append(self._pulse.left())
        if self._kill_at is not None:
            times.append(self._kill_at - now)
        due = self.recorder.ledger.due_in()
        if due is not None:
            times.append(due)
        return max(0.0, min(times))

    def _keep_leases(self, child: TrainerChild) -> None:
        """Bring what waits into the database, and renew the leases when it is time.

        Also where epochs are short and are signs of life themselves: renewing is how a worker
        learns what people want of it.
        """
        self._flush(child)
        if not self.recorder.held:
            return
        if self._leases.beats():
            self._renew(child)
        self._leases.distrust()

    def _renew(self, child: TrainerChild) -> None:
        ledger = self.recorder.ledger
        if ledger.has_writes():
            return  # the database is away; what waits there comes first
        try:
            renewal = self.recorder.renew()
        except DatabaseError as error:
            ledger.failed(error)
            self._give_up_on_database()
            return
        self._leases.reached()
        ledger.reached()
        self.draining |= renewal.drain
        if renewal.hold and self._stop is None:
            self._begin_stop(child, Reason("held by a person", asked=True))

    def _flush(self, child: TrainerChild) -> None:
        ledger = self.recorder.ledger
        if not ledger.has_writes():
            return
        try:
            ledger.flush()
        except ProtocolError as error:
            self._gone_mad(error, child)
        if not ledger.has_writes():
            self._leases.reached()

    def _give_up_on_database(self) -> None:
        """Raise the database's error if it was away for too long, or there's no time to wait."""
        ledger = self.recorder.ledger
        late = self._kill_at is not None and time.monotonic() >= self._kill_at
        if ledger.error is not None and (late or ledger.away_for > self._options.patience):
            self._log(
                "the database did not come back; what was trained lies in the attempts' folders, "
                "and the next attempt takes it up from there"
            )
            raise ledger.error

    def _mind_the_clock(self, child: TrainerChild) -> None:
        """Pass a wish to stop on to the child; put an end to one that does not answer."""
        if self._stop is None:
            reason = self._stopper.reason()
            if reason is not None:
                self._begin_stop(child, reason)
        if self._over or self._kill_at is None or time.monotonic() < self._kill_at:
            return
        child.kill()
        self._over = True
        if self.recorder.open:
            self._log(f"the trainer did not answer within {self._granted:.3g} s: killed")
        self._give_back("the trainer did not end")

    def _begin_stop(self, child: TrainerChild, reason: Reason) -> None:
        if reason.text.startswith(TIME_LIMIT):
            reason = replace(reason, text=f"{reason.text}; {self._reached_place}")
        self._stop = reason
        if reason.kill_at is None:
            self._kill_within(self._options.grace)
        else:
            self._kill_within(reason.kill_at - time.monotonic())
        if self._over:
            return
        if child.ready is None or self._packing is not None:
            # It has not begun to train, so there's nothing to save and nothing to wait for.
            child.kill()
            self._over = True
            self._give_back(reason.text)
            return
        self._log(
            f"stopping ({reason.text}): the step is finished and saved, "
            f"{self._granted:.3g} s at most"
        )
        self._timing.asked_to_stop()
        child.send(say.Stop(reason=reason.text))

    def _kill_within(self, seconds: float) -> None:
        self._granted = seconds
        self._kill_at = time.monotonic() + seconds

    def _mind_the_child(self, child: TrainerChild) -> None:
        """Put an end to a child that hangs, and keep what it was doing."""
        if self._over or child.ended or self._stop is not None or self._pulse.left() > 0:
            return
        silence = duration(self._pulse.silence())
        self._log(f"the trainer gave no sign of life for {silence}: it writes its stacks and ends")
        child.dump(_DUMP)
        self._crashed(f"the trainer hung: no sign of life for {silence}", child)

    # Events

    def _handle(self, event: say.Event) -> None:
        match event:
            case say.Ready():
                versions = ", ".join(f"{name} {text}" for name, text in event.versions.items())
                self._log(printable(f"trainer {event.pid} is ready: {event.device}; {versions}"))
                self._reached_place = "the trainer was loading"
                self._next(event)
            case say.Prepared() | say.Probed():
                self._next(event)
            case say.Phase():
                self._reached_place = printable(event.text)
                self._log(self._reached_place)
            case say.Resumed():
                self.recorder.resumed(event)
            case say.StepDone():
                self._on_step(event)
            case say.EpochDone():
                self._on_epoch(event)
            case say.MemberDone():
                self.recorder.done(event)
            case say.MemberFailed():
                self._on_failed(event)
            case say.Stopped():
                self._over = True
                self._timing.stopped()
                self.recorder.stopped(event)
                self._give_back("the trainer stopped")
            case say.TrainEnded():
                self._on_ended()

    def _next(self, event: say.Ready | say.Prepared | say.Probed) -> None:
        """Go on until the pack is complete, and train it."""
        child, packing = self._child, self._packing
        if child is None or packing is None:
            return
        command = packing.heard(event)
        if not self.recorder.open:
            self._over = True  # it was cancelled, or taken over, meanwhile
        elif command is not None:
            child.send(command)
        else:
            self._packing = None
            self._timing.probed(packing.seconds)
            self.recorder.add(packing.joined)
            make_folders_or_refuse(packing.joined, self._run_dir)
            child.send(self._train_command(child))

    def _train_command(self, child: TrainerChild) -> say.Train:
        jobs = [member.job for member in self.recorder.open]
        where = (self._ensemble, self._store.root, child.log_path)
        referee = self._referee
        return train_command(jobs, *where, self._log, referee.orders(jobs), referee.plateau())

    def _on_step(self, event: say.StepDone) -> None:
        if told := self._timing.stepped():
            self._log(told)
        self._reached_place = f"epoch {event.epoch}: step {event.step} of {event.steps}"
        now = time.monotonic()
        if now - self._step_line >= _STEP_LINES:
            self._step_line = now
            self._log(self._reached_place)

    def _on_epoch(self, event: say.EpochDone) -> None:
        self._pulse.epoch()
        self._timing.finished_epoch()
        self._step_line = time.monotonic()
        self.recorder.epoch(event)
        if not self.recorder.ledger.has_writes():
            self._leases.reached()
        if self._child is not None and self._stop is None:
            self._referee.after_epoch(event, self._child.send)
        if self.draining and self._stop is None and self._child is not None:
            self._begin_stop(self._child, Reason("a person asked this worker to leave", asked=True))

    def _on_failed(self, event: say.MemberFailed) -> None:
        member = self.recorder.held.get(event.job_id)
        if member is None:
            return
        reason = f"{event.kind}: {event.message}"
        if event.kind == "disk":
            # Nothing of it is the members' fault, and the others of the pack would meet it too.
            self.blocked = printable(" ".join(event.message.split()))
            self.recorder.release(reason, Outcome.BLOCKED)
            return
        self.mismatch |= event.kind == "mismatch"
        outcome, retry = FAILED[event.kind]
        tail = self._tail() if retry else None
        self.recorder.fail([member], outcome, reason, retry=retry, log_tail=tail)

    def _on_ended(self) -> None:
        self._over = True
        members = self.recorder.open
        if members:
            reason = "the trainer ended its work without a result"
            self.recorder.fail(members, Outcome.FAILURE, reason, retry=True, log_tail=self._tail())

    # Ends

    def _give_back(self, otherwise: str) -> None:
        """Give back what is held, for the reason that the stop has."""
        stop = self._stop or Reason(otherwise)
        self.recorder.release(stop.text, asked=stop.asked)

    def _child_ended(self, child: TrainerChild) -> None:
        code = child.reap(_LINGER)
        end = f"the trainer {describe_end(code)}"
        if self._stop is not None or code in _STOPPED:
            # Someone wants it to stop; that is no crash.
            self._over = True
            self._give_back(end)
        elif child.ready is None:
            self._over = True
            self.recorder.release("the trainer did not start", Outcome.BLOCKED)
            raise TrainerNotStarted(with_last_lines(f"{end} before it was ready", child))
        else:
            self._crashed(end + oom_in_words(self._oom_kills), child)

    def _gone_mad(self, error: ProtocolError, child: TrainerChild) -> None:
        child.kill()
        if not self._over:
            self._crashed(str(error), child)
        else:
            members = list(self.recorder.held.values())
            for member in members:
                member.over = False
            self.recorder.fail(members, Outcome.FAILURE, str(error), retry=True)

    def _crashed(self, end: str, child: TrainerChild) -> None:
        self._over = True
        reason = with_last_lines(end, child)
        members: list[Member] = self.recorder.open
        self.recorder.fail(members, Outcome.CRASH, reason, retry=True, log_tail=self._tail())

    def _tail(self) -> str | None:
        lines = [] if self._child is None else self._child.last_lines(_TAIL)
        return "\n".join(line[:300] for line in lines) or None

    def _lost(self, gone: Sequence[Member]) -> None:
        """Stop work for members that belong to someone else now."""
        if self._child is None or self._child.ended:
            return
        self._child.send(say.Drop(job_ids=tuple(member.job.id for member in gone)))
        if not self.recorder.open and self._kill_at is None:
            # Nothing is left to train: a child that is compiling is not worth the wait.
            self._kill_within(self._options.grace)
