"""When SLURM will end this job: known at the start, and asked again while the job runs.

An operator can move it (`scontrol update JobId=… EndTime=…`), so what was true at the start may
be wrong hours later. Unknown stays unknown: nothing here ever guesses.
"""

from __future__ import annotations

import calendar
import math
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from ensq.slurm import commands
from ensq.slurm.task import SlurmTask, task_from_environment

_TIME_LEFT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)")
_END_TIME = re.compile(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\b")
_ID = re.compile(r"\d+(?:_\d+)?")

LEAST_PAUSE = 60.0  # seconds between questions about one job, however near its end is …
LONGEST_PAUSE = 600.0  # … and however far: an end that is moved to an earlier time is noticed
_SHARE = 1 / 3  # of the time left: a long job asks rarely


def parse_time_left(text: str) -> float | None:
    """Seconds of squeue's ``%L``: [[days-]hours:]minutes:seconds.

    Infinity for UNLIMITED; None for NOT_SET, INVALID and what is no time.
    """
    if text.strip() == "UNLIMITED":
        return math.inf
    match = _TIME_LEFT.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def parse_end_time(text: str) -> float | None:
    """EndTime out of ``scontrol show job`` (seconds since 1970), which was asked in UTC."""
    match = _END_TIME.search(text)
    if match is None:
        return None
    return float(calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S")))


def deadline(
    environment: Mapping[str, str] = os.environ,
    *,
    clock: Callable[[], float] = time.time,
    timeout: float = commands.TIMEOUT,
) -> float | None:
    """When SLURM will end this job (seconds since 1970); infinity for never, None for unknown.

    SLURM_JOB_END_TIME if there is one (newer SLURM), else squeue's time left, else scontrol's
    EndTime. No such command, an error or no answer within ``timeout`` seconds mean unknown.
    """
    task = task_from_environment(environment)
    if task is None:
        return None
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal() and int(end) > 0:
        return float(end)
    for command, read in _questions(task):
        said = commands.output(command, _plain(environment), timeout)
        found = read(said, clock())
        if found is not None:
            return found
    return None


def _questions(
    task: SlurmTask,
) -> list[tuple[list[str], Callable[[str, float], float | None]]]:
    """The commands that tell a job's end, the best one first, and how their answers are read."""
    # The raw id of an array's last element is that of the whole array: ask by the label.
    if not _ID.fullmatch(task.label):
        return []
    return [
        (["squeue", "-h", "-j", task.label, "-o", "%L"], _end_by_time_left),
        (["scontrol", "-o", "show", "job", task.label], lambda text, now: parse_end_time(text)),
    ]


def _end_by_time_left(text: str, now: float) -> float | None:
    # Components of a heterogeneous job come one a line, and end together with the first.
    lefts = [left for line in text.splitlines() if (left := parse_time_left(line)) is not None]
    return now + min(lefts) if lefts else None


def _plain(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which SLURM's commands write times as we read them."""
    plain = {name: text for name, text in environment.items() if not name.startswith("SQUEUE_")}
    return plain | {"SLURM_TIME_FORMAT": "standard", "TZ": "UTC"}


class DeadlineWatch:
    """Asks for this job's end again and again, without ever waiting for the answer.

    The question is a child process, looked after by ``poll``. Each job asks at most once a
    minute, and rarely while its end is far; jobs that began together drift apart by chance.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        *,
        known: float | None,
        timeout: float = commands.TIMEOUT,
        least_pause: float = LEAST_PAUSE,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``known``: the end as it was found at the start, or None."""
        task = task_from_environment(environment)
        self._questions = _questions(task) if task else []
        self._environment = _plain(environment)
        self._timeout, self._least = timeout, least_pause
        self._clock, self._monotonic = clock, monotonic
        self._known = known
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = monotonic()
        self._asked_at = clock()  # what is left counts from then: late reading never adds to it
        self._pause = self._next_pause()

    def poll(self) -> float | None:
        """A newer answer, or None. Cheap; never raises, never waits."""
        now = self._monotonic()
        if self._process is None:
            if self._questions and now - self._asked >= self._pause:
                self._asked, self._asked_at = now, self._clock()
                self._ask(self._questions[0][0])
            return None
        if self._process.poll() is None:
            if now - self._asked > self._timeout:
                self._answered("")
            return None
        with suppress(OSError, ValueError):
            return self._answered(self._said())
        return self._answered("")

    def close(self) -> None:
        """End a question that is under way."""
        if self._process is None:
            return
        with suppress(OSError):
            self._process.kill()
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.wait(1.0)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def _ask(self, command: Sequence[str]) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a signal to the step is none of its business
            )
        except OSError:
            self._questions = self._questions[1:]  # it isn't there; it won't come

    def _said(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        if self._process.returncode != 0:
            return ""
        pipe = self._process.stdout.fileno()
        os.set_blocking(pipe, False)  # something that it started may hold the pipe open
        return os.read(pipe, 2**16).decode(errors="replace")

    def _answered(self, text: str) -> float | None:
        self.close()
        found = self._questions[0][1](text, self._asked_at) if self._questions else None
        if found is not None:
            self._known = found
        self._pause = self._next_pause()
        return found

    def _next_pause(self) -> float:
        left = math.inf if self._known is None else max(0.0, self._known - self._clock())
        pause = min(LONGEST_PAUSE, max(self._least, _SHARE * left))
        # No secret, no statistics: only so that a thousand workers do not ask at once.
        return pause * random.uniform(1.0, 1.3)
