"""The database and the folder of the runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ensq import schema
from ensq.doctor.finding import Finding
from ensq.errors import EnsqError
from ensq.store.filesystem import journal_for, kind_of, locking_of
from ensq.store.opening import Found, look, require_revision
from ensq.store.target import Target

_OTHER = (  # exit code 3: the lock of the first process keeps this one out
    "import fcntl, sys\n"
    "with open(sys.argv[1], 'r+') as file:\n"
    "    try:\n        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)\n"
    "    except OSError:\n        sys.exit(3)\n"
)


def check_places(url: str, mountinfo: str | None = None, timeout: float = 10.0) -> list[Finding]:
    """Never raises. ``mountinfo``: see store.filesystem.

    What it writes is gone at the end, but for the -wal and -shm files that SQLite makes.
    """
    try:
        target = Target.parse(url)
    except EnsqError as error:
        return [Finding(key="database", state="problem", seen=str(error))]
    found = [_database(target, timeout)]
    if target.path is not None:
        found.append(_file_system(target.path, mountinfo))
    return [*found, *_folder(target.root, timeout)]


def _database(target: Target, timeout: float) -> Finding:
    try:
        what, revision = look(target, timeout)
        if what is not Found.ENSQ:
            return Finding(
                key="database",
                state="note",
                seen=f"no database yet at {target.where}",
                advice="`ensq enqueue config.yaml` makes one",
            )
        require_revision(revision, target)
    except EnsqError as error:
        return Finding(key="database", state="problem", seen=str(error))
    return Finding(key="database", state="ok", seen=f"{target.where}, revision {schema.REVISION}")


def _file_system(path: Path, mountinfo: str | None) -> Finding:
    kind, reason = kind_of(path, mountinfo), locking_of(path, mountinfo)
    if reason is not None:
        advice = "use PostgreSQL (docs/queue.md), or a local disk for workers of one host"
        return Finding(key="file_system", state="problem", seen=reason, advice=advice)
    return Finding(key="file_system", state="ok", seen=f"{kind}, journal {journal_for(path)}")


def _folder(folder: Path, timeout: float) -> list[Finding]:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".ensq-doctor-") as file:
            begin = time.monotonic()
            file.write(b"ensq")
            file.flush()
            os.fsync(file.fileno())
            flush = 1000 * (time.monotonic() - begin)
            locks = _locks(file.fileno(), file.name, timeout)
        space = os.statvfs(folder)
    except OSError as error:
        advice = "choose another folder, or make room there"
        seen = f"{folder}: can't be written ({error.strerror})"
        return [Finding(key="folder", state="problem", seen=seen, advice=advice)]
    free = space.f_bavail * space.f_frsize / 1e9
    seen = f"{folder}: {free:.1f} GB free, a flush takes {flush:.1f} ms"
    if free < 1 or (space.f_files and space.f_favail < 1000):
        return [
            Finding(key="folder", state="warning", seen=f"{seen}; nearly full", advice="make room"),
            locks,
        ]
    return [Finding(key="folder", state="ok", seen=seen), locks]


def _locks(descriptor: int, name: str, timeout: float) -> Finding:
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        code = subprocess.run(
            (sys.executable, "-c", _OTHER, name), timeout=timeout, capture_output=True
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        code = -1
    if code == 3:
        return Finding(key="locks", state="ok", seen="a byte lock keeps another process out")
    seen = "byte locks don't keep another process out" if code == 0 else "byte locks fail here"
    return Finding(key="locks", state="problem", seen=seen, advice="use PostgreSQL")
