"""Databases of earlier revisions for tests, and what is in a database of any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, func, inspect, select, text
from store_tools import Clock

from ensq import migrate
from ensq.store.engine import Database
from ensq.store.target import Target

FOLDER = Path(__file__).parent / "golden"
REVISIONS = ("0001", "0002", "0003", "0004")  # that were released
Tables = dict[str, list[dict[str, Any]]]


def golden_rows(revision: str) -> Tables:
    """The rows of a golden database, by table; parents before their children."""
    whole = json.loads((FOLDER / f"{revision}.json").read_text())
    assert whole["revision"] == revision
    tables: Tables = whole["tables"]
    return tables


def as_of_0002(wanted: Tables) -> None:
    """Make the rows of 0001 what the upgrade makes of them."""
    for job in wanted["jobs"]:
        running = job.pop("lease_until") is not None
        losses = {41: 1, 48: 2, 49: 1}.get(job["seed"], 0)
        job |= {
            "lease_seconds": 60.0 if running else None,
            "losses": losses,
            "interruptions": job["interruptions"] - losses,
            **dict.fromkeys(("beat", "not_before", "strikes", "stalls"), 0),
            "wish": None,
        }
    for attempt in wanted["attempts"]:
        ended = attempt["outcome"] is not None
        attempt |= {"start_step": 0, "end_step": 0 if ended else None, "log_tail": None}
    for worker in wanted["workers"]:
        worker |= {"lock_byte": None, "drain": 0}


def as_of_0003(wanted: Tables) -> None:
    """The same from 0002 on."""
    for worker in wanted["workers"]:
        names = ("cluster", "job_id", "step", "proc", "restarts", "node")
        worker |= {f"slurm_{name}": None for name in names}
    wanted |= {"slurm_clusters": [], "slurm_jobs": []}


def as_of_0004(wanted: Tables) -> None:
    """The same from 0003 on."""
    wanted["jobs"] = [job | {"pack": None} for job in wanted["jobs"]]
    wanted["probes"] = []


def as_of_0005(wanted: Tables) -> None:
    """The same from 0004 on."""
    wanted["jobs"] = [job | {"early": None, "exempt": 0} for job in wanted["jobs"]]
    wanted["epochs"] = [epoch | {"block_losses": None} for epoch in wanted["epochs"]]
    wanted["ensembles"] = [one | {"early_stopping": None} for one in wanted["ensembles"]]
    wanted["decisions"] = []


def place(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a database may be made: ``request.param`` is 'sqlite' or 'postgresql'."""
    monkeypatch.setenv("ENSQ_ROOT", str(folder))
    if request.param == "sqlite":
        return str(folder / "q.db")
    return str(request.getfixturevalue("empty_postgres"))


def golden(revision: str, url: str) -> str:
    """A golden database, on either engine."""
    if "://" in url:
        return golden_postgres(revision, url)
    return golden_sqlite(revision, Path(url))


def quickly(url: str | Path, **other: Any) -> str | None:
    """Upgrade with a clock that runs as fast as it is asked for: silent workers take no time."""
    clock = Clock(0.0)
    values: dict[str, Any] = {"monotonic": clock, "sleep": clock.move}
    return migrate.create_or_upgrade(url, **(values | other))


def golden_sqlite(revision: str, path: Path) -> str:
    """A copy of a golden database."""
    shutil.copy(FOLDER / f"{revision}.db", path)
    return str(path)


def golden_postgres(revision: str, url: str) -> str:
    """Fill an empty PostgreSQL database: the tables by the first migrations, and the rows."""
    target = Target.parse(url)
    database = Database(target)
    try:
        with database.write() as connection:
            migrate.upgrade(connection, target.where, revision)
            metadata = MetaData()
            metadata.reflect(connection)
            for name, rows in golden_rows(revision).items():
                table = metadata.tables[name]
                if not rows:
                    continue
                connection.execute(table.insert(), rows)
                if "id" in table.c and isinstance(rows[0]["id"], int):
                    counter = func.pg_get_serial_sequence(name, "id")
                    last = max(row["id"] for row in rows)
                    connection.execute(select(func.setval(counter, last)))
    finally:
        database.close()
    return url


def rows_of(url: str) -> Tables:
    """All that is in a database, ordered by primary key."""
    metadata = MetaData()
    database = Database(Target.parse(url))
    try:
        with database.read() as connection:
            metadata.reflect(connection)
            return {
                table.name: [
                    dict(row._mapping)
                    for row in connection.execute(select(table).order_by(*table.primary_key))
                ]
                for table in metadata.sorted_tables
            }
    finally:
        database.close()


def schema_of(url: str) -> dict[str, Any]:
    """Tables, columns, defaults, constraints and indexes, whatever their order."""
    database = Database(Target.parse(url))
    try:
        with database.read() as connection:
            inspector = inspect(connection)
            return {name: _shape(inspector, name) for name in inspector.get_table_names()}
    finally:
        database.close()


def execute(url: str, statement: str, **values: Any) -> int:
    """Run a statement in a transaction of its own; returns how many rows it changed."""
    database = Database(Target.parse(url), busy_timeout=0.1)
    try:
        with database.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = '100ms'"))
            return connection.execute(text(statement), values).rowcount
    finally:
        database.close()


def _shape(inspector: Any, name: str) -> dict[str, Any]:
    parts = {
        "columns": inspector.get_columns(name),
        "unique": inspector.get_unique_constraints(name),
        "checks": inspector.get_check_constraints(name),
        "foreign keys": inspector.get_foreign_keys(name),
        "indexes": inspector.get_indexes(name),
    }
    shape = {part: sorted(map(repr, found)) for part, found in parts.items()}
    return shape | {"primary key": repr(inspector.get_pk_constraint(name))}
