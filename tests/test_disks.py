"""Disks that are full or read-only: said clearly, old files untouched, nothing half-written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from disk_tools import need_mounts, on_small_disk
from ensemble_tools import with_losses

# What each program starts with. ``show`` prints how an action ended and what lies on the disk.
PREAMBLE = """
import json, subprocess, sys
from pathlib import Path
import numpy as np
from ensq.errors import DiskError
from ensq.rundir import sha256, write_atomic

disk = Path(sys.argv[1])

def files():
    hidden = {str(path): "" for path in disk.rglob(".*")}  # of what was to be written
    found = [path for path in sorted(disk.rglob("*")) if path.is_file()]
    return hidden | {str(path.relative_to(disk)): sha256(path.read_bytes()) for path in found}

def show(action):
    before, said = files(), None
    try:
        action()
    except DiskError as error:
        said = str(error)
    print(json.dumps({"before": before, "after": files(), "said": said}), flush=True)

def read_only():
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
"""
WRITE = """
path = disk / "deep" / "file"
show(lambda: write_atomic(path, b"old"))
big = bytes(300 * 1024)
show(lambda: write_atomic(path, big))
show(lambda: write_atomic(disk / "new" / "file", big))
show(lambda: write_atomic(path, b"fits"))
read_only()
show(lambda: write_atomic(path, b"newer"))
show(lambda: write_atomic(disk / "another" / "file", b"newer"))
"""
# The control: written in its place, as programs usually do.
UNSAFE = """
path = disk / "file"
path.write_bytes(b"old")
def unsafe():
    try:
        path.write_bytes(bytes(300 * 1024))
    except OSError as error:
        raise DiskError(str(error)) from error
show(unsafe)
"""
CHECKPOINT = """
from ensq.train import checkpoint
identity = checkpoint.Identity("c" * 64, "d" * 64)

def write(count):
    state = {"w": np.ones(count)}
    record = checkpoint.Record(seed=1)
    checkpoint.write_checkpoint(disk / "c.safetensors", state, record, 0, 1, identity)

show(lambda: write(1000))
show(lambda: write(100_000))
data = checkpoint.read_verified(disk / "c.safetensors", None)
assert checkpoint.read_position(data) == (0, 1)
read_only()
show(lambda: write(1000))
"""
PUBLISH = """
from ensq.publish import publish
old = {"a": b"old a", "b": b"old b"}
show(lambda: publish(disk / "out", old, ()))
show(lambda: publish(disk / "out", {"a": b"new", "b": bytes(300 * 1024)}, set(old)))
show(lambda: publish(disk / "out", {"a": b"new", "b": b"new"}, set(old)))
read_only()
show(lambda: publish(disk / "out", {"a": b"newer"}, set(old)))
"""


def on_disk(tmp_path: Path, program: str) -> list[dict[str, Any]]:
    """What each action of a program did on a disk of 256 KiB."""
    need_mounts(tmp_path)
    disk = tmp_path / "disk"
    command = [sys.executable, "-c", PREAMBLE + program, str(disk)]
    ended = on_small_disk(disk, "256k", command)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def assert_refused(shown: dict[str, Any], where: str, why: str) -> None:
    """The action failed with these words and left every file as it was, and no other."""
    assert shown["said"] is not None
    assert f"{where}: can't be written: {why}; " in shown["said"]
    assert shown["after"] == shown["before"]


FULL, READ_ONLY = "No space left on device", "Read-only file system"


def test_a_file_on_a_full_disk_and_on_a_read_only_one(tmp_path: Path) -> None:
    first, full, new, fits, replaced, another = on_disk(tmp_path, WRITE)
    disk = tmp_path / "disk"
    assert (first["said"], list(first["after"])) == (None, ["deep/file"])
    assert_refused(full, f"{disk}/deep/file", FULL)
    assert "free space on that file system" in full["said"]
    assert_refused(new, f"{disk}/new/file", FULL)
    assert fits["said"] is None  # nothing of what failed takes up space
    assert fits["after"] != fits["before"]
    assert_refused(replaced, f"{disk}/deep/file", READ_ONLY)
    assert_refused(another, f"{disk}/another", READ_ONLY)


def test_a_file_that_is_written_in_its_place_is_lost_on_a_full_disk(tmp_path: Path) -> None:
    [shown] = on_disk(tmp_path, UNSAFE)
    with pytest.raises(AssertionError):
        assert_refused({**shown, "said": f"file: can't be written: {FULL}; "}, "file", FULL)


def test_a_checkpoint_on_a_full_disk_and_on_a_read_only_one(tmp_path: Path) -> None:
    first, full, replaced = on_disk(tmp_path, CHECKPOINT)
    path = f"{tmp_path}/disk/c.safetensors"
    assert first["said"] is None
    assert_refused(full, path, FULL)
    assert_refused(replaced, path, READ_ONLY)


def test_an_export_on_a_full_disk_and_on_a_read_only_one(tmp_path: Path) -> None:
    first, full, fits, replaced = on_disk(tmp_path, PUBLISH)
    assert first["said"] is None
    for shown, where, why in ((full, "/b", FULL), (replaced, f"{tmp_path}/disk/out", READ_ONLY)):
        assert_refused(shown, where, why)
        assert shown["said"].endswith("the exported files that were there before are untouched")
    assert (fits["said"], list(fits["after"])) == (None, ["out/a", "out/b"])


FINALIZE = """
out = disk / "out"
out.mkdir()
(out / "mine.txt").write_bytes(b"mine")
def finalize():
    command = [sys.executable, "-m", "ensq.cli", "finalize", "--db", sys.argv[2]]
    ended = subprocess.run([*command, "--export-dir", str(out)], capture_output=True, text=True)
    print(json.dumps([ended.returncode, ended.stderr]), flush=True)
show(finalize)
read_only()
show(finalize)
"""


def test_finalize_onto_a_full_disk_and_onto_a_read_only_one(tmp_path: Path) -> None:
    need_mounts(tmp_path)
    store, _ = with_losses(tmp_path / "queue", [1.0])
    store.close()
    disk = tmp_path / "disk"
    command = [
        sys.executable,
        "-c",
        PREAMBLE + FINALIZE,
        str(disk),
        str(tmp_path / "queue/ensq.db"),
    ]
    ended = on_small_disk(disk, "64k", command)
    assert ended.returncode == 0, ended.stderr
    full, after_full, refused, after_refused = map(json.loads, ended.stdout.splitlines())
    assert full[0] == 1
    assert f"can't be written: {FULL}; free space" in full[1].splitlines()[-1]
    assert "are untouched" in full[1]
    assert refused[0] == 2  # before anything was computed
    assert READ_ONLY in refused[1]
    assert "choose another --export-dir" in refused[1]
    for shown in (after_full, after_refused):
        assert list(shown["before"]) == ["out/mine.txt"]
        assert shown["after"] == shown["before"]
