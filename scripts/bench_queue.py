#!/usr/bin/env python
"""How fast members are claimed, how long a claim waits, and whether one is ever claimed twice.

    scripts/bench_queue.py [--quick] [--part PART]... [--kind KIND]... [--double N]

Prints Markdown. rates: claims per second and waits with 1, 8 and 64 processes, each claim a whole
`Store.claim` (lost workers looked for, the claim, its attempt, its event) with real flushes, beside
one UPDATE … RETURNING under BEGIN IMMEDIATE by sqlite3 itself in the same run. rows: the time of a
claim in long queues. double: claims of 8 processes, counted by job and attempt. PostgreSQL takes
part where it is installed. FOLDER should lie on the disk that is meant.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from sqlalchemy import update

from ensq import store as ensq_store
from ensq.schema import attempts, jobs
from ensq.store import Store, engine, worker_info

PROCESSES = (1, 8, 64)
KINDS = ("wal", "delete", "postgresql")
HELD = 4  # members that a process has claimed at most, before it is done with them
LEASE = 60.0
_FORK = multiprocessing.get_context("fork")  # a spawned one would import all again, 64 times
_SQL = (
    "UPDATE jobs SET state = 'running', owner = ? WHERE id = (SELECT id FROM jobs "
    "WHERE state = 'queued' ORDER BY id LIMIT 1) RETURNING id"
)


# Seconds spent on claims, and (wait, job, attempt) for each.
Told = tuple[float, list[tuple[float, int, int]]]


class Rate(NamedTuple):
    """Of all processes together."""

    per_second: float
    waits: list[float]  # seconds, sorted
    taken: list[tuple[int, int]]  # job and attempt

    def cells(self) -> list[str]:
        waits = self.waits
        ranks = [waits[int(share * (len(waits) - 1))] for share in (0.5, 0.99, 1.0)]
        return [f"{self.per_second:.0f}", *(f"{1000 * wait:.1f}" for wait in ranks)]


def _use_journal(journal: str | None) -> None:
    """Have ensq take this mode, whatever the file system is."""
    if journal is not None:
        mock.patch.object(engine, "journal_for", lambda path: journal).start()


class Queue:
    """A fresh database of ensq's with queued members. Workers open it by ``url``."""

    def __init__(self, url: str, journal: str | None) -> None:
        self.url, self.journal = url, journal
        _use_journal(journal)
        Store.open(url, create=True).close()

    def fill(self, count: int) -> None:
        """Enqueue members: the first as ensq does it, the others by SQL, which is faster."""
        with Store.open(self.url, busy_timeout=600) as store:  # PostgreSQL may need it for 10^6
            texts = ("config_digest", "data_path", "data_digest", "run_path", "config")
            wanted: dict[str, Any] = dict.fromkeys(texts, "bench")
            store.add_ensemble(name="bench", seeds=[0], epochs=10, **wanted)
            names = [column.name for column in jobs.columns if column.name != "id"]
            changed = {"position": "numbers.n", "seed": "numbers.n"}
            values = ", ".join(changed.get(name, f"jobs.{name}") for name in names)
            with store._database.write() as connection:
                connection.exec_driver_sql(
                    f"INSERT INTO jobs ({', '.join(names)}) WITH RECURSIVE numbers(n) AS "
                    f"(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count - 1}) "
                    f"SELECT {values} FROM jobs, numbers WHERE jobs.seed = 0"
                )
                if self.journal is None:
                    connection.exec_driver_sql("ANALYZE")  # as PostgreSQL's own daemon does


class Server:
    """A PostgreSQL server for the whole run, if it is installed."""

    def __init__(self, kinds: list[str] | None) -> None:
        import pg_tools

        wanted = kinds or list(KINDS)

        self._server: Any = None
        if "postgresql" in wanted and pg_tools.binaries():
            self._server = pg_tools.Server()
        if self._server is not None:
            os.environ["PGPASSWORD"] = self._server.password
        self.kinds = [kind for kind in wanted if self._server or kind != "postgresql"]

    def url(self) -> str:
        return str(self._server.new_database())

    def version(self) -> str:
        if self._server is None:
            return "not installed"
        return str(self._server.execute("SHOW server_version")[0][0]).split()[0]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@contextmanager
def fresh(kind: str, folder: Path, server: Server) -> Iterator[Queue]:
    """A queue of that kind: wal, delete or postgresql."""
    if kind == "postgresql":
        yield Queue(server.url(), None)
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as place:
        yield Queue(str(Path(place) / "ensq.db"), kind)


