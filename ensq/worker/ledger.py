"""What the database has not taken yet: writes wait here, in order, while it is away."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ensq.errors import DatabaseError
from ensq.progress import duration, printable

_FIRST_PAUSE = 0.5  # seconds between tries, doubled each time
_LONGEST_PAUSE = 10.0

Write = Callable[[], None]


class Ledger:
    """Writes to do, oldest first. Each may be done again: the store's writes are idempotent."""

    def __init__(
        self, log: Callable[[str], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._monotonic = monotonic
        self._writes: deque[Write] = deque()
        self._away_since: float | None = None
        self._pause = _FIRST_PAUSE
        self._next_try = 0.0
        self.error: DatabaseError | None = None  # why the last try failed

    def has_writes(self) -> bool:
        """Whether anything waits for the database."""
        return bool(self._writes)

    @property
    def away_for(self) -> float:
        """Seconds since the database was first found away; 0 if it isn't."""
        return 0.0 if self._away_since is None else self._monotonic() - self._away_since

    def due_in(self) -> float | None:
        """Seconds until the next try is worth it; None if there is nothing to write."""
        return None if not self._writes else max(0.0, self._next_try - self._monotonic())

    def add(self, write: Write) -> None:
        """Do it now, or as soon as the database is there and what came before is done."""
        self._writes.append(write)
        self.flush()

    def flush(self, *, at_once: bool = False) -> None:
        """Do what can be done now.

        What a write itself raises, other than DatabaseError, passes; that write is done with.
        """
        if self._away_since is not None and not at_once and (self.due_in() or 0.0) > 0:
            return
        while self._writes:
            try:
                self._writes[0]()
            except DatabaseError as error:
                self.failed(error)
                return
            except BaseException:
                self._writes.popleft()
                raise
            self._writes.popleft()
            self.reached()

    def failed(self, error: DatabaseError) -> None:
        """The database did not answer."""
        now = self._monotonic()
        if self._away_since is None:
            self._away_since, self._pause = now, _FIRST_PAUSE
            self._log(
                f"the database is away; training goes on, and what it gives is kept: "
                f"{printable(str(error))}"
            )
        self.error = error
        self._next_try = now + self._pause
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)

    def reached(self) -> None:
        """The database answered."""
        if self._away_since is not None:
            self._log(f"the database is back after {duration(self.away_for)}")
        self._away_since = self.error = None
