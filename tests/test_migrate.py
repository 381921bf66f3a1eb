"""Migrations: they lead to the same schema as a fresh start, or change nothing."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import golden_tools as golden
import pytest
import store_tools as tools

import ensq
from ensq import migrate, schema
from ensq.errors import DatabaseError, MismatchError
from ensq.jobs import Job
from ensq.rundir import sha256_file
from ensq.store import Store
from ensq.store.checks import check
from ensq.store.engine import Database
from ensq.store.target import Target

# The migration after the last one.
LAST = schema.REVISION
AFTER = f"{int(LAST) + 1:04}"
NEXT = f"""
from alembic import op
import sqlalchemy as sa
revision, down_revision = "{AFTER}", "{LAST}"
def upgrade():
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("colour", sa.Text()))
    op.execute("UPDATE jobs SET colour = 'red'")
"""
DIGESTS = {
    "0001.db": "ee6b50bfc29c8d16c9b46b32f45cf0259ff5e1a46f0500142286f8a575cc8e7e",
    "0001.json": "b148f4001caf6e89cce391bfe883eca7c116c1a204e145cfecc4a1ca5faf8de7",
    "0002.db": "66dda67e9e3e4dcba25a0ee493763ac7f6cdcdbf28cd61921404201b5deff6a9",
    "0002.json": "2077349c2137b90bc91517cc68b9d3738b13d14103e285d5a86aff4dad67cb36",
    "0003.db": "d94a6d5acbedf1a9b30a6097cf2ed0e320e720e6e6ae28cd55066f9855068186",
    "0003.json": "5c2029a8db7d91ccf8f23674b37b16ca2e30b577cefea22aeaf1a8dab3767f70",
    "0004.db": "3351e75ed577798e61f8dcc400d2b0b08f81843ce77dc4095a4944bed5b7ca30",
    "0004.json": "738717b3b844579756675039b2460dd2664fe023e3f109e24eb6d295bec9ee05",
}


def tables_as_sql(path: str | Path) -> list[tuple[str, ...]]:
    """All of sqlite_master, whatever the order of columns and constraints."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    connection.close()
    split = re.compile(r",?\s*\n\s*")
    return sorted((*row[:3], *sorted(split.split((row[3] or "").replace('"', "")))) for row in rows)


