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
from pathlib import Path

from ensq import slurm
from ensq.errors import (
    EXIT_INTERRUPTED,
    EXIT_JOBS_FAILED,
    EXIT_MISMATCH,
    EXIT_OK,
    DatabaseError,
    EnsqError,
)
from ensq.jobs import Ensemble, Job, State
from ensq.rundir import RunDir
from ensq.store import Store, worker_info
from ensq.worker.child import TrainerChild, child_environment
from ensq.worker.options import WorkerOptions, log_to_stderr
from ensq.worker.pack import PackSession
from ensq.worker.signals import StopSignals
from ensq.worker.stopping import Stopping

__all__ = ["WorkerOptions", "log_to_stderr", "run_worker"]

_OPEN = (State.QUEUED, State.RUNNING)
_QUIT_PATIENCE = 5.0  # seconds for an idle trainer to end


def run_worker(options: WorkerOptions) -> int:
    """Work until nothing is left to take; return the exit code.

    0: nothing is left to do (with ``drain``: every member is ended); 1: the same, but members of
    the ensembles worked on have failed for good; 75: stopped, with work left; 78: data or
    configuration is not what was enqueued. Main thread only: it installs signal handlers.

    Raises EnsqError with its own exit code, DatabaseError (69) among them.
    """
    log = _timestamped(options.log)
    with StopSignals() as signals:
        store = Store.open(options.url)
        try:
            stopping = Stopping(
                signals,
                deadline=slurm.deadline(),
                margin=options.deadline_margin,
                parent_fd=options.parent_fd,
            )
            return Worker(options, store, stopping, log).run()
        finally:
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
        self._taken = 0
        self._served: set[int] = set()  # ensembles that it worked on
        self._mismatch = False
        self._child: TrainerChild | None = None
        self._child_serves: int | None = None  # the ensemble of the child's log
        self._interrupted: str | None = None

    def run(self) -> int:
        task = slurm.task_from_environment()
        job = task.label if task else None
        self._store.register_worker(worker_info(self.id, slurm_job=job))
        self._log(
            f"worker {self.id}{f' in SLURM job {job}' if job else ''}, database {self._store.where}"
        )
        try:
            self._work()
            return self._exit_code()
        finally:
            self._end()

    def _work(self) -> None:
        while True:
            self._interrupted = self._stopping.reason()
            if self._interrupted or self._mismatch or self._room() == 0:
                return
            jobs = self._store.claim(
                self.id,
                limit=self._room(),
                lease_seconds=self._options.lease_seconds,
                ensemble=self._options.ensemble,
                log_path=_log_path(self.id),
            )
            if jobs:
                self._taken += len(jobs)
                self._train(jobs)
            elif self._options.drain and self._open_members():
                # Someone else trains them; should that worker die, they are taken over here.
                self._store.renew([], self._options.lease_seconds, worker_id=self.id)
                self._stopping.wait(self._options.poll_seconds)
            else:
                return

    def _room(self) -> int:
        """How many members may be claimed now."""
        if self._options.max_jobs is None:
            return self._options.pack
        return max(0, min(self._options.pack, self._options.max_jobs - self._taken))

    def _train(self, jobs: list[Job]) -> None:
        ensemble = self._ensemble(jobs[0].ensemble_id)
        self._served.add(ensemble.id)
        seeds = ", ".join(f"{job.seed} (attempt {job.attempt})" for job in jobs)
        self._log(f"claimed of {ensemble.name}: seed {seeds}")
        session = PackSession(
            store=self._store,
            options=self._options,
            ensemble=ensemble,
            jobs=jobs,
            worker_id=self.id,
            stopper=self._stopping,
            log=self._log,
        )
        try:
            child = self._trainer(ensemble, session)
            session.train(child)
        except BaseException as error:
            if self._child is not None and not self._child.ended:
                self._child.kill()
            # Without a database the rows can't be given back; a dead worker's are taken back.
            if not isinstance(error, DatabaseError):
                session.release(f"the worker ended: {error}")
            raise
        self._mismatch |= session.mismatch

    def _trainer(self, ensemble: Ensemble, session: PackSession) -> TrainerChild:
        """The child that serves this ensemble: the one that is there, or a new one.

        A child keeps to one ensemble: another has nothing to share with it but memory, and its
        log belongs into another folder.
        """
        run_dir = RunDir(self._store.root / ensemble.run_path)
        try:
            session.make_folders()
            if self._child is not None and not self._child.ended:
                if self._child_serves == ensemble.id:
                    return self._child
                self._child.quit(_QUIT_PATIENCE)
            self._child = TrainerChild(
                self._options.trainer,
                run_dir.log(self.id),
                child_environment(os.environ),
            )
        except OSError as error:
            raise EnsqError(
                f"can't start training in {run_dir.path}: {error}; free or repair it, then start "
                "the worker again"
            ) from error
        self._child_serves = ensemble.id
        return self._child

    def _ensemble(self, ensemble_id: int) -> Ensemble:
        return next(item for item in self._store.ensembles() if item.id == ensemble_id)

    def _open_members(self) -> int:
        """Members that are queued or running, of those that this worker may take."""
        if self._options.ensemble is None:
            counts = self._store.counts()
        else:
            ensemble = self._store.ensemble(self._options.ensemble)
            counts = self._store.counts(ensemble.id) if ensemble else {}
        return sum(counts.get(state, 0) for state in _OPEN)

    def _exit_code(self) -> int:
        if self._mismatch:
            return EXIT_MISMATCH
        if self._interrupted and self._open_members():
            self._log(f"stopped ({self._interrupted}) with work left")
            return EXIT_INTERRUPTED
        failed = self._failed_members()
        self._log("nothing is left to take" + (f"; {failed} members failed" if failed else ""))
        return EXIT_JOBS_FAILED if failed else EXIT_OK

    def _failed_members(self) -> int:
        """Members that failed for good, in the ensemble asked for or in those worked on."""
        view = set(self._served)
        if self._options.ensemble is not None:
            ensemble = self._store.ensemble(self._options.ensemble)
            view |= {ensemble.id} if ensemble else set()
        return sum(self._store.counts(item).get(State.FAILED, 0) for item in view)

    def _end(self) -> None:
        """End the child and sign off; a database that is away changes nothing about the end."""
        if self._child is not None and not self._child.ended:
            self._child.quit(_QUIT_PATIENCE)
        try:
            self._store.worker_ended(self.id)
        except DatabaseError as error:
            self._log(f"could not sign off: {error}")


def _log_path(worker_id: str) -> str:
    """The child's log relative to whatever run folder it stands in."""
    run_dir = RunDir(Path("/"))
    return run_dir.relative(run_dir.log(worker_id))
