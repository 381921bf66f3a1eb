"""When a worker has to stop, and how it sleeps until something happens."""

from __future__ import annotations

import math
import os
import select
import signal
import time
from dataclasses import dataclass

from ensq.worker.child import TrainerChild
from ensq.worker.signals import StopSignals

_LONGEST = 5.0  # seconds asleep at most: a child that died without closing its pipe is noticed


@dataclass(frozen=True)
class Reason:
    """Why to stop; ``asked``: a person wants it, so that it tells nothing about the job."""

    text: str
    asked: bool = False


class Stopping:
    """Reasons to stop: a signal, the time limit, the end of the parent."""

    def __init__(
        self, signals: StopSignals, *, deadline: float | None, margin: float, parent_fd: int | None
    ) -> None:
        """``deadline``: seconds since 1970 or None. A short allocation gets a shorter margin."""
        self._signals = signals
        self._parent_fd = parent_fd
        self._stop_at: float | None = None  # by the clock on the wall, which SLURM goes by
        if deadline is not None:
            self._stop_at = deadline - min(margin, max(0.0, deadline - time.time()) / 4)

    def reason(self) -> Reason | None:
        """Why to stop, or None."""
        if self._signals.name is not None:
            return Reason(self._signals.name, asked=self._signals.received == signal.SIGINT)
        if self._stop_at is not None and time.time() >= self._stop_at:
            return Reason("the time limit is near")
        if self._parent_fd is not None and self._parent_gone(self._parent_fd):
            return Reason("the program that started this worker is gone", asked=True)
        return None

    def wait(self, seconds: float, child: TrainerChild | None = None) -> None:
        """Sleep ``seconds`` at most; a signal, the parent's end or the child's events wake up."""
        if self._stop_at is not None:
            until = self._stop_at - time.time()
            seconds = min(seconds, until) if until > 0 else seconds
        poll = select.poll()
        poll.register(self._signals.fd, select.POLLIN)
        if self._parent_fd is not None:
            poll.register(self._parent_fd, select.POLLIN)
        if child is not None and not child.ended:
            poll.register(child.read_fd, select.POLLIN)
            if child.wants_write:
                poll.register(child.write_fd, select.POLLOUT)
        poll.poll(math.ceil(1000 * min(max(seconds, 0.0), _LONGEST)))
        self._signals.drain()

    def _parent_gone(self, fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(0):
            return False
        try:
            return os.read(fd, 512) == b""
        except OSError:
            return True
