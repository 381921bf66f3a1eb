"""Hostile database files: damaged pages, values of wrong types, strangers' triggers and views."""

from __future__ import annotations

import functools
import json
import random
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import store_tools
from fuzz_tools import Loader, bytes_mutated

from ensq.store import Store, check
from ensq.text import escaped

_VALUES: tuple[Any, ...] = (
    None, "", "a", "1", "1.5", "nan", "done", "queued", "running", "rubbish", 0, 1, -1, 2**31,
    2**53, 2**63 - 1, -(2**63), 0.5, -0.5, 1e308, -1e308, float("inf"), float("nan"), b"",
    b"\xff\xfe", b"running", "\x1b]0;owned\x07", "\x9b31m", "a\rb", "a\nb", "\u202egpj", "a\x00b",
    "../../canary", "/tmp/canary", "runs/../../../canary", "$(touch canary)", "x" * 100_000,
    "'; DROP TABLE jobs; --", "{}", "[" * 10_000, '{"a": 1}', "é" * 300, "٣",
)  # fmt: skip
_TRIGGER = "CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN {} END"
_SCHEMA = (
    _TRIGGER.format("UPDATE jobs SET state = 'queued';"),
    _TRIGGER.format("INSERT INTO jobs SELECT * FROM jobs;"),
    _TRIGGER.format("SELECT load_extension('/tmp/canary.so');"),
    _TRIGGER.format("SELECT RAISE(ABORT, 'x');"),
    "ALTER TABLE jobs RENAME TO j2; CREATE VIEW jobs AS SELECT * FROM j2",
    "ALTER TABLE jobs RENAME TO j2; CREATE VIEW jobs AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL "
    "SELECT i + 1 FROM n) SELECT j2.* FROM j2, n",
    "DROP TABLE workers; CREATE VIEW workers AS SELECT randomblob(1000000000) AS id",
    "DROP TABLE events", "DROP TABLE jobs", "ALTER TABLE jobs DROP COLUMN beat",
    "ALTER TABLE jobs ADD COLUMN more TEXT", "ALTER TABLE jobs RENAME COLUMN state TO status",
    "ALTER TABLE jobs ADD COLUMN g TEXT GENERATED ALWAYS AS (hex(zeroblob(100000000)))",
    "DROP TABLE epochs; CREATE TABLE epochs (x)",
    "DROP TABLE events; CREATE VIRTUAL TABLE events USING fts5(x)",
    "CREATE TABLE other (x); INSERT INTO other VALUES (1)",
    "UPDATE alembic_version SET version_num = '9999'",
    "UPDATE alembic_version SET version_num = x'00ff'", "DELETE FROM alembic_version",
    "INSERT INTO alembic_version VALUES ('0001')", "PRAGMA user_version = 77",
    "PRAGMA application_id = 77", "DELETE FROM ensembles", "DELETE FROM workers",
    "CREATE INDEX i ON jobs (abs(-9223372036854775808))",
)  # fmt: skip
# Written into sqlite_master, where nothing checks them.
_MASTER = (
    "CREATE TABLE jobs (id)", "CREATE TABLE jobs (", "", "CREATE VIEW jobs AS SELECT 1",
    "CREATE TABLE jobs (id INTEGER PRIMARY KEY CHECK (load_extension('x')))", "DROP TABLE jobs",
    "CREATE VIRTUAL TABLE jobs USING canary(x)", "CREATE TABLE jobs AS SELECT 1",
)  # fmt: skip


@functools.cache
def _seed() -> bytes:
    """A database with members in several states, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.db"
        with store_tools.fresh(path) as store:
            store_tools.add(store, "first")
            store_tools.add(store, "second", seeds=(1, 2))
            store_tools.register(store, "w1", "w2")
            [claim, *_] = store_tools.take(store, limit=2)
            store_tools.write(store, claim, 1)
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()
        return path.read_bytes()


def _make(rng: random.Random) -> bytes:
    data = _seed()
    how = rng.randrange(10)
    if how < 3:
        return bytes_mutated(rng, data)
    if how == 3:  # the header, which says how the rest is read
        return bytes_mutated(rng, data[:100], 1)[:100].ljust(100, b"\0") + data[100:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.db"
        path.write_bytes(data)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA synchronous = OFF")  # nobody misses it after a power cut
        try:
            _spoil(rng, connection, how)
            connection.commit()
        except sqlite3.Error:
            pass  # not every one of them fits every schema: what was done so far counts
        finally:
            connection.close()
        return path.read_bytes()


def _spoil(rng: random.Random, connection: sqlite3.Connection, how: int) -> None:
    if how == 4:
        connection.executescript(rng.choice(_SCHEMA))
        return
    if how == 5:
        connection.execute("PRAGMA writable_schema = ON")
        name = rng.choice(("jobs", "ensembles", "workers", "attempts", "epochs", "events"))
        text = rng.choice(_MASTER).replace("jobs", name)
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (text, name))
        return
    connection.execute("PRAGMA ignore_check_constraints = ON")
    tables = ["jobs", "jobs", "ensembles", "workers", "attempts", "epochs", "events"]
    for _ in range(rng.choice((1, 1, 2, 5))):
        table = rng.choice(tables)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        value = rng.choice(_VALUES)
        where = rng.choice(("", "", " WHERE rowid = 1"))
        connection.execute(f"UPDATE {table} SET {rng.choice(columns)} = ?{where}", (value,))


def _load(path: Path) -> None:
    """What `status`, `show` and `db check` read, and what they print."""
    from ensq.cli import show, status
    from ensq.cli.common import without_nan
    from ensq.progress import progress_lines

    problems = check(path)
    "\n".join(problems).encode()
    with Store.open(path, read_only=True) as store:
        for ensemble in store.ensembles():
            jobs = store.jobs(ensemble.id)
            view = status._View(store, ensemble)
            said = [*view.lines(""), json.dumps(without_nan(view.as_json()), allow_nan=False)]
            "\n".join(progress_lines(ensemble, jobs)).encode("utf-8", "backslashreplace")
            store.workers({job.owner for job in jobs if job.owner})
            store.counts(ensemble.id)
            store.fallbacks(ensemble.id)
            for job in jobs:
                one = show._View(store, job)
                said += [*one.lines(), json.dumps(without_nan(one.as_json()), allow_nan=False)]
                store.attempts(job.id)
                store.epochs(job.id)
                store.events_of(job.id)
                store.result(job.id)
            escaped("\n".join(said)).encode()
        store.living_workers()
        store.events()


def _prepare() -> None:
    _seed()


LOADERS = (Loader("database", ".db", _make, _load, _prepare),)
