"""Trainers that die, hang, or meet a full disk: what is counted, kept and told."""

from __future__ import annotations

import re
import signal
import socket
import time
from pathlib import Path

import pytest
from worker_tools import Queue, finish, is_running, trainer_of

from ensq.jobs import Job, Outcome, State
from ensq.store import EventKind
from ensq.worker import pack
from ensq.worker.health import Pulse
from ensq.worker.supervisor import BadHost

TWICE = {"pause": 0, "strikes": 2, "stalls": 2}  # may happen no more often in a row
NO_COUNTS = (0, 0, 0, 0, 0, 0)


def counts(job: Job) -> tuple[int, ...]:
    kept = (job.failures, job.crashes, job.losses, job.interruptions, job.strikes, job.stalls)
    assert len(kept) == len(NO_COUNTS)
    return kept


# Crashes


@pytest.mark.parametrize(
    ("do", "reason", "tail"),
    [
        ("segv", "SIGSEGV", "Fatal Python error: Segmentation fault"),  # with its stack
        ("kill", "SIGKILL", None),
        ("exit", "exit code 3", "Traceback: out of cheese"),
        ("rubbish", "what is no event", None),
        ("memory", "memory: told to fail in epoch 3", None),
    ],
)
def test_a_crash_keeps_the_end_of_the_log_with_the_attempt(
    tmp_path: Path, do: str, reason: str, tail: str | None
) -> None:
    queue = Queue(tmp_path)
    assert queue.work({"do": do, "epoch": 3, "attempt": 1})[0] == 0
    queue.require_sound()
    # One that talks rubbish lives on until it is killed, and may get further meanwhile.
    first, second = queue.starts()
    assert first == 0 and (second == 2 or (do == "rubbish" and second > 2))
    assert (queue.job.crashes, queue.job.failures) == (1, 0)
    attempt = queue.store.attempts(queue.job.id)[0]
    assert attempt.outcome is Outcome.CRASH
    assert attempt.reason is not None and reason in attempt.reason
    assert tail is None or (attempt.log_tail is not None and tail in attempt.log_tail)
    if do == "segv":
        assert attempt.log_tail is not None and "in misbehave" in attempt.log_tail


def test_crashes_with_progress_in_between_set_nothing_aside(tmp_path: Path) -> None:
    """Without progress three are enough, as the next test shows."""
    queue = Queue(tmp_path, epochs=6)
    rules = [{"do": "exit", "epoch": n + 1, "attempt": n} for n in range(1, 6)]
    assert queue.work(*rules)[0] == 0
    queue.require_sound()
    assert (queue.job.crashes, queue.job.attempt) == (5, 6)
    assert queue.job.strikes == 1  # the last of them: since then there was only the end


def test_three_crashes_without_progress_set_a_member_aside_with_the_evidence(
    tmp_path: Path,
) -> None:
    queue = Queue(tmp_path, seeds=2)
    code, lines = queue.work({"do": "exit", "epoch": 3, "seed": 1})
    assert code == 1
    first, second = queue.jobs
    assert (first.state, first.epoch, first.crashes, first.strikes) == (State.FAILED, 2, 3, 3)
    assert first.error is not None
    assert first.error.startswith("set aside: it ended 3 trainers or workers in a row without")
    assert "exit code 3" in first.error and "out of cheese" in first.error
    assert second.state is State.DONE
    assert sum("it has failed for good" in line for line in lines) == 1
    # A person can have it tried again: all is forgiven then, and it goes on from where it was.
    queue.store.retry("e")
    assert counts(queue.job) == NO_COUNTS
    assert queue.work(settings={})[0] == 0
    queue.require_sound()
    assert queue.starts() == [0, 2, 2, 2]


