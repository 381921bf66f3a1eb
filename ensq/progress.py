"""Progress for people: lines of text from stored values, and a display that keeps them current."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TextIO

from ensq.jobs import TERMINAL, Ensemble, Job, State
from ensq.text import table

_FOREVER = 1e12  # s; 30,000 years
MEMBER_HEAD = ("seed", "state", "epoch", "val loss", "best", "at epoch", "s/epoch", "left")


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8 s``, ``3 min 20 s``, ``1 h 05 min``, ``2 d 3 h``."""
    if not abs(seconds) < _FOREVER:  # also where it is no number
        return "for ever"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or rename the window."""
    return "".join(c if c.isprintable() else "?" for c in text)


def loss(value: float | None) -> str:
    """A loss with five digits, also zeros at the end, or a dash."""
    return "-" if value is None else f"{value:#.5g}".rstrip(".")


def time_left(job: Job) -> float | None:
    """Seconds of training that a member still needs, at its own speed; None if unknown."""
    if job.state in TERMINAL:
        return None
    if job.seconds_per_epoch is None:
        return None
    return max(0, job.epochs - job.epoch) * job.seconds_per_epoch


def time_left_in_all(jobs: Sequence[Job]) -> float | None:
    """Seconds until all members but the held ones are trained, if as many go on at once as now.

    None if nothing runs or no speed is known yet.
    """
    running = [job for job in jobs if job.state is State.RUNNING]
    speeds = [job.seconds_per_epoch for job in jobs if job.seconds_per_epoch is not None]
    if not running or not speeds:
        return None
    usual = statistics.median(speeds)
    needs = [
        max(0, job.epochs - job.epoch) * (job.seconds_per_epoch or usual)
        for job in jobs
        if job.state not in TERMINAL and job.state is not State.HELD
    ]
    return max(sum(needs) / len(running), max(needs))


def summary_line(name: str, jobs: Sequence[Job]) -> str:
    """One line for the whole ensemble."""
    counts = Counter(job.state for job in jobs)
    early = sum(job.early is not None for job in jobs)
    more = {State.DONE: f" ({early} early)" if early else ""}
    states = ", ".join(
        f"{counts[state]} {state}{more.get(state, '')}" for state in State if counts[state]
    )
    wanted = sum(job.to_train for job in jobs if job.state is not State.CANCELLED)
    have = sum(job.epoch for job in jobs if job.state is not State.CANCELLED)
    share = f", {100 * have // wanted} % of the epochs" if wanted else ""
    left = time_left_in_all(jobs)
    rest = "" if left is None else f", about {duration(left)} left"
    return f"{printable(name)}: {states or 'no members'}{share}{rest}"


def state_of(job: Job) -> str:
    """A member's state, and whether a rule of early stopping ended it."""
    return str(job.state) if job.early is None else f"{job.state} (early)"


def member_cells(job: Job) -> tuple[str, ...]:
    """One member's row of the table, in the order of its head."""
    left = time_left(job)
    return (
        str(job.seed),
        state_of(job),
        f"{job.epoch}/{job.epochs}",
        loss(job.val_loss),
        loss(job.best_loss),
        "-" if job.best_epoch is None else str(job.best_epoch),
        "-" if job.seconds_per_epoch is None else f"{job.seconds_per_epoch:.3g}",
        "-" if left is None else duration(left),
    )


def member_line(job: Job) -> str:
    """One member in a line of its own, for logs."""
    parts = [f"seed {job.seed}: {state_of(job)}, epoch {job.epoch}/{job.epochs}"]
    if job.val_loss is not None:
        parts.append(f"val loss {loss(job.val_loss)}")
    if job.best_loss is not None:
        parts.append(f"best {loss(job.best_loss)} (epoch {job.best_epoch})")
    if job.seconds_per_epoch is not None and job.state not in TERMINAL:
        parts.append(f"{job.seconds_per_epoch:.3g} s/epoch")
    left = time_left(job)
    if left is not None:
        parts.append(f"{duration(left)} left")
    if job.error:
        parts.append(printable(job.error))
    return ", ".join(parts)


