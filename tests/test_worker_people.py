"""What people want of workers: hold, drain, patience, signals at odd times; and many at once."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import store_tools
from worker_tools import Queue, finish, fork_worker, trainer_of, wait_until

from ensq.cli import run
from ensq.jobs import Outcome, State
from ensq.local import LocalResult
from ensq.store import EventKind, Store, check
from ensq.worker.pack import PackSession

# Epochs shorter than the time between renewals: a wish must be heard all the same.
QUICK = {"epoch_seconds": 0.03}
SLOW_THIRD = {"rules": [{"do": "slow", "epoch": 3, "attempt": 1}], "slow_seconds": 60}


# Hold and drain


def test_a_running_member_is_held_and_the_worker_goes_on_with_others(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=3, epochs=60)
    with queue.worker(settings=QUICK, pack=2, lease_seconds=0.8) as worker:
        queue.wait(lambda job: job.epoch >= 2)
        assert queue.store.hold("e", [1, 3]) == [1, 3]  # a running one, and a queued one
        code, text = finish(worker)
    assert code == 0
    assert "stopping (held by a person)" in text
    held, other, waiting = queue.jobs
    assert (held.state, held.interruptions, held.stalls) == (State.HELD, 1, 0)
    assert held.checkpoint is not None
    assert (held.checkpoint.epoch, held.epoch < 60) == (held.epoch, True)
    assert (other.state, other.failures, other.crashes) == (State.DONE, 0, 0)
    assert (waiting.state, waiting.attempt) == (State.HELD, 0)
    assert queue.work(settings={}, drain=True)[0] == 0  # held ones are not waited for
    assert queue.job.state is State.HELD
    assert queue.store.unhold("e") == [1, 3]
    assert queue.work(settings={})[0] == 0
    queue.require_sound()
    assert queue.starts() == [0, held.epoch]


def test_a_trainer_that_was_told_to_stop_is_not_given_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stop at once, again and again, until the others have used up their tries."""
    queue = Queue(tmp_path, seeds=2, epochs=40)
    monkeypatch.setattr(PackSession, "stopped", False)
    with by_a_person(queue):
        queue.work(settings=QUICK, lease_seconds=0.8)
    held, other = queue.jobs
    assert (held.state, other.state) == (State.HELD, State.FAILED)


