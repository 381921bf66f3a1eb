"""Before a claim: is there time enough for the next member?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ensq.jobs import Job, State
from ensq.progress import duration
from ensq.store import Store
from ensq.worker.timing import Timing, too_late

_PLENTY = 20.0  # with that many times the need left, which member is next need not be looked up


class TimeForMembers:
    """What members take here, by ensemble, against the time that is left."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._timings: dict[int, Timing] = {}
        self._claims = 0

    def claimed(self, jobs: Sequence[Job], *, warm: bool) -> Timing:
        """These members were claimed; what is measured of them goes to this place."""
        self._claims += 1
        timing = self._timings.setdefault(jobs[0].ensemble_id, Timing())
        speeds = [job.seconds_per_epoch for job in jobs if job.seconds_per_epoch is not None]
        timing.claimed(warm=warm, usual=max(speeds, default=None))
        return timing

    def why_not(self, left: float | None, ensemble: str | None, serves: int | None) -> str | None:
        """Why the next member should not be claimed; None if it may be, or if there is none.

        Args:
            left: Seconds until the time limit; None if unknown.
            ensemble: The one that this worker works on, or None for all.
            serves: Id of the ensemble that the trainer which is there has trained, if one is.
        """
        if left is None or math.isinf(left):
            return None
        known = [timing.need(timing.usual, warm=False) for timing in self._timings.values()]
        if left > _PLENTY * max(known, default=Timing().need(None, warm=False)):
            return None
        job = self._next(ensemble)
        if job is None:
            return None
        timing = self._timings.get(job.ensemble_id) or Timing()
        need = timing.need(job.seconds_per_epoch, warm=job.ensemble_id == serves)
        if not too_late(left, need, first=self._claims == 0):
            return None
        return (
            f"{duration(left)} are left before the time limit; the next member would need about "
            f"{duration(need)} to its first checkpoint"
        )

    def _next(self, name: str | None) -> Job | None:
        """The member that a claim would take now; see ``ensq.store.claims``."""
        now = self._store.now()
        states = {State.QUEUED}
        if self._store.outlook(name).lost:
            states.add(State.RUNNING)  # a claim takes those of lost workers back, too
        for ensemble in sorted(self._store.ensembles(), key=lambda one: one.id):
            if name is not None and ensemble.name != name:
                continue
            jobs = self._store.jobs(ensemble.id)
            ready = [job for job in jobs if job.state in states and job.not_before <= now]
            if ready:
                return max(ready, key=lambda job: (_place(job), -job.index))
        return None


def _place(job: Job) -> tuple[int, int]:
    at = job.checkpoint
    return (0, 0) if at is None else (at.epoch, at.step)
