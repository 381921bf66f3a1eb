"""``ensq doctor``: do locks of workers on other hosts reach this one?"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensq.doctor import Finding
from ensq.doctor.places import check_places
from ensq.store import Store, WorkerLock
from ensq.store.process import worker_info
from ensq.store.target import Target

NFS = "1 0 0:1 / / rw - nfs4 server:/home rw\n"
HOLD = """
import sys
from ensq.store import WorkerLock
from ensq.store.target import Target
print(WorkerLock.take(Target.parse(sys.argv[1]), "w1").byte, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """With the journal that it has on a network file system."""
    path = tmp_path / "ensq.db"
    Store.open(str(path), create=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=delete")
    connection.close()
    return path


def register(path: Path, byte: int, host: str = "n2") -> None:
    """A worker of another host, as the database knows it."""
    with Store.open(str(path)) as store:
        store.register_worker(worker_info("w1", lock_byte=byte))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=delete")
        connection.execute("UPDATE workers SET host = ?", (host,))
    connection.close()


def look(path: Path, patience: float = 1.0) -> Finding | None:
    found = {finding.key: finding for finding in check_places(str(path), NFS, patience=patience)}
    assert found["database"].state == "ok", found["database"]
    return found.get("other_hosts")


@pytest.fixture
def held(database: Path) -> Iterator[int]:
    """A byte of the lock file that another process holds."""
    holder = subprocess.Popen(
        (sys.executable, "-c", HOLD, str(database)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    yield int(holder.stdout.readline())
    holder.communicate("")


@pytest.fixture
def free(database: Path) -> int:
    """A byte of the lock file that nobody holds any more."""
    lock = WorkerLock.take(Target.parse(str(database)), "w1")
    assert lock is not None
    lock.release()
    return lock.byte


def test_without_another_host_it_is_unknown(database: Path) -> None:
    found = look(database)
    assert found is not None
    assert found.state == "unknown"
    assert "while a worker runs on another" in found.advice


def test_the_lock_of_another_host_that_is_seen_is_ok(database: Path, held: int) -> None:
    register(database, held)
    found = look(database)
    assert found is not None
    assert (found.state, found.seen) == ("ok", "the lock of worker w1 on n2 is seen here")


def test_a_silent_worker_without_its_lock_is_most_likely_dead(database: Path, free: int) -> None:
    register(database, free)
    found = look(database)
    assert found is not None
    assert found.state == "unknown"
    assert "ensq reap" in found.advice


def test_a_living_worker_whose_lock_is_not_seen_is_a_problem(database: Path, free: int) -> None:
    register(database, free)

    def live() -> None:
        for _ in range(40):
            connection = sqlite3.connect(database, timeout=10)
            with connection:
                connection.execute("UPDATE workers SET last_seen = last_seen + 1")
            connection.close()
            time.sleep(0.2)

    living = threading.Thread(target=live)
    living.start()
    try:
        found = look(database, patience=20.0)
    finally:
        living.join()
    assert found is not None
    assert found.state == "problem"
    assert "PostgreSQL" in found.advice
    assert "worker w1 on n2 is alive" in found.seen


def test_workers_of_this_host_tell_nothing_about_others(database: Path, free: int) -> None:
    register(database, free, host=worker_info("x").host)
    found = look(database)
    assert found is not None
    assert "no worker of another host runs now" in found.seen


def test_a_disk_of_this_host_alone_has_no_other_hosts(database: Path) -> None:
    assert "other_hosts" not in {finding.key for finding in check_places(str(database))}