def test_a_hold_that_is_taken_back_in_time_changes_nothing(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    with queue.worker(settings=SLOW_THIRD | {"slow_seconds": 0.5}, lease_seconds=60.0) as worker:
        queue.wait(lambda job: job.epoch == 2)
        assert queue.store.hold("e") == [1]
        assert queue.store.unhold("e") == [1]
        assert finish(worker)[0] == 0
    queue.require_sound()
    assert queue.job.attempt == 1


def test_a_worker_that_is_drained_saves_and_leaves_with_0(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=2, epochs=60)
    with queue.worker(settings=QUICK, lease_seconds=0.8) as worker:
        job = queue.wait(lambda job: job.epoch >= 2)
        assert queue.store.drain() == [job.owner]
        code, text = finish(worker)
    assert code == 0  # 75 would have the job requeued
    assert "a person asked this worker to leave" in text
    first, second = queue.jobs
    assert (first.state, first.interruptions, first.stalls) == (State.QUEUED, 1, 0)
    assert first.checkpoint is not None and first.checkpoint.epoch == first.epoch < 60
    assert (second.state, second.attempt) == (State.QUEUED, 0)
    assert queue.store.attempts(first.id)[0].outcome is Outcome.INTERRUPTED
    assert queue.work(settings={})[0] == 0
    queue.require_sound()


def test_a_run_whose_workers_were_sent_away_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their exit code 0 does not mean that all is trained."""
    queue = Queue(tmp_path)
    ensemble = queue.store.ensemble("e")
    assert ensemble is not None
    log = tmp_path / "log"
    monkeypatch.setattr("ensq.local.run_local", lambda options: LocalResult(
        exit_code=0, codes=(0,), logs=(log,)))  # fmt: skip
    assert run._train(queue.store, ensemble, queue.url, 1, 1, False) == 75
    queue.store.hold("e")  # held ones are not waited for
    assert run._train(queue.store, ensemble, queue.url, 1, 1, False) == 0


def test_a_worker_that_waits_for_work_can_be_drained(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    with queue.worker(settings=SLOW_THIRD) as busy:
        queue.wait(lambda job: job.epoch == 2)
        with queue.worker(drain=True, lease_seconds=0.4, poll_seconds=0.1) as idle:
            wait_until(lambda: len(queue.store.living_workers()) == 2, "both workers")
            [mine] = [w.id for w in queue.store.living_workers() if w.pid == idle.pid]
            assert queue.store.drain([mine]) == [mine]
            code, text = finish(idle)
        assert busy.poll() is None
    assert code == 0
    assert "stopped (a person asked this worker to leave) with work left" in text


def test_without_renewals_no_wish_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the tests above."""
    monkeypatch.setattr(PackSession, "_renew", lambda session, child: None)
    queue = Queue(tmp_path, epochs=40)
    with by_a_person(queue):
        assert queue.work(settings=QUICK, lease_seconds=0.8)[0] == 0
    assert queue.job.state is State.DONE


@contextmanager
def by_a_person(queue: Queue) -> Iterator[None]:
    """Someone who holds the first member as soon as it has an epoch."""

    def hold() -> None:
        with Store.open(queue.url) as store:
            until = time.monotonic() + 30
            while time.monotonic() < until and store.job_of("e", 1).epoch < 1:
                time.sleep(0.01)
            assert store.hold("e", [1]) == [1]

    person = threading.Thread(target=hold)
    person.start()
    try:
        yield
    finally:
        person.join()


# Patience


def test_a_pause_after_a_failure_is_waited_for(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    rule = {"do": "exception", "epoch": 3, "attempt": 1}
    began = time.monotonic()
    assert queue.work(rule, policy={"pause": 0.7}, poll_seconds=60.0)[0] == 0  # without drain
    assert 0.7 <= time.monotonic() - began < 30
    queue.require_sound()
    first, second = queue.store.attempts(queue.job.id)
    assert first.ended_at is not None
    assert second.started_at >= first.ended_at + 0.69


@contextmanager
def from_another_host(queue: Queue) -> Iterator[Store]:
    """A worker of another host, with the only member in its hands."""
    with Store.open(queue.url) as store:
        store.register_worker(store_tools.elsewhere("far"))
        assert len(store.claim("far", limit=1, lease_seconds=1.2)) == 1
        yield store


def test_a_silent_worker_of_another_host_is_watched_and_taken_over_from(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    with from_another_host(queue):
        began = time.monotonic()
        code, lines = queue.work(settings={})
        assert time.monotonic() - began >= 1.2
    assert code == 0
    assert any("1 member is held by workers that can't be seen from here" in x for x in lines)
    queue.require_sound()
    [lost] = queue.events(EventKind.LOST)
    assert re.search(r"no sign of life of worker far for \d s", lost.message)
    assert (queue.job.losses, queue.job.attempt) == (1, 2)


def test_a_worker_of_another_host_that_lives_is_left_alone(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    over = threading.Event()

    def live(store: Store) -> None:
        [job] = queue.jobs
        claim = store_tools.claim_of(job)
        while not over.wait(0.3):
            assert store.renew([claim]).held == [claim]

    with from_another_host(queue) as store:
        thread = threading.Thread(target=live, args=(store,))
        thread.start()
        began = time.monotonic()
        code, _ = queue.work(settings={})
        assert time.monotonic() - began < 5
        over.set()
        thread.join()
    assert (code, queue.job.state, queue.job.owner) == (0, State.RUNNING, "far")


# Signals at odd times


def terminate_twice(queue: Queue, **options: Any) -> tuple[int, str]:
    with queue.worker(**options) as worker:
        queue.wait(lambda job: job.state is State.RUNNING)
        if options["settings"] == {"rules": [{"do": "deaf_start"}]}:
            trainer_of(worker)
        for _ in range(2):  # back to back: one that ends already would die of the second
            worker.send_signal(signal.SIGTERM)
        return finish(worker)


@pytest.mark.parametrize(
    ("settings", "faults"),
    [
        ({"rules": [{"do": "deaf_start"}]}, []),
        (SLOW_THIRD, [{"point": "commit.before", "do": "delay", "seconds": 0.4}]),
        (SLOW_THIRD, [{"point": "commit.after", "do": "delay", "seconds": 0.4}]),
        (SLOW_THIRD, [{"point": "write.written", "do": "delay", "seconds": 0.4}]),
    ],
    ids=["before the trainer is ready", "before a commit", "after a commit", "writing"],
)
def test_a_doubled_signal_at_an_odd_time_stops_once(
    tmp_path: Path, settings: dict[str, Any], faults: list[dict[str, Any]]
) -> None:
    queue = Queue(tmp_path)
    code, text = terminate_twice(queue, settings=settings, faults=faults)
    assert code == 75
    assert "Traceback" not in text
    assert text.count("gave back seed 1: SIGTERM") == 1
    assert (queue.job.state, queue.job.interruptions) == (State.QUEUED, 1)
    assert check(queue.url) == []
    assert queue.work(settings={})[0] == 0
    queue.require_sound()


@pytest.mark.parametrize("back", [True, False], ids=["comes back", "stays away"])
def test_a_signal_while_the_database_is_away(tmp_path: Path, back: bool) -> None:
    """What the trainer saves is recorded if there is time, and adopted later if there is not."""
    queue = Queue(tmp_path)
    options = {"busy_seconds": 0.1, "grace": 10.0 if back else 1.0}
    with queue.worker(settings=SLOW_THIRD | {"checkpoint_freq": 10}, **options) as worker:
        queue.wait(lambda job: job.epoch == 2)
        with queue.locked():
            worker.terminate()
            wait_until(queue.checkpoints, "the trainer's last checkpoint")
            if not back:
                code, text = finish(worker)
        if back:
            code, text = finish(worker)
    assert code == (75 if back else 69)
    assert "Traceback" not in text
    assert queue.job.state is (State.QUEUED if back else State.RUNNING)
    assert queue.work(settings={}, drain=True)[0] == 0
    queue.require_sound()
    assert queue.starts() == [0, 2]
    assert (queue.job.interruptions, queue.job.losses) == ((1, 0) if back else (0, 1))


# Many at once


def test_eight_workers_share_forty_members(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=40, epochs=3)
    logs = [tmp_path / f"{number}.log" for number in range(8)]
    workers = [
        fork_worker(queue, log, settings={}, faults=[], drain=True, ensemble="e") for log in logs
    ]
    for worker in workers:
        worker.join(90)
    texts = [log.read_text() for log in logs]
    assert [worker.exitcode for worker in workers] == [0] * 8, texts
    queue.require_sound()
    claimed = [seed for text in texts for seed in re.findall(r"seed (\d+) \(attempt 1\)", text)]
    assert sorted(map(int, claimed)) == list(range(1, 41))
    assert all(job.attempt == 1 for job in queue.jobs)
    assert not any("the database is away" in text for text in texts)
    assert max(waits(queue)) < 10  # the busy time-out; 0.1 s at rest, 1 s on a busy machine


def waits(queue: Queue) -> list[float]:
    """Seconds between the end of each attempt and its worker's next claim."""
    tries = [attempt for job in queue.jobs for attempt in queue.store.attempts(job.id)]
    tries.sort(key=lambda attempt: (attempt.worker_id, attempt.started_at))
    return [
        second.started_at - first.ended_at
        for first, second in pairwise(tries)
        if first.worker_id == second.worker_id and first.ended_at is not None
    ]


def test_signals_that_go_on_to_the_very_end_do_not_change_the_exit_code(tmp_path: Path) -> None:
    """SLURM's scancel sends SIGTERM several times; the last may come while Python ends."""
    queue = Queue(tmp_path)
    with queue.worker(settings=SLOW_THIRD) as worker:
        queue.wait(lambda job: job.epoch == 2)
        while worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        assert finish(worker)[0] == 75
