"""How the processes of a step find each other, and notice that one is gone. No JAX."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from worker_tools import HERE, environment

from ensq.cli import cli
from ensq.errors import UsageError
from ensq.slurm import task_from_environment
from ensq.train import channel
from ensq.worker.meeting import Meeting, connect, meeting_file, open_meeting, read_meeting

VERSIONS = {"jax": "1"}
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_CLUSTER_NAME": "lab",
}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with open_meeting(tmp_path / "meeting", 2) as made:
        yield made


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have ended this process."""
    texts: list[str] = []
    monkeypatch.setattr(channel, "_end", texts.append)
    return texts


@pytest.fixture
def meeting(tmp_path: Path, listener: socket.socket) -> Meeting:
    found = read_meeting(tmp_path / "meeting")
    assert found is not None
    return found


def say(connection: socket.socket, message: channel.Message) -> None:
    channel._send(connection, message)


def join(meeting: Meeting, process: int = 1, versions: dict[str, str] = VERSIONS) -> channel.Join:
    token = meeting.token("follower")
    return channel.Join(token=token, process=process, host="n2", versions=versions)


def test_the_file_is_private_and_goes_with_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "meeting"
    with open_meeting(file, 2):
        assert file.stat().st_mode & 0o077 == 0
        found = read_meeting(file)
        assert found is not None
        connect(found).close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        connect(found)


def test_a_connection_that_nobody_took_up_breaks_when_the_listener_ends(tmp_path: Path) -> None:
    with open_meeting(tmp_path / "meeting", 2):
        found = read_meeting(tmp_path / "meeting")
        assert found is not None
        waiting = connect(found)
        waiting.settimeout(0.1)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
    waiting.settimeout(5)
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)
    waiting.close()


def test_a_requeued_step_has_another_file(tmp_path: Path) -> None:
    names = set()
    for more in ({}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "4"}, {"SLURM_JOB_ID": "8"}):
        task = task_from_environment(STEP | more)
        assert task is not None
        names.add(meeting_file(tmp_path, task))
    assert len(names) == 4


def test_strangers_and_those_that_have_gone_are_passed_over(
    listener: socket.socket, meeting: Meeting, ended: list[str]
) -> None:
    silent, rubbish, gone, first = (connect(meeting) for _ in range(4))
    rubbish.sendall(b"GET / HTTP/1.1\r\n\r\n")
    say(gone, channel.Join(token="guessed", process=1, host="n3", versions=VERSIONS))
    say(first, join(meeting))
    first.close()
    second = connect(meeting)
    say(second, join(meeting))
    company = channel.gather(listener, meeting, VERSIONS, 5)
    company.welcome(meeting, 1234)
    welcome = channel._welcomes.decode(channel._message(second))
    assert welcome == channel.Welcome(token=meeting.token("leader"), port=1234)
    for one in (silent, rubbish, gone):
        one.settimeout(0.05)
        with pytest.raises((TimeoutError, ConnectionError)):
            channel._message(one)
        one.close()
    assert ended == []
    second.close()
    until(lambda: ended)
    assert ended == ["process 1 on n2 is gone (the other end is gone), and so is this training"]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def gathered(listener: socket.socket, meeting: Meeting) -> tuple[socket.socket, channel.Company]:
    """A follower's end of the connection, and the company that it is all of."""
    lead = connect(meeting)
    say(lead, join(meeting))
    return lead, channel.gather(listener, meeting, VERSIONS, 5)


def test_trouble_of_a_follower_is_told_before_all_end(
    listener: socket.socket, meeting: Meeting, ended: list[str]
) -> None:
    lead, company = gathered(listener, meeting)
    told: list[tuple[str, str]] = []
    company.on_trouble = lambda kind, message: told.append((kind, message))
    company.welcome(meeting, 1234)
    say(lead, channel.Trouble(kind="mismatch", message="the data have changed"))
    until(lambda: ended)
    assert told == [("mismatch", "process 1 on n2: the data have changed")]
    lead.close()


def test_those_that_are_sent_away_end_no_training(
    listener: socket.socket, meeting: Meeting, ended: list[str]
) -> None:
    lead, company = gathered(listener, meeting)
    company.welcome(meeting, 1234)
    threading.Timer(0.1, lead.close).start()
    company.leave()
    assert ended == []


