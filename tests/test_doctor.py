"""``ensq doctor``: what it finds in places and machines that are not in order."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest
from ensemble_tools import ensq

from ensq.doctor import Finding, check_places
from ensq.store import Store


def by_key(found: list[Finding]) -> dict[str, Finding]:
    return {finding.key: finding for finding in found}


def test_a_good_place_is_ok_and_left_as_it_was(tmp_path: Path) -> None:
    Store.open(str(tmp_path / "ensq.db"), create=True).close()
    before = set(os.listdir(tmp_path))
    found = by_key(check_places(str(tmp_path / "ensq.db")))
    assert {finding.state for finding in found.values()} == {"ok"}
    # SQLite's own companions of a file with a write-ahead log, which a reader makes and may not
    # remove: another program may be using them.
    companions = {"ensq.db-wal", "ensq.db-shm"}
    assert set(os.listdir(tmp_path)) - companions == before


def test_a_file_system_without_locks_is_a_problem(tmp_path: Path) -> None:
    table = "1 0 0:1 / / rw - lustre mds:/scratch rw,localflock\n"
    found = by_key(check_places(str(tmp_path / "ensq.db"), table))
    assert found["file_system"].state == "problem"
    assert "localflock" in found["file_system"].seen


def test_a_database_of_a_newer_revision_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "ensq.db"
    Store.open(str(path), create=True).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    assert "newer ensq" in by_key(check_places(str(path)))["database"].seen


def test_a_damaged_database_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "ensq.db").write_bytes(b"nonsense" * 100)
    assert by_key(check_places(str(tmp_path / "ensq.db")))["database"].state == "problem"


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert by_key(check_places(str(tmp_path / "no" / "ensq.db")))["folder"].state == "problem"


def test_a_server_that_is_away_is_a_problem_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
    found = check_places("postgresql://me:hunter2@127.0.0.1:1/ensq")
    assert by_key(found)["database"].state == "problem"
    assert "hunter2" not in repr(found)


def test_the_command_prints_json_and_80_columns(tmp_path: Path) -> None:
    done = ensq("doctor", "--json", cwd=tmp_path)
    keys = {frozenset(finding) for finding in json.loads(done.stdout)["findings"]}
    assert keys == {frozenset(("key", "state", "seen", "advice"))}
    assert done.returncode == 0, done.stdout
