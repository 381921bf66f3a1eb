"""Queues, and workers with the fake trainer, for tests of what workers do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ensq.jobs import Job
from ensq.store import Policy, Store
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
    code = run_worker(WorkerOptions(**options))
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

    def __init__(self, folder: Path, *, seeds: int = 1, epochs: int = 5) -> None:
        self.folder = folder
        self.url = str(folder / "ensq.db")
        self.store = Store.open(self.url, create=True)
        self.epochs = epochs
        self.add(NAME, seeds)

    def add(self, name: str, seeds: int) -> None:
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
        ensemble = self.store.ensemble(NAME)
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

    def wait(self, condition: Callable[[Job], bool], seconds: float = 20.0) -> Job:
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

    def work(self, **options: Any) -> tuple[int, list[str]]:
        """Run a worker in this process: its exit code and its lines."""
        lines: list[str] = []
        given = self.options(**options)
        given["policy"] = Policy(**given["policy"])
        code = run_worker(WorkerOptions(log=lines.append, **given))
        return code, lines

    def command(self, **options: Any) -> list[str]:
        return [sys.executable, "-c", PROGRAM, json.dumps(self.options(**options))]

    @contextmanager
    def worker(
        self,
        *,
        settings: Mapping[str, Any] | None = None,
        pass_fds: tuple[int, ...] = (),
        **options: Any,
    ) -> Iterator[subprocess.Popen[str]]:
        """A worker in a process of its own; killed at the end if it is still there."""
        process = subprocess.Popen(
            self.command(**options),
            env=environment(**(settings or {})),
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a worker: its exit code and its lines."""
    _, text = process.communicate(timeout=20)
    return process.returncode, text


def is_running(pid: int) -> bool:
    """Whether a process lives; what is left of a dead one does not count."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"
