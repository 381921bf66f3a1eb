"""SLURM's commands, asked with patience that has an end. What isn't there is unknown, no error."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

TIMEOUT = 10.0  # seconds; a controller that restarts can keep squeue waiting for minutes

_FAREWELL = 1.0  # seconds that a killed child is waited for


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a command."""

    code: int | None  # negative: the signal that ended it; None: not started, or out of time
    out: str = ""
    errors: str = ""
    timed_out: bool = False  # then ``out`` and ``errors`` are what was printed until then

    @property
    def last_words(self) -> str:
        """The last line of the errors that says something, or of the output."""
        lines = (self.errors.strip() or self.out.strip()).splitlines()
        return lines[-1].strip()[:300] if lines else ""


def output(
    command: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    timeout: float = TIMEOUT,
) -> str:
    """What the command prints; nothing if it isn't there, fails, or takes too long."""
    answer = ask(command, environment, timeout)
    return answer.out if answer.code == 0 else ""


def ask(
    command: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    timeout: float = TIMEOUT,
    *,
    text: str = "",
) -> Answer:
    """Run a command, which reads ``text``; never raises.

    When the time is up it is killed with all that it started, and left alone if not even that
    ends it: a process that waits for a dead file system can't be killed.
    """
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE if text else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own: ours to kill, out of signals' way
        )
    except (OSError, ValueError) as error:
        return Answer(code=None, errors=str(error))
    try:
        out, errors = process.communicate(text or None, timeout)
    except subprocess.TimeoutExpired as late:
        return Answer(code=None, out=_text(late.stdout), errors=_text(late.stderr), timed_out=True)
    finally:
        if process.returncode is None:
            _end(process)
    return Answer(code=process.returncode, out=out, errors=errors)


def _end(process: subprocess.Popen[str]) -> None:
    # It was never waited for, so its number is still that of its group.
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError, ValueError):
                pipe.close()
    with suppress(OSError, subprocess.TimeoutExpired):
        process.wait(_FAREWELL)


def _text(part: str | bytes | None) -> str:
    """What was read until the time was up: bytes, even where text was asked for."""
    return part.decode(errors="replace") if isinstance(part, bytes) else part or ""