def progress_lines(ensemble: Ensemble, jobs: Sequence[Job], *, height: int = 0) -> list[str]:
    """Summary, head and one line per member; at most ``height`` lines if that is not 0.

    Members that are left out are the finished ones first, and are counted in the last line.
    """
    shown = list(jobs)
    room = height - 3
    if height and len(shown) > max(room, 0) + 1:
        # sorted is stable: within a group the order of the ensemble stays.
        order = sorted(jobs, key=lambda job: (job.state in TERMINAL, job.state is State.QUEUED))
        keep = {job.id for job in order[: max(room, 0)]}
        shown = [job for job in jobs if job.id in keep]
    rows = [member_cells(job) for job in shown]
    lines = [summary_line(ensemble.name, jobs), *table(MEMBER_HEAD, rows, left=(1,))]
    if len(shown) < len(jobs):
        lines.append(f"  … and {len(jobs) - len(shown)} more")
    return lines[:height] if height else lines


class Display:
    """Shows an ensemble's progress until it is closed.

    In a terminal the block of lines is redrawn in place. Elsewhere there are plain lines only: one
    per member whenever its state changes, and every ``interval`` seconds if it got further.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        interval: float = 10.0,
        terminal: bool | None = None,
        size: Callable[[], os.terminal_size] = shutil.get_terminal_size,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if terminal is None:
            terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        # Its lines are printable; the codes that redraw them are meant for the terminal.
        self._stream: TextIO = getattr(stream, "unguarded", stream)
        self._terminal = terminal
        self._interval = interval
        self._size = size
        self._clock = clock
        self._drawn = 0  # lines that stand on the screen
        self._said: dict[int, tuple[State, int, float]] = {}  # by job: state, epoch, when

    def update(self, ensemble: Ensemble, jobs: Sequence[Job]) -> None:
        """Show these values; nothing is written if nothing is new."""
        if self._terminal:
            self._redraw(ensemble, jobs)
        else:
            self._print_changes(jobs, at_once=False)

    def close(self, ensemble: Ensemble, jobs: Sequence[Job]) -> None:
        """Show the last values, whatever the interval, and leave them standing."""
        if self._terminal:
            self._redraw(ensemble, jobs)
            self._drawn = 0
        else:
            self._print_changes(jobs, at_once=True)
            self._stream.write(summary_line(ensemble.name, jobs) + "\n")
            self._stream.flush()

    def clear(self) -> None:
        """Take the block off the screen, so that other output may be written."""
        if self._terminal and self._drawn:
            self._stream.write(f"\x1b[{self._drawn}F\x1b[J")
            self._stream.flush()
        self._drawn = 0

    def _redraw(self, ensemble: Ensemble, jobs: Sequence[Job]) -> None:
        columns, rows = self._size()
        # A line that wraps, or a block that scrolls, would spoil the count of lines to go back.
        lines = progress_lines(ensemble, jobs, height=max(1, rows - 1))
        back = f"\x1b[{self._drawn}F" if self._drawn else ""
        body = "".join(f"{line[: columns - 1]}\x1b[K\n" for line in lines)
        self._stream.write(f"{back}{body}\x1b[J")
        self._stream.flush()
        self._drawn = len(lines)

    def _print_changes(self, jobs: Sequence[Job], *, at_once: bool) -> None:
        now = self._clock()
        for job in jobs:
            state, epoch, when = self._said.get(job.id, (None, 0, float("-inf")))
            further = job.epoch != epoch and (at_once or now - when >= self._interval)
            if job.state is state and not further:
                continue
            if state is None and job.state is State.QUEUED:
                continue  # nothing has happened to it yet
            self._said[job.id] = (job.state, job.epoch, now)
            self._stream.write(member_line(job) + "\n")
        self._stream.flush()
