"""The worker: claims members, has them trained by a child process, and writes every row.

No JAX here, and no threads: one loop sleeps until a signal, an event of the child or a time. A
compile of minutes in the child therefore never holds up a heartbeat.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ensq import slurm
from ensq.errors import (
    EXIT_INTERRUPTED,
    EXIT_JOBS_FAILED,
    EXIT_MISMATCH,
    EXIT_OK,
    DatabaseError,
    DiskError,
    EnsqError,
)
from ensq.jobs import Ensemble, Job, State
from ensq.progress import printable
from ensq.rundir import RunDir
from ensq.store import Outlook, Store, WorkerLock, worker_info
from ensq.worker.before_claim import TimeForMembers
from ensq.worker.child import TrainerChild, child_environment
from ensq.worker.evidence import Watcher, with_task
from ensq.worker.headline import headline
from ensq.worker.members import make_folders_or_refuse
from ensq.worker.neighbours import Neighbours
from ensq.worker.options import WorkerOptions, log_to_stderr
from ensq.worker.pack import PackSession
from ensq.worker.packing import Joining, Packing
from ensq.worker.patience import patiently
from ensq.worker.signals import StopSignals
from ensq.worker.stopping import Reason, Stopping

__all__ = ["WorkerOptions", "log_to_stderr", "run_worker"]

T = TypeVar("T")
_QUIT_PATIENCE = 5.0  # seconds for an idle trainer to end
_MINUTE = 60.0


class BadHost(EnsqError):
    """Attempts fail one after the other here: the host is at fault, not the members."""


def run_worker(options: WorkerOptions) -> int:
    """Work until nothing is left to take; return the exit code.

    0: nothing is left to do (with ``drain``: every member is ended), or a person asked this worker
    to leave; 1: nothing is left, but members of the ensembles worked on have failed for good; 75:
    stopped, or this host can't write its files, with work left; 78: data or configuration is not
    what was enqueued. Main thread only: it installs signal handlers.

    Raises EnsqError with its own exit code, DatabaseError (69) and BadHost (1) among them.
    """
    log = _timestamped(options.log)
    with StopSignals(for_good=options.ends_process) as signals:
        known = slurm.deadline()
        watch = slurm.DeadlineWatch(known=known)
        stopping = Stopping(
            signals,
            deadline=known,
            margin=options.deadline_margin,
            parent_fd=options.parent_fd,
            watch=watch,
            log=log,
        )
        store = patiently(
            lambda: Store.open(
                options.url, busy_timeout=options.busy_seconds, policy=options.policy
            ),
            stopping,
            options.open_patience,
            log,
        )
        try:
            return Worker(options, store, stopping, log).run()
        finally:
            watch.close()
            store.close()


def _timestamped(log: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


class Worker:
    """One worker, from its registration to its exit code."""

    def __init__(
        self,
        options: WorkerOptions,
        store: Store,
        stopping: Stopping,
        log: Callable[[str], None],
    ) -> None:
        self._options = options
        self._store = store
        self._stopping = stopping
        self._log = log
        # Never used again by anyone: it names a log file and fences rows.
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._evidence: Watcher | None = None  # of what SLURM says
        self._lock: WorkerLock | None = None  # of this worker's life; see ensq.store.locks
        self._neighbours = Neighbours(store, self.id)
        self._time = TimeForMembers(store)
        self._taken = 0
        self._claims = 0
        self._served: set[int] = set()  # ensembles that it worked on
        self._mismatch = False
        self._drained = False
        self._failures: list[float] = []  # monotonic times of attempts that failed in a row
        self._child: TrainerChild | None = None
        self._child_serves: int | None = None  # the ensemble of the child's log
        self._may_probe = True  # no trainer has died of measuring packs here
        self._trained_last = 0  # size of the pack that the child has compiled for
        self._interrupted: Reason | None = None
        self._seen = time.monotonic()

    def run(self) -> int:
        task = slurm.task_from_environment()
        job = task.label if task else None
        self._lock = WorkerLock.take(self._store.target, self.id)
        byte = self._lock.byte if self._lock else None
        info = with_task(worker_info(self.id, lock_byte=byte), task)
        self._reach(lambda: self._store.register_worker(info))
        self._evidence = Watcher(self._store, self.id, task, self._log)
        self._stopping.meanwhile = self._evidence.poll
        self._log(
            f"worker {self.id}{f' in SLURM job {job}' if job else ''}, database {self._store.where}"
        )
        for line in self._headline():
            self._log(line)
        try:
            self._work()
            return self._exit_code()
        except DiskError as error:
            self._log(f"stopped: {printable(str(error))}")
            return EXIT_INTERRUPTED
        finally:
            self._end()

    def _work(self) -> None:
        while True:
            self._interrupted = self._stopping.reason()
            if self._interrupted or self._mismatch or self._drained or self._room() == 0:
                return
            self._neighbours.require_locks()
            too_late = self._reach(self._too_late)
            if too_late is not None:
                self._interrupted = Reason(too_late)
                return
            jobs = self._reach(self._claim)
            if jobs:
                self._taken += len(jobs)
                self._claims += 1
                self._train(jobs)
            elif not self._wait_for_work():
                return

    def _claim(self) -> list[Job]:
        return self._store.claim(
            self.id,
            limit=self._room(),
            lease_seconds=self._options.lease_seconds,
            ensemble=self._options.ensemble,
            log_path=self._log_path(self._claims + 1),
            whole_pack=self._options.pack is None,
        )

    def _too_late(self) -> str | None:
        serves = self._child_serves if self._is_there() else None
        return self._time.why_not(self._stopping.left(), self._options.ensemble, serves)

    def _is_there(self) -> bool:
        """Whether a trainer waits for work."""
        return self._child is not None and not self._child.ended

    def _log_path(self, claim: int) -> str:
        """The log of a claim, relative to whatever run folder it stands in."""
        root = RunDir(Path("/"))
        return root.relative(root.log(self.id, claim))

    def _environment(self) -> dict[str, str]:
        return child_environment(os.environ, share=self._options.share)

    def _headline(self) -> list[str]:
        return headline(self._environment(), self._stopping.limit_in_words())

    def _wait_for_work(self) -> bool:
        """Sleep until a claim may bring something; False if it can't, for all that is known."""
        waiting_said = False
        while True:
            outlook = self._reach(self._outlook)
            if outlook.lost or outlook.claimable:
                if not waiting_said:
                    self._stopping.wait(0.05)  # another worker was faster; don't run in circles
                return True
            pause = self._pause(outlook)
            if pause is None:
                return False
            if outlook.unsure and not waiting_said:
                self._say_whom_we_watch(outlook)
            waiting_said = True
            self._stopping.wait(pause)
            self._live()
            if self._stopping.reason() or self._drained:
                return True  # the loop above sees why

    def _outlook(self) -> Outlook:
        return self._store.outlook(self._options.ensemble)

    def _pause(self, outlook: Outlook) -> float | None:
        """How long to sleep before the next look; None if there is nothing to wait for."""
        poll = self._options.poll_seconds
        if outlook.due_in is not None:  # a member pauses after a failure
            return min(poll, outlook.due_in + 0.01)
        if outlook.unsure or (self._options.drain and outlook.open):
            # Someone else trains them; should that worker die, they are taken over here.
            return poll
        return None

    def _say_whom_we_watch(self, outlook: Outlook) -> None:
        count = len(outlook.unsure)
        lease = max(job.lease_seconds or 0.0 for job in outlook.unsure)
        self._log(
            f"{count} member{'s are' if count > 1 else ' is'} held by workers that can't be seen "
            f"from here; watching for {lease:.0f} s at most whether they live"
        )

    def _live(self) -> None:
        """A sign of life of a worker that holds nothing; it also learns what people want of it."""
        if time.monotonic() - self._seen < self._options.lease_seconds / 4:
            return
        self._seen = time.monotonic()
        renewal = self._reach(lambda: self._store.renew([], worker_id=self.id))
        self._drained |= renewal.drain

    def _reach(self, what: Callable[[], T]) -> T:
        return patiently(what, self._stopping, self._options.patience, self._log)

    def _room(self) -> int:
        """How many members may be claimed now; with ``--pack auto`` one, and others beside it."""
        return min(self._options.pack or 1, self._options.jobs_left(self._taken))

    def _train(self, jobs: list[Job]) -> None:
        ensemble = self._reach(lambda: self._ensemble(jobs[0].ensemble_id))
        self._served.add(ensemble.id)
        seeds = ", ".join(f"{job.seed} (attempt {job.attempt})" for job in jobs)
        self._log(f"claimed of {ensemble.name}: seed {seeds}")
        warm = (
            self._is_there()
            and self._child_serves == ensemble.id
            and (self._options.pack is None or self._trained_last == len(jobs))
        )
        self._stopping.timing = self._time.claimed(jobs, warm=warm)
        packing = self._packing(jobs)
        session = PackSession(
            store=self._store,
            options=self._options,
            ensemble=ensemble,
            jobs=jobs,
            worker_id=self.id,
            stopper=self._stopping,
            timing=self._stopping.timing,
            log=self._log,
            packing=packing,
        )
        try:
            child = self._trainer(ensemble, jobs)
            session.train(child)
        except BaseException as error:
            if self._child is not None and not self._child.ended:
                self._child.kill()
            # Without a database the rows can't be given back; a dead worker's are taken back.
            if not isinstance(error, DatabaseError):
                session.release(f"the worker ended: {error}")
            raise
        if session.stopped and not child.ended:
            child.quit(_QUIT_PATIENCE)
        self._trained_last = len(jobs)
        if packing is not None:
            self._taken += len(packing.joined)
            self._may_probe &= session.stopped or not packing.probing  # else it died of it
        self._mismatch |= session.mismatch
        self._drained |= session.draining
        if session.blocked is not None:
            raise DiskError(session.blocked)
        self._count_failures(session)

    def _packing(self, jobs: list[Job]) -> Packing | None:
        """Whom the member that was claimed may train with, where that is left to the worker."""
        may_be_joined = self._options.pack is None and len(jobs) == 1
        if not may_be_joined or self._options.policy.is_last_try(jobs[0]):
            return None  # one that may end one more trainer trains alone
        joining = Joining(
            store=self._store,
            reach=self._reach,
            job=jobs[0],
            worker_id=self.id,
            options=self._options,
            room=self._options.jobs_left(self._taken),
            log_path=self._log_path(self._claims),
            may_probe=self._may_probe,
        )
        return Packing(joining, self._log)

    def _count_failures(self, session: PackSession) -> None:
        """Leave if one attempt after the other fails here within a minute."""
        recorder = session.recorder
        if recorder.epochs or recorder.finished:
            self._failures.clear()
        self._failures += [time.monotonic()] * min(1, recorder.failed)  # a pack fails together
        last = self._failures[-self._options.failures_in_a_row :]
        if len(last) < self._options.failures_in_a_row or last[-1] - last[0] > _MINUTE:
            return
        raise BadHost(
            f"{len(last)} attempts in a row failed within a minute on host "
            f"{socket.gethostname()}: this host, or what all members share, is at fault, so this "
            "worker leaves before it uses up more tries; the last one: "
            f"{session.recorder.last_failure}; see `ensq show` and the log "
            f"{self._log_path(self._claims)} in the run folder, then start a worker again, here "
            "or elsewhere"
        )

    def _trainer(self, ensemble: Ensemble, jobs: list[Job]) -> TrainerChild:
        """The child that serves this ensemble: the one that is there, or a new one.

        A child keeps to one ensemble: another has nothing to share with it but memory, and its
        log belongs into another folder. Each claim has a log of its own. Raises DiskError.
        """
        run_dir = RunDir.of(self._store.root, ensemble.run_path)
        make_folders_or_refuse(jobs, run_dir)
        log_path = run_dir.log(self.id, self._claims)
        try:
            if self._child is not None and not self._child.ended:
                if self._child_serves == ensemble.id:
                    self._child.begin_log(log_path, self._headline())
                    return self._child
                self._child.quit(_QUIT_PATIENCE)
            command, passes = self._options.trainer, self._options.passes
            self._child = TrainerChild(
                command, log_path, self._environment(), self._headline(), passes
            )
        except OSError as error:
            raise DiskError(
                f"can't start a trainer in {run_dir.path}: {error}; free or repair it, then start "
                "the worker again"
            ) from error
        self._child_serves = ensemble.id
        return self._child

    def _ensemble(self, ensemble_id: int) -> Ensemble:
        return next(item for item in self._store.ensembles() if item.id == ensemble_id)

    def _exit_code(self) -> int:
        if self._mismatch:
            return EXIT_MISMATCH
        stopped = self._interrupted.text if self._interrupted else None
        if self._drained:
            stopped = "a person asked this worker to leave"
        if stopped and self._reach(self._outlook).open:
            self._log(f"stopped ({stopped}) with work left")
            # Who started this worker must not start it again when a person sends it away.
            return EXIT_OK if self._drained else EXIT_INTERRUPTED
        failed = self._reach(self._failed_members)
        self._log("nothing is left to take" + (f"; {failed} members failed" if failed else ""))
        return EXIT_JOBS_FAILED if failed else EXIT_OK

    def _failed_members(self) -> int:
        """Members that failed for good, in the ensemble asked for or in those worked on."""
        asked = self._options.ensemble
        ensemble = None if asked is None else self._store.ensemble(asked)
        view = self._served | ({ensemble.id} if ensemble else set())
        return sum(self._store.counts(item).get(State.FAILED, 0) for item in view)

    def _end(self) -> None:
        """End the child and sign off; a database that is away changes nothing about the end."""
        if self._evidence is not None:
            self._evidence.close()
        if self._child is not None and not self._child.ended:
            self._child.quit(_QUIT_PATIENCE)
        try:
            self._store.worker_ended(self.id)
        except DatabaseError as error:
            self._log(f"could not sign off: {error}")
        if self._lock is not None:
            with suppress(OSError):
                self._lock.release()  # last: a free byte means that this worker is dead
