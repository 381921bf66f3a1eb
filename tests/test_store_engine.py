"""Transactions that meet trouble: busy files, dropped connections, servers that come and go."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pg_tools
import pytest
import sqlalchemy
from sqlalchemy import Connection

from ensq.errors import DatabaseAway, DatabaseError, UsageError
from ensq.store import engine as engine_module
from ensq.store import failures
from ensq.store.engine import Database
from ensq.store.target import Target


def notes(path: Path, journal: str = "wal") -> Path:
    """A database with one table of numbers."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY)")
    return path


@contextmanager
def opened(url: str | Path, **options: Any) -> Iterator[Database]:
    database = Database(Target.parse(url), **options)
    try:
        yield database
    finally:
        database.close()


def add(connection: Connection, n: int = 1) -> None:
    """Add a number; twice is the same as once."""
    connection.exec_driver_sql(f"INSERT INTO notes VALUES ({n}) ON CONFLICT (n) DO NOTHING")


def numbers(database: Database) -> list[int]:
    with database.read() as connection:
        return sorted(connection.exec_driver_sql("SELECT n FROM notes").scalars())


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


# SQLite


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


# PostgreSQL


@pytest.fixture
def url(postgres: pg_tools.Server) -> str:
    """A database with the table of numbers."""
    url = postgres.new_database(schema=False)
    postgres.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY)", url.rpartition("/")[2])
    return url


def test_session_is_set_so_that_nothing_hangs(url: str) -> None:
    with opened(url, busy_timeout=2.0) as database:
        shown = {
            "lock_timeout": "2s",
            "statement_timeout": "32s",
            "idle_in_transaction_session_timeout": "32s",
            "application_name": "ensq",
            "tcp_user_timeout": "0",  # the server's own; the client's can't be seen here
        }
        with database.write() as connection:
            shown |= {"transaction_isolation": "read committed", "transaction_read_only": "off"}
            for name, value in shown.items():
                assert connection.exec_driver_sql(f"SHOW {name}").scalar_one() == value
        with database.read() as connection:
            assert connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on"
        with database.write() as connection:
            assert connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "off"


def test_reader_sees_one_state(url: str) -> None:
    with opened(url) as database, opened(url) as other, database.read() as connection:
        count = "SELECT count(*) FROM notes"
        assert connection.exec_driver_sql(count).scalar_one() == 0
        other.run(add)
        assert connection.exec_driver_sql(count).scalar_one() == 0


def test_clock_is_the_servers(url: str) -> None:
    with opened(url) as database, database.read() as connection:
        first = database.now(connection)
        assert first is not None and abs(first - time.time()) < 5
        time.sleep(0.01)
        second = database.now(connection)
        assert second is not None and second > first  # not the time of the transaction


def test_idle_connection_that_was_cut_is_replaced(url: str, postgres: pg_tools.Server) -> None:
    with opened(url) as database:
        database.run(add)
        assert postgres.kill_connections(url.rpartition("/")[2]) == 1
        with database.write() as connection:  # not run: nothing has to be repeated
            add(connection, 2)
        assert numbers(database) == [1, 2]


def test_transaction_that_is_cut_is_done_again(url: str, postgres: pg_tools.Server) -> None:
    calls = []

    def work(connection: Connection) -> str:
        calls.append(1)
        add(connection)
        if len(calls) < 3:
            postgres.kill_connections(url.rpartition("/")[2])
        add(connection, 2)
        return "done"

    with opened(url) as database:
        assert database.run(work) == "done"
        assert numbers(database) == [1, 2]
    assert len(calls) == 3


def test_transaction_that_is_cut_every_time_is_an_outage(
    url: str, postgres: pg_tools.Server
) -> None:
    calls = []

    def work(connection: Connection) -> None:
        calls.append(1)
        postgres.kill_connections(url.rpartition("/")[2])
        add(connection)

    with opened(url) as database:
        with pytest.raises(DatabaseAway):
            database.run(work)
        assert numbers(database) == []
    assert len(calls) == 3


