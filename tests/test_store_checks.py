"""``check`` sees what is wrong, each kind of it, and says nothing of a sound database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import store_tools as tools

from ensq.errors import DatabaseError
from ensq.jobs import State
from ensq.store import check

# A statement that breaks a rule, and words of the problem that must be named.
BREAKS = [
    ("DELETE FROM epochs WHERE job_id = 1 AND epoch = 2", "job 1 (seed 42): losses are not dense"),
    ("UPDATE epochs SET epoch = 9 WHERE job_id = 1 AND epoch = 1", "losses are not dense"),
    ("UPDATE jobs SET epoch = 2 WHERE id = 1", "is done, but not all epochs are"),
    ("UPDATE jobs SET owner = NULL, lease_until = NULL WHERE id = 2", "runs without owner"),
    ("UPDATE jobs SET lease_until = NULL WHERE id = 2", "runs without owner or lease"),
    ("UPDATE jobs SET owner = 'w1', lease_until = 1 WHERE id = 3", "does not run, but has"),
    ("UPDATE jobs SET result_path = NULL WHERE id = 1", "is done without a result"),
    ("UPDATE jobs SET result_digest = NULL WHERE id = 1", "is done without a result"),
    ("UPDATE jobs SET state = 'lunch' WHERE id = 3", "its state is not one that ensq knows"),
    ("UPDATE jobs SET checkpoint_epoch = 2 WHERE id = 2", "checkpoint is newer than its losses"),
    ("UPDATE jobs SET previous_epoch = 9 WHERE id = 2", "checkpoint is older than the one before"),
    ("UPDATE jobs SET attempt = 7 WHERE id = 2", "number of attempts"),
    ("DELETE FROM attempts WHERE job_id = 2", "runs without an open attempt"),
    (
        "UPDATE attempts SET ended_at = NULL, outcome = NULL WHERE job_id = 1",
        "does not run, but has an open attempt",
    ),
    ("UPDATE jobs SET owner = 'nobody' WHERE id = 2", "points to a row of workers"),
    ("DELETE FROM ensembles", "foreign key: row 1 of jobs points to a row of ensembles"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Job 1 done, job 2 running, job 3 queued."""
    with tools.fresh(tmp_path / "q.db") as store:
        tools.add(store)
        tools.register(store, "w1")
        done, running = tools.take(store, limit=2)
        tools.train(store, done, range(1, 4))
        tools.train(store, running, range(1, 2))
        store.finish(done, tools.result())
        assert list(store.counts().values()) == [1, 1, 1, 0, 0]
    return tmp_path / "q.db"


def test_sound_database_has_no_problems_and_is_not_changed(path: Path) -> None:
    before = path.read_bytes()
    assert check(path) == check(f"sqlite:///{path}") == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(("statement", "words"), BREAKS)
def test_each_broken_rule_is_named(path: Path, statement: str, words: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    with connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()
    assert any(words in problem for problem in check(path)), check(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET owner = NULL, lease_until = NULL WHERE id = 2",
        "UPDATE jobs SET owner = 'w1', lease_until = 1 WHERE id = 3",
        "UPDATE jobs SET lease_until = NULL WHERE id = 2",
        "UPDATE jobs SET state = 'lunch' WHERE id = 3",
        "UPDATE jobs SET result_path = NULL WHERE id = 1",
        "UPDATE attempts SET ended_at = NULL WHERE job_id = 1",
        "UPDATE jobs SET seed = 42",
        "INSERT INTO epochs (job_id, epoch, attempt, learning_rate, seconds) VALUES (2,0,1,1,1)",
    ],
)
def test_database_itself_refuses_what_must_never_be(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    connection.close()


def test_states_of_the_schema_are_those_of_the_code(path: Path) -> None:
    connection = sqlite3.connect(path)
    sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'jobs'").fetchone()[0]
    connection.close()
    states = sql.partition("CHECK (state IN (")[2].partition(")")[0]
    assert states == ", ".join(f"'{state}'" for state in State)


def test_missing_database_is_an_error_not_a_problem(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="no database at"):
        check(tmp_path / "no.db")


def test_damage_is_a_problem_like_others(path: Path) -> None:
    connection = sqlite3.connect(path)
    size, page = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count")
    )
    (root,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'ix_jobs_queue'"
    ).fetchone()
    connection.close()
    whole = bytearray(path.read_bytes())
    assert root <= page
    whole[(root - 1) * size : root * size] = b"\xff" * size
    path.write_bytes(whole)
    assert check(path)
