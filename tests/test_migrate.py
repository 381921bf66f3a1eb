"""Migrations: they lead to the same schema as a fresh start, or change nothing."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import store_tools as tools

import ensq
from ensq import migrate, schema
from ensq.errors import DatabaseError, MismatchError
from ensq.store import Store, check
from ensq.store.engine import Database
from ensq.store.target import Target

NEXT = """
from alembic import op
import sqlalchemy as sa
revision, down_revision = "0002", "0001"
def upgrade():
    with op.batch_alter_table("jobs", recreate="always") as jobs:
        jobs.add_column(sa.Column("colour", sa.Text()))
    op.execute("UPDATE jobs SET colour = 'red'")
"""


def shape(path: Path) -> list[tuple[str, ...]]:
    """Tables, columns, constraints and indexes, whatever the order of the constraints."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    connection.close()
    split = re.compile(r",?\s*\n\s*")
    return sorted((*row[:3], *sorted(split.split((row[3] or "").strip()))) for row in rows)


def upgraded(path: Path) -> Path:
    """A database made by Alembic alone, from an empty file."""
    path.touch()
    database = Database(Target.parse(path))
    with database.write() as connection:
        migrate.upgrade(connection, str(path))
    database.close()
    return path


def test_upgraded_database_has_the_schema_of_a_fresh_one(tmp_path: Path) -> None:
    assert migrate.create_or_upgrade(tmp_path / "fresh.db") is None
    assert shape(upgraded(tmp_path / "upgraded.db")) == shape(tmp_path / "fresh.db")
    assert len(shape(tmp_path / "fresh.db")) > 10
    assert check(tmp_path / "upgraded.db") == []


def test_upgraded_database_works(tmp_path: Path) -> None:
    with Store.open(upgraded(tmp_path / "upgraded.db")) as store:
        tools.add(store, seeds=[42], epochs=1)
        tools.register(store, "w1")
        (claim,) = tools.take(store)
        tools.train(store, claim, range(1, 2))
        store.finish(claim, tools.result())


def test_newest_migration_is_the_revision_of_the_schema() -> None:
    names = sorted(path.name for path in (migrate.migrations_folder() / "versions").glob("*.py"))
    assert names[-1].startswith(f"{schema.REVISION}_")
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]


def test_revision_is_told(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    assert migrate.current(path) is None
    path.touch()
    assert migrate.current(path) is None
    assert migrate.create_or_upgrade(path) is None
    assert migrate.current(path) == schema.REVISION
    before = path.read_bytes()
    assert migrate.create_or_upgrade(path) == schema.REVISION
    assert path.read_bytes() == before


def test_foreign_newer_and_unknown_databases_are_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE recipes (name)")
    connection.close()
    with pytest.raises(DatabaseError, match="another program"):
        migrate.create_or_upgrade(foreign)
    path = tmp_path / "q.db"
    migrate.create_or_upgrade(path)
    for revision, words in [
        ("0999", "made by a newer ensq"),
        ("abc", "made by a newer ensq"),
        ("0000", "can't be upgraded: Can't locate revision"),
    ]:
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.close()
        before = path.read_bytes()
        with pytest.raises(MismatchError, match=words):
            migrate.create_or_upgrade(path)
        assert path.read_bytes() == before


def with_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A later ensq, with one migration more, in a folder with a strange name."""
    folder = tmp_path / "100% 'new' folder"
    shutil.copytree(migrate.migrations_folder(), folder)
    (folder / "versions" / "0002_next.py").write_text(text)
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)
    monkeypatch.setattr(schema, "REVISION", "0002")


def test_older_database_is_upgraded_with_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    with Store.open(path, create=True) as store:
        tools.add(store)
        tools.register(store, "w1")
        tools.train(store, tools.take(store)[0], range(1, 3))  # rows that point to the job's
    with_next(tmp_path, monkeypatch, NEXT)
    with pytest.raises(MismatchError, match="revision 0001, ensq needs 0002; run `ensq db upgrade"):
        Store.open(path)
    assert migrate.create_or_upgrade(path) == "0001"
    assert migrate.current(path) == "0002"
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT seed, colour FROM jobs").fetchall() == [
        (seed, "red") for seed in (42, 43, 44)
    ]
    connection.close()
    assert check(path) == []


def test_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    with Store.open(path, create=True) as store:
        tools.add(store)
    before = tools.dump(path)
    with_next(tmp_path, monkeypatch, NEXT + "    raise RuntimeError('half way')\n")
    with pytest.raises(RuntimeError, match="half way"):
        migrate.create_or_upgrade(path)
    assert tools.dump(path) == before


def test_migration_that_would_lose_rows_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    with Store.open(path, create=True) as store:
        tools.add(store)
    before = tools.dump(path)
    with_next(tmp_path, monkeypatch, NEXT + "    op.execute('DELETE FROM ensembles')\n")
    with pytest.raises(DatabaseError, match="row 1 of jobs would point to a row of ensembles"):
        migrate.create_or_upgrade(path)
    assert tools.dump(path) == before


def test_missing_migrations_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensq, "__file__", str(tmp_path / "ensq" / "__init__.py"))
    with pytest.raises(DatabaseError, match="migrations are missing"):
        migrate.migrations_folder()


def test_making_a_database_does_not_import_alembic(tmp_path: Path) -> None:
    script = (
        "import sys; from ensq import migrate; migrate.create_or_upgrade(sys.argv[1])\n"
        "assert 'alembic' not in sys.modules and 'sqlalchemy.orm' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "q.db")],
        cwd=Path(__file__).parent.parent,
        check=True,
    )
