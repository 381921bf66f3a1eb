"""What a worker is told to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ensq.store.policy import Policy

PARENT_FD = "ENSQ_PARENT_FD"  # number of a pipe's read end; when it closes, the worker stops


def log_to_stderr(text: str) -> None:
    """One line on stderr; a reader that has gone away is no reason to stop training."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def parent_fd(environment: Mapping[str, str] = os.environ) -> int | None:
    """The pipe that ``ensq run`` gives its workers, so that they stop when it is gone."""
    text = environment.get(PARENT_FD, "")
    return int(text) if text.isdecimal() else None


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of ``run_worker``. Times are in seconds."""

    url: str  # of the database
    ensemble: str | None = None  # work on this one only
    max_jobs: int | None = None  # leave after that many members
    pack: int | None = 1  # members to train together; None: as many as helps, see packing
    drain: bool = False  # stay until every member is ended, and take over from workers that die
    lease_seconds: float = 60.0
    poll_seconds: float = 5.0  # how often to look for something to take over
    grace: float = 25.0  # for saving after a stop; SLURM's KillWait is 30 by default
    share: int = 1  # workers on one GPU
    deadline_margin: float = 60.0  # stop that long before SLURM's time limit, at most
    busy_seconds: float = 10.0  # that long a transaction waits for another's
    patience: float = 3600.0  # for a database that is away
    open_patience: float = 60.0  # the same, before anything was done
    # A trainer that gives no sign of life for that many of its usual epochs hangs:
    hang_epochs: float = 20.0
    hang_least: float = 600.0  # but not before that long
    hang_first: float = 3600.0  # and as long as no epoch was seen, since compiling may take long
    failures_in_a_row: int = 3  # within a minute: the host is at fault, and the worker leaves
    policy: Policy = field(default_factory=Policy)
    trainer: tuple[str, ...] = (sys.executable, "-m", "ensq.train.child")
    passes: tuple[int, ...] = ()  # file descriptors that the trainer gets, too
    parent_fd: int | None = field(default_factory=parent_fd)
    ends_process: bool = False  # nothing is done after it: see StopSignals
    log: Callable[[str], None] = log_to_stderr

    def jobs_left(self, taken: int) -> int:
        """How many members it may still take after so many."""
        return 2**31 - 1 if self.max_jobs is None else max(0, self.max_jobs - taken)
