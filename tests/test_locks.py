"""Byte locks: they end with the process, whatever its end, and with nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ensq.store import locks
from ensq.store.locks import LockProbe, OtherWorker, WorkerLock, is_free
from ensq.store.target import Target

ROOT = Path(__file__).parent.parent

_HOLDER = """
import subprocess, sys
from ensq.store.locks import WorkerLock, is_free
from ensq.store.target import Target
target = Target.parse(sys.argv[1])
lock = WorkerLock.take(target, sys.argv[2])
child = None
print(lock.byte if lock else None, flush=True)
for line in sys.stdin:
    word, _, value = line.strip().partition(" ")
    if word == "spawn":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
    elif word == "release":
        lock.release()
        print("released", flush=True)
    elif word == "free":
        print(is_free(target, int(value)), flush=True)
"""


class Holder:
    """A process that holds a byte."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.byte = int(self._answer())

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def holder(path: Path, name: str = "w1", *before: str) -> Iterator[Holder]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", _HOLDER, str(path), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        try:
            yield Holder(process)
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "q.db").touch()
    return tmp_path / "q.db"


@pytest.fixture
def target(path: Path) -> Target:
    return Target.parse(path)


def taken(target: Target, name: str) -> WorkerLock:
    lock = WorkerLock.take(target, name)
    assert lock is not None
    return lock


def comes_free(target: Target, byte: int) -> bool:
    deadline = time.monotonic() + 10
    while not is_free(target, byte) and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_free(target, byte) is True


