"""The trainer's process: how it names its failures, and what it leaves when it dies."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from train_tools import Listener, Undisturbed, settings, task, train_command, write_tiny

from ensq import faults
from ensq.errors import CheckpointError, DataError, DiskError, MismatchError
from ensq.rundir import RunDir
from ensq.train import checkpoint, child, environment
from ensq.train.trainer import Trainer
from ensq.worker import protocol


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, program: Any) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("run"), program)


# -- kinds of failures -------------------------------------------------------------------------


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MismatchError("changed"), "mismatch"),
        (DataError("bad"), "data"),
        (CheckpointError("bad"), "checkpoint"),
        (DiskError("full"), "disk"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EROFS, "Read-only file system"), "disk"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "exception"),
        (caused(DataError("can't be read"), OSError(errno.ESTALE, "Stale")), "disk"),
        (MemoryError(), "memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "memory"),
        (RuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY"), "memory"),
        (RuntimeError("INTERNAL: something else"), "exception"),
        (ValueError("out of memory is only a word here"), "exception"),
    ],
)
def test_the_kind_of_a_failure(error: Exception, kind: str) -> None:
    assert child.kind_of(error) == kind


class Heard:
    """A line to the supervisor that only listens."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, message: Any) -> None:
        self.messages.append(message)


@pytest.mark.parametrize(
    ("error", "kept"),
    [(RuntimeError("RESOURCE_EXHAUSTED: x"), False), (KeyError("x"), False),
     (DiskError("full"), True), (CheckpointError("torn"), True)],
)  # fmt: skip
def test_the_program_is_dropped_after_what_may_have_spoilt_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kept: bool
) -> None:
    heard: Any = Heard()
    workshop = child.Workshop(heard)
    cleared: list[bool] = []
    monkeypatch.setattr("jax.clear_caches", lambda: cleared.append(True))
    failing: Any = object.__new__(Trainer)

    def fail(*arguments: Any) -> None:
        raise error

    failing.train = fail
    command = train_command(tmp_path, write_tiny(tmp_path / "t.npz"), settings(), task(tmp_path, 1))
    workshop._key, workshop._trainer = (command.config, command.data_digest), failing
    workshop.train(command)
    [failed] = heard.messages
    assert (failed.job_id, failed.kind) == (1, child.kind_of(error))
    assert (workshop._trainer is failing) is kept
    assert cleared == ([] if kept else [True])


# -- the process -------------------------------------------------------------------------------


class Process:
    """A trainer process that works on one command until it ends."""

    def __init__(
        self,
        folder: Path,
        command: protocol.Train,
        *rules: dict[str, Any],
        log: Path | None = None,
    ) -> None:
        read, write = os.pipe()
        self.log = log or folder / "child.log"
        environment = {**os.environ, **({"ENSQ_FAULTS": json.dumps(rules)} if rules else {})}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ensq.train.child", "--events-fd", str(write)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[write],
                env=environment,
                cwd=folder,
            )
        os.close(write)
        assert self.process.stdin is not None
        self.process.stdin.write(protocol.encode(command))
        self.process.stdin.flush()
        self.events = os.fdopen(read, "rb")

    def heard(self, last: type | tuple[()] = ()) -> list[Any]:
        """Its events up to the first of a kind, or to its end."""
        found = []
        for line in self.events:
            found.append(protocol.decode_event(line))
            if isinstance(found[-1], last):
                break
        return found

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        self.events.close()
        return code


@pytest.mark.parametrize(
    ("rule", "told", "left"),
    [
        ({"point": "write.renamed", "hit": 2}, 1, 2),
        ({"point": "write.written", "hit": 2}, 1, 1),
        ({"point": "trainer.result"}, 3, 3),
    ],
    ids=lambda value: value["point"] if isinstance(value, dict) else "",
)
def test_killed_at_a_point_and_gone_on_from_what_lies_there_equals_undisturbed(
    tmp_path: Path, run: Undisturbed, rule: dict[str, Any], told: int, left: int
) -> None:
    data = write_tiny(tmp_path / "tiny.npz")
    command = train_command(tmp_path, data, settings(), task(tmp_path, 1))
    process = Process(tmp_path, command, {"do": "kill", **rule})
    events = process.heard()
    assert process.end() == -signal.SIGKILL, process.log.read_text()[-2000:]
    assert [e for e in events if isinstance(e, protocol.MemberDone)] == []
    assert sum(isinstance(event, protocol.EpochDone) for event in events) == told
    checkpoints, results = RunDir(tmp_path).unrecorded(1, 2, 0, 0, 1)
    assert checkpoints[0].name == f"epoch-{left:06d}-step-000000.safetensors"
    assert len(results) == (rule["point"] == "trainer.result")
    listener = Listener()
    trainer = Trainer(run.program, settings(), command.data_digest)
    trainer.train([task(tmp_path, 1, 2, checkpoints, results)], listener)
    [done] = listener.of(protocol.MemberDone)
    assert (len(done.adopted) == 3) is bool(results)
    found = checkpoint.read_result(Path(done.path).read_bytes())
    mine, theirs = checkpoint.flatten(found.params), checkpoint.flatten(run.result.params)
    for key, value in theirs.items():
        assert mine[key].tobytes() == value.tobytes(), key
    assert found.history[:, :5].tobytes() == run.result.history[:, :5].tobytes()


