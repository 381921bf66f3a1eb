"""``ensq doctor``: file systems and servers that never answer, looked at by a child process."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from ensemble_tools import ensq

from ensq.doctor import apart
from ensq.slurm import commands
from ensq.store import Store


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_findings_come_from_the_child(tmp_path: Path) -> None:
    Store.open(str(tmp_path / "ensq.db"), create=True).close()
    found = {finding.key: finding for finding in apart.check_places(str(tmp_path / "ensq.db"))}
    assert found["database"].state == "ok"
    assert set(found) == {"database", "file_system", "runs", "folder", "locks", "clock"}


HANGS = """
import json, os, time
print(json.dumps({"step": "the database /dead/ensq.db"}), flush=True)
print(json.dumps({"key": "first", "state": "ok", "seen": "seen"}), flush=True)
if os.fork() == 0:  # and with it the one that it started, which holds the pipes
    open(os.environ["PIDS"], "w").write(str(os.getpid()))
    os.rename(os.environ["PIDS"], os.environ["PIDS"] + ".done")
time.sleep(60)
"""


def test_a_dead_file_system_is_a_problem_and_keeps_what_was_found_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    begin = time.monotonic()
    found = apart.check_places("/dead/ensq.db", 2.0, child(HANGS))
    assert time.monotonic() - begin < 5
    assert [finding.key for finding in found] == ["first", "folder"]
    assert found[1].state == "problem"
    assert found[1].seen == ("the database /dead/ensq.db can't be looked at: no answer within 2 s")
    pid = int((tmp_path / "pids.done").read_text())
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < end, "what the child had started outlives it"
        time.sleep(0.05)


def test_a_child_that_dies_is_a_problem_with_its_last_words() -> None:
    (found,) = apart.check_places("x.db", 10.0, child("raise MemoryError('too much')"))
    assert found.state == "problem"
    assert "MemoryError: too much" in found.seen


def test_nonsense_of_a_child_is_passed_over() -> None:
    lines = ["nonsense", "[]", "3", '{"key": 1}', json.dumps({"step": "x"})]
    assert apart.check_places("x.db", 10.0, child(f"print({chr(10).join(lines)!r})")) == []


def test_the_child_takes_no_module_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sqlalchemy", "json", "ensq"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path)
    assert {finding.key for finding in apart.check_places("ensq.db")} >= {"database", "folder"}


def test_a_server_that_accepts_and_says_nothing_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://me:hunter2@127.0.0.1:{server.getsockname()[1]}/ensq"
        found = apart.check_places(url, 30.0)
    assert found[0].state == "problem"
    assert "hunter2" not in repr(found)


def test_no_password_stands_in_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def ask(command: tuple[str, ...], **_: object) -> commands.Answer:
        seen.extend(command)
        return commands.Answer(code=0)

    monkeypatch.setattr(commands, "ask", ask)
    apart.check_places("postgresql://me:hunter2@127.0.0.1/ensq")
    assert seen
    assert "hunter2" not in repr(seen)


def test_the_command_itself_never_looks_at_the_databases_folder(tmp_path: Path) -> None:
    """It would hang there. The child is what is told to; here it is not started at all."""
    code = f"""
import os, sys
from ensq.doctor import apart
apart.commands.ask = lambda *a, **k: apart.commands.Answer(code=None, timed_out=True)
dead = {str(tmp_path / "dead")!r}
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "sqlite3.connect"):
        assert not str(arguments[0]).startswith(dead), (event, arguments)
real = os.lstat
def lstat(path, *a, **k):
    assert not str(path).startswith(dead), path
    return real(path, *a, **k)
os.lstat = lstat
sys.addaudithook(watch)
from ensq.cli import main
sys.argv = ["ensq", "doctor", "--db", "@" + dead + "/ensq.db"]
main()
"""
    for prefix in ("", "sqlite:///"):
        done = commands.ask((sys.executable, "-c", code.replace("@", prefix)), os.environ, 60.0)
        assert done.code == 1, done.errors
        assert "can't be looked at: no answer" in " ".join(done.out.split())


def test_the_password_is_refused_in_a_command_line(tmp_path: Path) -> None:
    done = ensq("doctor", "--db", "postgresql://me:hunter2@h/x", cwd=tmp_path)
    assert done.returncode == 2
    assert "hunter2" not in done.stdout + done.stderr
