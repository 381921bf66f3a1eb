"""Who holds jobs in a database of any revision: an upgrade must not pull it away from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, Select, column, inspect, select, table

from ensq.errors import MismatchError
from ensq.jobs import State, WorkerInfo
from ensq.store import process
from ensq.store.engine import Database
from ensq.store.target import Target

Key = tuple[int, int]  # job, attempt

_LEASE = 60.0  # what workers of revision 0001 had unless told otherwise: it was not recorded
_LONGEST = 600.0  # nobody is watched for longer, whatever stands in a row
_STEP = 1.0  # seconds between two looks
_IDENTITY = ("id", "host", "pid", "pid_start", "boot_id", "slurm_job", "last_seen", "ended_at")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A worker that holds a job and is not known to be lost."""

    seed: int
    ensemble: str
    worker: WorkerInfo
    sign: float  # changes with each sign of life
    lease_seconds: float


def holders(connection: Connection, target: Target) -> dict[Key, Holder]:
    """Who holds running jobs, without workers that have ended or whose process is gone."""
    found = {}
    for row in connection.execute(_query(connection)):
        worker = _worker(row)
        if worker.ended_at is None and not process.is_gone(worker, target):
            found[row.job_id, row.attempt] = Holder(
                seed=row.seed,
                ensemble=row.name,
                worker=worker,
                sign=row.sign,
                lease_seconds=max(_LEASE, row.length),
            )
    return found


def watch(
    database: Database,
    progress: Callable[[str], None],
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[Key, Holder]:
    """Look at the holders for the length of a lease; returns them if all were silent.

    Times in the rows are other hosts' clocks; what counts is whether a row changes while this
    process waits by its own. Raises MismatchError if a worker lives.
    """
    target = database.target
    look = partial(holders, target=target)
    first = database.run(look, write=False)
    require_silent(target, first, first)  # a process that lives on this host
    if not first:
        return first
    lease = min(_LONGEST, max(holder.lease_seconds for holder in first.values()))
    progress(_held(first) + f"; watching for {lease:.0f} s whether they live")
    until = monotonic() + lease
    while (left := until - monotonic()) > 0:
        sleep(min(_STEP, left))
        require_silent(target, first, database.run(look, write=False))
    progress("no sign of life: their members will be taken back by the next claim")
    return first


def require_silent(target: Target, before: dict[Key, Holder], now: dict[Key, Holder]) -> None:
    """Raise MismatchError if one of the holders that are there now is not known to be silent."""
    for key, holder in now.items():
        if key not in before:
            raise _refusal(target, holder, "which took it just now")
        if holder.sign != before[key].sign:
            raise _refusal(target, holder, "which gave a sign of life")
        if process.is_alive(holder.worker):
            raise _refusal(target, holder, "which lives")


def _refusal(target: Target, holder: Holder, why: str) -> MismatchError:
    worker = holder.worker
    slurm = f", SLURM job {worker.slurm_job!r}" if worker.slurm_job else ""
    return MismatchError(
        f"{target.where}: can't be upgraded while workers hold members: seed {holder.seed} of "
        f"{holder.ensemble!r} is held by worker {worker.id!r} (host {worker.host!r}, process "
        f"{worker.pid}{slurm}), {why}. Nothing was changed. Stop the worker (Ctrl-C, SIGTERM or "
        "scancel: it gives its members back), or run `ensq drain` with the version of ensq that "
        "it runs, if that has it; then upgrade again"
    )


def _held(found: dict[Key, Holder]) -> str:
    hosts = sorted({repr(holder.worker.host) for holder in found.values()})
    named = ", ".join(hosts[:3]) + (" and others" if len(hosts) > 3 else "")
    count = "1 member is" if len(found) == 1 else f"{len(found)} members are"
    return f"{count} held by workers on {named}"


def _query(connection: Connection) -> Select[Any]:
    """Running jobs with their owners; only columns that every revision has, but for the lease."""
    names = {found["name"] for found in inspect(connection).get_columns("jobs")}
    of_beat = {"beat", "lease_seconds"} <= names
    lease = ("beat", "lease_seconds") if of_beat else ("lease_until",)
    columns = ("id", "attempt", "seed", "state", "owner", "ensemble_id", *lease)
    jobs = table("jobs", *(column(name) for name in columns))
    identity = (*_IDENTITY, "lock_byte") if of_beat else _IDENTITY
    workers = table("workers", *(column(name) for name in identity))
    ensembles = table("ensembles", column("id"), column("name"))
    # In 0001 a worker set the end of its lease and noted a sign of life by one clock: no earlier.
    length = jobs.c.lease_seconds if of_beat else jobs.c.lease_until - workers.c.last_seen
    return (
        select(
            jobs.c.id.label("job_id"),
            jobs.c.attempt,
            jobs.c.seed,
            jobs.c[lease[0]].label("sign"),
            length.label("length"),
            ensembles.c.name,
            *workers.c,
        )
        .select_from(
            jobs.join(workers, workers.c.id == jobs.c.owner).join(
                ensembles, ensembles.c.id == jobs.c.ensemble_id
            )
        )
        .where(jobs.c.state == State.RUNNING.value)
        .order_by(jobs.c.id)
    )


def _worker(row: Row[Any]) -> WorkerInfo:
    values = row._mapping
    known = WorkerInfo(**{name: values[name] for name in _IDENTITY})
    return replace(known, lock_byte=values.get("lock_byte"))
