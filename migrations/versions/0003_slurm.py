"""Who a worker is in SLURM, beside the label of its job, and what SLURM said last.

Workers that were registered before have only the label; the rest of them stays unknown.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_BEFORE = "slurm_job"
_IDENTITY = (
    ("slurm_cluster", sa.Text()),
    ("slurm_job_id", sa.Text()),
    ("slurm_step", sa.Text()),
    ("slurm_proc", sa.Text()),
    ("slurm_restarts", sa.Integer()),
    ("slurm_node", sa.Text()),
)


def upgrade() -> None:
    # pg_restore --clean of a copy from before an upgrade leaves tables that the copy lacks. All
    # that stands in these is asked again within a minute.
    op.execute("DROP TABLE IF EXISTS slurm_jobs")
    op.execute("DROP TABLE IF EXISTS slurm_clusters")
    _workers()
    _clusters()
    _jobs()


def _workers() -> None:
    # SQLite makes the table anew, with the columns in the order of a fresh one.
    anew = op.get_bind().dialect.name == "sqlite"
    with op.batch_alter_table("workers", recreate="always" if anew else "never") as workers:
        after = _BEFORE
        for name, kind in _IDENTITY:
            workers.add_column(sa.Column(name, kind), insert_after=after if anew else None)
            after = name


def _clusters() -> None:
    op.create_table(
        "slurm_clusters",
        sa.Column("cluster", sa.Text(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.Float(53), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("answered_at", sa.Float(53)),
        sa.PrimaryKeyConstraint("cluster", name="pk_slurm_clusters"),
    )


def _jobs() -> None:
    op.create_table(
        "slurm_jobs",
        sa.Column("cluster", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("node", sa.Text()),
        sa.Column("submitted_at", sa.Float(53)),
        sa.Column("seen_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("cluster", "label", "restarts", name="pk_slurm_jobs"),
        sa.ForeignKeyConstraint(
            ["cluster"], ["slurm_clusters.cluster"], name="fk_slurm_jobs_cluster"
        ),
    )
