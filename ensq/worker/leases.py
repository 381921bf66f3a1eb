"""When a worker's leases are to be renewed, and when they are not to be trusted any more."""

from __future__ import annotations

import time
from collections.abc import Callable

_FENCE = 0.7  # share of the lease after which a worker that could not renew trusts it no more


class LeaseClock:
    """Counts from the last write that reached the database. Times are in seconds."""

    def __init__(
        self,
        seconds: float,
        log: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``seconds``: the length of a lease."""
        self._seconds = seconds
        self._log = log
        self._monotonic = monotonic
        self._renewed = self._beat = monotonic()
        self._distrusted = False

    def left(self) -> float:
        """Seconds until the next sign of life is due."""
        return self._beat + self._seconds / 4 - self._monotonic()

    def beats(self) -> bool:
        """Whether a sign of life is due now; the next one counts from here."""
        due = self.left() <= 0
        if due:
            self._beat = self._monotonic()
        return due

    def reached(self) -> None:
        """A sign of life is in the database."""
        self._renewed = self._monotonic()
        self._distrusted = False

    def distrust(self) -> None:
        """Say so, once, if none has been for too long."""
        silence = self._monotonic() - self._renewed
        if self._distrusted or silence <= _FENCE * self._seconds:
            return
        self._distrusted = True
        self._log(
            f"the leases could not be renewed for {silence:.0f} s: others may take the members "
            "over; what is trained here counts only if they did not"
        )