def test_processes_that_stay_away_are_named(listener: socket.socket, meeting: Meeting) -> None:
    with pytest.raises(channel.Absent, match=r"no word of process 1 within 0 s"):
        channel.gather(listener, meeting, VERSIONS, 0.1)


def test_another_environment_is_refused(listener: socket.socket, meeting: Meeting) -> None:
    with connect(meeting) as one:
        say(one, join(meeting, versions={"jax": "2"}))
        with pytest.raises(channel.Absent, match="process 1 on n2 has jax 2 instead of 1"):
            channel.gather(listener, meeting, VERSIONS, 5)


def test_orders_arrive_in_order_with_their_bytes(
    listener: socket.socket, meeting: Meeting, ended: list[str]
) -> None:
    lead = channel.Lead(connect(meeting), meeting)
    address: list[str] = []
    joining = threading.Thread(target=lambda: address.append(lead.join(1, VERSIONS)))
    joining.start()
    company = channel.gather(listener, meeting, VERSIONS, 5)
    company.welcome(meeting, 99)
    joining.join(5)
    assert address[0].endswith(":99")
    state = channel.Spread(stage=0, leaves=(("float32", (2,)),), size=8)
    company.order(state, b"12345678")
    company.order(channel.Steps(epoch=1, start=2, stop=3))
    assert lead.next() == (state, b"12345678")
    assert lead.next() == (channel.Steps(epoch=1, start=2, stop=3), b"")
    lead.done()
    company.wait_done()
    threading.Thread(target=company.leave).start()
    until(lambda: ended)
    assert ended[0].startswith("the leading trainer is gone")


# A trainer that follows: it writes down that it lives, and ends when its connection does.
FOLLOWER = """
import socket, sys, time
connection = socket.socket(fileno=int(sys.argv[-1]))
open(sys.argv[1], "a").write("started\\n")
connection.sendall(b"x")
try:
    connection.recv(1)
except OSError:
    pass
"""
# `ensq worker`, with that trainer.
WORKER = f"""
import sys
from ensq.cli import main
from ensq.worker import processes
processes.FOLLOWER = (sys.executable, "-c", {FOLLOWER!r}, "lives")
processes._PATIENCE = 2.0
sys.argv = ["ensq", "worker", "--processes", "2"]
main()
"""


def follow(folder: Path) -> subprocess.Popen[bytes]:
    """Task 1 of a step."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER],
        cwd=folder,
        env=environment() | STEP | {"SLURM_PROCID": "1", "PYTHONPATH": str(HERE.parent)},
        stderr=subprocess.PIPE,
    )


def step_file(folder: Path) -> Path:
    task = task_from_environment(STEP)
    assert task is not None
    return meeting_file(folder, task)


def test_a_follower_has_a_trainer_for_each_of_task_0_and_ends_with_it(tmp_path: Path) -> None:
    """Signals are task 0's business: it would be told to stop, too."""
    with open_meeting(step_file(tmp_path), 2) as listener:
        process = follow(tmp_path)
        for count in (1, 2):
            while True:
                taken, _ = listener.accept()
                if taken.recv(1):  # else it was to see whether anybody listens
                    break
                taken.close()
            assert (tmp_path / "lives").read_text() == count * "started\n"
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert process.poll() is None
            taken.close()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert b"task 0 is gone" in errors


def test_a_follower_without_a_task_0_gives_up(tmp_path: Path) -> None:
    """Also beside the file of a task 0 that was killed."""
    with open_meeting(step_file(tmp_path), 2):
        left = step_file(tmp_path).read_bytes()
    step_file(tmp_path).write_bytes(left)
    process = follow(tmp_path)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 75, errors
    assert b"it did not within 2 s" in errors


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({"SLURM_JOB_ID": ""}, "srun --ntasks=2 ensq worker --processes 2"),
        ({}, "srun --ntasks=2 ensq worker --processes 2"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "this step has 4 tasks"),
    ],
    ids=["no job", "no step", "another number"],
)
def test_processes_are_tasks_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, str], complaint: str
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    for name, text in (STEP | told).items():
        monkeypatch.setenv(name, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=complaint):
        CliRunner().invoke(
            cli, ["worker", "--processes", "2"], standalone_mode=False, catch_exceptions=False
        )
    assert list(tmp_path.iterdir()) == []
