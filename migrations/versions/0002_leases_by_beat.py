"""Leases by signs of life instead of times; losses counted apart; holding, back-off, places.

In 0001 a lost worker was counted as an interruption of its jobs. Which of the counted ones were
losses is in the attempts: ``jobs.interruptions`` counted the last so many attempts that ended
'interrupted' or 'lost' (a retry by a person began again at 0, while the attempts stayed).
Strikes and stalls begin at 0: nothing was noted of them, and too few harm nobody.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What workers of 0001 had unless told otherwise. Whoever runs now is dead, or this would not run.
LEASE_SECONDS = 60.0


def upgrade() -> None:
    _workers()
    _jobs()
    _attempts()
    _values()


def _changes(table: str) -> AbstractContextManager[BatchOperations]:
    """Changes of a table; SQLite makes it anew, with the columns in the order of a fresh one."""
    anew = op.get_bind().dialect.name == "sqlite"
    return op.batch_alter_table(table, recreate="always" if anew else "never")


def _add(table: BatchOperations, column: sa.Column[Any], after: str) -> None:
    """Add a column; where the table isn't made anew, it comes last instead."""
    anew = op.get_bind().dialect.name == "sqlite"
    table.add_column(column, insert_after=after if anew else None)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False, server_default="0")


def _workers() -> None:
    with _changes("workers") as workers:
        _add(workers, sa.Column("lock_byte", sa.BigInteger()), "device")
        _add(workers, _count("drain"), "lock_byte")


def _jobs() -> None:
    # SQLite tells not of an index which of its columns descend: it is made anew, not copied.
    op.drop_index("ix_jobs_queue", "jobs")
    with _changes("jobs") as jobs:
        jobs.drop_constraint(op.f("ck_jobs_state"), type_="check")
        jobs.drop_constraint(op.f("ck_jobs_lease"), type_="check")
        jobs.alter_column("lease_until", new_column_name="lease_seconds")
        _add(jobs, _count("beat"), "lease_until")  # by its old name
        not_before = sa.Column("not_before", sa.Float(53), nullable=False, server_default="0")
        _add(jobs, not_before, "beat")
        _add(jobs, sa.Column("wish", sa.Text()), "not_before")
        _add(jobs, _count("losses"), "crashes")
        _add(jobs, _count("strikes"), "interruptions")
        _add(jobs, _count("stalls"), "strikes")
        jobs.create_check_constraint(
            op.f("ck_jobs_state"),
            "state IN ('queued', 'running', 'held', 'done', 'failed', 'cancelled')",
        )
        jobs.create_check_constraint(
            op.f("ck_jobs_lease"), "(owner IS NULL) = (lease_seconds IS NULL)"
        )
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        [
            "state",
            "ensemble_id",
            sa.text("checkpoint_epoch DESC"),
            sa.text("checkpoint_step DESC"),
            "position",
        ],
    )


def _attempts() -> None:
    with _changes("attempts") as attempts:
        _add(attempts, _count("start_step"), "start_epoch")
        _add(attempts, sa.Column("end_step", sa.Integer()), "end_epoch")
        _add(attempts, sa.Column("log_tail", sa.Text()), "log_path")


def _values() -> None:
    op.execute(f"UPDATE jobs SET lease_seconds = {LEASE_SECONDS} WHERE lease_seconds IS NOT NULL")
    op.execute("UPDATE attempts SET end_step = 0 WHERE end_epoch IS NOT NULL")
    op.execute(
        """
        UPDATE jobs SET losses = (
            SELECT count(*) FROM (
                SELECT outcome, row_number() OVER (ORDER BY number DESC) AS place
                FROM attempts WHERE job_id = jobs.id AND outcome IN ('interrupted', 'lost')
            ) AS ended
            WHERE place <= jobs.interruptions AND outcome = 'lost'
        )
        """
    )
    op.execute("UPDATE jobs SET interruptions = interruptions - losses")
