"""A database with the table ``notes`` of numbers, for transactions that meet trouble."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ensq.store.engine import Database
from ensq.store.target import Target


@contextmanager
def opened(url: str | Path, **options: Any) -> Iterator[Database]:
    database = Database(Target.parse(url), **options)
    try:
        yield database
    finally:
        database.close()


def add(connection: Connection, n: int = 1) -> None:
    """Add a number; twice is the same as once."""
    connection.exec_driver_sql(f"INSERT INTO notes VALUES ({n}) ON CONFLICT (n) DO NOTHING")


def numbers(database: Database) -> list[int]:
    with database.read() as connection:
        return sorted(connection.exec_driver_sql("SELECT n FROM notes").scalars())
