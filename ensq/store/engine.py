"""The connection to the database: how transactions begin, end and fail, on both engines."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.pool import NullPool, QueuePool

from ensq.errors import DatabaseError
from ensq.store.filesystem import journal_for
from ensq.store.target import Target

BUSY_TIMEOUT = 30.0  # seconds that a statement waits for another process's lock
OLDEST_SQLITE = (3, 35, 0)  # the first with RETURNING

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Database:
    """An open database: ``read()`` and ``write()`` are transactions.

    A write transaction on SQLite begins with BEGIN IMMEDIATE: a deferred one that turns into a
    writer later fails at once, whatever the time-out. No connection may cross a fork.
    """

    def __init__(
        self,
        target: Target,
        *,
        read_only: bool = False,
        busy_timeout: float = BUSY_TIMEOUT,
        foreign_keys: bool = True,
    ) -> None:
        """Prepare to connect; nothing is opened yet.

        ``foreign_keys=False`` is for migrations: on SQLite they make tables anew, and dropping
        the old one would otherwise count as deleting its rows.
        """
        self.target = target
        self.read_only = read_only
        self.busy_timeout = busy_timeout
        self.foreign_keys = foreign_keys
        self.engine = self._sqlite() if target.path else self._server()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database. Raises DatabaseError."""
        with self._errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed at the end of the block, undone by an exception.

        Raises DatabaseError, naming the file, where the database is locked, full or not writable.
        """
        if self.read_only:
            raise DatabaseError(f"{self.target.where}: opened for reading only")
        with self._errors(), self.engine.connect() as connection:
            connection = connection.execution_options(ensq_write=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _server(self) -> Engine:
        try:
            return create_engine(self.target.url, pool_pre_ping=True)
        except ImportError as error:
            raise DatabaseError(
                f"{self.target.where}: PostgreSQL needs a driver ({error.name} is missing); "
                "run `pip install 'psycopg[binary]'`"
            ) from error
        except exc.ArgumentError as error:
            raise DatabaseError(f"{self.target.where}: {error}") from None

    def _sqlite(self) -> Engine:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise DatabaseError(
                f"Python's SQLite is {sqlite3.sqlite_version}, ensq needs 3.35 or newer; "
                "use another Python, or PostgreSQL"
            )
        engine = create_engine(
            self.target.url,
            creator=self._connect,
            # A reader decides anew each time how the file can be opened.
            poolclass=NullPool if self.read_only else QueuePool,
        )
        event.listen(engine, "begin", _begin)
        event.listen(engine, "commit", self._commit)
        return engine

    def _connect(self) -> sqlite3.Connection:
        assert self.target.path is not None
        if self.read_only:
            connection = connect_read_only(self.target, self.busy_timeout)
        else:
            connection = connect_sqlite(self.target, "mode=rw", self.busy_timeout)
            try:
                _set_journal(connection, journal_for(self.target.path), self.busy_timeout)
                connection.execute("PRAGMA synchronous=FULL")
            except BaseException:
                connection.close()
                raise
        connection.execute(f"PRAGMA foreign_keys={'ON' if self.foreign_keys else 'OFF'}")
        return connection

    def _commit(self, connection: Connection) -> None:
        # In rollback-journal mode COMMIT itself can find the file busy, since it must wait for
        # readers. The transaction is then still open: COMMIT is tried again, never the body.
        # Python's own commit() afterwards finds nothing left to do.
        driver = connection.connection.dbapi_connection
        assert driver is not None
        deadline = time.monotonic() + self.busy_timeout
        while True:
            try:
                driver.execute("COMMIT")
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the errors of the driver into DatabaseError; an IntegrityError is a bug: passes."""
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.DBAPIError as error:
            cause = error.orig if isinstance(error.orig, Exception) else error
            raise self._explain(cause) from error
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> DatabaseError:
        where = self.target.where
        if _is_busy(error):
            return DatabaseError(
                f"{where}: database is locked: another process kept it locked for more than "
                f"{self.busy_timeout:g} s; see who has it open (`fuser {where}`), then try again"
            )
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_NOTADB:
            return DatabaseError(f"{where} is not an SQLite database; name another file with --db")
        if code == sqlite3.SQLITE_CORRUPT:
            return DatabaseError(f"{where}: the database is damaged ({error}); restore a copy")
        if code == sqlite3.SQLITE_READONLY:
            return DatabaseError(f"{where}: can't be written ({error}); see its owner and mode")
        return DatabaseError(f"{where}: {' '.join(str(error).split())}")


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
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        log = f"{target.path}-wal"
        if code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or Path(log).exists():
            raise
    except BaseException:
        connection.close()
        raise
    return connect_sqlite(target, "mode=ro&immutable=1", timeout)


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("ensq_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _set_journal(connection: sqlite3.Connection, wanted: str, timeout: float) -> None:
    """Set the journal mode if it is another one; SQLite doesn't wait for locks here, so we do."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            present: Any = connection.execute("PRAGMA journal_mode").fetchone()[0]
            if present != wanted:
                connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _is_busy(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY
