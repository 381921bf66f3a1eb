"""``ensq run``'s workers: started, pinned, stopped together; with the fake trainer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worker_tools import Queue, environment, finish, is_running

from ensq import local
from ensq.errors import DatabaseError
from ensq.jobs import State
from ensq.local import LocalOptions, LocalResult, aggregate, run_local
from ensq.worker import devices

SLOW_THIRD = {"rules": [{"do": "slow", "epoch": 3, "attempt": 1}]}
# An "ensq run" without a command line.
PROGRAM = """
import json, sys
from pathlib import Path
from ensq.local import LocalOptions, run_local
options = json.loads(sys.argv[1])
result = run_local(LocalOptions(**options | {"log_folder": Path(options["log_folder"])}))
sys.exit(result.exit_code)
"""


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def run(
    queue: Queue, *, workers: int = 2, settings: dict[str, Any] | None = None, **options: Any
) -> LocalResult:
    defaults: dict[str, Any] = {
        "command": queue.command(drain=True),
        "workers": workers,
        "log_folder": queue.folder / "logs",
        "environment": environment(**(settings or {})),
        "interval": 0.05,
    }
    return run_local(LocalOptions(**defaults | options))


def test_local_workers_drain_the_queue_each_on_a_core(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=4)
    before = os.sched_getaffinity(0)
    result = run(queue)
    assert (result.exit_code, result.codes) == (0, (0, 0))
    assert all(job.state is State.DONE for job in queue.jobs)
    assert os.sched_getaffinity(0) == before
    cores = [re.search(r"cores \[(\d+)\]", log.read_text()) for log in result.logs]
    assert all(cores)
    used = {match[1] for match in cores if match}
    assert len(used) == min(2, len(local.cores_to_use()))


def test_without_pinning_workers_may_use_every_core(tmp_path: Path) -> None:
    command = python("import os; print('cores', sorted(os.sched_getaffinity(0)))")
    options = LocalOptions(command=command, workers=1, log_folder=tmp_path, pin=False)
    [log] = run_local(options).logs
    assert log.read_text() == f"cores {sorted(os.sched_getaffinity(0))}\n"


def test_the_workers_exit_codes_come_back(tmp_path: Path) -> None:
    options = LocalOptions(command=python("exit(1)"), workers=2, log_folder=tmp_path)
    result = run_local(options)
    assert (result.exit_code, result.codes) == (1, (1, 1))


def test_control_c_stops_all_workers_and_saves(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=2)
    sent: list[int] = []

    def stop_once() -> None:
        if not sent and all(job.epoch == 2 for job in queue.jobs):
            sent.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    result = run(queue, settings=SLOW_THIRD, tick=stop_once)
    assert (result.exit_code, result.codes) == (75, (75, 75))
    for job in queue.jobs:
        assert (job.state, job.epoch, job.interruptions) == (State.QUEUED, 2, 1)


def test_a_worker_that_is_killed_is_made_up_for_by_the_other(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=2)
    killed: list[int] = []

    def kill_one() -> None:
        if not killed and all(job.epoch == 2 for job in queue.jobs):
            owner = queue.job.owner
            assert owner is not None
            killed.append(queue.store.workers([owner])[owner].pid)
            os.kill(killed[0], signal.SIGKILL)

    rules = [{"do": "slow", "epoch": 3, "attempt": 1}]
    result = run(queue, settings={"rules": rules, "slow_seconds": 1.0}, tick=kill_one)
    assert result.exit_code == 0
    assert sorted(result.codes) == [-9, 0]
    assert [job.attempt for job in queue.jobs] == [2, 1]
    for job in queue.jobs:
        assert queue.losses(job) == queue.expected(job)


def test_a_worker_that_does_not_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    began = time.monotonic()

    def stop() -> None:
        if time.monotonic() > began + 0.5:  # it ignores the signal by now
            os.kill(os.getpid(), signal.SIGTERM)

    result = run(queue, workers=1, command=python(program), grace=0.3, tick=stop)
    assert (result.exit_code, result.codes) == (75, (-9,))
    assert time.monotonic() - began < 10


def test_when_ensq_run_is_killed_its_workers_stop_and_give_back(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    options = {
        "command": queue.command(drain=True),
        "workers": 1,
        "log_folder": str(tmp_path / "logs"),
        "environment": environment(**SLOW_THIRD),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(options)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        owner = queue.wait(lambda job: job.epoch == 2).owner
    finally:
        process.kill()
        finish(process)
    assert owner is not None
    worker = queue.store.workers([owner])[owner].pid
    job = queue.wait(lambda job: job.state is State.QUEUED)
    assert (job.epoch, job.interruptions) == (2, 1)
    until = time.monotonic() + 10
    while is_running(worker):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_picture_that_cannot_be_drawn_does_not_stop_the_training(tmp_path: Path) -> None:
    def busy() -> None:
        raise DatabaseError("database is locked")

    options = LocalOptions(command=python(""), workers=1, log_folder=tmp_path, tick=busy)
    assert run_local(options).exit_code == 0


def test_an_error_here_leaves_no_worker_behind(tmp_path: Path) -> None:
    queue = Queue(tmp_path)

    def fail() -> None:
        if queue.job.epoch == 2:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(queue, workers=1, settings=SLOW_THIRD, tick=fail)
    assert (queue.job.state, queue.job.interruptions) == (State.QUEUED, 1)


@pytest.mark.parametrize(
    ("codes", "interrupted", "code"),
    [
        ([], False, 0),
        ([0, 0], False, 0),
        ([0, 1], False, 1),
        ([0, -9], False, 0),
        ([-9, -11], False, 75),
        ([75, 0], True, 75),
        ([75, 75], False, 75),
        ([0, 78], True, 78),
        ([69, 69], False, 69),
        ([69, 0], False, 0),
        ([2, 2], False, 2),
        ([-15, 0], True, 0),
    ],
)
def test_exit_codes_come_together(codes: list[int], interrupted: bool, code: int) -> None:
    assert aggregate(codes, interrupted=interrupted) == code


def test_workers_are_as_many_as_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores_to_use", lambda: [0, 1, 2, 3])
    number: Callable[..., int] = local.number_of_workers
    assert [number(0), number(3), number(9), number(9, pack=4)] == [1, 3, 4, 3]


def test_a_share_of_processor_time_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(local, "_CPU_MAX", file)
    for text, cores in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)):
        file.write_text(text)
        assert local._quota(8) == cores


def test_one_thread_of_each_physical_core_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_SIBLINGS", str(tmp_path / "{}"))
    monkeypatch.setattr(local, "_CPU_MAX", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for core, text in enumerate(["0-1\n", "0-1\n", "2,3\n", "2,3\n"]):
        (tmp_path / str(core)).write_text(text)
    assert local.cores_to_use() == [0, 2, 1, 3]


def test_each_worker_has_one_gpu_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "_DEVICES", tmp_path)
    assert devices.gpus_to_use({}) == [], "the installed JAX has no CUDA"
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)
    assert devices.gpus_to_use({}) == ["0", "1"]
    assert devices.gpus_to_use({"CUDA_VISIBLE_DEVICES": "3,GPU-5"}) == ["3", "GPU-5"]
    assert devices.gpus_to_use({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert devices.gpus_to_use({"JAX_PLATFORMS": "cpu"}) == []
    monkeypatch.setattr(local, "cores_to_use", lambda: [0, 1, 2, 3, 4, 5])
    assert local.number_of_workers(9) == 2
    options = LocalOptions(
        command=[sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"],
        workers=3,
        log_folder=tmp_path,
        environment={},
    )
    monkeypatch.setattr(local, "gpus_to_use", lambda environment: ["4", "7"])
    result = run_local(options)
    assert [log.read_text().strip() for log in result.logs] == ["4", "7", "4"]
