"""Do file locks reach other hosts? Workers that run there know: each holds a byte of a file."""

from __future__ import annotations

import time
from functools import partial

from ensq.doctor.finding import Finding
from ensq.store import reads
from ensq.store.engine import Database
from ensq.store.locks import LockProbe, OtherWorker, is_free
from ensq.store.process import is_here
from ensq.store.target import Target

_PAUSE = 0.5


def check_neighbours(target: Target, timeout: float, patience: float) -> Finding:
    """Look for workers of other hosts, and for their locks. Raises DatabaseError.

    A worker whose lock isn't seen is dead, or locks don't reach this host: for up to ``patience``
    seconds, it waits for a sign of life.
    """
    database = Database(target, read_only=True, busy_timeout=timeout)
    try:
        return _check(database, patience)
    finally:
        database.close()


def _check(database: Database, patience: float) -> Finding:
    others = _others(database)
    if not others:
        return Finding(
            key="other_hosts",
            state="unknown",
            seen="whether locks reach other hosts: no worker of another host runs now",
            advice="run `ensq doctor` again on one node while a worker runs on another",
        )
    free = partial(is_free, database.target)
    for other in others:
        if free(other.byte) is False:
            seen = f"the lock of worker {other.id} on {other.host} is seen here"
            return Finding(key="other_hosts", state="ok", seen=seen)
    broken = _watch(LockProbe(free), database, others, patience)
    if broken is not None:
        return Finding(
            key="other_hosts",
            state="problem",
            seen=broken,
            advice="stop the workers, and use PostgreSQL (docs/queue.md)",
        )
    return Finding(
        key="other_hosts",
        state="unknown",
        seen=f"the lock of worker {others[0].id} on {others[0].host} isn't seen here, and it gave "
        f"no sign of life for {patience:g} s",
        advice="most likely it is dead: see `ensq status`, and run `ensq reap`",
    )


def _watch(
    probe: LockProbe,
    database: Database,
    others: list[OtherWorker],
    patience: float,
) -> str | None:
    end = time.monotonic() + patience
    broken = probe.broken(others)
    while broken is None and others and time.monotonic() < end:
        time.sleep(_PAUSE)
        others = _others(database)
        broken = probe.broken(others)
    return broken


def _others(database: Database) -> list[OtherWorker]:
    return [
        OtherWorker(one.id, one.host, one.lock_byte, one.last_seen)
        for one in database.run(reads.living_workers, write=False)
        if one.lock_byte is not None and not is_here(one)
    ]