def test_workers_that_die_with_a_member_set_it_aside_too(tmp_path: Path) -> None:
    """A member may be what kills the whole worker, by its memory say."""
    queue = Queue(tmp_path)
    faults = [{"point": "commit.before", "do": "kill", "hit": 3}]  # of the first epoch
    for _ in range(2):
        with queue.worker(faults=faults, settings={"checkpoint_freq": 10}, policy=TWICE) as worker:
            assert finish(worker)[0] == -signal.SIGKILL
    code, _ = queue.work(ensemble="e", policy=TWICE)
    assert code == 1
    job = queue.job
    assert (job.state, job.losses, job.strikes, job.attempt) == (State.FAILED, 2, 2, 2)
    assert job.error is not None
    assert re.search(r"set aside.*2 trainers or workers.*process \d+ on .* is gone", job.error)


# Hanging


def test_a_trainer_that_hangs_leaves_its_stacks_and_is_ended(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    options = {"hang_least": 0.4, "hang_first": 10.0}
    settings = {"rules": [{"do": "silent", "epoch": 3, "attempt": 1}]}
    with queue.worker(settings=settings, **options) as worker:
        queue.wait(lambda job: job.epoch == 2)
        hanging = trainer_of(worker)
        code, text = finish(worker)
    assert code == 0
    assert not is_running(hanging)
    assert "the trainer gave no sign of life for" in text
    queue.require_sound()
    assert (queue.job.crashes, queue.job.attempt) == (1, 2)
    first = queue.store.attempts(queue.job.id)[0]
    assert first.outcome is Outcome.CRASH
    assert first.reason is not None and "the trainer hung" in first.reason
    assert first.log_tail is not None
    assert re.search(r'Fatal Python error: Aborted.*fake_trainer\.py", line \d+ in misbehave',
                     first.log_tail, re.DOTALL)  # fmt: skip


def test_a_trainer_that_is_stopped_is_ended_without_its_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "_DUMP", 0.2)
    monkeypatch.setenv(
        "ENSQ_FAULTS",
        '[{"point": "write.written", "do": "stop", "hit": 3, "match": "/attempt-1/"}]',
    )
    queue = Queue(tmp_path)
    assert queue.work(settings={}, hang_least=0.4, hang_first=10.0)[0] == 0
    queue.require_sound()
    assert (queue.job.crashes, queue.starts()) == (1, [0, 2])


def test_a_slow_trainer_does_not_hang_by_its_own_measure(tmp_path: Path) -> None:
    """An epoch of 0.6 s where at least 0.2 s are allowed: epochs before it took nearly as long."""
    queue = Queue(tmp_path, epochs=3)
    settings = {"epoch_seconds": 0.3, "rules": [{"do": "slow", "epoch": 3}], "slow_seconds": 0.6}
    assert queue.work(settings=settings, hang_least=0.2, hang_first=10.0, hang_epochs=5.0)[0] == 0
    assert counts(queue.job) == NO_COUNTS
    twin = Queue(_folder(tmp_path / "twin"), epochs=3)  # the negative control
    options = {"hang_least": 0.2, "hang_first": 10.0, "hang_epochs": 0.5, "max_jobs": 1}
    twin.work(settings=settings, **options)
    assert twin.job.crashes == 1


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_how_long_silence_may_last() -> None:
    now = [0.0]
    pulse = Pulse(epochs=20.0, least=600.0, first=3600.0, usual=None, monotonic=lambda: now[0])
    assert pulse.limit() == 3600  # it may compile
    now[0] = 100.0
    pulse.sign()
    now[0] = 130.0
    assert (pulse.silence(), pulse.left()) == (30, 3570)
    pulse.epoch()
    assert pulse.limit() == 20 * 130  # the first epoch, compiling and all
    now[0] = 140.0
    pulse.epoch()
    assert pulse.limit() == 20 * 130  # the longest so far
    known = Pulse(epochs=20.0, least=600.0, first=3600.0, usual=500.0)
    assert known.limit() == 10_000  # that long even before the first epoch
    quick = Pulse(epochs=20.0, least=600.0, first=10.0, usual=1.0)
    quick.epoch()
    assert quick.limit() == 600


# The host


