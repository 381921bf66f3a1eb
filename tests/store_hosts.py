"""Hosts for the tests of the store that let several of them meet, and what they write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import store_tools as tools
from sqlalchemy import Connection, delete, select, text
from store_model import COUNTS, Member

from ensq import schema
from ensq.jobs import Checkpoint, EpochRecord, Job, Result, WorkerInfo
from ensq.store.engine import Database
from ensq.store.target import Target

HOSTS = ("a", "b", "c")


class Host(tools.HandStore):
    """The store of one host, and the worker that runs there."""

    worker: str
    gone: set[str]
    twice = False

    def is_gone(self, worker: WorkerInfo) -> bool:
        return worker.id in self.gone

    def _write(self, work: Callable[[Connection, float], Any]) -> Any:
        if self.twice:
            super()._write(work)  # carried out, and the answer is lost
        return super()._write(work)


@contextmanager
def databases(url: str) -> Iterator[list[Database]]:
    """A connection of its own for each host; they outlive the examples."""
    opened = [Database(Target.parse(url)) for _ in HOSTS]
    try:
        yield opened
    finally:
        for database in opened:
            database.close()


def empty(database: Database) -> None:
    """Delete all rows; the next ones are numbered from 1."""
    tables = schema.metadata.sorted_tables
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            names = ", ".join(table.name for table in tables)
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
            return
        for table in reversed(tables):
            connection.execute(delete(table))


def loss(attempt: int, epoch: int) -> float:
    """So that it shows who computed it."""
    return attempt + epoch / 1000


def record(epoch: int, value: float) -> EpochRecord:
    return tools.record(epoch, value)


def checkpoint(attempt: int, epoch: int, step: int = 0) -> Checkpoint:
    return Checkpoint(path=f"attempt-{attempt}/{epoch}-{step}", digest="d", epoch=epoch, step=step)


def result(attempt: int) -> Result:
    return Result(best_epoch=1, best_loss=0.5, final_loss=1.0, path="r", digest=f"r{attempt}")


def records(losses: Sequence[float]) -> list[EpochRecord]:
    return [record(epoch, value) for epoch, value in enumerate(losses, start=1)]


def same_row(row: Any, member: Member) -> None:
    """That a job's row says what the model does."""
    assert (row.seed, row.state, row.attempt) == (member.seed, member.state, member.attempt)
    assert (row.owner, row.wish, row.epoch) == (member.owner, member.wish, member.epoch)
    assert {name: getattr(row, name) for name in COUNTS} == {
        name: member.counts[name] for name in COUNTS
    }
    for prefix, expected in (("checkpoint", member.checkpoint), ("previous", member.previous)):
        path, *place = (getattr(row, f"{prefix}_{part}") for part in ("path", "epoch", "step"))
        wanted = (expected.path, expected.epoch, expected.step) if expected else (None, 0, 0)
        assert (path, *place) == wanted
    if member.losses:
        assert row.val_loss == member.losses[-1][0]


def same_job(job: Job, member: Member) -> None:
    """That a claim's answer says what the model does."""
    assert (job.attempt, job.owner, job.epoch) == (member.attempt, member.owner, member.epoch)
    assert (job.checkpoint, job.previous_checkpoint) == (member.checkpoint, member.previous)


def all_rows(database: Database) -> list[Sequence[Any]]:
    """The rows of jobs, attempts and epochs, in order."""
    with database.read() as connection:
        return [
            connection.execute(select(table).order_by(*table.primary_key)).all()
            for table in (schema.jobs, schema.attempts, schema.epochs)
        ]


def packs(ids: Sequence[object]) -> list[int | None]:
    """For each member the first one of its pack; None without one."""
    return [None if one is None else ids.index(one) for one in ids]
