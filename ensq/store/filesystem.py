"""Which kind of file system a database lies on, and so which journal is safe there."""

from __future__ import annotations

import re
from pathlib import Path

# Write-ahead logs need memory that all users share, so a file system of this host alone. Whatever
# isn't named here is taken for a network file system, where the rollback journal is used: slower,
# and right everywhere that byte-range locks work.
LOCAL = frozenset(
    (
        *("apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay"),
        *("ramfs", "reiserfs", "tmpfs", "xfs", "zfs"),
    )
)

_MOUNTS = Path("/proc/self/mountinfo")


def kind_of(path: Path, mountinfo: str | None = None) -> str:
    """The type of the file system that holds ``path`` (resolved), or 'unknown'.

    ``mountinfo`` is the text of /proc/self/mountinfo. The longest mount point that is a prefix
    of the path counts; of two mounts on one point, the later one.
    """
    if mountinfo is None:
        try:
            mountinfo = _MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return "unknown"
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        left, dash, right = line.partition(" - ")
        fields = left.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = Path(_unescape(fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind


def journal_for(path: Path) -> str:
    """'wal' on a local file system, 'delete' on any other."""
    return "wal" if kind_of(path) in LOCAL else "delete"


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes of blank, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
