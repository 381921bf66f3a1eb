"""Byte locks that prove life: a worker holds one byte of a lock file for as long as it lives.

The kernel gives the byte back when the process ends, however it ends, and keeps it while the
process is stopped. Processes of other namespaces on one machine see it too, and other hosts do
where the file system carries locks; ``LockProbe`` notices where it doesn't.

These are POSIX locks, so closing *any* descriptor of the file drops all that the process holds on
it: ``_Files`` sees to it that a process with a lock never opens the file a second time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from ensq.store.target import Target

_TOKEN = 8  # bytes in the lock file that tell it from others of the same name
_TRIES = 8  # bytes that are tried before a worker goes without
# struct flock: type, whence, start, length, pid; in another order elsewhere.
_FLOCK = {"linux": "hhqqi4x", "darwin": "qqihh"}.get(sys.platform)

_Key = tuple[int, int]  # device and inode


@dataclass
class _Files:
    """The lock files that this process has open because it holds bytes of them."""

    mutex: threading.Lock = field(default_factory=threading.Lock)
    open: dict[_Key, int] = field(default_factory=dict)
    own: dict[_Key, set[int]] = field(default_factory=dict)

    @contextlib.contextmanager
    def use(self, path: Path, flags: int) -> Iterator[tuple[int, _Key]]:
        """A descriptor of the file, which stays open if a byte is held at the end. OSError."""
        with self.mutex:
            found = path.stat()
            key = (found.st_dev, found.st_ino)
            descriptor = self.open.get(key)
            if descriptor is None:
                descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
                found = os.fstat(descriptor)
                key = (found.st_dev, found.st_ino)
                # Replaced by one that is held meanwhile: left open, as closing would drop locks.
                descriptor = self.open.setdefault(key, descriptor)
            try:
                yield descriptor, key
            finally:
                self._drop_if_unused(key)

    def release(self, key: _Key, byte: int) -> None:
        """Give a byte back, and close the file with the last one."""
        with self.mutex:
            if byte not in self.own.get(key, ()):
                return
            self.own[key].remove(byte)
            with contextlib.suppress(OSError):
                fcntl.lockf(self.open[key], fcntl.LOCK_UN, 1, byte)
            self._drop_if_unused(key)

    def forget(self) -> None:
        """In the child of a fork, which has the descriptors and not the locks."""
        for descriptor in self.open.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.mutex, self.open, self.own = threading.Lock(), {}, {}

    def _drop_if_unused(self, key: _Key) -> None:
        if not self.own.get(key):
            self.own.pop(key, None)
            os.close(self.open.pop(key))


_FILES = _Files()
os.register_at_fork(after_in_child=lambda: _FILES.forget())


class WorkerLock:
    """A byte that this process holds until ``release`` or its end."""

    def __init__(self, byte: int, key: _Key) -> None:
        self.byte = byte  # its offset in the lock file
        self._key = key

    @classmethod
    def take(cls, target: Target, worker_id: str) -> Self | None:
        """Hold a byte of the lock file, which is made if missing; None where that can't be."""
        path = lock_file(target)
        try:
            _make(path, target)
            with _FILES.use(path, os.O_RDWR) as (descriptor, key):
                byte = _lock_one(descriptor, _FILES.own.setdefault(key, set()), worker_id)
        except OSError:
            return None
        return None if byte is None else cls(byte, key)

    def release(self) -> None:
        """Give the byte back; twice is the same as once."""
        _FILES.release(self._key, self.byte)


def is_free(target: Target, byte: int) -> bool | None:
    """Whether nobody holds that byte; None where it can't be told.

    The lock isn't taken. A byte of this process's own is never free.
    """
    if _FLOCK is None:
        return None
    try:
        with _FILES.use(lock_file(target), os.O_RDONLY) as (descriptor, key):
            if byte in _FILES.own.get(key, ()):
                return False
            if _tag(descriptor) != byte >> 24:
                return None  # of another lock file: this one was made anew, or lies elsewhere
            wish = (fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            if sys.platform == "darwin":
                wish = (byte, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
            answer = struct.unpack(
                _FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_FLOCK, *wish))
            )
    except OSError:
        return None
    return bool(answer[3 if sys.platform == "darwin" else 0] == fcntl.F_UNLCK)


def lock_file(target: Target) -> Path:
    """Beside the SQLite file; in the root folder for a server."""
    if target.path is not None:
        return target.path.with_name(f"{target.path.name}-workers")
    return target.root / ".ensq-workers"


def _lock_one(descriptor: int, own: set[int], worker_id: str) -> int | None:
    tag = _tag(descriptor)
    if tag is None:
        return None
    for n in range(_TRIES):
        digest = hashlib.sha256(f"{n} {worker_id}".encode()).digest()
        byte = tag << 24 | int.from_bytes(digest[:3], "big")
        if byte in own:
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            continue
        own.add(byte)
        return byte
    return None


def _tag(descriptor: int) -> int | None:
    """16 bits that tell this lock file from one in another folder, or one made anew.

    They are the upper part of each byte's offset. Without them a worker whose file was deleted,
    or whose root folder is another, would read as dead.
    """
    token = os.pread(descriptor, _TOKEN, 0)
    return int.from_bytes(token[:2], "big") if len(token) == _TOKEN else None


def _make(path: Path, target: Target) -> None:
    """Make the lock file unless it is there, open to whom the database is open."""
    if path.exists():
        return
    likeness = (target.path if target.path is not None else target.root).stat()
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, -1, likeness.st_gid)
        os.fchmod(descriptor, (likeness.st_mode & 0o666) | 0o600)
        os.write(descriptor, os.urandom(_TOKEN))
        # As a link, so that it is whole from the start, and the first of several stays.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.close(descriptor)
        draft.unlink()


class OtherWorker(NamedTuple):
    """A worker of another host that hasn't ended and holds a byte."""

    id: str
    host: str
    byte: int
    beat: float | int  # anything that changes with each sign of life


@dataclass
class _Suspect:
    beat: float | int | None = None  # the first that was seen after the byte read as free


class LockProbe:
    """Finds out whether locks propagate between hosts: a worker without its lock must be dead."""

    def __init__(self, free: Callable[[int], bool | None]) -> None:
        """``free`` is ``is_free`` of the target."""
        self._free = free
        self._suspects: dict[tuple[str, int], _Suspect] = {}

    def broken(self, workers: Iterable[OtherWorker]) -> str | None:
        """Look again; says what is wrong if a worker whose byte read as free lives after that.

        ``workers`` must be read from the database just before. The beat that counts is the first
        one read *after* the byte was free: one from before may be a last sign of life.
        """
        found = None
        seen = set()
        for worker in workers:
            key = (worker.id, worker.byte)
            seen.add(key)
            if self._free(worker.byte) is not True:
                self._suspects.pop(key, None)
            elif key not in self._suspects:
                self._suspects[key] = _Suspect()
            elif self._suspects[key].beat is None:
                self._suspects[key].beat = worker.beat
            elif self._suspects[key].beat != worker.beat:
                found = (
                    f"file locks don't reach other hosts here: worker {worker.id} on "
                    f"{worker.host} is alive, and the byte that it holds reads as free"
                )
        self._suspects = {key: value for key, value in self._suspects.items() if key in seen}
        return found