class Proxy:
    """Passes bytes on to the server; cuts a connection when COMMIT comes by.

    ``after``: the server gets it, and only its answer is lost. Else the server never sees it.
    """

    def __init__(self, port: int, *, after: bool, times: int = 1) -> None:
        self._port, self._after, self._left = port, after, times
        self.cuts = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def close(self) -> None:
        # shutdown, too: it wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            dead = threading.Event()
            self._open += [client, server]
            self._spawn(self._pass, client, server, True, dead)
            self._spawn(self._pass, server, client, False, dead)

    def _spawn(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _pass(
        self, source: socket.socket, sink: socket.socket, to_server: bool, dead: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if to_server and self._left and b"COMMIT\0" in data:
                    self._left -= 1
                    self.cuts += 1
                    dead.set()  # the answer isn't passed on
                    if self._after:
                        sink.sendall(data)
                        time.sleep(0.2)
                    break
                if not to_server and dead.is_set():
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("after", [False, True])
def test_connection_lost_around_commit_leaves_the_work_done_once(
    url: str, postgres: pg_tools.Server, after: bool
) -> None:
    """Whether COMMIT arrived can't be known; the control shows that it did or did not."""
    proxy = Proxy(postgres.port, after=after)
    by_proxy = url.replace(str(postgres.port), str(proxy.port))
    with closing(proxy), opened(by_proxy) as database, opened(url) as direct:
        with pytest.raises(DatabaseAway, match="the connection was lost"), database.write() as one:
            add(one, 1)
        assert numbers(direct) == ([1] if after else [])
        assert proxy.cuts == 1
    proxy = Proxy(postgres.port, after=after)
    by_proxy = url.replace(str(postgres.port), str(proxy.port))
    with closing(proxy), opened(by_proxy) as database, opened(url) as direct:
        calls: list[int] = []
        database.run(lambda connection: (calls.append(1), add(connection, 2)))
        assert (len(calls), proxy.cuts) == (2, 1)
        assert numbers(direct) == ([1, 2] if after else [2])


def test_deadlock_is_done_again(url: str) -> None:
    met = threading.Barrier(2, timeout=20)
    calls: list[int] = []

    def work(first: int, second: int) -> Callable[[Connection], None]:
        mine: list[int] = []

        def run(connection: Connection) -> None:
            calls.append(1)
            mine.append(1)
            for n in (first, second):
                connection.exec_driver_sql(f"UPDATE notes SET n = n WHERE n = {n}")
                if len(mine) == 1 and n == first:
                    met.wait()

        return run

    with opened(url) as database:
        database.run(lambda connection: (add(connection, 1), add(connection, 2)))
        other = threading.Thread(target=database.run, args=[work(2, 1)])
        other.start()
        database.run(work(1, 2))
        other.join()
    assert len(calls) == 3


def test_lock_that_is_held_for_too_long_is_an_outage(url: str) -> None:
    with opened(url) as database, opened(url, busy_timeout=0.1) as waiting:
        database.run(add)
        change = "UPDATE notes SET n = 7"
        with database.write() as connection:
            connection.exec_driver_sql(change)
            with pytest.raises(DatabaseAway, match="lock timeout"), waiting.write() as other:
                other.exec_driver_sql(change)


def test_server_that_is_stopped_is_away_and_comes_back(url: str, postgres: pg_tools.Server) -> None:
    with opened(url) as database:
        database.run(add)
        postgres.stop()
        try:
            for _ in range(2):
                with pytest.raises(DatabaseAway, match=r"can't be reached.*see that it runs"):
                    database.run(add)
            with opened(url) as fresh, pytest.raises(DatabaseAway):  # not only if it was known
                fresh.run(add)
        finally:
            postgres.start()
        database.run(lambda connection: add(connection, 2))
        assert numbers(database) == [1, 2]


def test_server_that_crashes_in_a_transaction_is_away(url: str, postgres: pg_tools.Server) -> None:
    with opened(url) as database:
        with pytest.raises(DatabaseAway), database.write() as connection:
            add(connection)
            postgres.restart("immediate")
            add(connection, 2)
        assert numbers(database) == []
        database.run(add)
        assert numbers(database) == [1]


@pytest.mark.parametrize("wrong", ["password", "database", "role", "host"])
def test_what_waiting_does_not_change_is_no_outage(
    url: str, postgres: pg_tools.Server, wrong: str
) -> None:
    """And the password isn't shown, in the error or in what it is chained to."""
    secret = "hush-hush" if wrong == "password" else postgres.password
    text = {
        "password": postgres.url("postgres", password=secret),
        "database": postgres.url("nowhere", password=secret),
        "role": f"postgresql://stranger:{secret}@127.0.0.1:{postgres.port}/postgres",
        "host": f"postgresql://ensq:{secret}@no.such.host.invalid/postgres",
    }[wrong]
    with opened(text) as database, pytest.raises(DatabaseError) as caught:
        database.run(add)
    assert not isinstance(caught.value, DatabaseAway)
    expected = {"password": "pgpass", "database": "createdb nowhere", "host": "name of the host"}
    assert expected.get(wrong, "stranger") in str(caught.value)
    shown: BaseException | None = caught.value
    while shown is not None:
        assert secret not in f"{shown} {shown!r} {shown.args}"
        shown = shown.__cause__ or shown.__context__


@pytest.mark.parametrize(
    ("state", "away", "again"),
    [
        *(("57P01", True, True), ("57P02", True, True), ("40P01", True, True)),
        *(("40001", True, True), ("25P03", True, True), ("57P03", True, False)),
        *(("53300", True, False), ("53100", True, False), ("57014", True, False)),
        *(("55P03", True, False), ("58030", True, False), ("08006", True, False)),
        *(("28P01", False, False), ("28000", False, False), ("3D000", False, False)),
        *(("42501", False, False), ("42P01", False, False)),
    ],
)
def test_codes_of_postgresql_that_pass_are_told_from_those_that_do_not(
    state: str, away: bool, again: bool
) -> None:
    error = type("OperationalError", (Exception,), {"sqlstate": state})("words")
    target = Target.parse("postgresql://me:hush@host/queue")
    said = failures.explain_server(error, target, dropped=False, known=False)
    assert (isinstance(said, DatabaseAway), isinstance(said, failures.Dropped)) == (away, again)


def test_driver_is_psycopg_whatever_the_default() -> None:
    for text in ("postgresql://me@h/q", "postgres://me@h/q", "postgresql+psycopg://me@h/q"):
        target = Target.parse(text)
        assert target.url.drivername == "postgresql+psycopg"
        assert target.where == "postgresql://me@h/q"
    with pytest.raises(UsageError, match=r"by psycopg, not by 'psycopg2'"):
        Target.parse("postgresql+psycopg2://me@h/q")


# Both


def test_integrity_errors_are_bugs_and_pass(engine_url: str) -> None:
    with opened(engine_url) as database:
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            database.run(
                lambda connection: connection.exec_driver_sql(
                    "INSERT INTO events (id, time, kind, message, job_id) "
                    "VALUES (1, 0, 'x', 'x', 99)"
                )
            )
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM events").scalar_one() == 0


_MAKE = """
import os, sys
from ensq.store import opening
from ensq.store.target import Target
target = Target.parse(sys.argv[1])
children = []
ready, go = os.pipe(), os.pipe()
for _ in range(64):
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(ready[1], b"x")
            os.close(go[1])
            os.read(go[0], 1)  # until all are there
            opening.make(target)
            found, revision = opening.look(target)
            code = 0 if found is opening.Found.ENSQ else 2
        finally:
            os._exit(code)
    children.append(child)
for _ in children:
    os.read(ready[0], 1)
os.close(go[1])
codes = [os.waitpid(child, 0)[1] for child in children]
sys.exit(any(codes))
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_64_processes_make_one_database_at_once(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").new_database(schema=False)
    else:
        url = str(tmp_path / "q.db")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _MAKE, url],
        cwd=Path(__file__).parent.parent,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with opened(url) as database, database.read() as connection:
        query = "SELECT count(*) FROM alembic_version"
        assert connection.exec_driver_sql(query).scalar_one() == 1
