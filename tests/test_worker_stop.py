"""Stopping, leases, dead and frozen workers, with real processes and the fake trainer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from worker_tools import TRAINER, Queue, environment, finish, freeze, is_running

from ensq.jobs import Job, Outcome, State
from ensq.store import Store
from ensq.worker import devices
from ensq.worker.child import TrainerChild, child_environment, describe_end
from ensq.worker.options import PARENT_FD, WorkerOptions
from ensq.worker.pack import PackSession
from ensq.worker.protocol import Stop, Stopped
from ensq.worker.signals import STOP_SIGNALS, StopSignals
from ensq.worker.stopping import Stopping

Fake = Callable[..., None]
SLOW_THIRD = {"rules": [{"do": "slow", "epoch": 3, "attempt": 1}]}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Tells the trainers of this process's workers how to behave."""

    def tell(*rules: dict[str, Any], **settings: Any) -> None:
        for name, value in environment(rules=rules, **settings).items():
            monkeypatch.setenv(name, value)

    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    tell()
    return tell


def in_third_epoch(job: Job) -> bool:
    return job.epoch == 2


# Stop signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_stop_signal_saves_gives_back_and_leaves_with_75(
    tmp_path: Path, fake: Fake, name: str
) -> None:
    queue = Queue(tmp_path)
    with queue.worker(settings=SLOW_THIRD | {"checkpoint_freq": 5}) as worker:
        queue.wait(in_third_epoch)
        worker.send_signal(getattr(signal, name))
        code, text = finish(worker)
    assert code == 75
    assert name in text
    job = queue.job
    assert (job.state, job.interruptions, job.failures, job.crashes) == (State.QUEUED, 1, 0, 0)
    assert job.checkpoint is not None  # none was due yet: it was written for the signal
    assert job.checkpoint.epoch == 2
    assert queue.store.attempts(job.id)[0].outcome is Outcome.INTERRUPTED
    assert queue.work()[0] == 0
    assert queue.losses(queue.job) == queue.expected(queue.job)
    assert [a.start_epoch for a in queue.store.attempts(job.id)] == [0, 2]


def test_doubled_signals_do_no_harm(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    with queue.worker(settings=SLOW_THIRD) as worker:
        queue.wait(in_third_epoch)
        # As SLURM does at the time limit, in any order.
        for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGTERM, signal.SIGUSR1):
            worker.send_signal(number)
        code, text = finish(worker)
    assert code == 75
    assert text.count("stopping (") == 1
    assert "Traceback" not in text
    assert queue.job.interruptions == 1


def test_a_trainer_that_does_not_answer_is_killed_and_the_rows_given_back(
    tmp_path: Path, fake: Fake
) -> None:
    queue = Queue(tmp_path)
    settings = {"rules": [{"do": "hang", "epoch": 3}]}
    with queue.worker(settings=settings, grace=0.3) as worker:
        queue.wait(in_third_epoch)
        worker.send_signal(signal.SIGTERM)
        code, text = finish(worker)
    assert code == 75
    assert "did not answer within 0.3 s" in text
    job = queue.job
    assert (job.state, job.interruptions, job.crashes) == (State.QUEUED, 1, 0)
    assert job.checkpoint is not None
    assert job.checkpoint.epoch == 2
    assert not is_running(trainer_of(text))