def open_files(pid: int) -> list[str]:
    """What a process has open; files that it closes meanwhile are not named."""
    found = []
    for link in (Path("/proc") / str(pid) / "fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return found


def test_byte_is_held_while_the_process_lives_and_free_after_sigkill(
    path: Path, target: Target
) -> None:
    with holder(path) as one:
        assert 0 <= one.byte < 2**40
        assert is_free(target, one.byte) is False
        assert is_free(target, one.byte ^ 1) is True
        os.kill(one.pid, signal.SIGKILL)
        assert comes_free(target, one.byte)


def test_byte_stays_held_while_the_process_is_stopped(path: Path, target: Target) -> None:
    with holder(path) as one:
        os.kill(one.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_free(target, one.byte) is False


def test_child_of_a_worker_does_not_keep_its_byte(path: Path, target: Target) -> None:
    with holder(path) as one:
        child = int(one.ask("spawn"))
        try:
            assert not [file for file in open_files(child) if "-workers" in file]
            os.kill(one.pid, signal.SIGKILL)
            assert comes_free(target, one.byte)
            os.kill(child, 0)  # it lives still
        finally:
            os.kill(child, signal.SIGKILL)


# JAX, if an earlier test imported it, warns of forks.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_forked_child_neither_has_the_lock_nor_drops_it(path: Path, target: Target) -> None:
    lock = taken(target, "w1")
    child = os.fork()
    if not child:
        # The child's own registry is empty: it asks the kernel, which names its parent.
        os._exit({False: 7, True: 8, None: 9}[is_free(target, lock.byte)])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with holder(path, "w2") as other:
        assert other.ask(f"free {lock.byte}") == "False"
    lock.release()


def test_looking_takes_nothing_and_drops_nothing(path: Path, target: Target) -> None:
    """The control opens and closes the file, which drops the locks of this process."""
    with holder(path, "w2") as other:
        lock = taken(target, "w1")
        assert is_free(target, lock.byte) is False
        assert is_free(target, other.byte) is False
        assert is_free(target, lock.byte ^ 1) is True
        again = taken(target, "w3")
        again.release()
        assert other.ask(f"free {lock.byte}") == "False"
        locks.lock_file(target).read_bytes()
        assert other.ask(f"free {lock.byte}") == "True"
        lock.release()


def test_released_byte_is_free_and_twice_is_once(path: Path, target: Target) -> None:
    with holder(path, "w2") as other:
        first, second = taken(target, "w1"), taken(target, "w3")
        first.release()
        first.release()
        assert other.ask(f"free {first.byte}") == "True"
        assert other.ask(f"free {second.byte}") == "False"
        assert other.ask("release") == "released"
        assert is_free(target, other.byte) is True
        second.release()
    assert not locks._FILES.open and not locks._FILES.own


def test_same_name_gets_another_byte(path: Path, target: Target) -> None:
    with holder(path, "w1") as other:
        mine, twin = taken(target, "w1"), taken(target, "w1")
        assert len({mine.byte, twin.byte, other.byte}) == 3
        mine.release()
        twin.release()


def test_byte_of_another_lock_file_cannot_be_told(path: Path, target: Target) -> None:
    """A worker whose file was deleted, or lies in another root folder, isn't dead."""
    with holder(path) as one:
        locks.lock_file(target).unlink()
        assert is_free(target, one.byte) is None  # no file
        taken(target, "w2").release()
        assert is_free(target, one.byte) is None  # another file


def test_lock_file_is_as_open_as_the_database(path: Path, target: Target) -> None:
    path.chmod(0o660)
    before = os.umask(0o077)
    try:
        taken(target, "w1").release()
    finally:
        os.umask(before)
    file = locks.lock_file(target)
    assert file == path.with_name("q.db-workers")
    assert stat.S_IMODE(file.stat().st_mode) == 0o660
    assert sorted(os.listdir(path.parent)) == ["q.db", "q.db-workers"]


def test_server_has_its_lock_file_in_the_root_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
    taken(Target.parse("postgresql://host/queue"), "w1").release()
    assert os.listdir(tmp_path) == [".ensq-workers"]


def test_worker_goes_without_where_the_folder_cannot_be_written(tmp_path: Path) -> None:
    target = Target.parse(tmp_path / "nowhere" / "q.db")
    assert WorkerLock.take(target, "w1") is None
    assert is_free(target, 1) is None


def test_lock_file_that_is_a_link_is_not_followed(path: Path, target: Target) -> None:
    (path.parent / "victim").write_bytes(b"12345678")
    locks.lock_file(target).symlink_to(path.parent / "victim")
    assert WorkerLock.take(target, "w1") is None


# Between hosts


def probe(free: dict[int, bool | None]) -> LockProbe:
    return LockProbe(lambda byte: free[byte])


def other(beat: int, byte: int = 5, name: str = "w9") -> OtherWorker:
    return OtherWorker(name, "node7", byte, beat)


def test_living_worker_whose_byte_reads_as_free_is_proof() -> None:
    it = probe({5: True})
    assert it.broken([other(1)]) is None  # free: dead, or locks don't reach here
    assert it.broken([other(2)]) is None  # may be from before the byte was looked at
    text = it.broken([other(3)])
    assert text is not None
    assert "w9" in text and "node7" in text and "don't reach other hosts" in text


@pytest.mark.parametrize(
    "beats",
    [
        [1, 1, 1, 1],  # dead
        [1, 2, 2, 2],  # died between the look at the row and the look at the byte
    ],
)
def test_dead_worker_is_no_proof(beats: list[int]) -> None:
    it = probe({5: True})
    assert [it.broken([other(beat)]) for beat in beats] == [None] * 4


def test_worker_whose_byte_is_held_or_unknown_is_no_proof() -> None:
    for state in (False, None):
        it = probe({5: state})
        assert [it.broken([other(beat)]) for beat in range(5)] == [None] * 5


def test_worker_that_ended_or_came_again_is_begun_anew() -> None:
    it = probe({5: True, 6: True})
    assert it.broken([other(1)]) is None
    assert it.broken([other(1)]) is None
    assert it.broken([]) is None
    assert it.broken([other(7)]) is None
    assert it.broken([other(7, byte=6)]) is None
    assert it.broken([other(8, byte=6)]) is None


def _may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not _may_unshare(), reason="namespaces can't be made here")
@pytest.mark.parametrize("propagates", [True, False])
def test_host_to_which_locks_do_not_propagate(path: Path, target: Target, propagates: bool) -> None:
    """The other host has its own copy of the lock file, as a mount with local locks would."""
    taken(target, "w0").release()  # makes the file
    file = locks.lock_file(target)
    copy = path.parent / "copy"
    copy.write_bytes(file.read_bytes())
    mount = "true" if propagates else f"mount --bind '{copy}' '{file}'"
    script = f'hostname node7 && {mount} && exec "$@"'
    before = ("unshare", "--mount", "--uts", "sh", "-c", script, "sh")
    with holder(path, "w9", *before) as one:
        it = LockProbe(lambda byte: is_free(target, byte))
        said = [it.broken([OtherWorker("w9", "node7", one.byte, beat)]) for beat in range(3)]
    assert said[:2] == [None, None]
    assert (said[2] is None) is propagates
