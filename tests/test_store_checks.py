"""``check`` sees what is wrong, each kind of it, and says nothing of a sound database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import golden_tools as golden
import pytest

from ensq import schema
from ensq.errors import DatabaseError, MismatchError
from ensq.jobs import State
from ensq.rundir import sha256
from ensq.store.checks import check, check_files

DECISION = (
    "INSERT INTO decisions "
    "(job_id, rule, verdict, ensemble_id, attempt, epoch, evidence, worker_id, time)"
)
# Of the golden database: job 1 is done by its second attempt, job 2 runs in its second (worker w3,
# 3 epochs, checkpoints at step 0 and 5 after them), job 3 failed, jobs 6 and 11 are queued.
# A statement that breaks a rule, and words of the problem that must be named.
BREAKS = [
    ("DELETE FROM epochs WHERE job_id = 1 AND epoch = 2", "job 1 (seed 40): losses are not dense"),
    ("UPDATE epochs SET epoch = 9 WHERE job_id = 1 AND epoch = 1", "losses are not dense"),
    ("DELETE FROM epochs WHERE job_id = 6 AND epoch = 2", "job 6 (seed 45): losses are not dense"),
    ("UPDATE epochs SET attempt = 5 WHERE job_id = 1", "has losses of attempts that were never"),
    ("UPDATE jobs SET epoch = 2 WHERE id = 1", "is done, but not all epochs are"),
    ("UPDATE jobs SET owner = NULL, lease_seconds = NULL WHERE id = 2", "runs without owner"),
    ("UPDATE jobs SET lease_seconds = NULL WHERE id = 2", "runs without owner or lease"),
    ("UPDATE jobs SET lease_seconds = 0 WHERE id = 2", "its lease has no length"),
    ("UPDATE jobs SET owner = 'w1', lease_seconds = 1 WHERE id = 3", "does not run, but has"),
    (
        "UPDATE jobs SET state = 'held', owner = 'w1', lease_seconds = 1 WHERE id = 6",
        "job 6 (seed 45): does not run, but has an owner",
    ),
    ("UPDATE jobs SET state = 'held' WHERE id = 2", "does not run, but has an owner"),
    ("UPDATE jobs SET owner = 'w2' WHERE id = 2", "its open attempt is not its owner's"),
    ("UPDATE jobs SET result_path = NULL WHERE id = 1", "is done without a result"),
    ("UPDATE jobs SET result_digest = NULL WHERE id = 1", "is done without a result"),
    ("UPDATE jobs SET state = 'lunch' WHERE id = 3", "its state is not one that ensq knows"),
    ("UPDATE jobs SET wish = 'fly' WHERE id = 2", "its wish is not one that ensq knows"),
    ("UPDATE jobs SET checkpoint_epoch = 4 WHERE id = 2", "checkpoint is newer than its losses"),
    ("UPDATE jobs SET previous_epoch = 9 WHERE id = 2", "checkpoint is older than the one before"),
    ("UPDATE jobs SET previous_step = 6 WHERE id = 2", "checkpoint is older than the one before"),
    ("UPDATE jobs SET checkpoint_digest = NULL WHERE id = 2", "it has half a checkpoint"),
    ("UPDATE jobs SET previous_path = NULL WHERE id = 6", "it has half a checkpoint"),
    ("UPDATE jobs SET attempt = 7 WHERE id = 2", "number of attempts"),
    ("DELETE FROM attempts WHERE job_id = 2", "runs without an open attempt"),
    ("DELETE FROM attempts WHERE job_id = 1 AND number = 1", "are not numbered from 1 on"),
    ("UPDATE attempts SET number = 5 WHERE job_id = 1 AND number = 2", "are not numbered from 1"),
    ("UPDATE attempts SET outcome = 'done' WHERE job_id = 1", "it was completed more than once"),
    ("UPDATE attempts SET outcome = 'lost' WHERE job_id = 1", "its last attempt did not end so"),
    ("UPDATE attempts SET outcome = 'done' WHERE job_id = 6", "was completed, but is not done"),
    ("UPDATE attempts SET outcome = 'bored' WHERE job_id = 6", "attempt 1: its outcome is not one"),
    ("UPDATE attempts SET outcome = NULL WHERE job_id = 6", "it ended without an outcome"),
    (
        "UPDATE attempts SET end_epoch = 1 WHERE job_id = 6 AND number = 2",
        "job 6 (seed 45), attempt 2: it ended before the place where it began",
    ),
    (
        "UPDATE attempts SET start_step = 1 WHERE job_id = 6 AND number = 2",
        "it ended before the place where it began",
    ),
    (
        "UPDATE attempts SET ended_at = NULL, outcome = NULL WHERE job_id = 1",
        "does not run, but has an open attempt",
    ),
    ("UPDATE jobs SET early = 'sigma' WHERE id = 1", "is stopped early, but has all epochs"),
    ("UPDATE jobs SET early = 'sigma' WHERE id = 1", "is stopped early without a decision"),
    ("UPDATE jobs SET early = 'sigma' WHERE id = 1", "its last attempt did not end so"),
    ("UPDATE jobs SET early = 'sigma' WHERE id = 6", "is stopped early without being done"),
    ("UPDATE jobs SET early = 'sigma', exempt = 1 WHERE id = 1", "though a person exempted it"),
    ("UPDATE jobs SET exempt = 2 WHERE id = 6", "is neither exempt from early stopping nor not"),
    (
        f"{DECISION} VALUES (6, 'sigma', 'maybe', 1, 1, 2, '{{}}', 'w1', 1.0)",
        "job 6 (seed 45), decision of rule 'sigma': its verdict is not one",
    ),
    (
        f"{DECISION} VALUES (6, 'sigma', 'stop', 1, 1, 0, '{{}}', 'w1', 1.0)",
        "it was made before any epoch",
    ),
    (
        f"{DECISION} VALUES (6, 'sigma', 'stop', 1, 9, 2, '{{}}', 'w1', 1.0)",
        "it was made in an attempt that never was",
    ),
    (
        f"{DECISION} VALUES (99, 'sigma', 'stop', 1, 1, 2, '{{}}', 'w1', 1.0)",
        "job 99 (seed None), decision of rule 'sigma': there is no such job",
    ),
    (
        f"{DECISION} VALUES (6, 'sigma', 'stop', 2, 1, 2, '{{}}', 'w1', 1.0)",
        "its ensemble is not its member's",
    ),
    ("UPDATE jobs SET strikes = 4 WHERE id = 4", "more strikes than crashes and losses"),
    ("UPDATE jobs SET strikes = 3 WHERE id = 9", "more strikes than crashes and losses"),
    ("UPDATE jobs SET stalls = 3 WHERE id = 6", "more stalls than interruptions"),
    ("UPDATE jobs SET owner = 'nobody' WHERE id = 2", "points to a row of workers"),
    ("DELETE FROM ensembles", "foreign key: row 1 of jobs points to a row of ensembles"),
    *(
        (f"UPDATE jobs SET {name} = -1 WHERE id = 6", f"its {name} is negative")
        for name in (
            *("failures", "crashes", "losses", "interruptions", "strikes", "stalls"),
            *("beat", "not_before", "checkpoint_step"),
        )
    ),
]
# What is sound, though it looks near to what is broken.
SOUND = [
    "UPDATE jobs SET strikes = 3 WHERE id = 4",
    "UPDATE jobs SET strikes = 2 WHERE id = 9",
    "UPDATE jobs SET stalls = 2 WHERE id = 6",
    "UPDATE jobs SET state = 'held' WHERE id = 6",
    "UPDATE jobs SET wish = 'hold' WHERE id = 2",
    "UPDATE jobs SET not_before = 9e9, beat = 12345 WHERE id = 2",
    "UPDATE attempts SET outcome = 'blocked' WHERE job_id = 6",
    "UPDATE jobs SET exempt = 1 WHERE id = 6",
    f"{DECISION} VALUES (6, 'sigma', 'kept', 1, 1, 2, '{{}}', 'w1', 1.0)",
]
STRANGERS = [
    ("CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN DELETE FROM epochs; END", "the trigger 't'"),
    ("CREATE VIEW v AS SELECT * FROM jobs", "the view 'v'"),
]


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound database with rows of every kind."""
    path = tmp_path_factory.mktemp("golden") / "q.db"
    golden.quickly(golden.golden_sqlite("0001", path), copy_first=False)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, upgraded: bytes) -> Path:
    (tmp_path / "q.db").write_bytes(upgraded)
    return tmp_path / "q.db"


