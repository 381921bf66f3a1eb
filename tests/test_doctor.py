"""``ensq doctor``: the command, and what it finds in places that are not in order."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from pathlib import Path

import pg_tools
import pytest
from ensemble_tools import ensq

from ensq.doctor import Finding, apart, folders
from ensq.doctor.packages import SHOWN
from ensq.doctor.places import check_places
from ensq.store import Store

NFS = "1 0 0:1 / / rw - nfs4 server:/home rw\n"
LUSTRE = "1 0 0:1 / / rw - lustre mds:/scratch rw,localflock\n"


def look(url: Path | str, mountinfo: str | None = None) -> dict[str, Finding]:
    return {finding.key: finding for finding in check_places(str(url), mountinfo, patience=1.0)}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    Store.open(str(tmp_path / "ensq.db"), create=True).close()
    return tmp_path / "ensq.db"


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))


def test_a_good_place_is_ok_and_left_as_it_was(database: Path, no_slurm: None) -> None:
    before = set(os.listdir(database.parent))
    content = database.read_bytes()
    found = look(database)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert "journal wal, revision" in found["database"].seen
    assert set(os.listdir(database.parent)) == before
    assert not {name for name in before if name.endswith(("-wal", "-shm"))}
    assert database.read_bytes() == content


def test_side_files_of_others_stay(database: Path) -> None:
    with Store.open(str(database)):
        before = set(os.listdir(database.parent))
        assert {"ensq.db-wal", "ensq.db-shm"} <= before
        assert look(database)["database"].state == "ok"
        assert set(os.listdir(database.parent)) == before


def test_a_log_that_a_dead_program_left_stays(database: Path, tmp_path: Path) -> None:
    """Nothing is written into the database, although whoever opened it for writing could."""
    with Store.open(str(database)) as store:
        list(store.ensembles())
        copy = tmp_path / "copy"
        copy.mkdir()
        for end in ("", "-wal", "-shm"):
            (copy / f"ensq.db{end}").write_bytes(Path(f"{database}{end}").read_bytes())
    before = {name: (copy / name).read_bytes() for name in os.listdir(copy)}
    assert look(copy / "ensq.db")["database"].state == "ok"
    assert set(os.listdir(copy)) == set(before)
    assert (copy / "ensq.db").read_bytes() == before["ensq.db"]


def test_no_database_yet_is_a_note_and_none_is_made(tmp_path: Path) -> None:
    found = look(tmp_path / "ensq.db")
    assert found["database"].state == "note"
    assert found["folder"].state == "ok"
    assert os.listdir(tmp_path) == []


def test_a_write_ahead_log_on_a_network_file_system_is_not_opened(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensq.doctor.places.look", lambda *_: pytest.fail("opened"))
    found = look(database, NFS)["database"]
    assert found.state == "problem"
    assert "write-ahead log, which is not safe on nfs4" in found.seen


def test_a_rollback_journal_on_a_network_file_system_is_in_order(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode=delete")
    connection.close()
    found = look(database, NFS)
    assert (found["database"].state, found["file_system"].state) == ("ok", "ok")
    assert "journal rollback" in found["database"].seen


def test_a_file_system_without_locks_is_a_problem(tmp_path: Path) -> None:
    found = look(tmp_path / "ensq.db", LUSTRE)
    assert found["file_system"].state == "problem"
    assert "localflock" in found["file_system"].seen


def test_a_disk_of_this_host_alone_is_a_warning_where_slurm_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sbatch"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look(tmp_path / "ensq.db")["file_system"].state == "warning"
    assert look(tmp_path / "ensq.db", NFS)["file_system"].state == "ok"


def test_runs_on_a_local_disk_beside_a_shared_database_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "local")
    mounts = f"{NFS}2 0 0:2 / {tmp_path}/local rw - ext4 /dev/sda1 rw\n"
    found = look(tmp_path / "ensq.db", mounts)["runs"]
    assert found.state == "problem"
    assert "lies on ext4" in found.seen


def test_a_database_of_a_newer_revision_is_a_problem(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert "newer ensq" in look(database)["database"].seen


@pytest.mark.parametrize("content", [b"nonsense" * 100, b"SQLite format 3\0\x10\0\2\2" * 50])
def test_a_damaged_database_is_a_problem_and_left_as_it_was(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ensq.db").write_bytes(content)
    assert look(tmp_path / "ensq.db")["database"].state == "problem"
    assert os.listdir(tmp_path) == ["ensq.db"]
    assert (tmp_path / "ensq.db").read_bytes() == content


def test_a_pipe_in_place_of_a_database_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ensq.db")
    found = apart.check_places(str(tmp_path / "ensq.db"), 20.0)
    assert not [finding for finding in found if "no answer" in finding.seen]


def test_a_database_that_this_user_may_not_write_is_a_problem(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root everything may be written, so the answer is made up."""
    monkeypatch.setattr("ensq.doctor.places.os.access", lambda path, mode: mode == os.R_OK)
    found = look(database)["database"]
    assert found.state == "problem"
    assert "can't be written by this user" in found.seen


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    found = look(tmp_path / "no" / "ensq.db")
    assert found["folder"].state == "problem"
    assert "No such file" in found["folder"].seen


