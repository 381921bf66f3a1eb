"""Transactions on SQLite that meet trouble: files that are busy, replaced, gone."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from engine_tools import add, numbers, opened
from sqlalchemy import Connection

from ensq.errors import DatabaseAway, DatabaseError
from ensq.store import engine as engine_module
from ensq.store import failures
from ensq.store.target import Target


def notes(path: Path, journal: str = "wal") -> Path:
    """A database with one table of numbers."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY)")
    return path


_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
connection.execute("SELECT * FROM notes").fetchall()
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


@contextmanager
def held(path: Path, begin: str) -> Iterator[Callable[[], None]]:
    """Another process has a transaction open; yields what ends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), begin],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "held\n"
        stdin = process.stdin

        def end() -> None:
            stdin.write("\n")
            stdin.flush()

        try:
            yield end
        finally:
            process.kill()


@pytest.fixture
def journal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(engine_module, "journal_for", lambda path: request.param)
    return str(request.param)


@pytest.mark.parametrize("journal", ["wal", "delete"], indirect=True)
def test_writer_waits_for_another_process_and_gives_up_in_time(
    tmp_path: Path, journal: str
) -> None:
    path = notes(tmp_path / "q.db", journal)
    with held(path, "BEGIN IMMEDIATE") as end, opened(path, busy_timeout=0.2) as database:
        began = time.monotonic()
        with pytest.raises(DatabaseAway, match=r"q\.db: database is locked"):
            database.run(add)
        assert 0.2 <= time.monotonic() - began < 5
        database.busy_timeout = 20.0
        timer = threading.Timer(0.2, end)
        timer.start()
        database.run(add)
        timer.join()
        assert numbers(database) == [1]


@pytest.mark.parametrize("journal", ["delete"], indirect=True)
def test_commit_waits_for_readers_and_the_work_is_done_once(tmp_path: Path, journal: str) -> None:
    path = notes(tmp_path / "q.db", journal)
    calls = []

    def work(connection: Connection) -> None:
        calls.append(1)
        add(connection)

    with held(path, "BEGIN") as end, opened(path, busy_timeout=20.0) as database:
        timer = threading.Timer(0.3, end)
        timer.start()
        began = time.monotonic()
        database.run(work)
        assert time.monotonic() - began > 0.2  # COMMIT did find the file busy
        timer.join()
        assert numbers(database) == [1]
    assert calls == [1]


@pytest.mark.parametrize("journal", ["delete"], indirect=True)
def test_commit_that_stays_busy_is_undone(tmp_path: Path, journal: str) -> None:
    path = notes(tmp_path / "q.db", journal)
    with opened(path, busy_timeout=0.1) as database:
        with held(path, "BEGIN"), pytest.raises(DatabaseAway, match="database is locked"):
            database.run(add)
        assert numbers(database) == []


@pytest.mark.parametrize("journal", ["delete"], indirect=True)
def test_reader_waits_for_a_writer_that_is_committing(tmp_path: Path, journal: str) -> None:
    path = notes(tmp_path / "q.db", journal)
    with held(path, "BEGIN EXCLUSIVE") as end, opened(path, busy_timeout=20.0) as database:
        timer = threading.Timer(0.2, end)
        timer.start()
        assert numbers(database) == []
        timer.join()
        with held(path, "BEGIN EXCLUSIVE"):
            database.busy_timeout = 0.1
            with pytest.raises(DatabaseAway, match="database is locked"):
                numbers(database)


_TAKE = """
import os, sys, time
from ensq.store import engine
from ensq.store.target import Target
engine.journal_for = lambda path: sys.argv[2]
database = engine.Database(Target.parse(sys.argv[1]))
with database.read():
    pass
print("ready", flush=True)
sys.stdin.readline()
worst, done, end = 0.0, 0, time.monotonic() + 1.5
while time.monotonic() < end:
    began = time.monotonic()
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE notes SET n = n + 1")
    worst, done = max(worst, time.monotonic() - began), done + 1
