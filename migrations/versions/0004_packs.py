"""Members that train together are claimed together again; how many at best is remembered.

Which members trained together before is unknown: those that wait with a checkpoint are free.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # As in 0003: a copy from before an upgrade, brought back, leaves this table.
    op.execute("DROP TABLE IF EXISTS probes")
    _jobs()
    _probes()


def _jobs() -> None:
    # SQLite makes the table anew, with the columns in the order of a fresh one; the index is made
    # by hand then, since SQLite tells not which of its columns descend.
    anew = op.get_bind().dialect.name == "sqlite"
    if anew:
        op.drop_index("ix_jobs_queue", "jobs")
    with op.batch_alter_table("jobs", recreate="always" if anew else "never") as jobs:
        jobs.add_column(sa.Column("pack", sa.Text()), insert_after="wish" if anew else None)
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


def _probes() -> None:
    op.create_table(
        "probes",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("shape", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("made_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_probes"),
        sa.CheckConstraint("size BETWEEN 1 AND most", name=op.f("ck_probes_size")),
    )
