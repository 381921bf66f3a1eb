"""Leases without comparing clocks: who has been silent for how long, as one observer saw it.

Clocks of hosts differ, by an hour where nobody looks after them. So a lease is no point in time:
the owner of a job moves a counter, the *beat*, and an observer measures with its own clock how long
the beat has stood still since it first saw it. That is never longer than the owner was silent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

Key = tuple[int, int]  # job, attempt


@dataclass
class _Sight:
    beat: int
    since: float  # by the observer's clock
    moved: bool = False  # the beat has changed since the first look


class Watch:
    """What one observer has seen of running jobs."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._seen: dict[Key, _Sight] = {}

    def silence(self, key: Key, beat: int) -> float:
        """Look at a job's beat: for how many seconds has it stood still? 0 at the first look."""
        now = self._monotonic()
        seen = self._seen.get(key)
        if seen is None:
            self._seen[key] = _Sight(beat, now)
            return 0.0
        if seen.beat != beat:
            seen.beat, seen.since, seen.moved = beat, now, True
        return now - seen.since

    def has_moved(self, key: Key) -> bool:
        """Whether a sign of life was seen: the owner lives, or lived since the first look."""
        seen = self._seen.get(key)
        return seen is not None and seen.moved

    def forget_others(self, keys: Collection[Key]) -> None:
        """Forget attempts that are not among these: they have ended."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}