def test_an_aborted_trainer_leaves_the_stacks_of_all_threads_and_no_core_file(
    tmp_path: Path,
) -> None:
    long = settings("training.stages=[{optimizer: adam, epochs: 1000000}]")
    data = write_tiny(tmp_path / "tiny.npz")
    process = Process(tmp_path, train_command(tmp_path, data, long, task(tmp_path, 1)))
    process.heard(protocol.StepDone)
    limits = Path(f"/proc/{process.process.pid}/limits").read_text()
    assert "Max core file size        0 " in limits
    process.process.send_signal(signal.SIGABRT)
    process.heard()
    assert process.end() == -signal.SIGABRT
    log = process.log.read_text()
    assert "Fatal Python error: Aborted" in log
    assert "in _listen" in log  # the thread that reads commands
    assert "in main" in log
    assert [path.name for path in tmp_path.iterdir() if "core" in path.name] == []


def test_a_log_on_a_full_disk_does_not_end_the_trainer(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "tiny.npz")
    command = train_command(tmp_path, data, settings(), task(tmp_path, 1))
    data.write_bytes(b"changed")
    process = Process(tmp_path, command, log=Path("/dev/full"))
    [failed] = [e for e in process.heard(protocol.TrainEnded) if hasattr(e, "kind")]
    assert (failed.job_id, failed.kind) == (1, "mismatch")
    assert process.process.stdin is not None
    process.process.stdin.write(protocol.encode(protocol.Quit()))
    process.process.stdin.flush()
    process.process.wait(30)  # the end of its input before would be another reason to end
    assert process.end() == 0


def test_the_points_of_the_trainer_are_passed_in_their_order(
    run: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []
    monkeypatch.setattr(faults, "point", lambda name, about="": passed.append(name))
    run.train(task(run.folder, 1, 10, [run.checkpoint(2)]))
    assert list(dict.fromkeys(name for name in passed if name.startswith("trainer."))) == [
        "trainer.step", "trainer.validated", "trainer.checkpointed", "trainer.told",
        "trainer.result",
    ]  # fmt: skip


# -- logs --------------------------------------------------------------------------------------

TURNS = """
import os, subprocess, sys
from ensq.train import child
child.leave_traces()
print("before")
child.turn_to_log(sys.argv[1])
print("after", flush=True)
os.write(2, b"native code\\n")
subprocess.run(["echo", "a process that it started"])
if sys.argv[2] == "crash":
    os.abort()
"""


@pytest.mark.parametrize("end", ["quit", "crash"])
def test_all_that_is_said_after_turning_to_a_log_is_in_it(tmp_path: Path, end: str) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    second.write_text("the first lines\n")
    with first.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-c", TURNS, str(second), end],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
    assert done.returncode == (0 if end == "quit" else -signal.SIGABRT)
    assert first.read_text() == "before\n"
    text = second.read_text()
    lines = text.splitlines()
    assert lines[0] == "the first lines"
    assert lines[1].startswith("JAX sees ")
    assert "jaxlib " in lines[2]
    assert lines[3:6] == ["after", "native code", "a process that it started"]
    assert ("Fatal Python error: Aborted" in text) is (end == "crash")


def test_a_log_that_can_not_be_opened_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    child.turn_to_log(str(tmp_path / "no such folder" / "log"))
    print("still here", flush=True)
    assert "still here" in capfd.readouterr().out


def test_all_devices_are_named_and_what_is_done_with_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Device:
        device_kind = "NVIDIA H100"

        def __init__(self, number: int) -> None:
            self.number = number

        def __str__(self) -> str:
            return f"cuda:{self.number}"

    monkeypatch.setattr("jax.local_devices", lambda: [Device(0), Device(1)])
    assert environment.devices_in_words() == (
        "JAX sees cuda:0 (NVIDIA H100), cuda:1 (NVIDIA H100): a pack is divided among them"
    )
