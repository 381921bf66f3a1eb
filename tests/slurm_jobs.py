"""Ensembles that jobs of a SLURM cluster train, and what must hold of them afterwards."""

from __future__ import annotations

import functools
import json
import shlex
import sqlite3
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import worker_tools
from ensemble_tools import clean_environment, ensq, write_config
from slurm_cluster import Cluster, until

from ensq.jobs import Attempt, Job, Outcome, State, WorkerInfo
from ensq.rundir import RunDir
from ensq.slurm.script import JobPlan, sbatch_text
from ensq.store import Store, check, check_files

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "scripts"))

from chaos_parts import checks  # noqa: E402

# For an epoch that takes some hundredths of a second, and a last one that does not diverge.
SLOWER = (
    *("training.batch_per_device=1", "model.allegro.n_channels=32", "model.allegro.max_ell=1"),
    *("model.allegro.mlp_n_hidden=64", "optimizer.lion.lr=0.0001"),
)
LEASE = 5.0  # seconds; as short as may be


def script(
    folder: Path,
    name: str,
    worker: Sequence[str],
    *,
    before: str = "",
    requeue: bool = True,
    least_run: int = 0,
    database: str | None = "ensq.db",
    **more: Any,
) -> Path:
    """The batch script that `ensq submit` makes, of one worker, but with another command.

    ``worker`` is the command with its options; the directives come by sbatch's own options.
    """
    *command, last = worker[: worker.index("worker") + 1]
    assert last == "worker"
    plan = JobPlan(
        ensemble=name,
        job_name="ensq-test",
        comment="ensq-test",
        workers=1,
        script=str(folder / "job.sh"),
        output=str(folder / "%x-%A_%a.out"),
        folder=str(folder),
        database=None if database is None else str(folder / database),
        **{"gpus": "0", "signal": 0, **more},
        setup=(before,) if before else (),
        command=shlex.join(command),
        options=tuple(worker[worker.index("worker") + 1 :]),
        requeue=requeue,
        finalize=False,
        least_run=least_run,
    )
    Path(plan.script).write_text(sbatch_text(plan))
    return Path(plan.script)


def by_hand(folder: Path, worker: Sequence[str]) -> Path:
    """What people write themselves."""
    path = folder / "job.sh"
    path.write_text(f"#!/bin/bash\nsrun {shlex.join(worker)}\n")
    return path


class Ensemble:
    """A database with ensembles, and jobs of workers for it."""

    worker: tuple[str, ...] = (sys.executable, "-m", "ensq.cli", "worker")
    name: str  # of the ensemble that jobs work on, if not said

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.url = str(folder / "ensq.db")

    @property
    def environment(self) -> dict[str, str]:
        """Of the jobs, besides that of the cluster."""
        cache = clean_environment()["JAX_COMPILATION_CACHE_DIR"]
        # Where ensq comes from, wherever the job runs.
        paths = {"PYTHONPATH": str(HERE.parent), "JAX_COMPILATION_CACHE_DIR": cache}
        return paths | {"ENSQ_DB": self.url, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}

    def submit(
        self,
        *directives: str,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        hand_written: bool = False,
        name: str | None = None,
        **how: Any,
    ) -> str:
        """Submit a job of workers with ``options``; its id. ``how`` goes to ``script``."""
        worker = [*self.worker, "--lease", f"{LEASE:g}", *options]
        if hand_written:
            path = by_hand(self.folder, worker)
        else:
            path = script(self.folder, name or self.name, worker, **how)
        return self.cluster.submit(path, *directives, **self.environment | dict(environment or {}))

    # What the database says

    def jobs(self, name: str | None = None) -> list[Job]:
        with Store.open(self.url, read_only=True) as store:
            ensembles = [one for one in store.ensembles() if name in (None, one.name)]
            return [job for one in ensembles for job in store.jobs(one.id)]

    def attempts(self, job: Job | None = None) -> list[Attempt]:
        """Of a member, the first one if not said."""
        with Store.open(self.url, read_only=True) as store:
            return store.attempts((job or self.jobs()[0]).id)

    def outcomes(self, job: Job | None = None) -> list[str]:
        return [str(attempt.outcome) for attempt in self.attempts(job)]

    def workers(self) -> dict[str, WorkerInfo]:
        """All workers that had a member."""
        names = {attempt.worker_id for job in self.jobs() for attempt in self.attempts(job)}
        with Store.open(self.url, read_only=True) as store:
            return store.workers(names)

    def epochs_done(self) -> int:
        return sum(job.epoch for job in self.jobs())

    def wait_epochs(self, count: int, seconds: float = 60) -> None:
        """Wait until so many epochs are recorded, of all members together."""
        self.wait(lambda: self.epochs_done() >= count, f"{count} epochs", seconds)

    def wait_done(self, seconds: float = 120) -> None:
        """Wait until every member is done."""
        self.wait(
            lambda: all(job.state is State.DONE for job in self.jobs()), "all members", seconds
        )

    def wait(self, condition: Any, what: str, seconds: float) -> None:
        try:
            until(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.jobs()}\n{self.said()}") from None

    def freeze(self, node: str) -> None:
        """Freeze a node, but not amid a transaction: it would hold the file's lock."""
        while True:
            self.cluster.node("freeze", node)
            holder = sqlite3.connect(self.url, timeout=1.0, isolation_level=None)
            try:
                holder.execute("BEGIN EXCLUSIVE")
                return
            except sqlite3.OperationalError:
                self.cluster.node("thaw", node)
            finally:
                holder.close()

    # What the jobs said

    def said(self) -> str:
        """All output of all jobs."""
        files = [*self.folder.glob("*.out"), *self.folder.glob("*.said")]
        return "\n".join(path.read_text() for path in sorted(files))

    def logs(self, name: str) -> list[str]:
        """The logs of trainers, each with the headline of its worker."""
        folder = self.folder / "runs" / name / "logs"
        return [path.read_text() for path in sorted(folder.glob("*.log"))]

    # What must hold

    def require_sound(self) -> None:
        """Every member is done, once, as if nothing had happened; nothing runs any more."""
        assert check(self.url) == []
        assert check_files(self.url) == []
        queue = checks.Queue.read(self.url)
        assert [job.state for job in queue.jobs] == [State.DONE] * len(queue.jobs), queue.jobs
        assert checks._each_once(queue).problems == []
        assert self.strange_writes() == []
        assert self.other_bits() == []
        assert sum(job.failures + job.crashes for job in queue.jobs) == 0, queue.attempts
        for sign in ("Traceback", "this is a fault of ensq"):
            assert sign not in self.said(), self.said()
        self.require_nobody()

    def strange_writes(self) -> list[str]:
        """Changes of a member's state by a worker that it did not belong to."""
        with Store.open(self.url, read_only=True) as store:
            found = []
            for job in self.jobs():
                owners = {one.number: one.worker_id for one in store.attempts(job.id)}
                for event in store.events_of(job.id):
                    if event.worker_id and event.worker_id != owners.get(event.attempt or 0):
                        found.append(f"attempt {event.attempt}: {event.kind} by {event.worker_id}")
            return found

    def other_bits(self) -> list[str]:
        """Where results or losses differ from those of an undisturbed run."""
        raise NotImplementedError

    def require_nobody(self) -> None:
        until(lambda: not self.cluster.processes(), "the end of all processes of jobs", 20)