def test_a_disk_that_the_trainer_cannot_write_blocks_and_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = (
        '[{"point": "write.written", "do": "error", "errno": "ENOSPC", "match": "epoch-000003"}]'
    )
    queue = Queue(tmp_path, seeds=3)
    with monkeypatch.context() as full:
        full.setenv("ENSQ_FAULTS", fault)
        code, lines = queue.work(settings={}, pack=2, policy={})
    assert code == 75
    assert re.search(r"stopped: .*epoch-000003.*: can't be written: No space left on device; free",
                     lines[-1]), lines  # fmt: skip
    one, two, three = queue.jobs
    for job in (one, two):
        assert (job.state, job.epoch, counts(job)) == (State.QUEUED, 2, NO_COUNTS)
        assert job.not_before > time.time()
        assert [a.outcome for a in queue.store.attempts(job.id)] == [Outcome.BLOCKED]
        [event] = queue.events(EventKind.BLOCKED, job)
        assert "No space left" in event.message
    assert (three.state, three.attempt) == (State.QUEUED, 0)
    # Somebody has made room.
    queue.store.hold("e")
    queue.store.unhold("e")
    assert queue.work(settings={}, pack=2)[0] == 0
    queue.require_sound()
    assert [queue.starts(job) for job in queue.jobs] == [[0, 2], [0, 2], [0]]


def test_what_the_trainer_says_of_a_disk_is_what_the_worker_says(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    code, lines = queue.work({"do": "disk", "epoch": 3})
    assert (code, counts(queue.job)) == (75, NO_COUNTS)
    assert lines[-1].endswith("stopped: told to fail in epoch 3")


def test_a_host_where_one_attempt_after_the_other_fails_is_left(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=5)
    with pytest.raises(BadHost) as found:
        queue.work({"do": "exit"}, failures_in_a_row=3, policy={"pause": 60})
    said = str(found.value)
    assert f"3 attempts in a row failed within a minute on host {socket.gethostname()}" in said
    assert "exit code 3" in said
    assert [(job.state, job.attempt, job.crashes) for job in queue.jobs] == [
        *[(State.QUEUED, 1, 1)] * 3,
        *[(State.QUEUED, 0, 0)] * 2,
    ]
    assert [worker.ended_at is None for worker in queue.store.living_workers()] == []


def test_failures_between_epochs_that_succeed_do_not_blame_the_host(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=5)
    rule = {"do": "exit", "epoch": 2, "attempt": 1}
    assert queue.work(rule, failures_in_a_row=3)[0] == 0
    assert [job.crashes for job in queue.jobs] == [1] * 5
    queue.require_sound()


# Interruptions


def interrupt(queue: Queue, number: signal.Signals) -> tuple[int, str]:
    """Stop a worker in the first epoch; its exit code and its lines."""
    settings = {"rules": [{"do": "slow", "epoch": 1}], "slow_seconds": 60}
    with queue.worker(settings=settings, policy=TWICE) as worker:
        queue.wait(lambda job: job.state is State.RUNNING)
        trainer_of(worker)
        worker.send_signal(number)
        return finish(worker)


def test_interruptions_without_any_checkpoint_lead_nowhere(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    assert interrupt(queue, signal.SIGTERM)[0] == 75
    assert (queue.job.state, queue.job.stalls) == (State.QUEUED, 1)
    code, text = interrupt(queue, signal.SIGTERM)
    assert code == 1  # nothing is left to do, and it has failed
    assert "seed 1: it has failed for good: no progress: 2 attempts" in text
    job = queue.job
    assert (job.state, job.interruptions, job.stalls, job.strikes) == (State.FAILED, 2, 2, 0)
    assert job.error is not None
    assert job.error.startswith("no progress: 2 attempts in a row were interrupted before a new")
    assert "SIGTERM" in job.error and "is the time limit too short?" in job.error


def test_a_person_may_interrupt_as_often_as_they_like(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    for _ in range(3):
        assert interrupt(queue, signal.SIGINT)[0] == 75
    job = queue.job
    assert (job.state, job.interruptions, job.stalls) == (State.QUEUED, 3, 0)
    assert queue.work(settings={})[0] == 0
    queue.require_sound()
