"""Writers of one host take turns, so that nobody waits for long however many there are.

Whoever wants to write an SQLite file queues here first, and only the one whose turn it is asks
SQLite again and again, in quick succession. Asking SQLite costs so much that 64 processes which all
do it leave no time for the one that writes; asking here costs little. A turn is an advisory lock on
the folder, which the kernel takes back from whoever dies. Nothing depends on it but speed: a turn
that can't be had, or that somebody keeps, is done without.
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 1.0  # seconds to wait for a turn; a stopped process may keep it for ever


class Turns:
    """The turns of one folder, for one ``Database``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handle: int | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, it is our turn, or we have waited for long enough."""
        taken = self._take()
        try:
            yield
        finally:
            if taken and self._handle is not None:
                with suppress(OSError):
                    fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _take(self) -> bool:
        deadline: float | None = None
        try:
            if self._handle is None:
                self._handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            while True:
                try:
                    fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    now = time.monotonic()
                    deadline = now + PATIENCE if deadline is None else deadline
                    if now >= deadline:
                        return False
                # Irregular, so that everybody's chance is the same.
                time.sleep(random.uniform(0.0005, 0.003))
        except OSError:  # a file system without such locks, or a folder that is gone
            return False
