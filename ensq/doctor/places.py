"""The database and the folder of the runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ensq import schema
from ensq.doctor.finding import Finding
from ensq.doctor.folders import check_folder
from ensq.doctor.neighbours import check_neighbours
from ensq.errors import EnsqError
from ensq.store.engine import Database, connect_sqlite
from ensq.store.filesystem import LOCAL, kind_of, locking_of
from ensq.store.opening import Found, look, require_revision
from ensq.store.target import Target

PATIENCE = 20.0  # seconds; a worker gives signs of life every quarter of its lease of 60 s

_SLOW = 1.0  # seconds to look into a database, from which on it is worth a note
_POSTGRESQL = "use PostgreSQL (docs/queue.md)"


def check_places(
    url: str,
    mountinfo: str | None = None,
    timeout: float = 10.0,
    *,
    patience: float = PATIENCE,
    say: Callable[[str], None] = lambda step: None,
) -> Iterator[Finding]:
    """Never raises, but hangs where a file system does: see ``apart``.

    ``mountinfo``: see store.filesystem. ``say`` is told what will be looked at. What is written is
    gone at the end.
    """
    say("the database's folder")
    try:
        target = Target.parse(url)
    except EnsqError as error:
        yield Finding(key="database", state="problem", seen=str(error))
        return
    kind = kind_of(target.path or target.root, mountinfo)
    local = target.path is None or kind in LOCAL
    say(f"the database {target.where}")
    yield from _database(target, local, kind, timeout, patience)
    say(f"the folder {target.root}")
    if target.path is not None:
        yield _file_system(target.path, kind, mountinfo)
    yield _runs(target.root, kind, mountinfo)
    yield from check_folder(target.root, timeout, server=target.path is None)


def _database(
    target: Target, local: bool, kind: str, timeout: float, patience: float
) -> Iterator[Finding]:
    journal = None if target.path is None else _journal(target.path)
    if journal == "wal" and not local:
        # SQLite keeps the index of such a log in memory that hosts don't share: opening the file
        # while another host has it open could harm it.
        yield Finding(
            key="database",
            state="problem",
            seen=f"{target.where} has a write-ahead log, which is not safe on {kind}; not opened",
            advice="stop all workers; the next `ensq` command that writes gives it another "
            "journal (docs/queue.md)",
        )
        return
    try:
        with _side_files_go(target, journal, timeout):
            found = _look_inside(target, journal, timeout)
            yield found
            # On a file system of this host alone there are no other hosts.
            if found.state in ("ok", "warning") and not local:
                yield check_neighbours(target, timeout, patience)
    except EnsqError as error:
        yield Finding(key="database", state="problem", seen=str(error), advice=_after(error))


def _after(error: EnsqError) -> str:
    # Most messages say themselves what to do.
    return "" if ";" in str(error) or "run `" in str(error) else "`ensq db check` may tell more"


def _look_inside(target: Target, journal: str | None, timeout: float) -> Finding:
    begin = time.monotonic()
    what, revision = look(target, timeout)
    took = time.monotonic() - begin
    if what is not Found.ENSQ:
        return Finding(
            key="database",
            state="note",
            seen=f"no database yet at {target.where}",
            advice="`ensq enqueue config.yaml` makes one",
        )
    require_revision(revision, target)
    if target.path is not None and not os.access(target.path, os.W_OK):
        return Finding(
            key="database",
            state="problem",
            seen=f"{target.where} can't be written by this user",
            advice="workers must write it: ask its owner (chmod g+w), or copy it elsewhere",
        )
    seen = f"{target.where}: {_engine(target, journal, timeout)}, revision {schema.REVISION}"
    return Finding(
        key="database",
        state="ok" if took < _SLOW else "warning",
        seen=f"{seen}, answers in {1000 * took:.0f} ms",
        advice="" if took < _SLOW else "a slow disk or server: workers wait for it at each epoch",
    )


def _engine(target: Target, journal: str | None, timeout: float) -> str:
    if target.path is not None:
        return f"SQLite {sqlite3.sqlite_version}, journal {journal}"
    database = Database(target, busy_timeout=timeout)
    try:
        with database.read() as connection:
            version = connection.exec_driver_sql("SHOW server_version").scalar_one()
    finally:
        database.close()
    return f"PostgreSQL {version}"


def _journal(path: Path) -> str | None:
    """'wal' or 'rollback', as the file's header says; None if there is no such file.

    It is read before SQLite opens the file: closing any descriptor of it drops SQLite's locks.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for a writer
            return None
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return None
    if len(header) < 20 or not header.startswith(b"SQLite format 3\0"):
        return None
    return "wal" if header[18:20] == b"\2\2" else "rollback"


@contextmanager
def _side_files_go(target: Target, journal: str | None, timeout: float) -> Iterator[None]:
    """Look into a write-ahead log without leaving -wal and -shm behind.

    Only who may write removes them, as the last one who closes: SQLite sees to it that nobody
    else uses them. A reader leaves them. So a connection for writing stays open meanwhile, which
    writes nothing. Where the files are there already they stay.
    """
    path = target.path
    if path is None or journal != "wal" or _has_side_files(path) or not _may_write(path):
        yield
        return
    holder = connect_sqlite(target, "mode=rw", timeout)
    try:
        with suppress(sqlite3.Error):  # damaged, or busy: look() says so
            holder.execute("SELECT 1 FROM sqlite_master").fetchone()
        yield
    finally:
        holder.close()


def _has_side_files(path: Path) -> bool:
    return all(Path(f"{path}{end}").exists() for end in ("-wal", "-shm"))


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)


def _file_system(path: Path, kind: str, mountinfo: str | None) -> Finding:
    reason = locking_of(path, mountinfo)
    if reason is not None:
        advice = f"{_POSTGRESQL}, or a local disk for workers of one host"
        return Finding(key="file_system", state="problem", seen=reason, advice=advice)
    if kind in LOCAL and shutil.which("sbatch"):
        return Finding(
            key="file_system",
            state="warning",
            seen=f"the database lies on {kind}, a file system of this host alone",
            advice="use a folder that all nodes share, unless all workers run on this host",
        )
    seen = f"the database lies on {kind}"
    return Finding(key="file_system", state="ok", seen=seen)


def _runs(root: Path, kind: str, mountinfo: str | None) -> Finding:
    """Where the run folders are, which may be a link to another disk."""
    runs = (root / "runs").resolve()
    other = kind_of(runs, mountinfo)
    if other in LOCAL and kind not in LOCAL:
        return Finding(
            key="runs",
            state="problem",
            seen=f"{runs} lies on {other}, which other hosts don't see, unlike the database",
            advice="move it to a file system that all nodes share",
        )
    try:
        same = not runs.exists() or runs.stat().st_dev == root.stat().st_dev
    except OSError as error:
        seen = f"{runs}: can't be looked at ({error.strerror})"
        return Finding(key="runs", state="problem", seen=seen, advice="is it mounted here?")
    if same:
        return Finding(key="runs", state="ok", seen="runs/ lies on the same file system")
    return Finding(key="runs", state="note", seen=f"{runs} lies on a file system of its own")
