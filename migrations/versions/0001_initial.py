"""The first schema: ensembles, workers, jobs, attempts, epochs, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _ensembles()
    _workers()
    _jobs()
    _attempts()
    _epochs()
    _events()


def _ensembles() -> None:
    op.create_table(
        "ensembles",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("config_digest", sa.Text(), nullable=False),
        sa.Column("data_path", sa.Text(), nullable=False),
        sa.Column("data_digest", sa.Text(), nullable=False),
        sa.Column("run_path", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ensembles"),
        sa.UniqueConstraint("name", name="uq_ensembles_name"),
    )


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("pid_start", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("slurm_job", sa.Text()),
        sa.Column("device", sa.Text()),
        sa.Column("started_at", sa.Float(53), nullable=False),
        sa.Column("last_seen", sa.Float(53), nullable=False),
        sa.Column("ended_at", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("ensemble_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("lease_until", sa.Float(53)),
        sa.Column("epochs", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("train_loss", sa.Float(53)),
        sa.Column("val_loss", sa.Float(53)),
        sa.Column("best_epoch", sa.Integer()),
        sa.Column("best_loss", sa.Float(53)),
        sa.Column("seconds_per_epoch", sa.Float(53)),
        sa.Column("checkpoint_path", sa.Text()),
        sa.Column("checkpoint_digest", sa.Text()),
        sa.Column("checkpoint_epoch", sa.Integer(), nullable=False),
        sa.Column("checkpoint_step", sa.Integer(), nullable=False),
        sa.Column("previous_path", sa.Text()),
        sa.Column("previous_digest", sa.Text()),
        sa.Column("previous_epoch", sa.Integer(), nullable=False),
        sa.Column("previous_step", sa.Integer(), nullable=False),
        sa.Column("result_path", sa.Text()),
        sa.Column("result_digest", sa.Text()),
        sa.Column("final_loss", sa.Float(53)),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("updated_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("ensemble_id", "seed", name="uq_jobs_ensemble_id_seed"),
        sa.UniqueConstraint("ensemble_id", "position", name="uq_jobs_ensemble_id_position"),
        sa.ForeignKeyConstraint(["ensemble_id"], ["ensembles.id"], name="fk_jobs_ensemble_id"),
        sa.ForeignKeyConstraint(["owner"], ["workers.id"], name="fk_jobs_owner"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'done', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("(state = 'running') = (owner IS NOT NULL)", name=op.f("ck_jobs_owner")),
        sa.CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_jobs_lease")),
        sa.CheckConstraint(
            "state <> 'done' OR result_path IS NOT NULL", name=op.f("ck_jobs_result")
        ),
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
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Float(53), nullable=False),
        sa.Column("ended_at", sa.Float(53)),
        sa.Column("outcome", sa.Text()),
        sa.Column("start_epoch", sa.Integer(), nullable=False),
        sa.Column("end_epoch", sa.Integer()),
        sa.Column("reason", sa.Text()),
        sa.Column("log_path", sa.Text()),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_attempts_job_id"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="fk_attempts_worker_id"),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (outcome IS NULL)", name=op.f("ck_attempts_ended")
        ),
    )


def _epochs() -> None:
    op.create_table(
        "epochs",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("train_loss", sa.Float(53)),
        sa.Column("val_loss", sa.Float(53)),
        sa.Column("val_rmse_force", sa.Float(53)),
        sa.Column("val_rmse_energy", sa.Float(53)),
        sa.Column("learning_rate", sa.Float(53), nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "epoch", name="pk_epochs"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_epochs_job_id"),
        sa.CheckConstraint("epoch >= 1", name=op.f("ck_epochs_epoch")),
        sqlite_with_rowid=False,
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("time", sa.Float(53), nullable=False),
        sa.Column("ensemble_id", sa.Integer()),
        sa.Column("job_id", sa.Integer()),
        sa.Column("attempt", sa.Integer()),
        sa.Column("worker_id", sa.Text()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.ForeignKeyConstraint(["ensemble_id"], ["ensembles.id"], name="fk_events_ensemble_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_events_job_id"),
    )
    op.create_index("ix_events_ensemble_id_id", "events", ["ensemble_id", "id"])
