"""Workers under SLURM's time limit, with the fake trainer: what is begun, and when they stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from worker_tools import Queue, finish, wait_until

from ensq.jobs import Outcome, State
from ensq.slurm.deadline import DeadlineWatch
from ensq.store import EventKind
from ensq.store.policy import TIME_LIMIT
from ensq.worker.signals import StopSignals
from ensq.worker.stopping import Reason, Stopping
from ensq.worker.timing import Timing

TOO_SHORT = "the time limit is shorter than a checkpoint interval"
HANGS = {"do": "hang", "epoch": 1}
SLOW_THIRD = {"rules": [{"do": "slow", "epoch": 3, "attempt": 1}]}
TERM, CONT, USR1 = signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1

Limit = Callable[[float], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Gives the workers of this process a SLURM job that ends in so many seconds."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    # A fake trainer starts at once; and seconds stand for the minutes of a real limit here.
    monkeypatch.setattr("ensq.worker.timing.FIRST", 0.5)
    monkeypatch.setattr("ensq.worker.timing.FIXED", 0.5)
    monkeypatch.setattr("ensq.worker.stopping._ROWS", 0.5)

    def give(seconds: float) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        time.sleep(1.0 - time.time() % 1.0)  # the end is given in whole seconds
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(round(time.time() + seconds)))

    return give


def said(lines: Sequence[str], part: str) -> bool:
    return any(part in line for line in lines)


# What is begun


def leave_before_the_second(tmp_path: Path, limit: Limit) -> tuple[Queue, int, list[str]]:
    """A compilation of 3 s, a limit of 8 s, and two members; the second in a trainer of its own."""
    limit(8.0)
    queue = Queue(tmp_path, seeds=1, epochs=12)
    queue.add("f")
    settings = {"compile_seconds": 3.0, "epoch_seconds": 0.15}
    code, lines = queue.work(settings=settings, grace=5.0)
    return queue, code, lines


def test_a_member_that_would_not_reach_a_checkpoint_is_not_claimed(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensq.worker.timing.FIRST", 6.0)
    queue, code, lines = leave_before_the_second(tmp_path, limit)
    assert code == 75
    queue.require_sound()
    [other] = queue.jobs_of("f")
    assert (other.state, other.attempt) == (State.QUEUED, 0)
    [line] = [line for line in lines if "before the time limit; the next member would need" in line]
    assert "to its first checkpoint" in line


def test_without_that_it_is_claimed_for_nothing(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(Timing, "need", lambda *args, **more: 0.0)
    queue, code, _ = leave_before_the_second(tmp_path, limit)
    assert code == 75
    [other] = queue.jobs_of("f")
    assert (other.attempt, other.epoch, other.checkpoint, other.stalls) == (1, 0, None, 1)


def test_what_was_measured_decides_about_the_next_member(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start of 3 s, measured with the first member, is too long for what is left then."""
    monkeypatch.setattr("ensq.worker.timing._STAYS", 1.0)
    limit(8.0)
    queue = Queue(tmp_path, seeds=2, epochs=14)
    code, lines = queue.work(settings={"compile_seconds": 3.0, "epoch_seconds": 0.15})
    assert code == 75
    assert [(job.state, job.attempt) for job in queue.jobs] == [
        (State.DONE, 1),
        (State.QUEUED, 0),
    ]
    assert said(lines, "the next member would need about")


