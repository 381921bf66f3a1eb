"""The connection to the database: how transactions begin, end and fail, on both engines."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.pool import NullPool, QueuePool

from ensq import faults
from ensq.errors import DatabaseError
from ensq.store.failures import Dropped, explain_os, explain_server, explain_sqlite, is_busy
from ensq.store.filesystem import journal_for, require_locks
from ensq.store.target import Target
from ensq.store.turns import Turns

T = TypeVar("T")
BUSY_TIMEOUT = 30.0  # seconds that a transaction waits for another's lock
OLDEST_SQLITE = (3, 35, 0)  # the first with RETURNING

_EAGER = 0.1  # seconds of quick asking for a lock that others hold for a few milliseconds
_TRIES = 3  # of a transaction whose connection is dropped
# Seconds. A server or network that is silent must not hang a worker; libpq's own words.
_CONNECT = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds, this one
    "application_name": "ensq",
}


class Database:
    """An open database: ``run()``, ``read()`` and ``write()`` are transactions.

    They raise errors.DatabaseAway where the database can't be reached now and may come back, else
    DatabaseError. A write transaction on SQLite begins with BEGIN IMMEDIATE: a deferred one that
    turns into a writer later fails at once, whatever the time-out. No connection may cross a fork.
    """

    def __init__(
        self,
        target: Target,
        *,
        read_only: bool = False,
        busy_timeout: float = BUSY_TIMEOUT,
        foreign_keys: bool = True,
        takes_turns: bool = True,
    ) -> None:
        """Prepare to connect; nothing is opened yet.

        ``foreign_keys=False`` is for migrations: on SQLite they make tables anew, and dropping
        the old one would otherwise count as deleting its rows. ``takes_turns=False`` is for who
        would rather not write than wait for others. Raises DatabaseError for an SQLite file to be
        written where locks can't be trusted.
        """
        self.target = target
        self.read_only = read_only
        self.busy_timeout = busy_timeout
        self.foreign_keys = foreign_keys
        self._takes_turns = takes_turns
        self._known = False  # whether a transaction began: then an outage is likely to pass
        self._turns: Turns | None = None
        self.engine = self._sqlite() if target.path else self._server()

    def run(self, work: Callable[[Connection], T], *, write: bool = True) -> T:
        """What ``work`` returns, done in one transaction.

        Where the connection is dropped, or PostgreSQL breaks the transaction off (a deadlock), all
        is done again, up to three times: whether COMMIT was carried out can't be known then, so
        ``work`` must lead to the same if it was.
        """
        for left in reversed(range(_TRIES)):
            try:
                with self.write() if write else self.read() as connection:
                    return work(connection)
            except Dropped:
                if not left:
                    raise
            time.sleep(random.uniform(0.05, 0.2))
        raise AssertionError

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._transaction(write=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed at the end of the block, undone by an exception."""
        if self.read_only:
            raise DatabaseError(f"{self.target.where}: opened for reading only")
        with self._transaction(write=True) as connection:
            yield connection

    def now(self, connection: Connection) -> float | None:
        """The server's clock, in seconds since 1970; None for SQLite, which has none of its own."""
        if self.target.path is not None:
            return None
        seconds = connection.exec_driver_sql(
            "SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
        ).scalar_one()
        return float(seconds)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        if self._turns is not None:
            self._turns.close()

    @contextmanager
    def _transaction(self, write: bool) -> Iterator[Connection]:
        if write:
            self._point("begin.before")
        with self._errors(), self.engine.connect() as connection:
            if self.target.path is not None:
                connection = connection.execution_options(ensq_write=write)
                self._leave_file_that_was_replaced(connection)
            elif not write:
                connection = connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            try:
                with connection.begin():
                    self._known = True
                    yield connection
                    if write:
                        self._point("commit.before")
                if write:
                    self._point("commit.after")
            except (exc.DBAPIError, sqlite3.Error) as error:
                # A handle that went stale stays so: the next transaction opens the file again.
                if self.target.path and _is_sick(getattr(error, "orig", None) or error):
                    connection.invalidate()
                raise

    def _point(self, name: str) -> None:
        try:
            faults.point(name)
        except OSError as error:
            raise explain_os(error, self.target) from error

    def _leave_file_that_was_replaced(self, connection: Connection) -> None:
        """Open the file anew if another lies there now: what is written to the old one is lost."""
        assert self.target.path is not None
        file = connection.info.get("file")
        if file is None:
            return
        try:
            if self.target.path.stat().st_ino != file:
                connection.invalidate()
        except OSError as error:
            connection.invalidate()
            raise explain_os(error, self.target) from error

    def _server(self) -> Engine:
        named = self.target.url.query
        connect = {name: value for name, value in _CONNECT.items() if name not in named}
        try:
            engine = create_engine(
                self.target.url,
                pool_pre_ping=True,
                isolation_level="READ COMMITTED",
                # Statements that the server keeps are lost behind a pooler such as PgBouncer.
                connect_args={"prepare_threshold": None, **connect},
            )
        except ImportError as error:
            raise DatabaseError(
                f"{self.target.where}: PostgreSQL needs a driver ({error.name} is missing); "
                "run `pip install 'psycopg[binary]'`"
            ) from error
        except exc.ArgumentError as error:
            raise DatabaseError(f"{self.target.where}: {error}") from None
        event.listen(engine, "connect", self._limit)
        return engine

    def _limit(self, connection: Any, record: object) -> None:
        """Set time-outs, so that neither a hung server nor a stopped client holds up others."""
        lock = max(1, int(1000 * self.busy_timeout))
        statement = lock + 30_000 if self.foreign_keys else 0  # a migration may take its time
        was, connection.autocommit = connection.autocommit, True
        connection.execute(
            f"SET lock_timeout = {lock}; SET statement_timeout = {statement}; "
            f"SET idle_in_transaction_session_timeout = {lock + 30_000}"
        )
        connection.autocommit = was

    def _sqlite(self) -> Engine:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise DatabaseError(
                f"Python's SQLite is {sqlite3.sqlite_version}, ensq needs 3.35 or newer; "
                "use another Python, or PostgreSQL"
            )
        if not self.read_only:
            require_locks(self.target)
            assert self.target.path is not None
            if (
                self._takes_turns and journal_for(self.target.path) == "wal"
            ):  # the writers are all on this host
                self._turns = Turns(self.target.path.parent)
        engine = create_engine(
            self.target.url,
            creator=self._connect,
            # A reader decides anew each time how the file can be opened.
            poolclass=NullPool if self.read_only else QueuePool,
        )
        event.listen(engine, "connect", self._note_file)
        event.listen(engine, "begin", self._begin)
        event.listen(engine, "commit", self._commit)
        return engine

    def _connect(self) -> sqlite3.Connection:
        assert self.target.path is not None
        if self.read_only:
            connection = connect_read_only(self.target, self.busy_timeout)
        else:
            connection = connect_sqlite(self.target, "mode=rw", 0)
        try:
            if not self.read_only:
                _set_journal(connection, journal_for(self.target.path), self.busy_timeout)
            for pragma in (
                "synchronous=FULL",
                f"foreign_keys={'ON' if self.foreign_keys else 'OFF'}",
                # Nothing in the schema of a file that somebody else made is executed or trusted.
                "trusted_schema=OFF",
                "cell_size_check=ON",
                "busy_timeout=0",  # the waiting is ours: see patiently
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _note_file(self, connection: object, record: Any) -> None:
        assert self.target.path is not None
        if not self.read_only:
            record.info["file"] = self.target.path.stat().st_ino

    def _begin(self, connection: Connection) -> None:
        driver = _driver(connection)
        if connection.get_execution_options().get("ensq_write", False):
            with self._turns.turn() if self._turns else nullcontext():
                eager = self._turns is not None
                begin = partial(driver.execute, "BEGIN IMMEDIATE")
                patiently(begin, self.busy_timeout, eager=eager)
        else:
            driver.execute("BEGIN")
            # This takes the lock, or the snapshot: nothing after it can find the file busy.
            patiently(
                lambda: driver.execute("SELECT 1 FROM sqlite_master").fetchone(), self.busy_timeout
            )

    def _commit(self, connection: Connection) -> None:
        # In rollback-journal mode COMMIT itself can find the file busy, since it must wait for
        # readers. The transaction is then still open: COMMIT is tried again, never the body.
        # Python's own commit() afterwards finds nothing left to do.
        driver = _driver(connection)
        patiently(lambda: driver.execute("COMMIT"), self.busy_timeout)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the errors of the driver into DatabaseError; an IntegrityError is a bug: passes."""
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.DBAPIError as error:
            cause = error.orig if isinstance(error.orig, Exception) else error
            raise self._explain(cause, error.connection_invalidated) from error
        except sqlite3.Error as error:
            raise self._explain(error) from error
        except UnicodeError as error:  # in SQLite's words on a damaged schema, which quote it
            raise DatabaseError(f"{self.target.where}: damaged: text in it is no UTF-8") from error

    def _explain(self, error: Exception, dropped: bool = False) -> DatabaseError:
        if self.target.path is None:
            return explain_server(error, self.target, dropped=dropped, known=self._known)
        return explain_sqlite(error, self.target, patience=self.busy_timeout, known=self._known)


def patiently(statement: Callable[[], T], timeout: float, *, eager: bool = False) -> T:
    """Do what may find the database busy, again and again up to ``timeout`` seconds.

    SQLite's own waiting grows to 100 ms between tries, and under load a waiter that comes so
    rarely finds the lock taken each time, for seconds. Here the pauses are short and irregular,
    and grow only when somebody must be holding the lock for long. Shorter ones are for the one who
    is ``eager``, as it is its turn: if many did that, the asking would take all processor time.
    """
    began = None
    while True:
        try:
            return statement()
        except sqlite3.OperationalError as error:
            now = time.monotonic()
            began = now if began is None else began
            if not is_busy(error) or now - began >= timeout:
                raise
            pause = _pause(now - began, eager)
            time.sleep(min(pause, max(0.0, began + timeout - now)))


def _pause(waited: float, eager: bool = False) -> float:
    if eager and waited < _EAGER:
        return random.uniform(0.0001, 0.0003)
    return random.uniform(0.0005, 0.003) * min(6.0, max(1.0, waited / 2))


def connect_sqlite(target: Target, parameters: str, timeout: float) -> sqlite3.Connection:
    """Connect to the file; ``mode=rw`` never makes one. Transactions are begun by hand."""
    assert target.path is not None
    # As a URI with everything special quoted: names with ? or % are names.
    return sqlite3.connect(
        f"{target.path.as_uri()}?{parameters}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,  # the pool lends a connection to one thread at a time
    )


def connect_read_only(target: Target, timeout: float) -> sqlite3.Connection:
    """Connect for reading, also in a folder that can't be written. The database isn't changed.

    A reader of a write-ahead log needs its two side files. Where they are missing and can't be
    made, nobody has the database open, and it can be read as a file that doesn't change.
    """
    connection = connect_sqlite(target, "mode=ro", timeout)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_READONLY_ROLLBACK:
            _undo(target, timeout)
            return connect_sqlite(target, "mode=ro", timeout)
        code &= 0xFF
        log = f"{target.path}-wal"
        if code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or Path(log).exists():
            raise
    except BaseException:
        connection.close()
        raise
    return connect_sqlite(target, "mode=ro&immutable=1", timeout)


def _undo(target: Target, timeout: float) -> None:
    """Undo what a writer that died amid a transaction has left, which takes a connection that may
    write. Raises DatabaseError where this user may not."""
    try:
        with closing(connect_sqlite(target, "mode=rw", timeout)) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise
        raise DatabaseError(
            f"{target.path}: a process died amid a change of it, and this user may not write the "
            "file to undo that; let its owner call ensq status once"
        ) from error


def _is_sick(error: BaseException) -> bool:
    """Whether SQLite failed by something else than a lock or a rule of the schema."""
    return not (is_busy(error) or isinstance(error, sqlite3.IntegrityError))


def _driver(connection: Connection) -> sqlite3.Connection:
    driver: sqlite3.Connection | None = connection.connection.driver_connection
    assert driver is not None
    return driver


def _set_journal(connection: sqlite3.Connection, wanted: str, timeout: float) -> None:
    """Set the journal mode if it is another one; SQLite doesn't wait for locks here, so we do."""

    def ask_and_set() -> None:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
            connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()

    patiently(ask_and_set, timeout)
