"""Early stopping: losses by blocks of validation frames, decisions, and members that ended by one.

Losses that were recorded before have no blocks; ensembles from before stop nobody until they are
enqueued again with a section that says so.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # As in 0003: a copy from before an upgrade, brought back, leaves this table.
    op.execute("DROP TABLE IF EXISTS decisions")
    anew = op.get_bind().dialect.name == "sqlite"
    _add("ensembles", anew, ("run_path", sa.Column("early_stopping", sa.Text())))
    _jobs(anew)
    _epochs(anew)
    _decisions()


def _add(table: str, anew: bool, *columns: tuple[str, sa.Column[Any]], **how: Any) -> None:
    """Add columns, each after another; SQLite makes the table anew, as a fresh one is."""
    with op.batch_alter_table(table, recreate="always" if anew else "never", **how) as changed:
        for after, column in columns:
            changed.add_column(column, insert_after=after if anew else None)


def _jobs(anew: bool) -> None:
    # SQLite tells not of an index which of its columns descend: it is made anew, not copied.
    if anew:
        op.drop_index("ix_jobs_queue", "jobs")
    with op.batch_alter_table("jobs", recreate="always" if anew else "never") as jobs:
        jobs.add_column(sa.Column("early", sa.Text()), insert_after="stalls" if anew else None)
        exempt = sa.Column("exempt", sa.Integer(), nullable=False, server_default="0")
        jobs.add_column(exempt, insert_after="early" if anew else None)
        jobs.create_check_constraint(op.f("ck_jobs_early"), "early IS NULL OR state = 'done'")
    if anew:
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


def _epochs(anew: bool) -> None:
    # Reflection does not tell that the rows of one job lie together.
    how = {"table_kwargs": {"sqlite_with_rowid": False}} if anew else {}
    _add("epochs", anew, ("seconds", sa.Column("block_losses", sa.LargeBinary())), **how)


def _decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("ensemble_id", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("time", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "rule", "verdict", name="pk_decisions"),
        sa.CheckConstraint(
            "verdict IN ('would stop', 'stop', 'kept')", name=op.f("ck_decisions_verdict")
        ),
    )
    op.create_index("ix_decisions_ensemble_id", "decisions", ["ensemble_id"])