def test_a_trainer_that_is_still_starting_is_not_waited_for(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    with queue.worker(settings={"rules": [{"do": "deaf_start"}]}) as worker:
        queue.wait(lambda job: job.state is State.RUNNING)
        began = time.monotonic()
        worker.send_signal(signal.SIGINT)
        code, _ = finish(worker)
    assert code == 75
    assert time.monotonic() - began < 5
    assert queue.job.state is State.QUEUED


def test_a_worker_that_waits_for_others_stops_at_once(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    options: dict[str, Any] = {"drain": True, "poll_seconds": 60.0}
    with queue.worker(settings=SLOW_THIRD) as busy:
        queue.wait(in_third_epoch)
        with queue.worker(**options) as idle:
            assert idle.stderr is not None
            while "worker" not in idle.stderr.readline():
                pass
            idle.send_signal(signal.SIGTERM)
            assert finish(idle)[0] == 75
        assert busy.poll() is None


def test_the_end_of_its_parent_stops_a_worker(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    watched, held_open = os.pipe()
    options = {"parent_fd": watched}
    with queue.worker(settings=SLOW_THIRD, pass_fds=(watched,), **options) as worker:
        queue.wait(in_third_epoch)
        os.close(held_open)
        code, text = finish(worker)
    os.close(watched)
    assert code == 75
    assert "program that started this worker is gone" in text
    assert queue.job.checkpoint is not None


def test_a_worker_stops_by_itself_before_the_time_limit(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake({"do": "slow", "epoch": 3, "attempt": 1})
    monkeypatch.setattr("ensq.worker.timing.FIRST", 1.0)  # a fake trainer starts at once
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3))
    queue = Queue(tmp_path)
    code, lines = queue.work()
    assert code == 75
    assert any("the time limit is near" in line for line in lines)
    assert (queue.job.state, queue.job.epoch, queue.job.interruptions) == (State.QUEUED, 2, 1)
    [attempt] = queue.store.attempts(queue.job.id)
    assert queue.store.workers([attempt.worker_id])[attempt.worker_id].slurm_job == "77"


def test_the_margin_before_a_short_time_limit_is_a_quarter_of_it() -> None:
    with StopSignals() as signals:
        for left, reason in ((3.9, True), (4.1, False)):
            now = time.time()
            stopping = Stopping(signals, deadline=now + left, margin=60.0, parent_fd=None)
            assert stopping._stop_at is not None
            assert (stopping._stop_at < now + 3.0) is reason


# Leases


@contextmanager
def reaper(queue: Queue) -> Iterator[list[Any]]:
    """Takes back what it may, all the time, as other hosts' claims would."""
    reaped: list[Any] = []
    over = threading.Event()

    def reap() -> None:
        store = Store.open(queue.url)
        while not over.wait(0.02):
            reaped.extend(store.reap())
        store.close()

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        yield reaped
    finally:
        over.set()
        thread.join()


def test_a_lease_is_renewed_while_the_trainer_says_nothing(tmp_path: Path, fake: Fake) -> None:
    fake({"do": "slow", "epoch": 2, "attempt": 1}, slow_seconds=1.8)
    queue = Queue(tmp_path)
    with reaper(queue) as reaped:
        assert queue.work(lease_seconds=1.0)[0] == 0
    assert reaped == []
    assert queue.job.attempt == 1


def test_without_renewals_the_lease_runs_out_and_nothing_more_is_published(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above; and what is reaped is not written to."""
    monkeypatch.setattr(PackSession, "_keep_leases", lambda session, child: None)
    fake({"do": "slow", "epoch": 2, "attempt": 1}, slow_seconds=1.5)
    queue = Queue(tmp_path)
    with reaper(queue) as reaped:
        code, lines = queue.work(lease_seconds=1.0)
    assert code == 0
    assert len(reaped) == 1
    assert any("seed 1: superseded" in line for line in lines)
    assert queue.job.attempt == 2
    assert queue.losses(queue.job) == queue.expected(queue.job)


def test_a_cancelled_member_is_dropped_and_the_pack_goes_on(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path, seeds=2)
    settings = {"rules": [{"do": "slow", "epoch": 3}], "slow_seconds": 0.6}
    with queue.worker(settings=settings, pack=2, lease_seconds=1.0) as worker:
        queue.wait(in_third_epoch)
        queue.store.cancel("e", [1])
        code, text = finish(worker)
    assert code == 0
    assert "seed 1: superseded; the member was cancelled" in text
    assert [(job.state, job.epoch) for job in queue.jobs] == [
        (State.CANCELLED, 2),
        (State.DONE, 5),
    ]
    assert not (queue.run_folder / "seed-1/attempt-1/result.safetensors").exists()


def test_a_trainer_with_nothing_left_to_train_is_ended(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    settings = {"rules": [{"do": "hang", "epoch": 3}]}
    with queue.worker(settings=settings, lease_seconds=0.4, grace=0.2) as worker:
        queue.wait(in_third_epoch)
        queue.store.cancel("e")
        code, text = finish(worker)
    assert code == 0
    assert not is_running(trainer_of(text))


# Dead and frozen workers


def trainer_of(text: str) -> int:
    """The process id of the trainer, from the worker's lines."""
    match = re.search(r"trainer (\d+) is ready", text)
    assert match is not None, text
    return int(match[1])


def test_another_worker_takes_over_at_once_from_one_that_was_killed(
    tmp_path: Path, fake: Fake
) -> None:
    queue = Queue(tmp_path)
    with queue.worker(settings=SLOW_THIRD | {"checkpoint_freq": 2}, lease_seconds=3600.0) as dead:
        queue.wait(in_third_epoch)
        with queue.worker(drain=True, lease_seconds=3600.0) as other:
            dead.kill()
            _, text = finish(dead)
            code, _ = finish(other)
    assert code == 0
    job = queue.job
    assert (job.state, job.attempt) == (State.DONE, 2)
    assert queue.losses(job) == queue.expected(job)
    first, second = queue.store.attempts(job.id)
    assert (first.outcome, second.outcome) == (Outcome.LOST, Outcome.DONE)
    assert second.start_epoch == 2
    until = time.monotonic() + 5
    while is_running(trainer_of(text)):  # it sees its input end
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "fencing off"])
def test_a_frozen_worker_that_thaws_publishes_nothing(
    tmp_path: Path, fake: Fake, fenced: bool
) -> None:
    """With the fence off the same schedule lets the old attempt overwrite the new one's result."""
    queue = Queue(tmp_path)
    settings = {"rules": [{"do": "slow_result", "attempt": 1}], "slow_seconds": 1.0}
    options: dict[str, Any] = {"lease_seconds": 0.5, "unfenced": not fenced}
    with queue.worker(settings=settings, **options) as zombie:
        queue.wait(lambda job: job.epoch == 5)
        freeze(queue, zombie.pid)
        assert queue.work(drain=True)[0] == 0
        assert queue.job.result_path == "seed-1/attempt-2/result.safetensors"
        zombie.send_signal(signal.SIGCONT)
        code, text = finish(zombie)
    if fenced:
        assert queue.job.result_path == "seed-1/attempt-2/result.safetensors"
        assert "superseded" in text
        assert code == 0
    else:
        assert queue.job.result_path == "seed-1/attempt-1/result.safetensors"


# The pieces


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stop_signals_set_a_flag_wake_up_and_are_put_back(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    with StopSignals() as signals:
        assert signals.name is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        stopping = Stopping(signals, deadline=None, margin=0.0, parent_fd=None)
        began = time.monotonic()
        stopping.wait(60.0)
        assert time.monotonic() - began < 4  # less than the longest sleep
        reason = stopping.reason()
        assert reason is not None and reason.text == number.name
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


def test_an_interrupt_that_the_shell_ignores_for_us_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.name is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_trainer_gets_no_stop_signals_and_no_control_c(tmp_path: Path, fake: Fake) -> None:
    child = TrainerChild(TRAINER, tmp_path / "log", environment())
    try:
        assert os.getsid(child.pid) == child.pid
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(child.pid, number)
        child.send(Stop(reason="x"))
        events: list[Any] = []
        until = time.monotonic() + 20
        while not any(isinstance(event, Stopped) for event in events):
            assert not child.ended
            assert time.monotonic() < until
            time.sleep(0.01)
            child.flush()
            events += child.read_events()
    finally:
        child.quit(5.0)
    assert not is_running(child.pid)


def test_a_trainer_whose_signals_are_not_held_back_dies_of_them(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr("ensq.worker.child.stop_signals_blocked", nullcontext)
    child = TrainerChild(TRAINER, tmp_path / "log", environment())
    os.kill(child.pid, signal.SIGTERM)
    assert child.reap(20.0) == -signal.SIGTERM


def test_commands_that_the_trainer_does_not_read_yet_do_not_block(tmp_path: Path) -> None:
    sleeper = ["sh", "-c", "sleep 60", "--"]
    child = TrainerChild(sleeper, tmp_path / "log", dict(os.environ))
    child.send(Stop(reason="x" * 2**20))
    assert child.wants_write
    assert child.kill() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-15, "was killed by signal 15 (SIGTERM)"),
        (-40, "was killed by signal 40"),
    ],
)
def test_exit_codes_and_signals_are_told_apart(code: int, text: str) -> None:
    assert describe_end(code) == text