database.close()
print(worst, done)
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_eight_writers_take_turns(tmp_path: Path, journal: str) -> None:
    """Each gets its share, and no write is lost. Figures are for a benchmark, not for a test."""
    path = notes(tmp_path / "q.db", journal)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO notes VALUES (0)")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _TAKE, str(path), journal],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        for _ in range(8)
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in started]
    with closing(sqlite3.connect(path)) as connection:
        (total,) = connection.execute("SELECT n FROM notes").fetchone()
    done = [int(count) for _, count in said]
    assert sum(done) == total
    assert min(done) > total / 80
    assert max(float(worst) for worst, _ in said) < 1.5  # SQLite's own waiting: whole starvation


def test_pauses_are_short_and_grow_only_after_long_waiting() -> None:
    assert all(engine_module._pause(waited) <= 0.003 for waited in (0.0, 0.1, 1.0, 2.0))
    assert max(engine_module._pause(60.0) for _ in range(100)) > 0.01
    assert all(engine_module._pause(60.0) <= 0.02 for _ in range(100))


def test_file_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    """What is written to the old one, which has no name any more, would be lost."""
    path = notes(tmp_path / "q.db")
    with opened(path) as database:
        database.run(add)
        for name in ("q.db", "q.db-wal", "q.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        notes(tmp_path / "other.db").rename(path)
        database.run(lambda connection: add(connection, 2))
        assert numbers(database) == [2]


def test_file_that_vanished_may_come_back(tmp_path: Path) -> None:
    path = notes(tmp_path / "q.db", "delete")
    with opened(path) as database:
        database.run(add)
        database.close()  # the log is written back into the file
        path.rename(tmp_path / "elsewhere.db")
        for _ in range(2):
            with pytest.raises(DatabaseAway, match=r"q\.db: can't be"):
                database.run(add)
        assert not path.exists()
        (tmp_path / "elsewhere.db").rename(path)
        assert numbers(database) == [1]


def test_file_that_was_never_there_is_no_outage(tmp_path: Path) -> None:
    with opened(tmp_path / "no.db") as database, pytest.raises(DatabaseError) as caught:
        database.run(add)
    assert not isinstance(caught.value, DatabaseAway)


def test_nothing_in_the_schema_of_a_strangers_file_is_trusted(tmp_path: Path) -> None:
    path = notes(tmp_path / "q.db")
    for read_only in (False, True):
        with opened(path, read_only=read_only) as database, database.read() as connection:
            for pragma, value in (("trusted_schema", 0), ("cell_size_check", 1)):
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value


def test_sqlite_has_no_clock_of_its_own(tmp_path: Path) -> None:
    with opened(notes(tmp_path / "q.db")) as database, database.read() as connection:
        assert database.now(connection) is None


@pytest.mark.parametrize(
    ("name", "away"),
    [
        *(("SQLITE_BUSY", True), ("SQLITE_LOCKED", True), ("SQLITE_FULL", True)),
        *(("SQLITE_IOERR", True), ("SQLITE_IOERR_FSYNC", True), ("SQLITE_PROTOCOL", True)),
        *(("SQLITE_CANTOPEN", "known"), ("SQLITE_READONLY", "known")),
        *(("SQLITE_CORRUPT", False), ("SQLITE_NOTADB", False), ("SQLITE_ERROR", False)),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_errors_of_sqlite_that_pass_are_told_from_those_that_do_not(
    tmp_path: Path, name: str, away: bool | str, known: bool
) -> None:
    error = sqlite3.OperationalError("words")
    error.sqlite_errorname = name
    error.sqlite_errorcode = getattr(sqlite3, name)
    target = Target.parse(tmp_path / "q.db")
    said = failures.explain_sqlite(error, target, patience=1.0, known=known)
    assert isinstance(said, DatabaseAway) == (known if away == "known" else away)
    assert "q.db" in str(said)
