"""Stop signals: a handler sets a flag and wakes the loop, and does nothing else.

Work in a handler is how workers break: SLURM sends SIGTERM and SIGCONT back to back, and buffered
output from a handler that interrupts a handler raises "reentrant call".
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# A shell that starts a job with & or nohup ignores these for it, and means it.
_KEEP_IGNORED = frozenset({signal.SIGINT, signal.SIGHUP})


class StopSignals:
    """While entered, stop signals set ``received`` and make ``fd`` readable.

    Main thread only. What was installed before is put back on leaving.
    """

    def __init__(self, *, for_good: bool = False) -> None:
        """``for_good``: once one was received, the rest is ignored on leaving, too.

        For a process that ends then: SLURM sends SIGTERM again and again, and one that comes
        while Python ends would turn the exit code into that of a kill.
        """
        self._for_good = for_good
        self.received: int | None = None  # the first one; more of them change nothing
        self.fd = -1
        self._write_fd = -1
        self._old_wakeup_fd = -1
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if number in _KEEP_IGNORED and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            if self._for_good and self.received is not None:
                handler = signal.SIG_IGN
            # None: the handler before was not Python's and can't be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        os.close(self.fd)
        os.close(self._write_fd)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number

    @property
    def name(self) -> str | None:
        """Name of the first stop signal, or None."""
        return None if self.received is None else signal.Signals(self.received).name

    def drain(self) -> None:
        """Forget the wake-ups, not the flag."""
        with suppress(BlockingIOError):
            while os.read(self.fd, 512):
                pass


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Hold stop signals back; a process started inside inherits that and never sees them.

    SLURM signals every process of a step. The trainer must not die of it while its supervisor
    asks it to save; here the signals that come meanwhile are delivered on leaving, none is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
