"""Run folders: how files are written, what attempts leave there, and what is removed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ensq import faults, rundir, seal
from ensq.errors import DiskError, UsageError
from ensq.rundir import RESULT_NAME, RunDir, checkpoint_name, write_atomic

POINTS = ("write.begin", "write.written", "write.flushed", "write.renamed", "write.done")


def content(word: str) -> bytes:
    """Some hundred kilobytes, sealed."""
    return seal.seal(json.dumps({seal.KEY: seal.PLACEHOLDER, "text": 20_000 * word}).encode())


OLD, NEW = content("old"), content("newer")

# Writes NEW over a file; "unsafe" writes it in its place, as programs usually do.
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_rundir import NEW
from ensq import faults, rundir

def unsafe(path, data):
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        faults.point("write.written")
        file.write(data[len(data) // 2 :])

path = Path(sys.argv[1])
(unsafe if "unsafe" in sys.argv else rundir.write_atomic)(path, NEW)
"""


def killed_while_writing(path: Path, point: str, *more: str) -> int:
    rules = json.dumps([{"point": point, "do": "kill"}])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(Path(__file__).parent), *more],
        env={**os.environ, "ENSQ_FAULTS": rules},
        timeout=60,
        check=False,
    ).returncode


@pytest.mark.parametrize("old", [True, False], ids=["over an old file", "a new file"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_there_is_the_old_file_or_the_new_one(
    tmp_path: Path, point: str, old: bool
) -> None:
    path = tmp_path / "deep" / "er" / "file"
    if old:
        write_atomic(path, OLD)
    assert killed_while_writing(path, point) == -signal.SIGKILL
    there = NEW if point in ("write.renamed", "write.done") else OLD if old else None
    assert (path.read_bytes() if path.exists() else None) == there
    # What may be left beside is known by its name, and is never taken for the file.
    beside = list(path.parent.glob(".*")) if path.parent.exists() else []
    assert len(beside) == (point in ("write.written", "write.flushed"))
    assert all(rundir._BESIDE.fullmatch(file.name) for file in beside)
    write_atomic(path, NEW)
    assert path.read_bytes() == NEW


def test_without_the_rename_a_crash_leaves_a_torn_file_which_the_seal_notices(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    write_atomic(path, OLD)
    assert killed_while_writing(path, "write.written", "unsafe") == -signal.SIGKILL
    torn = path.read_bytes()
    assert torn not in (OLD, NEW)
    assert not seal.is_whole(torn)
    assert seal.is_whole(OLD)
    assert seal.is_whole(NEW)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    "code", ["ENOSPC", "EDQUOT", "EROFS", "ESTALE", "EIO", "ENXIO", "EACCES", "EPERM"]
)
def test_what_the_disk_says_is_told_with_place_and_remedy_and_nothing_is_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, code: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, OLD)
    number = getattr(errno, code)

    def fail(name: str, about: str = "") -> None:
        assert about == str(path)
        if name == point:
            raise OSError(number, "x")

    monkeypatch.setattr(faults, "point", fail)
    with pytest.raises(DiskError) as caught:
        write_atomic(path, NEW)
    assert str(caught.value) == (
        f"{path}: can't be written: {os.strerror(number)}; {rundir.DISK_ERRORS[number]}"
    )
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() in ((NEW,) if point in POINTS[3:] else (OLD,))


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        write_atomic(tmp_path / "file" / "inside", NEW)


def test_new_folders_are_flushed_into_those_above_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(rundir, "flush_folder", flushed.append)
    folder = tmp_path / "a" / "b"
    write_atomic(folder / "file", NEW)
    assert flushed == [tmp_path, tmp_path / "a", folder]
    flushed.clear()
    write_atomic(folder / "file", NEW)
    assert flushed == [folder]


# -- what attempts leave -----------------------------------------------------------------------


def lay(run: RunDir, *names: str) -> None:
    for name in names:
        path = run.path / "seed-1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(run: RunDir, *place: int) -> tuple[list[str], list[str]]:
    checkpoints, results = run.unrecorded(1, *place)
    return (
        [run.relative(path).removeprefix("seed-1/") for path in checkpoints],
        [run.relative(path).removeprefix("seed-1/") for path in results],
    )


C1, C2, C2S, C3 = (checkpoint_name(*place) for place in ((1, 0), (2, 0), (2, 5), (3, 0)))


def test_the_newest_checkpoints_of_the_attempts_since_the_recorded_one_are_listed(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path)
    lay(run, f"attempt-1/{C3}", "attempt-1/result.safetensors")  # of a line that was given up
    lay(run, f"attempt-2/{C1}", f"attempt-2/{C2}", f"attempt-2/{C2S}")
    lay(run, f"attempt-10/{C2S}", f"attempt-3/{C2S}", "attempt-3/result.safetensors")
    lay(run, f"attempt-11/{C3}", f"attempt-12/{C3}")
    assert listed(run, 11, 2, 0, 2) == (
        [f"attempt-10/{C2S}", f"attempt-3/{C2S}", f"attempt-2/{C2S}"],
        ["attempt-3/result.safetensors"],
    )
    assert listed(run, 2, 0, 0, 1) == ([f"attempt-1/{C3}"], ["attempt-1/result.safetensors"])
    assert listed(run, 1, 0, 0, 1) == ([], [])
    assert RunDir(tmp_path / "gone").unrecorded(1, 9, 0, 0, 1) == ([], [])


def test_strange_names_links_and_pipes_are_passed_over(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    lay(
        run,
        f"attempt-1/{C1}",
        f"attempt-1/x{C2}",
        f"attempt-1/{C2}.bak",
        f"attempt-1/.{C2}.abcdefgh.tmp",
        "attempt-1/epoch-١٢٣٤٥٦-step-000000.safetensors",
        f"attempt-1/epoch-{'9' * 60}-step-000000.safetensors",
        "attempt-1/epoch-0000003-step-000000.safetensors",
        f"attempt-01/{C2}",
        f"attempt-{'9' * 60}/{C2}",
        f"attempt--1/{C2}",
        f"attempt-x/{C2}",
        "attempt-1/a\nb",
    )
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / C3).write_bytes(b"x")
    seed = run.path / "seed-1"
    (seed / "attempt-1" / C3).symlink_to(outside / C3)
    (seed / "attempt-2").symlink_to(outside)
    (seed / "attempt-4").symlink_to("attempt-4")
    (seed / "attempt-3").write_bytes(b"a file")
    (seed / "attempt-1" / C2).mkdir()
    os.mkfifo(seed / "attempt-1" / C2S)
    assert listed(run, 9, 0, 0, 1) == ([f"attempt-1/{C1}"], [])
    assert run.prune(1, 9, ()) == [
        seed / "attempt-1" / C1, seed / "attempt-1" / f".{C2}.abcdefgh.tmp"
    ]  # fmt: skip
    assert (outside / C3).exists()
    run.path.joinpath("seed-2").symlink_to(seed)
    assert run.unrecorded(2, 9, 0, 0, 1) == ([], [])


def test_only_old_checkpoints_and_leftovers_that_nobody_records_are_removed(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path)
    stale = f".{C2}.a1b2_c3d.tmp"
    lay(run, f"attempt-1/{C1}", f"attempt-1/{C2}", f"attempt-1/{RESULT_NAME}", f"attempt-1/{stale}")
    lay(run, f"attempt-2/{C2}", "attempt-2/notes.txt", "attempt-2/.vimrc", "attempt-2/x.tmp")
    lay(run, f"attempt-3/{C3}", f"attempt-3/{stale}")
    keep = {f"seed-1/attempt-1/{C2}"}
    removed = run.prune(1, 3, keep)
    assert sorted(run.relative(path) for path in removed) == [
        f"seed-1/attempt-1/{stale}",
        f"seed-1/attempt-1/{C1}",
        f"seed-1/attempt-2/{C2}",
    ]
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [
        f"seed-1/attempt-1/{C2}",
        f"seed-1/attempt-1/{RESULT_NAME}",
        "seed-1/attempt-2/.vimrc",
        "seed-1/attempt-2/notes.txt",
        "seed-1/attempt-2/x.tmp",
        f"seed-1/attempt-3/{stale}",
        f"seed-1/attempt-3/{C3}",
    ]
    assert run.prune(1, 3, keep) == []


def test_the_newest_may_be_kept_and_what_cant_be_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    lay(run, f"attempt-1/{C1}", f"attempt-1/{C2}", f"attempt-2/{C2}")
    assert run.prune(1, 3, (), newest=2) == [tmp_path / "seed-1" / "attempt-1" / C1]

    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert run.prune(1, 3, ()) == []


@pytest.mark.parametrize(
    "path", ["/etc", "//etc", "..", "runs/../..", "a/../b", "", ".", "runs/\0x"], ids=repr
)
def test_a_run_folder_of_a_strangers_database_outside_the_root_is_refused(
    tmp_path: Path, path: str
) -> None:
    with pytest.raises(UsageError, match="leads out of"):
        RunDir.of(tmp_path, path)


def test_a_run_folder_below_the_root_is_taken(tmp_path: Path) -> None:
    assert RunDir.of(tmp_path, "runs/a..b").path == tmp_path / "runs" / "a..b"


@pytest.mark.parametrize("resolve", [lambda run, path: path, lambda run, path: path.resolve()])
def test_paths_are_relative_to_a_run_folder_that_is_reached_by_a_link(
    tmp_path: Path, resolve: Callable[[RunDir, Path], Path]
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    run = RunDir(tmp_path / "link")
    lay(run, f"attempt-1/{C1}")
    path = resolve(run, run.path / "seed-1" / "attempt-1" / C1)
    assert run.relative(path) == f"seed-1/attempt-1/{C1}"
    assert run.inside(run.relative(path)).samefile(path)
    with pytest.raises(ValueError, match="not in the subpath"):
        run.relative(tmp_path / "elsewhere")