def test_the_trainer_is_single_threaded_without_a_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ensq.worker.devices._jaxlib", lambda: (0, 4, 36))
    one = child_environment({"XLA_FLAGS": "--a=b"})
    assert one["XLA_FLAGS"] == "--a=b --xla_cpu_multi_thread_eigen=false"
    assert (one["NPROC"], one["OMP_NUM_THREADS"]) == ("1", "1")
    told = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true", "NPROC": "8"}
    assert child_environment(told).items() >= told.items()
    monkeypatch.setattr("ensq.worker.devices.gpus_to_use", lambda environment: ["0"])
    assert "NPROC" not in child_environment({})


def test_a_jaxlib_that_is_slow_on_cpus_is_told_to_work_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ensq.worker.devices._jaxlib", lambda: (0, 10, 2))
    told = "--xla_cpu_use_fusion_emitters=true"
    assert child_environment({"XLA_FLAGS": told})["XLA_FLAGS"] == (
        f"{told} --xla_cpu_multi_thread_eigen=false --xla_cpu_experimental_ynn_fusion_type="
    )
    assert devices.cpu_flags((0, 10, 0))[1] == "--xla_cpu_use_fusion_emitters=false"
    for other in ((0, 4, 36), (0, 9, 2), (0, 11, 0), (0, 12, 0), ()):
        assert devices.cpu_flags(other) == ["--xla_cpu_multi_thread_eigen=false"]


def test_the_flags_for_this_jaxlib_are_known_to_it() -> None:
    """XLA ends a process that is given one it does not know."""
    flags = " ".join(devices.cpu_flags(devices._jaxlib()))
    code = "import jax; print(jax.jit(lambda x: x + 1)(1.0))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "2.0", done.stderr
    assert devices._jaxlib()[0] == 0


def test_the_trainer_does_not_learn_the_databases_password() -> None:
    secret = {"ENSQ_DB": "postgresql://u:secret@h/d", PARENT_FD: "9"}
    assert not set(child_environment(secret)) & set(secret)


def test_the_watched_pipe_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT_FD, "17")
    assert WorkerOptions(url="x").parent_fd == 17
    monkeypatch.delenv(PARENT_FD)
    assert WorkerOptions(url="x").parent_fd is None
