"""Workers and trainers that are killed at every point of their lives; what they leave is sound.

All cases share one database, each with an ensemble of its own, and run a few at a time: so they
disturb each other as well. A second, healthy worker finishes what they left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from worker_tools import Queue, fork_worker

from ensq.jobs import Ensemble, Job, State
from ensq.rundir import sha256_file
from ensq.store import EventKind, Store, check
from ensq.worker.recording import Recorder

EPOCHS = 3
AT_ONCE = 3  # cases at a time
# The write transactions of a worker with one member: it signs on, claims, records three epochs and
# the result, and signs off.
SIGNS_ON, CLAIMS, FIRST, SECOND, LAST, FINISHES, SIGNS_OFF = range(1, 8)
UNMOVED = {"pause": 0, "strikes": 1000, "failures": 1000, "stalls": 1000}


@dataclass(frozen=True)
class Case:
    """A worker that is disturbed, and what its member must show afterwards."""

    name: str
    faults: Sequence[dict[str, Any]]
    attempts: int = 2  # in all
    losses: int = 0  # of workers
    crashes: int = 0  # of trainers
    start: int = 0  # the last attempt goes on from that epoch, or from a later one
    killed: bool = False  # the worker itself


def transaction(point: str, hit: int) -> Case:
    """The worker is killed before or after it begins or commits its ``hit``-th transaction."""
    carried_out = hit if point == "commit.after" else hit - 1
    held = CLAIMS <= carried_out < FINISHES
    return Case(
        name=f"{point}-{hit}",
        faults=[{"point": point, "do": "kill", "hit": hit}],
        attempts=2 if held else 1,
        losses=1 if held else 0,
        # What a transaction was to record lies on the disk already.
        start=max(0, min(hit, LAST) - CLAIMS) if held else 0,
        killed=True,
    )


def at_work(point: str, hit: int, start: int, **more: Any) -> Case:
    """The trainer of the first attempt is killed, and its worker survives that."""
    faults = [{"point": point, "do": "kill", "hit": hit, **more}]
    return Case(name=f"{point}-{hit}", faults=faults, crashes=1, start=start)


def writing(point: str, hit: int) -> Case:
    """The trainer is killed while it writes its ``hit``-th file, the last of which is the result.

    From the moment that the file has its name it counts.
    """
    whole = point in ("write.renamed", "write.done")
    start = min(hit, EPOCHS) if whole else hit - 1
    return at_work(point, hit, start, match="/attempt-1/")


TRANSACTIONS = [
    transaction(point, hit)
    for point in ("begin.before", "commit.before", "commit.after")
    for hit in range(SIGNS_ON, SIGNS_OFF + 1)
]
FILES = [
    writing(f"write.{point}", hit)
    for point in ("begin", "written", "flushed", "renamed", "done")
    for hit in (3, 4)
]
TRAINER = [
    # Before it is ready no member is to blame: not even the attempt counts for anything.
    Case("trainer.imported", [{"point": "trainer.imported", "do": "kill"}]),
    at_work("trainer.ready", 1, 0),
    at_work("trainer.compiled", 1, 0),
    at_work("trainer.step", 2, 1),
    at_work("trainer.validated", 2, 1),
    at_work("trainer.checkpointed", 2, 2),
    at_work("trainer.told", 2, 2),
    at_work("trainer.result", 1, EPOCHS),
]


def disturb(queue: Queue, cases: Sequence[Case], **options: Any) -> None:
    """Run the workers of the cases, each to its end, some at a time."""
    waiting = list(cases)
    running: dict[str, BaseProcess] = {}
    until = time.monotonic() + 90
    codes: dict[str, int] = {}
    while waiting or running:
        assert time.monotonic() < until, running
        while waiting and len(running) < AT_ONCE:
            case = waiting.pop()
            usual: dict[str, Any] = {"max_jobs": 1, "policy": UNMOVED, "ensemble": case.name}
            running[case.name] = fork_worker(
                queue,
                queue.folder / f"{case.name}.log",
                settings={"epoch_seconds": 0.05},
                faults=case.faults,
                **usual | options,
            )
        connection.wait([process.sentinel for process in running.values()], 1.0)
        ended = {n: p.exitcode for n, p in running.items() if p.exitcode is not None}
        codes |= ended
        running = {name: process for name, process in running.items() if name not in ended}
    for case in cases:
        text = (queue.folder / f"{case.name}.log").read_text()
        assert "Traceback" not in text, text
        assert not case.killed or codes[case.name] == -9, (codes[case.name], text)


class Observer:
    """Looks at the database all the time, as a person who runs ``ensq check`` would."""

    def __init__(self, queue: Queue) -> None:
        self.problems: list[str] = []
        self.looks = 0
        self._queue = queue
        self._over = threading.Event()

    def _watch(self) -> None:
        with Store.open(self._queue.url, read_only=True) as store:
            while not self._over.wait(0.02):
                self.problems += check(self._queue.url)
                for ensemble in store.ensembles():
                    for job in store.jobs(ensemble.id):
                        self.problems += self._wrong(store, ensemble, job)
                self.looks += 1

    def _wrong(self, store: Store, ensemble: Ensemble, job: Job) -> Iterator[str]:
        """Each row must rest on files that are whole, for the time that it names them."""
        if job.checkpoint is None or job.state is State.DONE:
            return
        file = self._queue.folder / ensemble.run_path / job.checkpoint.path
        try:
            whole = sha256_file(file) == job.checkpoint.digest
        except FileNotFoundError:
            whole = False
        if not whole and store.job(job.id).checkpoint == job.checkpoint:
            yield f"{ensemble.name}: {job.checkpoint} is recorded, but not on the disk"
        if job.epoch > job.checkpoint.epoch:  # there is one for every epoch
            yield f"{ensemble.name}: stands at epoch {job.epoch}, and only {job.checkpoint} is"

    def wait_for_a_look(self) -> None:
        """Return after a look that began after this call."""
        seen, until = self.looks, time.monotonic() + 30
        while self.looks < seen + 2:  # the first may have begun before
            assert time.monotonic() < until, "nobody looks"
            time.sleep(0.005)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def disturb_all(queue: Queue, cases: Sequence[Case], **options: Any) -> None:
    """Run all cases, have a healthy worker finish, and require that the database is sound."""
    for case in cases:
        queue.add(case.name)
    observer = Observer(queue)
    with observer.at_work():
        disturb(queue, cases, **options)
        code, lines = queue.work(drain=True, pack=8, policy=UNMOVED)
    assert code == 0, lines
    assert observer.problems == []
    assert observer.looks > 0
    for case in cases:
        queue.require_sound(case.name)


def require_counts(queue: Queue, cases: Sequence[Case]) -> None:
    """What was injected was counted, once, and as what it was."""
    wrong = {}
    for case in cases:
        [job] = queue.jobs_of(case.name)
        start = queue.starts(job)[-1]
        if any("never recorded" in event.message for event in queue.events(EventKind.DONE, job)):
            start = EPOCHS  # not even the result had to be made again
        counts = (job.attempt, job.losses, job.crashes, job.failures, job.interruptions)
        if counts != (case.attempts, case.losses, case.crashes, 0, 0) or start < case.start:
            wrong[case.name] = (counts, start, case)
        assert job.strikes <= job.losses + job.crashes
    assert wrong == {}


@pytest.mark.parametrize(
    "cases", [TRANSACTIONS, FILES, TRAINER], ids=["transactions", "files", "trainer"]
)
def test_a_kill_at_any_point_leaves_what_the_next_worker_finishes(
    tmp_path: Path, cases: Sequence[Case]
) -> None:
    queue = Queue(tmp_path, seeds=0, epochs=EPOCHS)
    disturb_all(queue, cases)
    require_counts(queue, cases)


def test_kills_delays_and_errors_by_chance_leave_a_sound_database(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=0, epochs=EPOCHS)
    cases = [
        Case(
            f"seed-{seed}",
            [
                {"point": "*", "do": "kill", "probability": 0.04, "seed": seed},
                {"point": "*", "do": "delay", "seconds": 0.02, "probability": 0.2, "seed": seed},
                # The database, and never the disk.
                {"point": "[bc]*", "do": "error", "probability": 0.1, "seed": seed},
            ],
        )
        for seed in range(20)
    ]
    disturb_all(queue, cases, max_jobs=2)
    jobs = [job for case in cases for job in queue.jobs_of(case.name)]
    assert sum(job.losses for job in jobs) > 0
    assert sum(job.crashes for job in jobs) > 0
    for job in jobs:
        ends = [attempt.outcome for attempt in queue.store.attempts(job.id)]
        assert ends.count("lost") == job.losses
        assert ends.count("crash") == job.crashes
        assert ends.count("done") == 1
        assert len(queue.events(EventKind.CLAIMED, job)) == job.attempt


def test_the_observer_sees_a_row_that_runs_ahead_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: checkpoints that the queue records are not there.

    The row stands still until the observer has begun and ended a look: on a busy machine a look
    may take longer than an epoch, and a row that moved on meanwhile proves nothing.
    """
    queue = Queue(tmp_path)
    observer = Observer(queue)

    def remove_checkpoint(recorder: Recorder, record: Any) -> None:
        if record.checkpoint is not None:
            Path(record.checkpoint.path).unlink()
            observer.wait_for_a_look()

    monkeypatch.setattr(Recorder, "_after_epoch", remove_checkpoint)
    with observer.at_work():
        queue.work()
    assert any("but not on the disk" in problem for problem in observer.problems)
