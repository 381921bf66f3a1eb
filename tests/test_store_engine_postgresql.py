"""Transactions on PostgreSQL that meet trouble: dropped connections, servers that come and go."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pg_tools
import pytest
from engine_tools import add, numbers, opened
from sqlalchemy import Connection

from ensq.errors import DatabaseAway, DatabaseError, UsageError
from ensq.store import failures
from ensq.store.target import Target


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