def test_a_folder_that_cannot_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.tempfile, "NamedTemporaryFile", refuse)
    found = look(tmp_path / "ensq.db")["folder"]
    assert found.state == "problem"
    assert "can't be written (Permission denied)" in found.seen


@pytest.mark.parametrize(
    ("room", "state", "words"),
    [
        ({}, "ok", "100.0 GB free"),
        ({"f_bavail": 10}, "warning", "nearly full"),
        ({"f_favail": 3}, "warning", "3 files free"),
        ({"f_favail": 0, "f_files": 0}, "ok", "100.0 GB free"),  # none are counted there
    ],
)
def test_room_and_inodes(
    room: dict[str, int], state: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"f_bavail": 10**8, "f_frsize": 1000, "f_files": 10**6, "f_favail": 10**6} | room
    space = type("Space", (), fields)
    monkeypatch.setattr(folders.os, "statvfs", lambda _: space)
    found = look(tmp_path / "ensq.db")["folder"]
    assert found.state == state
    assert words in found.seen


@pytest.mark.parametrize(("ahead", "words"), [(500, "500 s ahead"), (-500, "500 s behind")])
def test_a_file_system_with_another_clock_is_a_warning(
    ahead: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = folders.time.time
    monkeypatch.setattr(folders.time, "time", lambda: now() - ahead)
    found = look(tmp_path / "ensq.db")["clock"]
    assert found.state == "warning"
    assert words in found.seen


@pytest.mark.parametrize(
    ("child", "seen"),
    [("pass", "don't keep another process out"), ("raise OSError", "byte locks fail here")],
)
def test_locks_that_do_not_hold_are_a_problem(
    child: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_OTHER", child)
    found = look(tmp_path / "ensq.db")["locks"]
    assert found.state == "problem"
    assert seen in found.seen
    (of_server,) = (
        one for one in folders.check_folder(tmp_path, 10.0, server=True) if one.key == "locks"
    )
    assert of_server.state == "note", "PostgreSQL needs no locks of files"


def test_a_server_is_asked(postgres: pg_tools.Server, monkeypatch: pytest.MonkeyPatch,
                           tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
    empty = look(postgres.new_database(schema=False))
    assert empty["database"].state == "note"
    found = look(postgres.new_database())
    assert found["database"].state == "ok", found
    assert "PostgreSQL 1" in found["database"].seen
    assert "file_system" not in found


def test_a_server_that_is_away_is_a_problem_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
    found = look("postgresql://me:hunter2@127.0.0.1:1/ensq")
    assert found["database"].state == "problem"
    assert "hunter2" not in repr(found)


def test_every_finding_is_explained_in_the_docs() -> None:
    root = Path(__file__).parent.parent
    source = "".join(path.read_text() for path in (root / "ensq/doctor").glob("*.py"))
    keys = {*re.findall(r'key="(\w+)"', source), *SHOWN}
    assert {"devices", "munge", "runs"} <= keys
    docs = (root / "docs/doctor.md").read_text()
    assert {key for key in keys if f"`{key}`" not in docs} == set()


KEYS = {"key", "state", "seen", "advice"}


def test_the_command_prints_json(tmp_path: Path) -> None:
    done = ensq("doctor", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)["findings"]
    assert all(set(finding) == KEYS for finding in found)
    assert done.returncode == 0, done.stdout
    keys = {finding["key"] for finding in found}
    assert {"python", "jax", "devices", "cpus", "memory", "worker", "scratch"} <= keys
    assert {"database", "file_system", "runs", "folder", "locks", "clock"} <= keys


def test_the_command_prints_80_columns_of_plain_text(tmp_path: Path) -> None:
    folder = tmp_path / ("a\x1b[31m\x07\n" + "long" * 40)
    folder.mkdir()
    long = "x" * 300
    done = ensq("doctor", "--db", folder / "ensq.db", cwd=folder, CUDA_VISIBLE_DEVICES=long)
    lines = done.stdout.splitlines()
    assert len(lines) > 15
    assert max(map(len, lines)) <= 80
    assert all(character.isprintable() for line in lines for character in line)
    states = {line[:9].strip() for line in lines[:-1]}
    assert states <= {"ok", "note", "warning", "problem", "unknown", ""}
    assert done.returncode == 0, done.stdout


def test_the_command_fails_for_a_problem_and_counts(tmp_path: Path) -> None:
    done = ensq("doctor", "--db", "no/ensq.db", cwd=tmp_path, PATH="/nowhere")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("1 problem")
    assert ensq("doctor", "--db", "no/ensq.db", "--json", cwd=tmp_path).returncode == 1
