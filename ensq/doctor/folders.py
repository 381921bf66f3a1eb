"""A folder tried out: can it be written, is there room, do locks hold, what does its clock say."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from ensq.doctor.finding import Finding, State

_LEAST_BYTES = 1e9
_LEAST_FILES = 1000
_CLOCK = 60.0  # seconds that two clocks may differ before it is worth a warning
_OTHER = (  # exit code 3: the lock of the first process keeps this one out
    "import fcntl, sys\n"
    "with open(sys.argv[1], 'r+') as file:\n"
    "    try:\n        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)\n"
    "    except OSError:\n        sys.exit(3)\n"
)


def check_folder(folder: Path, timeout: float, *, server: bool) -> list[Finding]:
    """The folder of the database and of the runs; ``server``: the database is none of its files.

    Never raises, but may hang where the file system does. What it writes is gone at the end.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".ensq-doctor-") as file:
            flush = _flush(file)
            clock = _clock(folder, file)
            locks = _locks(file, timeout, server)
    except OSError as error:
        return [_not_writable("folder", folder, error)]
    return [_room("folder", folder, f"a flush takes {1000 * flush:.1f} ms"), locks, clock]


def check_scratch(folder: str, name: str) -> Finding:
    """The folder for temporary files, which the variable ``name`` names; as ``check_folder``."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="ensq-doctor-") as file:
            _flush(file)
    except OSError as error:
        return _not_writable("scratch", Path(folder), error)
    return _room("scratch", Path(folder), f"for temporary files ({name})")


def _flush(file: IO[bytes]) -> float:
    begin = time.monotonic()
    file.write(b"ensq")
    file.flush()
    os.fsync(file.fileno())
    return time.monotonic() - begin


def _not_writable(key: str, folder: Path, error: OSError) -> Finding:
    seen = f"{folder}: can't be written ({error.strerror or error})"
    advice = (
        "set TMPDIR to a folder that is there (slurm.scratch in the configuration)"
        if key == "scratch"
        else "choose another folder, or make room there; is it mounted on this node?"
    )
    # Python itself takes another folder then.
    state: State = "warning" if key == "scratch" else "problem"
    return Finding(key=key, state=state, seen=seen, advice=advice)


def _room(key: str, folder: Path, more: str) -> Finding:
    try:
        space = os.statvfs(folder)
    except OSError as error:
        seen = f"{folder}: how much room is left is not told ({error.strerror})"
        return Finding(key=key, state="unknown", seen=seen)
    free = space.f_bavail * space.f_frsize
    # File systems that make inodes as they need them tell of none, or of 0.
    files = space.f_favail if space.f_files else None
    seen = f"{folder}: {free / 1e9:.1f} GB free, {more}"
    if files is not None and files < _LEAST_FILES:
        seen = f"{folder}: {free / 1e9:.1f} GB and {files} files free, {more}"
    elif free >= _LEAST_BYTES:
        return Finding(key=key, state="ok", seen=seen)
    return Finding(
        key=key,
        state="warning",
        seen=f"{seen}; nearly full",
        advice="make room; a quota may be lower still (quota -s, lfs quota -h FOLDER)",
    )


def _clock(folder: Path, file: IO[bytes]) -> Finding:
    """The file system's clock, which on a network is another host's."""
    os.utime(file.name)  # to its own now
    ahead = Path(file.name).stat().st_mtime - time.time()
    if abs(ahead) > _CLOCK:
        return Finding(
            key="clock",
            state="warning",
            seen=f"the clock of {folder} is {_ahead(ahead)} this host's",
            advice="ensq does not mind, but other programs do: tell the administrators",
        )
    return Finding(key="clock", state="ok", seen="the file system's clock agrees with this host's")


def _ahead(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"


def _locks(file: IO[bytes], timeout: float, server: bool) -> Finding:
    try:
        fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        code = subprocess.run(
            (sys.executable, "-I", "-c", _OTHER, file.name), timeout=timeout, capture_output=True
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        code = -1
    if code == 3:
        return Finding(key="locks", state="ok", seen="a byte lock keeps another process out")
    seen = "byte locks don't keep another process out" if code == 0 else "byte locks fail here"
    if server:  # leases decide alone
        advice = "nothing: a lost worker is noticed after its lease instead of at once"
        return Finding(key="locks", state="note", seen=seen, advice=advice)
    return Finding(key="locks", state="problem", seen=seen, advice="use PostgreSQL (docs/queue.md)")
