"""Queues, and workers with the fake trainer, for tests of what workers do."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import store_tools

from ensq import faults
from ensq.jobs import Job
from ensq.rundir import RunDir, sha256_file
from ensq.store import Event, EventKind, Policy, Store, check, check_files
from ensq.worker.supervisor import WorkerOptions, run_worker

HERE = Path(__file__).resolve().parent
TRAINER = (sys.executable, str(HERE / "fake_trainer.py"))
NAME = "e"

# Runs a worker in a process of its own. "unfenced" takes the store's protection away.
PROGRAM = """
import json, os, sys
from ensq.errors import EnsqError
from ensq.store import Policy
from ensq.worker.supervisor import WorkerOptions, run_worker
options = json.loads(sys.argv[1])
options["trainer"] = tuple(options["trainer"])
options["policy"] = Policy(**options["policy"])
if options.pop("unfenced", False):
    from ensq.schema import jobs
    from ensq.store import fences
    from ensq.store import Policy, Store
    fences.held = lambda claim: jobs.c.id == claim.job_id
    from ensq.store import Renewal
    Store.renew = lambda store, held, *rest, **more: Renewal(held, frozenset(), False)
print("cores", sorted(os.sched_getaffinity(0)), file=sys.stderr, flush=True)
try:
    code = run_worker(WorkerOptions(ends_process=True, **options))
except EnsqError as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    code = error.exit_code
sys.exit(code)
"""


def environment(**settings: Any) -> dict[str, str]:
    """An environment for workers whose trainers behave as ``settings`` say."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "FAKE_TRAINER": json.dumps(settings),
    }