def test_a_lost_member_is_not_taken_over_too_late(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensq.worker.timing.FIRST", 10.0)
    queue = Queue(tmp_path)
    with queue.worker(settings=SLOW_THIRD) as worker:
        queue.wait(lambda job: job.epoch == 2)
        worker.kill()
        worker.wait()
        limit(5.0)
        code, lines = queue.work(settings={})
    assert code == 75
    assert said(lines, "the next member would need about")
    assert queue.job.attempt == 1


def test_a_worker_with_nothing_to_claim_does_not_speak_of_time(
    tmp_path: Path, limit: Limit
) -> None:
    limit(5.0)
    queue = Queue(tmp_path, seeds=1)
    assert queue.work(settings={})[0] == 0
    limit(0.3)
    code, lines = queue.work(settings={}, deadline_margin=0.0)
    assert code == 0
    assert not said(lines, "the next member")


def test_without_a_limit_everything_is_begun(tmp_path: Path, limit: Limit) -> None:
    queue = Queue(tmp_path, seeds=2)
    code, lines = queue.work(settings={})
    assert code == 0
    assert said(lines, "time limit unknown")


# When it stops


def test_it_stops_as_late_as_what_was_measured_allows(tmp_path: Path, limit: Limit) -> None:
    """Not a quarter of the time before the limit, which holds where nothing is known."""
    limit(6.0)
    ends = float(os.environ["SLURM_JOB_END_TIME"])
    queue = Queue(tmp_path, seeds=1, epochs=1000)
    code, lines = queue.work(settings={"epoch_seconds": 0.05})
    left = ends - time.time()
    assert code == 75
    assert 0.0 < left < 1.4
    assert said(lines, TIME_LIMIT)
    job = queue.job
    assert job.checkpoint is not None and job.checkpoint.epoch == job.epoch > 10
    assert (job.interruptions, job.stalls, job.state) == (1, 0, State.QUEUED)
    reason = queue.store.attempts(job.id)[0].reason
    assert reason is not None and "are left; epoch" in reason


@pytest.mark.parametrize("may", [True, False], ids=["all the time", "the grace alone"])
def test_a_trainer_that_compiles_may_use_all_the_time_there_is(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch, may: bool
) -> None:
    """Told to stop at three quarters, it is not killed while it can still save something."""
    if not may:
        monkeypatch.setattr(Stopping, "_at_the_limit", lambda stopping: Reason(TIME_LIMIT))
    limit(8.0)
    queue = Queue(tmp_path, seeds=1, epochs=1000)
    code, lines = queue.work(settings={"compile_seconds": 6.3}, grace=0.1)
    assert code == 75
    assert said(lines, "did not answer") is not may
    assert queue.store.attempts(queue.job.id)[0].outcome is Outcome.INTERRUPTED


def test_a_deaf_trainer_is_killed_and_the_rows_are_back_before_the_limit(
    tmp_path: Path, limit: Limit
) -> None:
    """The grace of 25 s would end long after SLURM's SIGKILL."""
    limit(4.0)
    ends = float(os.environ["SLURM_JOB_END_TIME"])
    queue = Queue(tmp_path)
    code, lines = queue.work(HANGS, grace=25.0)
    assert code == 75
    ended = queue.store.attempts(queue.job.id)[0].ended_at
    assert ended is not None and ended < ends
    assert said(lines, "did not answer within")
    assert (queue.job.state, queue.job.stalls, queue.job.crashes) == (State.QUEUED, 1, 0)


# Members that never get there


def test_a_member_that_never_reaches_a_checkpoint_fails_with_the_reason(
    tmp_path: Path, limit: Limit
) -> None:
    queue = Queue(tmp_path)
    for expected in (75, 75, 1):
        limit(3.0)
        code, lines = queue.work(settings={"compile_seconds": 30.0})
        assert code == expected
    job = queue.job
    assert (job.state, job.stalls, job.attempt) == (State.FAILED, 3, 3)
    assert job.error is not None and job.error.startswith(TOO_SHORT)
    assert "3 attempts in a row" in job.error
    assert "of this worker's" in job.error and "are left; compiling" in job.error
    assert "longer time limit" in job.error
    assert said(lines, TOO_SHORT)
    [event] = queue.events(EventKind.FAILED)
    assert TOO_SHORT in event.message


def test_a_checkpoint_in_between_begins_the_count_again(tmp_path: Path, limit: Limit) -> None:
    queue = Queue(tmp_path, epochs=1000)
    never = (3.0, {"compile_seconds": 30.0})
    for seconds, settings in (never, (8.0, {"epoch_seconds": 0.05}), never, never):
        limit(seconds)
        code, lines = queue.work(settings=settings)
        assert code == 75, "\n".join(lines)
    job = queue.job
    assert (job.state, job.stalls, job.interruptions) == (State.QUEUED, 2, 4)


def test_other_interruptions_keep_their_words(tmp_path: Path, limit: Limit) -> None:
    """One of the three was pre-empted: the time limit may be long enough."""
    queue = Queue(tmp_path)
    with queue.worker(settings={"rules": [HANGS]}, grace=0.2) as worker:
        queue.wait(lambda job: job.state is State.RUNNING)
        wait_until((queue.run_folder / "logs").is_dir, "a log")
        time.sleep(0.5)
        worker.send_signal(TERM)
        assert finish(worker)[0] == 75
    for _ in range(2):
        limit(3.0)
        queue.work(settings={"compile_seconds": 30.0})
    job = queue.job
    assert (job.state, job.stalls) == (State.FAILED, 3)
    assert job.error is not None and job.error.startswith("no progress: 3 attempts")
    assert TOO_SHORT not in job.error


# A limit that is moved


def moving_squeue(folder: Path, first: int, then: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A squeue by which ``first`` seconds are left; the next time the end lies ``then`` ahead."""
    folder.mkdir()
    path = folder / "squeue"
    path.write_text(
        f'''#!/bin/sh
cd "{folder}"
left={first}
if test -e asked; then
    test -e end || echo $(($(date +%s) + {then})) > end
    left=$(($(cat end) - $(date +%s)))
    test $left -ge 0 || left=0
fi
touch asked
printf '%d:%02d\\n' $((left / 60)) $((left % 60))
'''
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    # It asks every minute and looks every 5 s; the limits here are as much shorter.
    monkeypatch.setattr(DeadlineWatch, "_next_pause", lambda watch: 0.2)
    monkeypatch.setattr("ensq.worker.stopping._LONGEST", 0.1)


@pytest.mark.parametrize("asks", [True, False], ids=["asks again", "does not"])
def test_a_limit_that_was_moved_back_stops_no_training(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    moving_squeue(tmp_path / "bin", 4, 3630, monkeypatch)  # a second may pass as it counts
    if not asks:
        monkeypatch.setattr(DeadlineWatch, "poll", lambda watch: None)
    queue = Queue(tmp_path)
    slow = {"do": "slow", "epoch": 3, "attempt": 1}
    code, lines = queue.work(slow, settings={"slow_seconds": 5.0})
    assert code == (0 if asks else 75)
    assert said(lines, "SLURM says: time limit in 1 h 00 min") is asks


def test_a_limit_that_was_moved_forward_is_kept(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving_squeue(tmp_path / "bin", 3600, 3, monkeypatch)
    queue = Queue(tmp_path)
    slow = {"do": "slow", "epoch": 3, "attempt": 1}
    began = time.monotonic()
    code, lines = queue.work(slow, settings={"slow_seconds": 20.0})
    assert code == 75, "\n".join(lines)
    assert time.monotonic() - began < 15.0
    assert queue.job.checkpoint is not None
    assert said(lines, TIME_LIMIT)


# Signals


@pytest.mark.parametrize(
    ("left", "number", "near"),
    [(30.0, USR1, True), (100.0, TERM, True), (7200.0, TERM, False), (7200.0, USR1, False),
     (None, TERM, False), (30.0, signal.SIGINT, False)],
)  # fmt: skip
def test_a_signal_shortly_before_the_limit_is_the_limits(
    left: float | None, number: signal.Signals, near: bool
) -> None:
    with StopSignals() as signals:
        end = None if left is None else time.time() + left
        stopping = Stopping(signals, deadline=end, margin=0.0, parent_fd=None)
        os.kill(os.getpid(), number)
        reason = stopping.reason()
    assert reason is not None
    assert reason.text.startswith(TIME_LIMIT) is near
    assert number.name in reason.text
    assert reason.asked is (number == signal.SIGINT)


@contextmanager
def load() -> Iterator[None]:
    """Four processes that want all of the processor."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


ORDERS = {
    "time limit, srun": (TERM, CONT, TERM),
    "time limit, srun, the other order": (CONT, TERM, TERM),
    "time limit, exec": (CONT, TERM),
    "--signal=USR1@30, then the limit": (USR1, TERM, CONT, TERM),
    "--signal=B: passed on, then srun": (USR1, USR1, CONT, TERM),
    "pre-emption with a grace": (CONT, TERM, 0.3, CONT, TERM, TERM),
    "scancel": (CONT, TERM),
    "a storm": (CONT, TERM) * 100,
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_signals_in_slurms_orders_under_load(tmp_path: Path, order: tuple[Any, ...]) -> None:
    queue = Queue(tmp_path)
    with load(), queue.worker(settings=SLOW_THIRD | {"checkpoint_freq": 5}) as worker:
        queue.wait(lambda job: job.epoch == 2)
        for number in order:
            if isinstance(number, float):
                time.sleep(number)
            elif worker.poll() is None:
                worker.send_signal(int(number))
        code, text = finish(worker)
    assert code == 75, text
    assert text.count("stopping (") == 1
    assert "Traceback" not in text and "reentrant" not in text
    job = queue.job
    assert (job.state, job.interruptions, job.crashes) == (State.QUEUED, 1, 0)
    assert job.checkpoint is not None and job.checkpoint.epoch == 2