def from_nothing(path: Path) -> Path:
    """A database made by Alembic alone, from an empty file."""
    path.touch()
    database = Database(Target.parse(path))
    with database.write() as connection:
        migrate.upgrade(connection, str(path))
    database.close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a database may be made, on both engines."""
    return golden.place(request, tmp_path, monkeypatch)


@pytest.fixture(params=golden.REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def old(empty: str, revision: str) -> str:
    """A database of an earlier revision with rows of every kind, on both engines."""
    return golden.golden(revision, empty)


def test_newest_migration_is_the_revision_of_the_schema() -> None:
    names = sorted(path.name for path in (migrate.migrations_folder() / "versions").glob("*.py"))
    assert names[-1].startswith(f"{schema.REVISION}_")
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]


def test_golden_databases_are_as_they_were_made(tmp_path: Path, revision: str) -> None:
    assert {name: sha256_file(golden.FOLDER / name) for name in DIGESTS} == DIGESTS
    rows = golden.rows_of(golden.golden_sqlite(revision, tmp_path / "q.db"))
    assert rows.pop("alembic_version") == [{"version_num": revision}]
    assert rows == golden.golden_rows(revision)
    held = set() if revision == "0001" else {"held"}
    assert {job["state"] for job in rows["jobs"]} == held | {
        *("queued", "running", "done", "failed", "cancelled")
    }


def test_every_released_revision_has_a_golden_database() -> None:
    versions = (migrate.migrations_folder() / "versions").glob("*.py")
    released = {path.name[:4] for path in versions} - {schema.REVISION}
    assert {path.stem for path in golden.FOLDER.glob("*.db")} >= released


def test_upgraded_sqlite_database_has_the_schema_of_a_fresh_one(
    tmp_path: Path, revision: str
) -> None:
    fresh, old = tmp_path / "fresh.db", tmp_path / "old.db"
    assert migrate.create_or_upgrade(fresh) is None
    wanted = tables_as_sql(fresh)
    assert len(wanted) > 10
    assert tables_as_sql(from_nothing(tmp_path / "nothing.db")) == wanted
    golden.golden_sqlite(revision, old)
    assert tables_as_sql(old) != wanted
    assert golden.quickly(old) == revision
    assert tables_as_sql(old) == wanted
    assert check(old) == check(tmp_path / "nothing.db") == []


def test_upgraded_schema_is_that_of_a_fresh_one_on_both_engines(old: str, revision: str) -> None:
    assert golden.quickly(old) == revision
    upgraded = golden.schema_of(old)
    database = Database(Target.parse(old))
    with database.write() as connection:
        schema.metadata.drop_all(connection)
        schema.version_metadata.drop_all(connection)
    database.close()
    assert migrate.create_or_upgrade(old) is None
    assert golden.schema_of(old) == upgraded


@pytest.mark.parametrize(
    "statement",
    [
        "DROP INDEX ix_jobs_queue",
        "ALTER TABLE jobs ADD COLUMN colour TEXT",
        "ALTER TABLE jobs DROP COLUMN wish",
        "CREATE INDEX ix_more ON jobs (seed)",
    ],
)
def test_comparison_of_schemas_sees_each_difference(statement: str, empty: str) -> None:
    migrate.create_or_upgrade(empty)
    before = golden.schema_of(empty)
    golden.execute(empty, statement)
    assert golden.schema_of(empty) != before


def test_golden_rows_survive_the_upgrade(old: str, revision: str) -> None:
    assert golden.quickly(old) == revision
    assert migrate.current(old) == schema.REVISION
    found = golden.rows_of(old)
    assert check(old) == []
    wanted = golden.golden_rows(revision)
    if revision == "0001":
        golden.as_of_0002(wanted)
    if revision < "0003":
        golden.as_of_0003(wanted)
    if revision < "0004":
        golden.as_of_0004(wanted)
    golden.as_of_0005(wanted)
    assert found.pop("alembic_version") == [{"version_num": schema.REVISION}]
    assert found == wanted


@pytest.mark.parametrize("revision", ["0001"], indirect=True)
def test_losses_are_told_from_interruptions_since_the_last_retry_only(old: str) -> None:
    """Seed 47 was lost once, failed, and was retried by a person: its counts began again."""
    (job,) = (job for job in golden.golden_rows("0001")["jobs"] if job["seed"] == 47)
    outcomes = [
        attempt["outcome"]
        for attempt in golden.golden_rows("0001")["attempts"]
        if attempt["job_id"] == job["id"]
    ]
    assert (outcomes, job["interruptions"]) == (["lost", "failure"], 0)
    golden.quickly(old)
    (job,) = (job for job in golden.rows_of(old)["jobs"] if job["seed"] == 47)
    assert (job["losses"], job["interruptions"]) == (0, 0)


def test_new_rows_can_be_added_after_the_upgrade(old: str) -> None:
    """Numbers that the database gives out go on where they were."""
    golden.quickly(old)
    event = "INSERT INTO events (time, kind, message) VALUES (1.0, 'done', 'x')"
    assert golden.execute(old, event) == 1
    numbers = [event["id"] for event in golden.rows_of(old)["events"]]
    assert numbers == list(range(1, len(numbers) + 1))


def test_store_goes_on_with_an_upgraded_database(old: str) -> None:
    golden.quickly(old)
    with tools.open_by_hand(old) as store:
        tools.register(store, "new")
        (claim,) = tools.take(store, "new")
        assert (claim.job_id, claim.attempt) == (6, 3)  # seed 45, the furthest trained
        assert store.job(6).checkpoint is not None
        tools.train(store, claim, range(3, 5))
        store.finish(claim, tools.result())
        assert store.job(6).state == "done"
        # Held by a worker of another host, of which nothing is known: its lease is not over yet.
        assert store.job(2).state == "running"
        assert [attempt.outcome for attempt in store.attempts(6)] == [
            *("interrupted", "interrupted", "done")
        ]
    assert check(old) == []


def test_lease_of_before_the_upgrade_is_taken_over(old: str) -> None:
    """The owner may renew it, and one that stays silent loses the job, as if it had begun now."""
    golden.quickly(old)
    with tools.open_by_hand(old) as store:
        held = {job.seed: job for job in all_jobs(store) if job.owner}
        assert set(held) == {41, 7}
        alive, silent = tools.claim_of(held[41]), tools.claim_of(held[7])
        lease = held[7].lease_seconds
        assert lease is not None and lease > 0
        assert store.reap() == []
        store.clock.move(lease)  # type: ignore[attr-defined]
        assert store.renew([alive]).held == [alive]
        assert store.reap() == []
        store.clock.move(1)  # type: ignore[attr-defined]
        assert [reaped.claim for reaped in store.reap()] == [silent]
        assert store.renew([alive, silent]).held == [alive]
        job = store.job(silent.job_id)
        assert (job.state, job.losses, job.strikes) == ("queued", held[7].losses + 1, 1)
    assert check(old) == []


def all_jobs(store: Store) -> list[Job]:
    return [job for ensemble in store.ensembles() for job in store.jobs(ensemble.id)]


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
        with pytest.raises(MismatchError, match=words) as caught:
            migrate.create_or_upgrade(path)
        assert caught.value.exit_code == 78
        assert path.read_bytes() == before


def with_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str = f"{AFTER}_next"
) -> None:
    """A later ensq, with one migration more, in a folder with a strange name."""
    folder = tmp_path / "100% 'new' folder"
    shutil.copytree(migrate.migrations_folder(), folder)
    (folder / "versions" / f"{name}.py").write_text(text)
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)
    monkeypatch.setattr(schema, "REVISION", AFTER)


def test_later_migrations_follow_with_the_data(
    old: str, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden.quickly(old)
    with_next(tmp_path, monkeypatch, NEXT)
    lines: list[str] = []
    assert golden.quickly(old, progress=lines.append) == LAST
    assert migrate.current(old) == AFTER
    assert {job["colour"] for job in golden.rows_of(old)["jobs"]} == {"red"}
    # Leases of a later revision are watched by their beat, for their own length.
    assert "2 members are held" in lines[0] and "watching for 60 s" in lines[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("    raise RuntimeError('half way')\n", "half way"),
        ("    op.execute('DELETE FROM ensembles')\n", "would point to a row of|violates foreign"),
    ],
)
def test_migration_that_fails_changes_nothing(
    more: str, words: str, old: str, revision: str, tmp_path: Path
) -> None:
    before, shape = golden.rows_of(old), golden.schema_of(old)
    with pytest.MonkeyPatch.context() as patch:
        with_next(tmp_path, patch, NEXT + more)
        with pytest.raises(Exception, match=words):
            golden.quickly(old)
    assert golden.rows_of(old) == before
    assert golden.schema_of(old) == shape
    assert golden.quickly(old) == revision


KILLED = """
import sys
from pathlib import Path
from ensq import migrate, schema
from golden_tools import quickly
migrate.migrations_folder = lambda: Path(sys.argv[1])
schema.REVISION = sys.argv[2]
quickly(sys.argv[3])
"""


def test_upgrade_that_is_killed_half_way_changes_nothing(
    old: str, revision: str, tmp_path: Path
) -> None:
    before, shape = golden.rows_of(old), golden.schema_of(old)
    with pytest.MonkeyPatch.context() as patch:
        with_next(tmp_path, patch, NEXT + "    import os; os.kill(os.getpid(), 9)\n")
        folder = migrate.migrations_folder()
    tests = Path(__file__).parent
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), AFTER, old],
        env=os.environ
        | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "ENSQ_ROOT": str(tmp_path)},
        check=False,
    )
    assert killed.returncode == -9
    assert (golden.rows_of(old), golden.schema_of(old)) == (before, shape)
    assert golden.quickly(old, copy_first=False) == revision
    assert check(old) == []


RACE = """
import os
from ensq import migrate
from store_tools import Clock
def work(number, meet):
    clock = Clock(0.0)
    meet()
    before = migrate.create_or_upgrade(path, monotonic=clock, sleep=clock.move)
    with open(os.path.join(os.environ["ENSQ_ROOT"], "said"), "a") as file:
        file.write(before + "\\n")
"""


def test_eight_upgrades_at_once_are_one(old: str, revision: str, tmp_path: Path) -> None:
    tools.in_processes(8, Path(old) if "://" not in old else old, RACE)  # type: ignore[arg-type]
    said = sorted((tmp_path / "said").read_text().split())
    assert said == [revision] + 7 * [LAST]
    assert len(list(tmp_path.glob(f"*.backup-{revision}*"))) == 1
    assert check(old) == []
    assert len(golden.rows_of(old)["jobs"]) == len(golden.golden_rows(revision)["jobs"])


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