class Queue:
    """A database with one ensemble, ``e``."""

    def __init__(
        self, folder: Path, *, seeds: int = 1, epochs: int = 5, url: str | None = None
    ) -> None:
        """``url`` is of a database that is there; run folders lie in ``folder`` all the same."""
        self.folder = folder
        self.url = url or str(store_tools.fresh_file(folder / "ensq.db"))
        self.store = Store.open(self.url)
        self.epochs = epochs
        if seeds:
            self.add(NAME, seeds)

    def add(self, name: str, seeds: int = 1) -> None:
        self.store.add_ensemble(
            name=name,
            config=json.dumps({"epochs": self.epochs}),
            config_digest="c" * 64,
            data_path="data.npz",
            data_digest="d" * 64,
            run_path=f"runs/{name}",
            seeds=list(range(1, seeds + 1)),
            epochs=self.epochs,
        )

    @property
    def jobs(self) -> list[Job]:
        return self.jobs_of(NAME)

    def jobs_of(self, name: str) -> list[Job]:
        ensemble = self.store.ensemble(name)
        assert ensemble is not None
        return self.store.jobs(ensemble.id)

    @property
    def job(self) -> Job:
        return self.jobs[0]

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / NAME

    def losses(self, job: Job) -> list[tuple[int, float]]:
        return [(record.epoch, record.val_loss) for record in self.store.epochs(job.id)]

    def expected(self, job: Job) -> list[tuple[int, float]]:
        return [(epoch, 10.0 / epoch + 0.01 * job.seed) for epoch in range(1, self.epochs + 1)]

    def events(self, kind: EventKind, job: Job | None = None) -> list[Event]:
        """What of this kind happened to a member, the first one if not said."""
        happened = self.store.events_of((job or self.job).id)
        return [event for event in happened if event.kind is kind]

    def starts(self, job: Job | None = None) -> list[int]:
        """The epochs that the attempts at a member went on from."""
        return [attempt.start_epoch for attempt in self.store.attempts((job or self.job).id)]

    def require_sound(self, name: str = NAME) -> None:
        """Every member is done, once, with the losses of an undisturbed run; all is consistent."""
        assert check(self.url) == []
        assert check_files(self.url) == []
        for job in self.jobs_of(name):
            assert (job.state, job.owner, job.error) == ("done", None, None), job
            assert self.losses(job) == self.expected(job)
            assert len(self.events(EventKind.DONE, job)) == 1
            assert job.result_path is not None
            result = self.folder / "runs" / name / job.result_path
            assert sha256_file(result) == job.result_digest

    def checkpoints(self, seed: int = 1, attempt: int = 1) -> list[str]:
        """Names of the checkpoints in the folder of an attempt, the oldest first."""
        folder = RunDir(self.run_folder).attempt(seed, attempt)
        return sorted(path.name for path in folder.glob("epoch-*"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else can write to the SQLite file meanwhile, though it can be read."""
        holder = sqlite3.connect(self.url, timeout=0.5, isolation_level=None)
        try:
            holder.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            holder.close()

    def wait(self, condition: Callable[[Job], bool], seconds: float = 30.0) -> Job:
        """Wait until the first member is as wanted."""
        until = time.monotonic() + seconds
        while not condition(self.job):
            assert time.monotonic() < until, self.job
            time.sleep(0.01)
        return self.job

    def options(self, **options: Any) -> dict[str, Any]:
        """Options of a worker: quick, and unmoved by failures, unless told otherwise."""
        usual = {"trainer": TRAINER, "poll_seconds": 0.05, "failures_in_a_row": 1000}
        return {"url": self.url, "policy": {"pause": 0}} | usual | options

    def work(
        self, *rules: Mapping[str, Any], settings: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[int, list[str]]:
        """Run a worker in this process: its exit code and its lines.

        Its trainers obey ``rules`` and ``settings``, if given.
        """
        lines: list[str] = []
        given = self.options(**options)
        given["policy"] = Policy(**given["policy"])
        told = {"rules": rules, **(settings or {})}
        changes = environment(**told) if rules or settings is not None else {}
        with patch.dict(os.environ, changes):
            code = run_worker(WorkerOptions(log=lines.append, **given))
        return code, lines

    def command(self, **options: Any) -> list[str]:
        return [sys.executable, "-c", PROGRAM, json.dumps(self.options(**options))]

    @contextmanager
    def worker(
        self,
        *,
        settings: Mapping[str, Any] | None = None,
        faults: Sequence[Mapping[str, Any]] = (),
        pass_fds: tuple[int, ...] = (),
        **options: Any,
    ) -> Iterator[subprocess.Popen[str]]:
        """A worker in a process of its own; killed at the end if it is still there.

        ``faults`` are rules for it and its trainers: see ``ensq.faults``.
        """
        process = subprocess.Popen(
            self.command(**options),
            env=environment(**(settings or {})) | {"ENSQ_FAULTS": json.dumps(faults)},
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        try:
            yield process
        finally:
            # A trainer that was stopped must go on to see that its worker is gone.
            trainers = children_of(process.pid) if process.poll() is None else []
            process.kill()
            if process.stderr is not None and not process.stderr.closed:
                print(process.communicate()[1])  # a test that failed shows it
            for trainer in trainers:
                with suppress(ProcessLookupError):
                    os.kill(trainer, signal.SIGCONT)


def fork_worker(
    queue: Queue,
    log: Path,
    *,
    settings: Mapping[str, Any],
    faults: Sequence[Mapping[str, Any]],
    **options: Any,
) -> BaseProcess:
    """As ``Queue.worker``, of many of which the imports are made only once; it writes to ``log``.

    From one thread only: see ``multiprocessing.Process``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "ensq.worker.supervisor"])
    changes = environment(**settings) | {"ENSQ_FAULTS": json.dumps(faults)}
    process = context.Process(
        target=_forked, args=(changes, str(log), queue.options(**options)), daemon=True
    )
    process.start()
    return process


def _forked(changes: dict[str, str], log: str, options: dict[str, Any]) -> None:
    os.environ.update(changes)
    faults._rules = faults._parse(os.environ["ENSQ_FAULTS"])
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["worker", json.dumps(options)]
    exec(PROGRAM, {})


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a worker: its exit code and its lines."""
    _, text = process.communicate(timeout=45)
    return process.returncode, text


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait until something is so; ``what`` it is, for the failure."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def trainer_of(worker: subprocess.Popen[str]) -> int:
    """The process id of a worker's trainer, once there is one."""
    wait_until(lambda: children_of(worker.pid), "a trainer of the worker")
    return children_of(worker.pid)[0]


def is_stopped(pid: int) -> bool:
    """Whether a process stands still after a SIGSTOP."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return text.rpartition(")")[2].split()[0] == "T"


def is_running(pid: int) -> bool:
    """Whether a process lives; what is left of a dead one does not count."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def freeze(queue: Queue, *processes: int) -> None:
    """Stop processes, outside a transaction: inside one they would hold the file's lock."""
    while True:
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda pid=pid: is_stopped(pid), f"{pid} stands still")  # type: ignore[misc]
        with suppress(sqlite3.OperationalError), queue.locked():
            return
        wake(*processes)


def wake(*processes: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