def change(path: Path, statement: str) -> int:
    """Run a statement against all rules of the database."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        return connection.execute(statement).rowcount


def test_sound_database_has_no_problems_and_is_not_changed(path: Path) -> None:
    before = path.read_bytes()
    assert check(path) == check(f"sqlite:///{path}") == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(("statement", "words"), BREAKS)
def test_each_broken_rule_is_named(path: Path, statement: str, words: str) -> None:
    assert change(path, statement) > 0
    assert any(words in problem for problem in check(path)), check(path)


@pytest.mark.parametrize("statement", SOUND)
def test_what_is_allowed_is_no_problem(path: Path, statement: str) -> None:
    assert change(path, statement) > 0
    assert check(path) == []


@pytest.mark.parametrize(("statement", "words"), STRANGERS)
def test_triggers_and_views_of_strangers_are_named(path: Path, statement: str, words: str) -> None:
    change(path, statement)
    with pytest.raises(DatabaseError, match=words):
        check(path)


def test_postgresql_is_checked_by_the_same_rules(empty_postgres: str) -> None:
    golden.golden_postgres("0001", empty_postgres)
    golden.quickly(empty_postgres, copy_first=False)
    assert check(empty_postgres) == []
    golden.execute(empty_postgres, "UPDATE jobs SET beat = -1, epoch = 3, strikes = 9 WHERE id = 6")
    golden.execute(empty_postgres, "UPDATE attempts SET outcome = 'bored' WHERE job_id = 6")
    assert check(empty_postgres) == [
        "job 6 (seed 45): its beat is negative",
        "job 6 (seed 45): it has more strikes than crashes and losses",
        "job 6 (seed 45), attempt 1: its outcome is not one that ensq knows",
        "job 6 (seed 45), attempt 2: its outcome is not one that ensq knows",
        "job 6 (seed 45): losses are not dense: 2 rows up to epoch 2, the job stands at 3",
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET owner = NULL, lease_seconds = NULL WHERE id = 2",
        "UPDATE jobs SET owner = 'w1', lease_seconds = 1 WHERE id = 3",
        "UPDATE jobs SET lease_seconds = NULL WHERE id = 2",
        "UPDATE jobs SET state = 'lunch' WHERE id = 3",
        "UPDATE jobs SET state = 'held' WHERE id = 2",
        "UPDATE jobs SET result_path = NULL WHERE id = 1",
        "UPDATE attempts SET ended_at = NULL WHERE job_id = 1",
        "UPDATE jobs SET seed = 42",
        "INSERT INTO epochs (job_id, epoch, attempt, learning_rate, seconds) VALUES (2,0,1,1,1)",
    ],
)
def test_database_itself_refuses_what_must_never_be(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)


def test_states_of_the_schema_are_those_of_the_code(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name='jobs'").fetchone()
    states = sql.partition("CHECK (state IN (")[2].partition(")")[0]
    assert states == ", ".join(f"'{state}'" for state in State)


def test_missing_database_is_an_error_not_a_problem(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="no database at"):
        check(tmp_path / "no.db")


def test_older_database_is_an_error_not_a_problem(tmp_path: Path) -> None:
    old = golden.golden_sqlite("0001", tmp_path / "old.db")
    with pytest.raises(MismatchError, match=f"needs {schema.REVISION}; run `ensq db upgrade`"):
        check(old)


def test_damage_is_a_problem_like_others(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'ix_jobs_queue'"
        ).fetchone()
    whole = bytearray(path.read_bytes())
    whole[(root - 1) * size : root * size] = b"\xff" * size
    path.write_bytes(whole)
    assert check(path)


@pytest.fixture
def with_files(path: Path) -> Path:
    """The database with every recorded file where it should be; returns the root folder."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for prefix in ("checkpoint", "previous", "result"):
            rows = connection.execute(
                f"SELECT j.id, e.run_path, j.{prefix}_path FROM jobs j JOIN ensembles e "
                f"ON e.id = j.ensemble_id WHERE j.{prefix}_path IS NOT NULL"
            ).fetchall()
            for job, run, name in rows:
                file = path.parent / run / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(name.encode())
                connection.execute(
                    f"UPDATE jobs SET {prefix}_digest = ? WHERE id = ?",
                    (sha256(name.encode()), job),
                )
    return path.parent


