"""Several processes train one pack: the numbers are those of one, and nobody waits for the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes_program
import pytest
from train_tools import Listener, settings, task, train_command, write_tiny

from ensq.errors import DataError
from ensq.train import channel, checkpoint, child
from ensq.train.channel import EXIT_ALONE
from ensq.train.environment import set_precision
from ensq.worker import protocol
from ensq.worker.meeting import connect, open_meeting, read_meeting
from ensq.worker.processes import FOLLOWER

PROGRAM = Path(__file__).parent / "processes_program.py"
# As in test_grid: sums over parts of a batch are taken in another order, in float64.
RTOL = 1e-9
TASKS = [task(Path("/nowhere"), seed) for seed in (1, 2)]
QUICK = "--xla_backend_optimization_level=0"


def environment() -> dict[str, str]:
    """Of a trainer with two devices."""
    flags = f"{QUICK} --xla_cpu_multi_thread_eigen=false"
    return {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "1",
        "JAX_COMPILATION_CACHE_DIR": "",
    }


class Pair:
    """A leading program and its follower, each with two devices."""

    def __init__(self, folder: Path) -> None:
        """Returns when the leading one has trained what is to be compared."""
        write_tiny(folder / "tiny.npz")
        file = folder / "meeting"
        self.epochs = 0
        self.trained = threading.Event()
        with open_meeting(file, 2) as listener:
            meeting = read_meeting(file)
            assert meeting is not None
            self.leader = self._start(
                *(str(PROGRAM), str(folder), str(file), str(listener.fileno())),
                handle=listener.fileno(),
                log=folder / "leader.log",
                stdout=subprocess.PIPE,
            )
            with connect(meeting) as connection:
                handle = connection.fileno()
                arguments = ("--meeting", str(file), "--process", "1", "--connection", str(handle))
                self.follower = self._start(
                    *FOLLOWER[1:], *arguments, handle=handle, log=folder / "follower.log"
                )
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
            self.came = self.trained.wait(120)
        logs = [(folder / name).read_text()[-3000:] for name in ("leader.log", "follower.log")]
        self.said = "\n".join(logs)

    def _start(self, *command: str, handle: int, log: Path, **more: Any) -> Any:
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, *command],
                **{"stdout": file, **more},
                stdin=subprocess.PIPE,
                stderr=file,
                pass_fds=(handle,),
                env=environment(),
                cwd=PROGRAM.parent,
            )

    def _read(self) -> None:
        for line in self.leader.stdout:
            self.epochs += line == b"epoch\n"
            if line.startswith(b"trained"):
                self.trained.set()

    def close(self) -> None:
        for process in (self.leader, self.follower):
            process.kill()
            process.wait()
            process.stdin.close()
        self._reader.join(10)
        self.leader.stdout.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of this process, with one device."""
    folder = tmp_path_factory.mktemp("alone")
    write_tiny(folder / "tiny.npz")
    try:
        processes_program.packs(folder, None)
    finally:
        set_precision("float32")
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Pair]]:
    """Results of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("together")
    pair = Pair(folder)
    yield folder, pair
    pair.close()


def result(folder: Path, seed: int, attempt: int = 1) -> Any:
    path = folder / f"seed-{seed}" / f"attempt-{attempt}" / "result.safetensors"
    return checkpoint.read_result(path.read_bytes())


def arrays(found: Any) -> dict[str, Any]:
    """Best parameters, history (but for times), errors of the frames."""
    more = {"history": found.history[:, :5], "errors": found.force_errors}
    return checkpoint.flatten(found.params) | more


def assert_same_bits(one: Any, other: Any) -> None:
    mine, theirs = arrays(one), arrays(other)
    assert {k: v.tobytes() for k, v in mine.items()} == {k: v.tobytes() for k, v in theirs.items()}


def assert_close(one: Any, other: Any) -> None:
    mine, theirs = arrays(one), arrays(other)
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert np.isfinite(expected).any()
        scale = np.nanmax(np.abs(expected), initial=0.0)
        np.testing.assert_allclose(mine[name], expected, rtol=RTOL, atol=RTOL * scale)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_pack_of_two_processes_has_the_numbers_of_one(
    alone: Path, together: tuple[Path, Pair], seed: int
) -> None:
    """Each member is on the devices of one process, and each batch on both of them."""
    folder, pair = together
    assert pair.came, pair.said
    assert_close(result(folder / "calm", seed), result(alone / "calm", seed))


@pytest.mark.parametrize("seed", [1, 2])
def test_stop_and_resume_of_two_processes_equal_no_stop(
    together: tuple[Path, Pair], seed: int
) -> None:
    folder, _ = together
    assert_same_bits(result(folder / "stopped", seed, attempt=2), result(folder / "calm", seed))


def test_a_member_goes_on_alone_on_all_devices_of_two_processes(
    alone: Path, together: tuple[Path, Pair]
) -> None:
    """The other one's losses were not finite in the first epoch."""
    folder, _ = together
    found = result(folder / "spoilt", 1)
    assert_close(found, result(alone / "spoilt", 1))
    first = result(folder / "calm", 1)
    assert found.history[0, :5].tobytes() == first.history[0, :5].tobytes()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_member_of_two_processes_ends_early_and_the_other_goes_on(
    alone: Path, together: tuple[Path, Pair], seed: int
) -> None:
    folder, _ = together
    found = result(folder / "early", seed)
    assert_close(found, result(alone / "early", seed))
    assert len(found.history) == (3 if seed == 1 else 1)
    assert (found.early is None) == (seed == 1)


def test_the_follower_writes_nothing_but_its_log(together: tuple[Path, Pair]) -> None:
    folder, _ = together
    assert not list((folder / "run").rglob("*.safetensors"))


class Ended(BaseException):
    """In place of the process's end."""


def test_what_goes_wrong_among_processes_is_told_and_ends_the_trainer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The others may be in an exchange that the leading one has left: none goes on as if not."""

    def end(code: int) -> None:
        raise Ended(code)

    def fails(command: protocol.Train) -> None:
        raise DataError("the file is damaged")

    monkeypatch.setattr(child.os, "_exit", end)
    monkeypatch.setattr(channel, "CAUSE", 0.0)
    told, company = Listener(), channel.Company({})
    workshop = child.Workshop(told, company)  # type: ignore[arg-type]
    monkeypatch.setattr(workshop, "_trainer_for", fails)
    command = train_command(tmp_path, write_tiny(tmp_path / "tiny.npz"), settings(), *TASKS)
    with pytest.raises(Ended, match=str(EXIT_ALONE)):
        workshop.train(command)
    company.on_trouble("memory", "process 1 on n2: none is left")
    failed = [(one.job_id, one.kind, one.message) for one in told.of(protocol.MemberFailed)]
    mine, theirs = ("data", "the file is damaged"), ("memory", "process 1 on n2: none is left")
    assert failed == [(1, *mine), (2, *mine), (1, *theirs), (2, *theirs)]


def test_a_leader_ends_at_once_when_its_follower_dies(together: tuple[Path, Pair]) -> None:
    """Last of this module. Before, as a control, it is frozen: without it no step is done."""
    _, pair = together
    end = time.monotonic() + 60
    while pair.epochs < 2:
        assert time.monotonic() < end and pair.leader.poll() is None, pair.said
        time.sleep(0.05)
    pair.follower.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    before = pair.epochs
    time.sleep(0.7)
    assert pair.epochs == before
    assert pair.leader.poll() is None
    pair.follower.kill()
    assert pair.leader.wait(5) == EXIT_ALONE