def run(work: Callable[[int, Any, float], Told], processes: int, seconds: float) -> Rate:
    """Run ``work`` in so many processes, for about so long."""
    barrier, results = _FORK.Barrier(processes), _FORK.Queue()

    def main(number: int) -> None:
        random.seed(number)
        try:
            results.put(work(number, barrier, seconds))
        except BaseException as error:
            barrier.abort()
            results.put(repr(error))
            raise

    started = [_FORK.Process(target=main, args=(number,)) for number in range(processes)]
    for process in started:
        process.start()
    told = [results.get() for _ in started]
    for process in started:
        process.join()
    failed = [one for one in told if isinstance(one, str)]
    if failed:
        raise RuntimeError(failed[0])
    claims = [claim for _, found in told for claim in found]
    waits = sorted(claim[0] for claim in claims)
    per_second = sum(len(found) / elapsed for elapsed, found in told)
    return Rate(per_second, waits, [(job, attempt) for _, job, attempt in claims])


def claims_by_ensq(queue: Queue) -> Callable[[int, Any, float], Told]:
    """A worker that claims one member after the other, and is soon done with it."""

    def work(number: int, barrier: Any, seconds: float) -> Told:
        _use_journal(queue.journal)
        found, done, cleaning = [], [], 0.0
        with Store.open(queue.url, busy_timeout=120.0) as store:
            name = f"bench-{os.getpid()}-{number:08x}"
            store.register_worker(worker_info(name))
            # Each process makes its statements once, 20 ms of work that is not a claim's.
            for _ in range(2):
                _be_done(store, [job.id for job in store.claim(name, limit=1, lease_seconds=LEASE)])
            barrier.wait()
            start = time.monotonic()
            while (began := time.monotonic()) < start + seconds:
                taken = store.claim(name, limit=1, lease_seconds=LEASE)
                if not taken:
                    break  # a short queue on a fast machine
                found.append((time.monotonic() - began, taken[0].id, taken[0].attempt))
                done.append(taken[0].id)
                if len(done) == HELD:
                    began = time.monotonic()
                    _be_done(store, done)
                    done.clear()
                    cleaning += time.monotonic() - began
        return time.monotonic() - start - cleaning, found

    return work


def _be_done(store: Store, ids: list[int]) -> None:
    """Out of the way, as a real worker holds few members: not a part of what is timed."""
    with store._database.write() as connection:
        connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(ids))
            .values(state="cancelled", owner=None, lease_seconds=None)
        )
        tried = update(attempts).where(attempts.c.job_id.in_(ids))
        connection.execute(tried.values(ended_at=0.0, outcome="cancelled"))


def claims_by_sqlite3(path: str) -> Callable[[int, Any, float], Told]:
    """The least that a queue on SQLite can do, with SQLite's own waiting."""

    def work(number: int, barrier: Any, seconds: float) -> Told:
        connection = sqlite3.connect(path, timeout=120.0, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        found = []
        barrier.wait()
        start = time.monotonic()
        while (began := time.monotonic()) < start + seconds:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute(_SQL, (number,)).fetchone()
            while connection.in_transaction:
                with suppress(sqlite3.OperationalError):  # COMMIT, too, may find the file busy
                    connection.execute("COMMIT")
            if row is None:
                break
            found.append((time.monotonic() - began, row[0], 1))
        elapsed = time.monotonic() - start
        connection.close()
        return elapsed, found

    return work


def raw_queue(path: Path, journal: str, count: int) -> str:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, owner INTEGER)")
    connection.execute("CREATE INDEX queue ON jobs (state, id)")
    connection.execute("BEGIN")
    rows = ((number, "queued") for number in range(1, count + 1))
    connection.executemany("INSERT INTO jobs (id, state) VALUES (?, ?)", rows)
    connection.execute("COMMIT")
    connection.close()
    return str(path)


def rates(options: argparse.Namespace, server: Server) -> list[str]:
    """Claims per second and waits."""
    head = ["queue", "processes", "claims/s", "p50 ms", "p99 ms", "worst ms", "of sqlite3's rate"]
    table = []
    for kind in server.kinds:
        for processes in PROCESSES:
            raw = None
            if kind != "postgresql":
                with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as place:
                    path = raw_queue(Path(place) / "raw.db", kind, 10 * options.rows)
                    raw = run(claims_by_sqlite3(path), processes, options.seconds)
                table.append([f"sqlite3, {kind}", str(processes), *raw.cells(), ""])
            with fresh(kind, options.folder, server) as queue:
                queue.fill(options.rows)
                told = run(claims_by_ensq(queue), processes, options.seconds)
            ratio = f"{told.per_second / raw.per_second:.2f}" if raw else ""
            table.append([f"ensq, {kind}", str(processes), *told.cells(), ratio])
            print(f"{kind}, {processes} processes", file=sys.stderr, flush=True)
    return ["Claims per second and waits", "", *markdown(head, table)]


