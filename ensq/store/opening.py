"""Is there a database, is it ensq's, is it of this version? And how a fresh one is made."""

from __future__ import annotations

import os
import sqlite3
import stat
from enum import Enum, auto
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select

from ensq import schema
from ensq.errors import DatabaseError, EnsqError, MismatchError
from ensq.store.engine import BUSY_TIMEOUT, Database, connect_sqlite
from ensq.store.filesystem import require_locks
from ensq.store.target import Target

_HEADER = 100  # bytes of the shortest SQLite database: its header
MAKE_ONE = "run `ensq enqueue config.yaml` to make one"


class Found(Enum):
    """What stands at a target."""

    NOTHING = auto()  # no file
    EMPTY = auto()  # a database without tables
    ENSQ = auto()  # an ensq database, of some revision


def look(target: Target, busy_timeout: float = BUSY_TIMEOUT) -> tuple[Found, str | None]:
    """What is there, and its revision. Changes nothing.

    Raises DatabaseError if it can't be reached, is no database or belongs to another program.
    """
    if target.path is not None:
        found = _look_at_file(target.path)
        if found is not Found.ENSQ:
            return found, None
    database = Database(target, read_only=target.path is not None, busy_timeout=busy_timeout)
    try:
        with database.read() as connection:
            return inspect_tables(connection, target)
    finally:
        database.close()


def inspect_tables(connection: Connection, target: Target) -> tuple[Found, str | None]:
    """The same as ``look``, over an open connection."""
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return Found.EMPTY, None
    if schema.LANDMARKS - tables:
        some = ", ".join(repr(name) for name in sorted(tables)[:3])
        raise DatabaseError(
            f"{target.where} is a database of another program (it has tables {some}); "
            "nothing was changed; name another one with --db"
        )
    foreign = _foreign_objects(connection)
    if foreign:
        raise DatabaseError(
            f"{target.where} was not made by ensq, or was changed by another program: it has "
            f"{', '.join(foreign[:3])}, which would act on what is written; nothing was changed"
        )
    revisions = connection.execute(select(schema.alembic_version.c.version_num)).scalars().all()
    if len(revisions) != 1:
        raise DatabaseError(f"{target.where} has {len(revisions)} revisions instead of one")
    return Found.ENSQ, revisions[0]


# Objects that do something of their own when tables are read or written. ensq makes none.
_FOREIGN = {
    "sqlite": """
        SELECT CASE WHEN type = 'table' THEN 'virtual table' ELSE type END, name
        FROM sqlite_master
        WHERE type IN ('trigger', 'view') OR sql LIKE 'CREATE VIRTUAL%' ORDER BY name
        """,
    "postgresql": """
        SELECT kind, name FROM (
            SELECT CASE WHEN relkind IN ('v', 'm') THEN 'view' ELSE 'foreign table' END AS kind,
                relname AS name, relnamespace AS place
            FROM pg_class WHERE relkind IN ('v', 'm', 'f')
            UNION ALL
            SELECT 'trigger', tgname, relnamespace
            FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid WHERE NOT tgisinternal
            UNION ALL
            SELECT 'rule', rulename, relnamespace
            FROM pg_rewrite JOIN pg_class ON pg_class.oid = ev_class WHERE rulename <> '_RETURN'
        ) AS found
        WHERE place = current_schema()::regnamespace ORDER BY name
        """,
}


def _foreign_objects(connection: Connection) -> list[str]:
    rows = connection.exec_driver_sql(_FOREIGN[connection.dialect.name])
    return [f"the {kind} {name!r}" for kind, name in rows]


def missing(found: Found, target: Target) -> EnsqError:
    """The error for a command that needs a database where there is none."""
    if found is Found.NOTHING:
        return DatabaseError(f"no database at {target.where}; {MAKE_ONE}")
    return DatabaseError(f"the database at {target.where} is empty; {MAKE_ONE}")


def require_revision(revision: str | None, target: Target) -> None:
    """Raise MismatchError unless the database has the revision of this ensq."""
    if revision == schema.REVISION:
        return
    says = f"{target.where}: database is at revision {revision}, ensq needs {schema.REVISION}"
    if revision is not None and revision.isdigit() and int(revision) < int(schema.REVISION):
        raise MismatchError(f"{says}; run `ensq db upgrade`")
    raise MismatchError(f"{says}; it was made by a newer ensq: upgrade ensq")


def make(target: Target, busy_timeout: float = BUSY_TIMEOUT) -> None:
    """Make a fresh database; several processes may try at once, and one does it.

    Raises DatabaseError if the place can't be written, MismatchError if another process made one
    of another revision meanwhile.
    """
    if target.path is not None:
        require_locks(target)
        _make_file(target)
    database = Database(target, busy_timeout=busy_timeout)
    try:
        with database.write() as connection:
            if connection.dialect.name == "postgresql":
                # Held to the end of the transaction: others wait here, then find the tables.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(1701737329)")
            found, revision = inspect_tables(connection, target)
            if found is Found.ENSQ:
                require_revision(revision, target)
            else:
                create_tables(connection)
    finally:
        database.close()


def create_tables(connection: Connection) -> None:
    """Make all tables and note the revision, inside the caller's transaction."""
    schema.metadata.create_all(connection, checkfirst=False)
    schema.version_metadata.create_all(connection, checkfirst=False)
    connection.execute(insert(schema.alembic_version).values(version_num=schema.REVISION))


def _look_at_file(path: Path) -> Found:
    """NOTHING, EMPTY, or ENSQ if it is a file that SQLite has to look into.

    The file is never opened here: closing it would drop the locks that this process holds on it
    through SQLite (POSIX locks belong to the process), and others would take it for closed.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return Found.NOTHING
    except OSError as error:
        raise DatabaseError(f"{path}: can't be read ({error.strerror})") from error
    if stat.S_ISDIR(found.st_mode):
        raise DatabaseError(f"{path} is a folder; name the database file with --db")
    if not os.access(path, os.R_OK):
        raise DatabaseError(f"{path}: can't be read (permission denied)")
    if found.st_size == 0:
        return Found.EMPTY
    if found.st_size < _HEADER:
        raise DatabaseError(f"{path} is not an SQLite database; name another file with --db")
    return Found.ENSQ


def _make_file(target: Target) -> None:
    assert target.path is not None
    if not target.path.parent.is_dir():
        raise DatabaseError(f"{target.where}: the folder {target.path.parent} does not exist")
    try:
        connect_sqlite(target, "mode=rwc", BUSY_TIMEOUT).close()
        # SQLite makes the file at the first write; here, so that mode=rw finds it from now on.
        target.path.touch(exist_ok=True)
    except (sqlite3.Error, OSError) as error:
        raise DatabaseError(f"{target.where}: can't be made ({error})") from error
