"""A command that is asked something: it ends in time, with all that it started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ensq.slurm import commands


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether the process ends; what is left of one that nobody waited for is no process."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


def test_all_that_a_command_started_is_killed_when_the_time_is_up(tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! >{tmp_path}/pid; wait"
    begin = time.monotonic()
    assert commands.output(("/bin/sh", "-c", script), timeout=1.0) == ""
    assert time.monotonic() - begin < 5
    assert gone(int((tmp_path / "pid").read_text()))


def test_who_holds_the_pipe_does_not_keep_it_waiting() -> None:
    """It left the group; the command itself has ended."""
    begin = time.monotonic()
    answer = commands.ask(("/bin/sh", "-c", "echo here; setsid sleep 8 &"), timeout=1.0)
    assert time.monotonic() - begin < 5
    assert (answer.timed_out, answer.out) == (True, "here\n")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it still runs
def test_a_process_that_cannot_be_killed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits for a dead file system: nothing ends it, and nobody waits for it."""
    monkeypatch.setattr(commands, "_FAREWELL", 0.2)
    killed: list[int] = []
    monkeypatch.setattr(commands.os, "killpg", lambda pid, number: killed.append(pid))
    begin = time.monotonic()
    answer = commands.ask(("sleep", "3"), timeout=0.5)
    assert answer.timed_out
    assert killed
    assert time.monotonic() - begin < 2
    assert gone(killed[0])


def test_what_was_printed_until_then_is_kept() -> None:
    script = "echo one; echo two >&2; sleep 60"
    answer = commands.ask(("/bin/sh", "-c", script), timeout=1.0)
    assert answer == commands.Answer(code=None, out="one\n", errors="two\n", timed_out=True)


def test_text_is_read_by_the_command() -> None:
    assert commands.ask(("cat",), text="ä\n").out == "ä\n"
    assert commands.ask(("true",), text="x" * 10**6).code == 0  # which reads none of it


def test_a_command_that_is_not_there_or_fails_gives_nothing() -> None:
    assert commands.ask(("no-such-command-here",)).code is None
    assert commands.output(("no-such-command-here",)) == ""
    assert commands.output(("/bin/sh", "-c", "echo said; exit 1")) == ""
    assert commands.output(("echo", "said")) == "said\n"


def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/draft; mv {tmp_path}/draft {tmp_path}/pid; exec sleep 300"
    code = f"from ensq.slurm import commands; commands.ask(('/bin/sh', '-c', {script!r}))"
    asking = subprocess.Popen((sys.executable, "-c", code), stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        asking.send_signal(signal.SIGINT)
        assert gone(int((tmp_path / "pid").read_text()))
    finally:
        asking.kill()
        asking.wait()
