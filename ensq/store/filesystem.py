"""Which kind of file system a database lies on: which journal is safe there, and do locks hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ensq.errors import DatabaseError
from ensq.store.target import Target

# Write-ahead logs need memory that all users share, so a file system of this host alone. Whatever
# isn't named here is taken for a network file system, where the rollback journal is used: slower,
# and right everywhere that byte-range locks work.
LOCAL = frozenset(
    (
        *("apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay"),
        *("ramfs", "reiserfs", "tmpfs", "xfs", "zfs"),
    )
)

# Those that keep locks to the host, or have none at all, whatever the options.
_WITHOUT_LOCKS = frozenset(
    (
        *("9p", "afs", "davfs", "pvfs2", "fuse.blobfuse", "fuse.blobfuse2", "fuse.curlftpfs"),
        *("fuse.davfs", "fuse.gcsfuse", "fuse.goofys", "fuse.gvfsd-fuse", "fuse.mountpoint-s3"),
        *("fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    )
)

_MOUNTS = Path("/proc/self/mountinfo")


class _Mount(NamedTuple):
    kind: str
    options: dict[str, str]  # of the mount and of the file system; without a value: ""


def kind_of(path: Path, mountinfo: str | None = None) -> str:
    """The type of the file system that holds ``path`` (resolved), or 'unknown'.

    ``mountinfo`` is the text of /proc/self/mountinfo. The longest mount point that is a prefix
    of the path counts; of two mounts on one point, the later one.
    """
    mount = _mount_of(path, mountinfo)
    return mount.kind if mount else "unknown"


def journal_for(path: Path) -> str:
    """'wal' on a local file system, 'delete' on any other."""
    return "wal" if kind_of(path) in LOCAL else "delete"


def locking_of(path: Path, mountinfo: str | None = None) -> str | None:
    """Why byte-range locks can't be trusted on the file system of ``path``; None if they may be.

    Only what the mount table tells: see ``ensq.store.locks.LockProbe`` for the rest.
    """
    mount = _mount_of(path, mountinfo)
    if mount is None:
        return None
    if mount.kind in _WITHOUT_LOCKS:
        return f"{mount.kind} has no file locks that other hosts see"
    rule = _RULES.get(mount.kind)
    reason = rule(mount.options) if rule else None
    return (
        f"{mount.kind} is mounted {reason}, so that other hosts don't see file locks"
        if reason
        else None
    )


def require_locks(target: Target) -> None:
    """Raise DatabaseError for an SQLite file where locks don't hold: it must not be written."""
    reason = locking_of(target.path) if target.path is not None else None
    if reason is not None:
        raise DatabaseError(
            f"{target.where}: an SQLite database is not safe here: {reason}.\n{postgresql_recipe()}"
        )


def postgresql_recipe() -> str:
    """What to do where SQLite can't be used: a few lines for a person."""
    return (
        "Put the file on a local disk, if all workers run on this host; else use PostgreSQL:\n"
        "  createdb -h HOST -U USER ensq     (or ask an administrator for a database)\n"
        "  echo 'HOST:5432:ensq:USER:PASSWORD' >> ~/.pgpass; chmod 600 ~/.pgpass\n"
        "  export ENSQ_DB=postgresql://USER@HOST/ensq     (also in the scripts of batch jobs)\n"
        "and run the command again."
    )


def _mount_of(path: Path, mountinfo: str | None) -> _Mount | None:
    if mountinfo is None:
        try:
            mountinfo = _MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return None
    best, found = -1, None
    for line in mountinfo.splitlines():
        left, dash, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = Path(_unescape(fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), _Mount(rest[0], _options(*fields[5:6], *rest[2:3]))
    return found


def _options(*lists: str) -> dict[str, str]:
    pairs = (option.partition("=") for text in lists for option in text.split(","))
    return {name: value for name, _, value in pairs}


def _nfs(options: dict[str, str]) -> str | None:
    if "nolock" in options:
        return "with nolock"
    # local_lock=flock is about another kind of lock, which SQLite doesn't use.
    local = options.get("local_lock")
    return f"with local_lock={local}" if local in ("all", "posix") else None


def _lustre(options: dict[str, str]) -> str | None:
    if "localflock" in options:
        return "with localflock"
    return None if "flock" in options else "without flock"


def _cifs(options: dict[str, str]) -> str | None:
    return "with nobrl" if "nobrl" in options else None


_RULES: dict[str, Callable[[dict[str, str]], str | None]] = {
    "nfs": _nfs,
    "nfs4": _nfs,
    "lustre": _lustre,
    "cifs": _cifs,
    "smb3": _cifs,
}


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes of blank, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
