"""Looks at the queue from outside, again and again: what was acknowledged must stay."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from ensq.errors import DatabaseError
from ensq.jobs import Ensemble, Job, State
from ensq.store import Store, checks


class Watcher:
    """Remembers what was seen, and notes what may not be."""

    def __init__(self, url: str) -> None:
        self._store = Store.open(url, read_only=True, busy_timeout=1.0)
        self._url = url
        self._done: dict[int, tuple[int, str | None]] = {}  # attempt and digest, by job
        self.jobs: dict[int, Job] = {}
        self.ensembles: dict[int, Ensemble] = {}
        self.problems: list[str] = []
        self.outages: list[list[float]] = []  # begin and end, seconds since 1970
        self.looks = self.checks = self.blind = 0

    def look(self) -> bool:
        """Look once; False if the database can't be read now."""
        try:
            ensembles = {one.id: one for one in self._store.ensembles()}
            jobs = [job for name in ensembles for job in self._store.jobs(name)]
        except DatabaseError as error:
            self._not_readable(error)
            return False
        self.looks += 1
        for job in jobs:
            self._see(job)
        gone = self.jobs.keys() - {job.id for job in jobs}
        if gone:
            self.problems.append(f"jobs {sorted(gone)} are gone")
        self.ensembles, self.jobs = ensembles, {job.id: job for job in jobs}
        return True

    def _see(self, job: Job) -> None:
        before = self.jobs.get(job.id)
        if before is not None and job.attempt < before.attempt:
            self.problems.append(
                f"job {job.id}: its attempt fell from {before.attempt} to {job.attempt}"
            )
        seen = self._done.get(job.id)
        if seen is not None and (job.state is not State.DONE or seen != _completion(job)):
            self.problems.append(f"job {job.id}: was seen done as {seen}, and now is {job}")
        if job.state is State.DONE:
            self._done[job.id] = _completion(job)

    def check(self) -> None:
        """All rules of the queue, at a time when workers write and die."""
        try:
            found = checks.check(self._url)
        except DatabaseError as error:
            self._not_readable(error)
            return
        # A lock that is held too long, or a server that is away, is told as a problem, too.
        if found and not self._in_outage():
            self.problems += [f"while workers ran: {line}" for line in found]
        self.checks += 1

    def _not_readable(self, error: DatabaseError) -> None:
        self.blind += 1
        if not self._in_outage():
            self.problems.append(f"can't be read though nobody took the database away: {error}")

    def outage_began(self) -> None:
        self.outages.append([time.time(), float("inf")])

    def outage_ended(self) -> None:
        self.outages[-1][1] = time.time()

    def _in_outage(self, linger: float = 3.0) -> bool:
        return bool(self.outages) and time.time() < self.outages[-1][1] + linger

    @property
    def seen_done(self) -> int:
        return len(self._done)

    def counts(self) -> Counter[State]:
        return Counter(job.state for job in self.jobs.values())

    def name_of(self, job: Job) -> str:
        return self.ensembles[job.ensemble_id].name

    def run_folder(self, job: Job) -> Path:
        return self._store.root / self.ensembles[job.ensemble_id].run_path

    def claimable(self) -> int:
        """Members that a worker could take now."""
        now = time.time()
        return sum(
            job.state is State.QUEUED and job.not_before <= now for job in self.jobs.values()
        )

    def close(self) -> None:
        self._store.close()


def _completion(job: Job) -> tuple[int, str | None]:
    return job.attempt, job.result_digest
