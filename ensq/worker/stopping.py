"""When a worker has to stop, and how it sleeps until something happens."""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ensq.progress import duration
from ensq.store.policy import TIME_LIMIT
from ensq.worker.child import TrainerChild
from ensq.worker.signals import StopSignals
from ensq.worker.timing import Timing

_LONGEST = 5.0  # seconds asleep at most: a child that died without closing its pipe is noticed
_NEAR = 120.0  # a signal that comes that long before the time limit is SLURM's warning of it …
_SHARE, _EARLY = 0.05, 900.0  # … or within that share of it all, which people may ask for
_ROWS = 2.0  # seconds before the time limit that are kept for giving the rows back
_NEWS = 5.0  # seconds by which a time limit must have moved to be worth a line


@dataclass(frozen=True)
class Reason:
    """Why to stop; ``asked``: a person wants it, so that it tells nothing about the job."""

    text: str
    asked: bool = False
    kill_at: float | None = None  # monotonic: a trainer may take until then, if not as usual


class Stopper(Protocol):
    """What a session asks of ``Stopping``."""

    def reason(self) -> Reason | None: ...
    def wait(self, seconds: float, child: TrainerChild | None = None) -> None: ...


class Watch(Protocol):
    """Asks for the end of a job; see ``ensq.slurm.DeadlineWatch``."""

    def poll(self) -> float | None: ...


class Stopping:
    """Reasons to stop: a signal, the time limit, the end of the parent."""

    def __init__(
        self,
        signals: StopSignals,
        *,
        deadline: float | None,
        margin: float,
        parent_fd: int | None,
        watch: Watch | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``deadline``: seconds since 1970, infinity for none, None if unknown.

        ``margin``: how long before it to stop at most; see ``Timing.margin``. ``watch`` tells of a
        deadline that was moved.
        """
        self._signals = signals
        self._parent_fd = parent_fd
        self._deadline = deadline
        self._most = margin
        self._watch = watch
        self._log = log
        # What this worker has to itself: by the clock on the wall, which SLURM goes by.
        self._allocation = self.left() or math.inf
        self.timing: Timing | None = None  # of the members in training
        # Once reached it stays so, whatever is measured while stopping, or SLURM says then.
        self._limit: Reason | None = None
        self.meanwhile: Callable[[], None] = lambda: None  # cheap; done before each sleep

    @property
    def _stop_at(self) -> float | None:
        if self._deadline is None:
            return None
        timing = self.timing or Timing()
        return self._deadline - timing.margin(self._most, self._allocation)

    def left(self) -> float | None:
        """Seconds until SLURM's time limit: infinite without one, None if unknown."""
        return None if self._deadline is None else max(0.0, self._deadline - time.time())

    def limit_in_words(self) -> str:
        """The time limit for the first lines of a log."""
        left = self.left()
        if left is None:
            return "time limit unknown"
        return "no time limit" if math.isinf(left) else f"time limit in {duration(left)}"

    def reason(self) -> Reason | None:
        """Why to stop, or None."""
        self._hear_of_deadline()
        if self._signals.name is not None:
            asked = self._signals.received == signal.SIGINT
            if not asked and self._is_warning():
                return Reason(f"{TIME_LIMIT}, says {self._signals.name}; {self._figures()}")
            return Reason(self._signals.name, asked=asked)
        if self._limit is None and self._stop_at is not None and time.time() >= self._stop_at:
            self._limit = self._at_the_limit()
        if self._limit is not None:
            return self._limit
        if self._parent_fd is not None and self._parent_gone(self._parent_fd):
            return Reason("the program that started this worker is gone", asked=True)
        return None

    def _is_warning(self) -> bool:
        """Whether a signal that has come is for the time limit, and not for pre-emption."""
        left = self.left()
        return left is not None and left <= max(_NEAR, min(_EARLY, _SHARE * self._had()))

    def _at_the_limit(self) -> Reason:
        # All that is left may be used: a trainer that compiles may still get its first steps done.
        assert self._deadline is not None
        left = self._deadline - time.time()
        kill_in = max(0.0, left / 2, left - _ROWS)
        text = f"{TIME_LIMIT}; {self._figures()}"
        return Reason(text, kill_at=time.monotonic() + kill_in)

    def _figures(self) -> str:
        had = self._had()
        return f"{duration(self.left() or 0.0)} of this worker's {duration(had)} are left"

    def _had(self) -> float:
        return self._allocation if math.isfinite(self._allocation) else 0.0

    def _hear_of_deadline(self) -> None:
        moved = self._watch.poll() if self._watch is not None else None
        if moved is None:
            return
        before, self._deadline = self._deadline, moved
        if before is None or math.isinf(self._allocation):
            self._allocation = self.left() or math.inf
        elif math.isfinite(moved):
            self._allocation += moved - before
        if before is None or not abs(moved - before) <= _NEWS:
            self._log(f"SLURM says: {self.limit_in_words()}")

    def wait(self, seconds: float, child: TrainerChild | None = None) -> None:
        """Sleep ``seconds`` at most; a signal, the parent's end or the child's events wake up."""
        if self._signals.name is None:
            self.meanwhile()
        stop_at = self._stop_at
        if stop_at is not None:
            until = stop_at - time.time()
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
