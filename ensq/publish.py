"""Replace the files of an export folder all at once: a crash leaves the old or the new ones."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from ensq.errors import DiskError, EnsqError
from ensq.rundir import disk_error, flush_folder, make_folder, write_atomic

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNTOUCHED = "the exported files that were there before are untouched"


def publish(folder: Path, files: Mapping[str, bytes], replaces: Iterable[str]) -> None:
    """Make ``folder`` hold ``files``; the old ``replaces`` go, anything else in it stays.

    All is written into a folder beside it, flushed, and the two folders change places in one
    system call.

    Raises DiskError if the disk is full, read-only or the like, and EnsqError if anything else is
    in the way; nothing has changed then.
    """
    folder = folder.absolute()
    beside: Path | None = None
    try:
        make_folder(folder.parent)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
        beside.chmod(0o755)
        for name, data in files.items():
            write_atomic(beside / name, data)
        if folder.is_dir():
            _take_along(folder, beside, set(files) | set(replaces))
            flush_folder(beside)
            exchange(beside, folder)
        else:
            beside.rename(folder)
        flush_folder(folder.parent)
    except DiskError as error:
        raise DiskError(f"{error}; {_UNTOUCHED}") from error
    except OSError as error:
        found = disk_error(error, folder)
        if found is not None:
            raise DiskError(f"{found}; {_UNTOUCHED}") from error
        raise EnsqError(
            f"{folder}: can't write the exported files: {error.strerror}; {_UNTOUCHED}"
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _take_along(old: Path, new: Path, but: set[str]) -> None:
    """Bring what is not ours from the old folder to the new one."""
    for entry in sorted(old.iterdir()):
        if entry.name in but:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def exchange(one: Path, two: Path) -> None:
    """Let two paths change places in one step (Linux's renameat2).

    Where the file system can't, the second is moved aside first, and put back if that fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is not None:
        done = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE)
        if done == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise OSError(code, os.strerror(code), str(two))
    aside = two.with_name(f".{two.name}.old")
    two.rename(aside)
    try:
        one.rename(two)
    except OSError:
        aside.rename(two)
        raise
    aside.rename(one)
