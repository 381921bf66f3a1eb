"""Copies of databases: whole, of one moment, and never over another file; and ``ensq db``."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import golden_tools as golden
import pytest
from ensemble_tools import ensq

from ensq import schema
from ensq.errors import DatabaseError, DiskError, UsageError
from ensq.store import backup, process
from ensq.store.engine import Database
from ensq.store.target import Target


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(golden.golden_sqlite("0001", tmp_path / "q.db"))


def test_copy_goes_beside_the_database_and_is_numbered(path: Path) -> None:
    names = [backup.backup(path).name for _ in range(3)]
    assert names == ["q.db.backup", "q.db.backup-2", "q.db.backup-3"]
    for name in names:
        assert golden.rows_of(str(path.with_name(name))) == golden.rows_of(str(path))
    others = {found.name for found in path.parent.iterdir()} - {*names, "q.db"}
    assert others <= {"q.db-wal", "q.db-shm"}


def test_named_file_is_never_overwritten(path: Path, tmp_path: Path) -> None:
    there, link = tmp_path / "there", tmp_path / "link"
    there.write_text("precious")
    link.symlink_to(tmp_path / "nowhere")
    for name in (there, link):
        with pytest.raises(UsageError, match="is there already"):
            backup.backup(path, name)
    assert there.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert backup.backup(path, tmp_path / "new").read_bytes()[:6] == b"SQLite"


def test_file_that_appears_meanwhile_is_not_overwritten(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_flush", lambda beside: (tmp_path / "new").write_text("faster"))
    with pytest.raises(UsageError, match="is there already"):
        backup.backup(path, tmp_path / "new")
    assert (tmp_path / "new").read_text() == "faster"


def test_copy_while_others_write_is_of_one_moment(path: Path) -> None:
    """Two rows always change together; a plain copy of the file beside it is torn or fails."""
    stop, began = threading.Event(), threading.Event()

    def work() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("UPDATE jobs SET updated_at = ? WHERE id = 1", (number,))
                connection.execute("UPDATE workers SET last_seen = ? WHERE id = 'w1'", (number,))
                connection.execute("COMMIT")
                began.set()

    writer = threading.Thread(target=work)
    writer.start()
    try:
        assert began.wait(30)
        found = []
        for _ in range(5):
            copy = backup.backup(path)
            with closing(sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True)) as connection:
                (first,) = connection.execute("SELECT updated_at FROM jobs WHERE id=1").fetchone()
                (second,) = connection.execute("SELECT last_seen FROM workers").fetchone()
                found.append((first, second))
    finally:
        stop.set()
        writer.join()
    assert all(first == second for first, second in found)
    assert len({first for first, _ in found}) > 1, "nobody wrote meanwhile"


def test_plain_copy_of_the_file_would_miss_what_is_in_the_log(path: Path, tmp_path: Path) -> None:
    """Why a copy is made by SQLite."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        with connection:
            connection.execute("UPDATE jobs SET error = 'late' WHERE id = 11")
        (tmp_path / "plain").write_bytes(path.read_bytes())
        whole = backup.backup(path)
    assert whole.read_bytes()[18:20] == b"\x01\x01", "the copy itself needs a log beside it"
    (late,) = (job for job in golden.rows_of(str(whole))["jobs"] if job["id"] == 11)
    (missed,) = (job for job in golden.rows_of(str(tmp_path / "plain"))["jobs"] if job["id"] == 11)
    assert (late["error"], missed["error"]) == ("late", None)


def test_damaged_database_gives_no_copy(path: Path, tmp_path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[4096 * 5 : 4096 * 7] = b"\xff" * 8192
    path.write_bytes(whole)
    with pytest.raises(DatabaseError):
        backup.backup(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))


def test_place_that_can_not_be_written_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="the copy can't be written"):
        backup.backup(path, tmp_path / "no" / "such" / "folder")
    with pytest.raises(DatabaseError, match="no database at"):
        backup.backup(tmp_path / "no.db")


def test_copy_of_a_postgresql_database_is_made_by_its_own_program(
    empty_postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
    golden.golden_postgres("0001", empty_postgres)
    first, second = (backup.backup(empty_postgres) for _ in range(2))
    assert (first.parent, f"{first.name}-2") == (tmp_path, second.name)
    assert first.read_bytes()[:5] == b"PGDMP"
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="is there already"):
        backup.backup(empty_postgres, first)


FAKE = """#!/bin/sh
printf '%s\\n' "$@" > {folder}/arguments
env > {folder}/environment
exit {code}
"""


@pytest.mark.parametrize("code", [0, 1])
def test_password_goes_to_pg_dump_by_its_environment_alone(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pg_dump"
    program.write_text(FAKE.format(folder=tmp_path, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    url = r"postgresql+psycopg://me:s3cr%27et@h0st:5433/my%27base?sslmode=prefer"
    database = Database(Target.parse(url))
    try:
        if code == 0:
            backup.write(database, tmp_path / "copy", numbered=False)
        else:
            with pytest.raises(DatabaseError, match="pg_dump could not copy it") as caught:
                backup.write(database, tmp_path / "copy", numbered=False)
            assert "s3cr" not in str(caught.value)
            assert not (tmp_path / "copy").exists()
    finally:
        database.close()
    arguments = (tmp_path / "arguments").read_text()
    assert "s3cr" not in arguments
    for word in ("host='h0st'", "port='5433'", r"dbname='my\'base'", "sslmode='prefer'"):
        assert word in arguments
    assert "PGPASSWORD=s3cr'et" in (tmp_path / "environment").read_text()


def test_commands_from_an_old_database_to_a_sound_one(path: Path, tmp_path: Path) -> None:
    golden.execute(str(path), "UPDATE workers SET ended_at = 1.0")  # or it would be watched
    before = ensq("db", "check", "--db", path, cwd=tmp_path)
    assert before.returncode == 78
    assert "run `ensq db upgrade`" in before.stderr
    copied = ensq("db", "backup", "--db", path, "mine", cwd=tmp_path)
    assert (copied.returncode, copied.stdout) == (0, f"the copy: {tmp_path / 'mine'}\n")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == stat.S_IMODE(path.stat().st_mode)
    again = ensq("db", "backup", "--db", path, "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    upgraded = ensq("db", "upgrade", "--db", path, cwd=tmp_path)
    assert upgraded.stdout.splitlines() == [
        f"the database as it was: {path}.backup-0001",
        f"at revision {schema.REVISION}, was 0001",
    ]
    assert ensq("db", "upgrade", "--db", path, cwd=tmp_path).stdout == (
        f"at revision {schema.REVISION}\n"
    )
    sound = ensq("db", "check", "--db", path, cwd=tmp_path)
    assert (sound.returncode, sound.stdout) == (0, "the database is sound\n")
    files = ensq("db", "check", "--files", "--json", "--db", path, cwd=tmp_path)
    assert files.returncode == 69
    found = json.loads(files.stdout)
    assert (found["sound"], found["problems"]) == (False, [])
    assert any("its result runs/chignolin_ca/seed-1/" in line for line in found["files"])


def test_upgrade_under_a_living_worker_is_one_clear_line(path: Path, tmp_path: Path) -> None:
    me = process.worker_info("any")
    golden.execute(
        str(path),
        "UPDATE workers SET host = :host, boot_id = :boot, pid = :pid, pid_start = :start",
        host=me.host,
        boot=me.boot_id,
        pid=me.pid,
        start=me.pid_start,
    )
    before = golden.rows_of(str(path))
    refused = ensq("db", "upgrade", "--no-backup", "--db", path, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (78, "")
    assert f"process {me.pid}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert golden.rows_of(str(path)) == before