RUN = "runs/chignolin_ca/"
NEWEST = f"{RUN}seed-2/attempt-2/epoch-000003-step-000005.safetensors"
BEFORE = f"{RUN}seed-2/attempt-2/epoch-000003-step-000000.safetensors"
RESULT = f"{RUN}seed-1/attempt-2/result.safetensors"


def test_files_that_are_whole_are_no_problem(with_files: Path) -> None:
    assert check_files(with_files / "q.db") == []


def test_missing_and_damaged_files_are_named_with_what_is_used_instead(with_files: Path) -> None:
    (with_files / NEWEST).write_bytes(b"torn")
    (with_files / RESULT).unlink()
    assert check_files(with_files / "q.db") == [
        f"job 1 (seed 40): its result {RESULT} is missing; bring the file back, or it can't be "
        "exported",
        f"job 2 (seed 41): its checkpoint {NEWEST} is damaged: its SHA-256 is not the recorded "
        "one; the one before is used: it goes on from epoch 3",
    ]
    (with_files / BEFORE).unlink()
    _, newest, before = check_files(with_files / "q.db")
    assert newest.endswith("there is no sound one before: it goes on from its beginning")
    assert before == f"job 2 (seed 41): the checkpoint before its last, {BEFORE} is missing"


def test_path_that_leads_out_of_the_run_folder_is_not_followed(with_files: Path) -> None:
    (with_files / "secret").write_bytes(b"x")
    change(with_files / "q.db", "UPDATE jobs SET checkpoint_path = '../../secret' WHERE id = 2")
    (problem,) = check_files(with_files / "q.db")
    assert "leads out of its run folder; the one before is used" in problem


def test_name_of_a_file_can_not_steer_the_terminal(with_files: Path) -> None:
    change(with_files / "q.db", "UPDATE jobs SET checkpoint_path = 'a' || char(27, 10) WHERE id=2")
    (problem,) = check_files(with_files / "q.db")
    assert problem.isprintable()
    assert "a\\x1b\\n" in problem
