"""Whether a trainer still lives, and what became of one that doesn't."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ensq.jobs import Job
from ensq.worker.options import WorkerOptions

_CGROUPS = Path("/sys/fs/cgroup")


class Pulse:
    """Measures how long a trainer gave no sign of life, against its usual epoch."""

    def __init__(
        self,
        *,
        epochs: float,
        least: float,
        first: float,
        usual: float | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``usual``: seconds of an epoch as the queue knows it, or None."""
        self._epochs, self._least, self._first = epochs, least, first
        self._usual = usual
        self._monotonic = monotonic
        self._sign = self._epoch_began = monotonic()
        self._seen_epoch = False

    def sign(self) -> None:
        """The trainer said something."""
        self._sign = self._monotonic()

    def epoch(self) -> None:
        """The trainer finished an epoch."""
        now = self._monotonic()
        # The longest so far: one that waits for a slow disk now and then doesn't hang.
        self._usual = max(self._usual or 0.0, now - self._epoch_began)
        self._sign = self._epoch_began = now
        self._seen_epoch = True

    def limit(self) -> float:
        """Seconds of silence after which it hangs."""
        usual = max(self._least, self._epochs * (self._usual or 0.0))
        # Until the first epoch it loads, searches neighbours and compiles.
        return usual if self._seen_epoch else max(self._first, usual)

    def silence(self) -> float:
        return self._monotonic() - self._sign

    def left(self) -> float:
        """Seconds until it counts as hanging."""
        return self.limit() - self.silence()


def pulse_of(jobs: Sequence[Job], options: WorkerOptions) -> Pulse:
    """The pulse of a trainer that is given these members."""
    speeds = [job.seconds_per_epoch for job in jobs if job.seconds_per_epoch]
    return Pulse(
        epochs=options.hang_epochs,
        least=options.hang_least,
        first=options.hang_first,
        usual=max(speeds, default=None),
    )


def oom_kills() -> int | None:
    """How many processes of this control group the kernel has killed for memory; None: unknown."""
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers:
                continue  # version 1: it counts per hierarchy, and rarely where we may look
            events = _CGROUPS / path.lstrip("/") / "memory.events"
            for event in events.read_text().splitlines():
                name, _, count = event.partition(" ")
                if name == "oom_kill":
                    return int(count)
    except (OSError, ValueError):
        pass
    return None


def oom_in_words(before: int | None) -> str:
    """That the kernel has killed for memory since ``oom_kills`` said ``before``; '' if not."""
    now = oom_kills()
    if now is None or before is None or now <= before:
        return ""
    return "; the system killed a process of this job since memory ran out"
