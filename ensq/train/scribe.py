"""Files, and what is told of them, beside the training: in order, one after the other.

A checkpoint must be on disk before the queue hears of it. The training need not wait for that: the
state is copied to the host, and a thread writes it and then tells, while the next epoch runs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

from ensq.worker import protocol


class Control(Protocol):
    """What the trainer hears and says while it works. Messages come from two threads."""

    def stop_wanted(self) -> bool: ...
    def dropped(self) -> frozenset[int]: ...
    def finishing(self) -> Mapping[int, str]: ...
    def send(self, message: protocol.Message) -> None: ...


class Scribe:
    """A ``Control`` that also writes. Leaving the context waits for all that is to be done.

    What fails is raised by the next call; what was to follow it is left undone, so that nothing is
    told of a file that is not there.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="scribe", daemon=True)

    def __enter__(self) -> Scribe:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._work.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def stop_wanted(self) -> bool:
        return self._control.stop_wanted()

    def dropped(self) -> frozenset[int]:
        return self._control.dropped()

    def finishing(self) -> Mapping[int, str]:
        """Members that a rule has stopped, and which."""
        return self._control.finishing()

    def tell(self, message: protocol.Message) -> None:
        """Tell this at once: a sign of life, or, from work that is being done, its outcome."""
        self._control.send(message)

    def send(self, message: protocol.Message) -> None:
        """Tell this after all that was asked for before."""
        self.do(lambda: self._control.send(message))

    def do(self, work: Callable[[], None]) -> None:
        """Have this done after all that was asked for before."""
        self._raise()
        self._work.put(work)

    def settle(self) -> None:
        """Wait until all is done: no more than one state is held for writing."""
        self._work.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                if self._error is None:
                    work()
            except Exception as error:  # every kind: it belongs to the thread that trains
                self._error = error
            finally:
                self._work.task_done()