class Fake(Ensemble):
    """Trained by the fake trainer, whose epochs take as long as is said."""

    worker = (sys.executable, str(HERE / "slurm_worker.py"), "worker")

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        *,
        seeds: int = 1,
        epochs: int = 5,
        names: Sequence[str] = (worker_tools.NAME,),
        **settings: Any,
    ) -> None:
        super().__init__(cluster, folder)
        self.settings = settings
        queue = worker_tools.Queue(folder, seeds=0, epochs=epochs)
        for name in names:
            queue.add(name, seeds)
        queue.store.close()
        self.epochs, self.seeds, self.names = epochs, seeds, names
        self.name = names[0]

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"FAKE_TRAINER": json.dumps(self.settings)}

    def other_bits(self) -> list[str]:
        calm = undisturbed(self.seeds, self.epochs)
        found = []
        for name in self.names:
            for job in self.jobs(name):
                run = RunDir.of(self.folder, f"runs/{name}")
                if run.inside(job.result_path or "").read_bytes() != calm[job.seed]:
                    found.append(f"{name}, seed {job.seed}: other bits in the result")
        return found


class Real(Ensemble):
    """A tiny model, trained by the real trainer through the command line."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        *,
        seeds: int = 1,
        epochs: int,
        settings: Sequence[str] = SLOWER,
    ) -> None:
        super().__init__(cluster, folder)
        self.seeds, self.name = seeds, "tiny"
        settings = (*settings, f"training.stages.0.epochs={epochs - 1}")
        self.options = [text for setting in settings for text in ("--set", setting)]
        write_config(folder, seeds)
        done = self.ensq("enqueue", "tiny.yaml", *self.options)
        assert done.returncode == 0, done.stderr

    def ensq(self, *arguments: str) -> Any:
        return ensq(*arguments, cwd=self.folder, ENSQ_DB=self.url)

    @functools.cached_property
    def calm(self) -> str:
        """The database of the same training, undisturbed."""
        folder = self.folder / "calm"
        write_config(folder, self.seeds)
        for command in (("enqueue", "tiny.yaml", *self.options), ("worker",)):
            done = ensq(*command, cwd=folder)
            assert done.returncode == 0, done.stderr
        return str(folder / "ensq.db")

    def other_bits(self) -> list[str]:
        problems = checks._same_bits(checks.Queue.read(self.url), checks.Queue.read(self.calm))
        found: list[str] = problems.problems
        return found


@functools.cache
def undisturbed(seeds: int, epochs: int) -> dict[int, bytes]:
    """What the fake trainer's results are if nothing happens, by seed."""
    with tempfile.TemporaryDirectory() as name:
        queue = worker_tools.Queue(Path(name), seeds=seeds, epochs=epochs)
        try:
            code, lines = queue.work(settings={})
            assert code == 0, lines
            run = RunDir(queue.run_folder)
            return {job.seed: run.inside(job.result_path or "").read_bytes() for job in queue.jobs}
        finally:
            queue.store.close()


def outcomes_of(*names: str) -> list[str]:
    """Outcomes of attempts by name, of which a misspelt one is an error."""
    return [str(Outcome(name)) for name in names]
