"""Copies of a database: whole, consistent, and never over another file."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ensq.errors import DatabaseError, DiskError, UsageError
from ensq.rundir import flush_folder
from ensq.store import opening
from ensq.store.engine import Database, connect_read_only
from ensq.store.target import Target

PG_DUMP = "pg_dump"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]")


def backup(url: str | os.PathLike[str], path: Path | None = None) -> Path:
    """Copy a database, of any revision, to ``path`` or beside it; returns the copy's path.

    Raises as ``write`` does, and DatabaseError if there is no database.
    """
    target = Target.parse(url)
    found, _ = opening.look(target)
    if found is not opening.Found.ENSQ:
        raise opening.missing(found, target)
    database = Database(target, read_only=target.path is not None)
    try:
        return write(database, path or usual_path(target), numbered=path is None)
    finally:
        database.close()


def usual_path(target: Target, suffix: str = "") -> Path:
    """Where a copy goes unless another place is named: beside the database."""
    if target.path is not None:
        return target.path.with_name(f"{target.path.name}.backup{suffix}")
    name = _UNSAFE.sub("_", target.url.database or "") or "ensq"
    return target.root / f"{name}.backup{suffix}"


def write(database: Database, wanted: Path, *, numbered: bool) -> Path:
    """Copy the database to a file while others may write; returns the file's path.

    ``numbered`` takes ``wanted-2``, ``-3`` … where there is such a file already; without it that
    is a UsageError. Before all is copied, checked and flushed, nothing stands under the name (for
    a moment an empty file that keeps it). Raises DatabaseError if the database can't be copied,
    DiskError if the file can't be written.
    """
    wanted = Path(os.path.abspath(wanted))  # noqa: PTH100 (resolve would follow a link)
    if not numbered and os.path.lexists(wanted):
        raise _there(wanted)
    with _disk_errors(wanted), _beside(wanted) as beside:
        if database.target.path is not None:
            _copy_sqlite(database, beside)
        else:
            _dump(database, beside)
        _flush(beside)
        path = _place(beside, wanted, numbered)
        flush_folder(path.parent)
    return path


def _copy_sqlite(database: Database, path: Path) -> None:
    """By SQLite's own means, over a connection that only reads: writers wait, if at all, shortly.

    The source is read in one transaction, so the copy is of one moment.
    """
    target = database.target
    assert target.path is not None
    try:
        with (
            closing(connect_read_only(target, database.busy_timeout)) as source,
            closing(sqlite3.connect(path, isolation_level=None)) as copy,
        ):
            # The lock is taken here, where SQLite waits for it no longer than it is told to.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            source.backup(copy)
            # One file is all: without a write-ahead log beside it, which a copy may lose.
            copy.execute("PRAGMA journal_mode=DELETE").fetchone()
            problem = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise DatabaseError(f"{target.where}: can't be copied ({error})") from error
    if problem != "ok":
        raise DatabaseError(
            f"{target.where}: its copy is damaged, as the database may be ({problem}); "
            "see `ensq db check`"
        )
    path.chmod(target.path.stat().st_mode & 0o777)


def _dump(database: Database, path: Path) -> None:
    """By PostgreSQL's program. The password goes by the environment, which others can't see."""
    where = database.target.where
    program = shutil.which(PG_DUMP)
    if program is None:
        raise DatabaseError(
            f"{where}: no {PG_DUMP} on PATH to copy it; install PostgreSQL's client programs, or "
            f"copy it where they are: `{PG_DUMP} --format=custom --file=FILE {_words(database)}`"
        )
    conninfo, password = _conninfo(database)
    environment = dict(os.environ) | ({"PGPASSWORD": password} if password else {})
    ran = subprocess.run(
        [program, "--format=custom", "--no-password", f"--file={path}", f"--dbname={conninfo}"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if ran.returncode != 0:
        lines = ran.stderr.decode("utf-8", "replace").split("\n")
        said = " ".join(" ".join(lines[:3]).split())
        raise DatabaseError(f"{where}: {PG_DUMP} could not copy it: {said}")


def _conninfo(database: Database) -> tuple[str, str | None]:
    """What the driver is told, in the words of PostgreSQL's programs, and the password apart."""
    engine = database.engine
    options = dict(engine.dialect.create_connect_args(engine.url)[1])
    password = options.pop("password", None)
    words = {key: str(value) for key, value in options.items() if isinstance(value, str | int)}
    words.pop("context", None)
    quoted = {
        key: value.replace("\\", r"\\").replace("'", r"\'")
        for key, value in words.items()
        if "password" not in key
    }
    return " ".join(f"{key}='{value}'" for key, value in quoted.items()), password


def _words(database: Database) -> str:
    """The database, for a command that a person types: without anything secret."""
    url = database.target.url
    parts = [("--host", url.host), ("--port", url.port), ("--username", url.username)]
    return " ".join([*(f"{key}={value}" for key, value in parts if value), url.database or ""])


@contextmanager
def _beside(wanted: Path) -> Iterator[Path]:
    """An empty file of its own in the same folder, which is gone at the end."""
    handle, name = tempfile.mkstemp(
        prefix=f".{wanted.name[:100]}.", suffix=".tmp", dir=wanted.parent
    )
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        Path(f"{name}-journal").unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _place(beside: Path, wanted: Path, numbered: bool) -> Path:
    """Rename to the wanted name, or the next free one.

    Renaming replaces, so the name is first taken by making an empty file, which only one can.
    """
    path, number = wanted, 1
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            break
        except FileExistsError:
            if not numbered:
                raise _there(wanted) from None
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
    beside.replace(path)
    return path


def _there(path: Path) -> UsageError:
    return UsageError(f"{path} is there already; name another file")


@contextmanager
def _disk_errors(wanted: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{wanted}: the copy can't be written ({error.strerror or error}); "
            "`ensq db backup FILE` writes it elsewhere"
        ) from error
