"""Patience with a database that is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ensq.errors import DatabaseAway
from ensq.progress import printable
from ensq.worker.stopping import Stopping

T = TypeVar("T")
_AGAIN = 2.0  # seconds between tries


def patiently(
    what: Callable[[], T], stopping: Stopping, patience: float, log: Callable[[str], None]
) -> T:
    """Do it, again and again up to ``patience`` seconds while the database is away.

    Raises what it raises: at once if waiting can't help, or if the worker has to stop.
    """
    began: float | None = None
    while True:
        try:
            result = what()
        except DatabaseAway as error:
            if began is None:
                began = time.monotonic()
                log(f"the database is away, trying again: {printable(str(error))}")
            if time.monotonic() - began > patience or stopping.reason() is not None:
                raise
            stopping.wait(_AGAIN)
        else:
            if began is not None:
                log("the database is back")
            return result
