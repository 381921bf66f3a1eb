"""Small disks that are really full or read-only: a tmpfs that only one program sees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

# Everything mounted here is gone with the last process of the namespace.
_MOUNTED = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def on_small_disk(
    disk: Path, size: str, command: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run a command that finds an empty disk of this size at ``disk``."""
    disk.mkdir(exist_ok=True)
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", _MOUNTED, "sh", size, str(disk), *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def need_mounts(folder: Path) -> None:
    """Skip the test where no disk can be mounted; in CI that is a failure."""
    try:
        tried = on_small_disk(folder / "try", "64k", ["true"])
        if tried.returncode == 0:
            return
        why = tried.stderr.strip()
    except FileNotFoundError as error:
        why = str(error)
    why = f"mounting a small disk takes root and a mount namespace: {why}"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)
