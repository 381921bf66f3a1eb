"""What is refused when a database is opened, with which words, and that nothing is changed."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pg_tools
import pytest
from store_tools import made

from ensq import schema
from ensq.errors import DatabaseError, EnsqError, MismatchError, UsageError
from ensq.store import Store, check, opening
from ensq.store.target import Target


def set_revision(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_missing_database_names_the_file_and_the_command(tmp_path: Path) -> None:
    path = tmp_path / "no.db"
    with pytest.raises(DatabaseError, match=r"no database at .*no.db; run `ensq enqueue") as error:
        Store.open(path)
    assert str(path) in str(error.value)
    assert not path.exists()


@pytest.mark.parametrize("read_only", [False, True])
def test_missing_database_is_not_made_by_looking(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(DatabaseError):
        Store.open(tmp_path / "no.db", create=read_only, read_only=read_only)
    assert list(tmp_path.iterdir()) == []


def test_empty_file_is_refused_and_filled_on_request(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    with pytest.raises(DatabaseError, match="is empty; run `ensq enqueue"):
        Store.open(path)
    made(path)
    assert check(path) == []


def test_database_without_tables_is_refused_and_filled_on_request(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("DROP TABLE t")
    connection.close()
    with pytest.raises(DatabaseError, match="is empty; run `ensq enqueue"):
        Store.open(path)
    made(path)
    assert check(path) == []


@pytest.mark.parametrize("create", [False, True])
def test_database_of_another_program_is_refused_and_not_changed(
    tmp_path: Path, create: bool
) -> None:
    path = tmp_path / "foreign.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name)")
    connection.execute("CREATE TABLE jobs (name)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match=r"another program .*'jobs', 'recipes'"):
        Store.open(path, create=create)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["foreign.db"]


@pytest.mark.parametrize("content", [b"x", b"hello, world\n" * 100, b"\0" * 4096])
def test_file_that_is_no_database_is_refused_and_not_changed(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"garbage\.db is not an SQLite database"):
        Store.open(path, create=True)
    assert path.read_bytes() == content


def test_database_that_is_garbage_after_its_first_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(b"SQLite format 3\0" + b"garbage " * 1000)
    with pytest.raises(DatabaseError, match=r"not an SQLite database|damaged"):
        Store.open(path, create=True)


def test_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    path = made(tmp_path / "torn.db")
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(DatabaseError, match=r"torn\.db"), Store.open(path) as store:
        store.ensembles()


def test_older_database_says_how_to_upgrade(tmp_path: Path) -> None:
    path = made(tmp_path / "old.db")
    set_revision(path, "0000")
    words = rf"at revision 0000, ensq needs {schema.REVISION}; run `ensq db upgrade`"
    for open_it in (Store.open, check):
        with pytest.raises(MismatchError, match=words):
            open_it(path)


@pytest.mark.parametrize("revision", ["0999", "9999", "abcdef"])
def test_newer_database_is_refused(tmp_path: Path, revision: str) -> None:
    path = made(tmp_path / "new.db")
    set_revision(path, revision)
    with pytest.raises(MismatchError, match=f"revision {revision}.*made by a newer ensq"):
        Store.open(path, create=True)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "CREATE TRIGGER spy AFTER UPDATE ON jobs BEGIN DELETE FROM events; END",
            "the trigger 'spy'",
        ),
        ("CREATE VIEW spy AS SELECT * FROM jobs", "the view 'spy'"),
        ("CREATE VIRTUAL TABLE spy USING fts5(x)", "the virtual table 'spy'"),
    ],
)
def test_database_that_acts_by_itself_is_refused(
    tmp_path: Path, statement: str, words: str
) -> None:
    path = made(tmp_path / "q.db")
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.close()
    before = path.read_bytes()
    for options in ({}, {"create": True}, {"read_only": True}):
        with pytest.raises(DatabaseError, match=f"not made by ensq.*{words}"):
            Store.open(path, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW spy AS SELECT * FROM jobs",
        "CREATE RULE spy AS ON DELETE TO jobs DO INSTEAD NOTHING",
        "CREATE TRIGGER spy BEFORE UPDATE ON jobs EXECUTE FUNCTION "
        "suppress_redundant_updates_trigger()",
    ],
)
def test_server_database_that_acts_by_itself_is_refused(
    postgres: pg_tools.Server, statement: str
) -> None:
    url = postgres.new_database()
    opening.look(Target.parse(url))  # the control
    postgres.execute(statement, url.rpartition("/")[2])
    with pytest.raises(DatabaseError, match=r"not made by ensq.* 'spy'"):
        opening.look(Target.parse(url))


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="is a folder"):
        Store.open(tmp_path, create=True)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"the folder .*/nowhere does not exist"):
        Store.open(tmp_path / "nowhere" / "a.db", create=True)


@pytest.mark.parametrize("url", ["", ":memory:", "sqlite://", "sqlite:///", "file:a.db?mode=ro"])
def test_database_that_cannot_be_shared_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        Store.open(url, create=True)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush-hush@localhost:1/queue",
        "postgresql://me@localhost:1/queue?password=hush-hush",
        "mysql://me:hush-hush@localhost/queue",
        "postgresql+nothing://me:hush-hush@localhost/queue",
        "postgresql://me:hush-hush@localhost:port/queue",
        "://me:hush-hush@",
    ],
)
def test_password_in_a_url_never_shows(url: str) -> None:
    with pytest.raises(EnsqError) as caught:
        Store.open(url)
    shown: BaseException | None = caught.value
    while shown is not None:
        assert "hush" not in str(shown)
        shown = shown.__cause__
    assert "hush" not in str(caught.value)


def test_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(DatabaseError, match=r"ensq needs 3\.35"):
        Store.open(tmp_path / "q.db", create=True)