def rows(options: argparse.Namespace, server: Server) -> list[str]:
    """The time of a claim in queues of different lengths."""
    sizes = (10**3, 10**5) if options.quick else (10**3, 10**5, 10**6)
    table = []
    for kind in (kind for kind in server.kinds if kind != "delete"):
        for size in sizes:
            with fresh(kind, options.folder, server) as queue:
                queue.fill(size)
                told = run(claims_by_ensq(queue), 1, min(options.seconds, 2.0))
            table.append([f"ensq, {kind}", f"{size:,}", *told.cells()])
            print(f"{kind}, {size} rows", file=sys.stderr, flush=True)
    head = ["queue", "rows", "claims/s", "p50 ms", "p99 ms", "worst ms"]
    return ["The time of a claim in a long queue, one process", "", *markdown(head, table)]


def double(options: argparse.Namespace, server: Server) -> list[str]:
    """Claims that were handed out twice."""
    table = []
    for kind in server.kinds:
        with fresh(kind, options.folder, server) as queue:
            queue.fill(100)  # so few that all want the same ones
            began = time.monotonic()
            counts = Counter(_contended(queue, options.double))
            seconds = time.monotonic() - began
        twice = sum(count > 1 for count in counts.values())
        table.append([f"ensq, {kind}", f"{counts.total():,}", str(twice), f"{seconds:.0f}"])
        print(f"double claims, {kind}", file=sys.stderr, flush=True)
    head = ["queue", "claims by 8 processes", "handed out twice", "seconds"]
    return ["Double claims", "", *markdown(head, table)]


def _contended(queue: Queue, wanted: int) -> list[tuple[int, int]]:
    """Let 8 processes claim packs of 1 to 8, and give each back at once; jobs and attempts."""

    def work(number: int, barrier: Any, seconds: float) -> Told:
        _use_journal(queue.journal)
        found: list[tuple[float, int, int]] = []
        with Store.open(queue.url, busy_timeout=120.0) as store:
            name = f"double-{os.getpid()}-{time.monotonic_ns():x}"
            store.register_worker(worker_info(name))
            barrier.wait()
            while len(found) < wanted / 8:
                taken = store.claim(name, limit=random.randint(1, 8), lease_seconds=LEASE)
                found += [(0.0, job.id, job.attempt) for job in taken]
                _give_back(store, name, [job.id for job in taken])
        return 1.0, found

    return run(work, 8, 1.0).taken


def _give_back(store: Store, name: str, ids: list[int]) -> None:
    """Queue them again; attempts go on counting. Fails if somebody else took one meanwhile."""
    with store._database.write() as connection:
        mine = update(jobs).where(jobs.c.id.in_(ids), jobs.c.owner == name)
        told = connection.execute(mine.values(state="queued", owner=None, lease_seconds=None))
        if told.rowcount != len(ids):
            raise RuntimeError(f"{len(ids) - told.rowcount} of {ids} went to two workers")
        tried = update(attempts).where(attempts.c.job_id.in_(ids), attempts.c.ended_at.is_(None))
        connection.execute(tried.values(ended_at=0.0, outcome="interrupted"))


PARTS: dict[str, Callable[[argparse.Namespace, Server], list[str]]] = {
    "rates": rates,
    "rows": rows,
    "double": double,
}


def markdown(head: list[str], table: list[list[str]]) -> list[str]:
    marks = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *table)]


def machine(folder: Path, server: Server) -> list[str]:
    """What the figures were measured on."""
    flush = [1000 * seconds for seconds in _flushes(folder)]
    load = os.getloadavg()[0]
    lines = [
        f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), load {load:.1f} at the "
        f"beginning, {platform.system()} {platform.release()}",
        f"fsync of 4 kB: median {flush[len(flush) // 2]:.2f} ms, worst of {len(flush)} "
        f"{flush[-1]:.2f} ms",
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, PostgreSQL "
        f"{server.version()}, ensq at {Path(ensq_store.__file__).parents[2].name}",
    ]
    return [f"- {line}" for line in lines]


def _flushes(folder: Path) -> list[float]:
    """Sorted times of 100 writes that reach the disk."""
    times = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(100):
            file.write(bytes(4096))
            file.flush()
            began = time.monotonic()
            os.fsync(file.fileno())
            times.append(time.monotonic() - began)
    return sorted(times)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="about half a minute, and no queue of 10^6")
    add("--part", action="append", choices=list(PARTS), help="only this one; may be repeated")
    add("--kind", action="append", choices=KINDS, help="only this one; may be repeated")
    add("--double", type=int, help="how many claims to count (10,000; 2,000 with --quick)")
    add("--seconds", type=float, help="of each rate (5; 1 with --quick)")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    options.double = options.double or (2000 if options.quick else 10_000)
    options.seconds = options.seconds or (1.0 if options.quick else 5.0)
    # Enough that hardly ever a process finds the queue empty.
    options.rows = int(2000 * options.seconds) + 2000
    return options


def main() -> int:
    options = parse()
    server = Server(options.kind)
    try:
        print("\n".join(machine(options.folder, server)), flush=True)
        for part in options.part or PARTS:
            print("\n" + "\n".join(PARTS[part](options, server)), flush=True)
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
