"""What is left of a file when the power goes: only what was flushed may be counted on.

The page cache survives a killed process, so killing one can't show that a flush is missing. Here a
disk is modelled instead: of a file it keeps the content of its last flush, of a folder the entries
of its last flush, or, where the folder happened to reach the disk early, those of the present.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensq import faults, rundir
from ensq.rundir import write_atomic
from ensq.train import checkpoint
from ensq.train.checkpoint import Identity, Record

OLD, NEW = b"old" * 1000, b"new" * 2000
Tree = dict[str, bytes]


class Disk:
    """What is safe below one folder, which itself was there before."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        self.contents: dict[int, bytes] = {}  # by inode
        self.entries: dict[int, dict[str, int]] = {top.stat().st_ino: {}}
        self._fsync = os.fsync
        # A number that is used again would stand for two files: nothing is ever really let go.
        self._kept: list[int] = []
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, handle: int) -> None:
        self._fsync(handle)
        found = os.fstat(handle)
        self._kept.append(os.dup(handle))
        if stat.S_ISDIR(found.st_mode):
            self.entries[found.st_ino] = _entries(f"/proc/self/fd/{handle}")
        else:
            self.contents[found.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()

    def after_a_cut(self, *, early: bool) -> Tree:
        """The files that there would be; ``early`` if folders reached the disk unasked."""
        return dict(self._files(self.top, self.top.stat().st_ino, "", early))

    def _files(self, folder: Path, inode: int, prefix: str, early: bool) -> list[tuple[str, bytes]]:
        entries = _entries(folder) if early else self.entries.get(inode, {})
        found: list[tuple[str, bytes]] = []
        for name, number in entries.items():
            if (folder / name).is_dir():
                found += self._files(folder / name, number, f"{prefix}{name}/", early)
            else:
                found.append((prefix + name, self.contents.get(number, b"")))
        return found

    def close(self) -> None:
        for handle in self._kept:
            os.close(handle)


def _entries(folder: str | Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}


def write_twice(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a file in new folders, then anew, and look at the disk at each point of both."""
    disk = Disk(top, monkeypatch)
    allowed: list[set[bytes | None]] = [{None, OLD}]

    def look(name: str, about: str = "") -> None:
        for early in (False, True):
            left = disk.after_a_cut(early=early).get("run/seed/file")
            assert left in allowed[-1], f"{name}: {left and left[:10]!r}"

    monkeypatch.setattr(faults, "point", look)
    try:
        for data, during, after in ((OLD, {None, OLD}, {OLD}), (NEW, {OLD, NEW}, {NEW})):
            allowed.append(during)
            write_atomic(top / "run" / "seed" / "file", data)
            allowed.append(after)
            look("returned")
    finally:
        disk.close()


def test_a_power_cut_leaves_the_old_file_or_the_new_one_and_after_the_return_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_twice(tmp_path, monkeypatch)


def _no_flush_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    monkeypatch.setattr(
        rundir.os,  # type: ignore[attr-defined]
        "fsync",
        lambda handle: real(handle) if stat.S_ISDIR(os.fstat(handle).st_mode) else None,
    )


def _no_flush_of_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "flush_folder", lambda folder: None)


def _no_flush_above_new_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(rundir, "make_folder", make)


def _written_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, data: bytes, private: bool) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            faults.point("write.written", str(path))
            os.fsync(file.fileno())

    monkeypatch.setattr(rundir, "_write_beside", write)


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (_no_flush_of_files, "write.renamed"),
        (_no_flush_of_folders, "returned"),
        (_no_flush_above_new_folders, "returned"),
        (_written_in_place, "write.written"),
    ],
)
def test_the_disk_shows_which_flush_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    seen: str,
) -> None:
    """Controls: each protection taken out is seen, at the first point where it matters."""
    with monkeypatch.context() as patched:
        first = Disk.__init__

        def spoiled(self: Disk, *arguments: Any) -> None:
            first(self, *arguments)
            spoil(patched)

        patched.setattr(Disk, "__init__", spoiled)
        with pytest.raises(AssertionError, match=f"^{seen}:"):
            write_twice(tmp_path, patched)


def test_a_checkpoint_whose_writer_returned_is_whole_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer names a checkpoint to its supervisor only then, which records it only then."""
    disk = Disk(tmp_path, monkeypatch)
    state = {"params": {"w": np.ones((3, 2), np.float32)}}
    record = Record(seed=1, best_epoch=1, best_loss=0.5, history=[])
    name = "seed-1/attempt-1/epoch-000000-step-000003.safetensors"
    digest = checkpoint.write_checkpoint(
        tmp_path / name, state, record, 0, 3, Identity("a" * 64, "b" * 64)
    )
    left = disk.after_a_cut(early=False)
    disk.close()
    assert rundir.sha256(left[name]) == digest
