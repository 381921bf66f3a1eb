"""The tables of ensq's database and the revision of this schema.

The one description of the tables: a fresh database is made from it, and the migrations in
``migrations/`` must lead to the same. Tables and columns hold on SQLite and PostgreSQL alike.
Times are seconds since 1970 (UTC), digests SHA-256 in hexadecimal.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from ensq.jobs import State, Verdict

# Four digits that count up, so that older and newer can be told apart without Alembic.
REVISION = "0005"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Alembic's own table; apart from the rest, since migrations don't make it.
version_metadata = MetaData()
alembic_version = Table(
    "alembic_version",
    version_metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

ensembles = Table(
    "ensembles",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("config", Text, nullable=False),
    Column("config_digest", Text, nullable=False),
    Column("data_path", Text, nullable=False),
    Column("data_digest", Text, nullable=False),
    Column("run_path", Text, nullable=False),
    # The section of the configuration as JSON, as it was enqueued last; NULL: no early stopping.
    Column("early_stopping", Text),
    Column("created_at", Float(53), nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pid_start", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    # Who the worker is in SLURM; first the label, as squeue prints it (120_3). A requeued job keeps
    # it, and its number, so only the count of restarts tells one run from the next.
    Column("slurm_job", Text),
    Column("slurm_cluster", Text),
    Column("slurm_job_id", Text),
    Column("slurm_step", Text),
    Column("slurm_proc", Text),
    Column("slurm_restarts", Integer),
    Column("slurm_node", Text),
    Column("device", Text),
    Column("lock_byte", BigInteger),
    Column("drain", Integer, nullable=False, server_default="0"),
    Column("started_at", Float(53), nullable=False),
    Column("last_seen", Float(53), nullable=False),
    Column("ended_at", Float(53)),
)

_STATES = ", ".join(f"'{state.value}'" for state in State)
_VERDICTS = ", ".join(f"'{verdict.value}'" for verdict in Verdict)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("ensemble_id", Integer, ForeignKey("ensembles.id"), nullable=False),
    Column("position", Integer, nullable=False),  # jobs.Job.index; "index" is a word of SQL
    Column("seed", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("owner", Text, ForeignKey("workers.id")),
    Column("lease_seconds", Float(53)),
    Column("beat", Integer, nullable=False, server_default="0"),
    Column("not_before", Float(53), nullable=False, server_default="0"),
    Column("wish", Text),
    # The claim of several members that it was last part of: with its checkpoint it goes on with
    # those only, since the bits of a training depend on who trains together.
    Column("pack", Text),
    Column("epochs", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("train_loss", Float(53)),
    Column("val_loss", Float(53)),
    Column("best_epoch", Integer),
    Column("best_loss", Float(53)),
    Column("seconds_per_epoch", Float(53)),
    # Without a checkpoint the path is NULL and the place is (0, 0): never NULL, so that the place
    # can be compared and indexed as it stands.
    Column("checkpoint_path", Text),
    Column("checkpoint_digest", Text),
    Column("checkpoint_epoch", Integer, nullable=False),
    Column("checkpoint_step", Integer, nullable=False),
    Column("previous_path", Text),
    Column("previous_digest", Text),
    Column("previous_epoch", Integer, nullable=False),
    Column("previous_step", Integer, nullable=False),
    Column("result_path", Text),
    Column("result_digest", Text),
    Column("final_loss", Float(53)),
    Column("failures", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("losses", Integer, nullable=False, server_default="0"),
    Column("interruptions", Integer, nullable=False),
    Column("strikes", Integer, nullable=False, server_default="0"),
    Column("stalls", Integer, nullable=False, server_default="0"),
    # The rule that ended a member before its last epoch: it is done, with the epochs that it has.
    Column("early", Text),
    # Resumed by a person after such an end: no rule stops it again.
    Column("exempt", Integer, nullable=False, server_default="0"),
    Column("error", Text),
    Column("updated_at", Float(53), nullable=False),
    UniqueConstraint("ensemble_id", "seed"),
    UniqueConstraint("ensemble_id", "position"),
    CheckConstraint(f"state IN ({_STATES})", name="state"),
    # A job is held by a worker, with a lease, exactly while it runs.
    CheckConstraint("(state = 'running') = (owner IS NOT NULL)", name="owner"),
    CheckConstraint("(owner IS NULL) = (lease_seconds IS NULL)", name="lease"),
    CheckConstraint("state <> 'done' OR result_path IS NOT NULL", name="result"),
    CheckConstraint("early IS NULL OR state = 'done'", name="early"),
)

# The order in which claims look at the queue; see ensq.store.claims.
Index(
    "ix_jobs_queue",
    jobs.c.state,
    jobs.c.ensemble_id,
    jobs.c.checkpoint_epoch.desc(),
    jobs.c.checkpoint_step.desc(),
    jobs.c.position,
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Integer, ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", Text, ForeignKey("workers.id"), nullable=False),
    Column("started_at", Float(53), nullable=False),
    Column("ended_at", Float(53)),
    Column("outcome", Text),
    Column("start_epoch", Integer, nullable=False),
    Column("start_step", Integer, nullable=False, server_default="0"),
    Column("end_epoch", Integer),
    Column("end_step", Integer),
    Column("reason", Text),
    Column("log_path", Text),
    Column("log_tail", Text),
    CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
)

# Losses that are not a number are stored as NULL: SQLite has no other way.
epochs = Table(
    "epochs",
    metadata,
    Column("job_id", Integer, ForeignKey("jobs.id"), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("train_loss", Float(53)),
    Column("val_loss", Float(53)),
    Column("val_rmse_force", Float(53)),
    Column("val_rmse_energy", Float(53)),
    Column("learning_rate", Float(53), nullable=False),
    Column("seconds", Float(53), nullable=False),
    # Float64 in little-endian order: the validation loss by blocks of frames, whose mean it is.
    Column("block_losses", LargeBinary),
    CheckConstraint("epoch >= 1", name="epoch"),
    sqlite_with_rowid=False,  # rows of one job lie together
)

# What a rule of early stopping found, once for each verdict; see ensq.store.early. Without foreign
# keys, as all tables that came later: they would forbid to bring back a copy from before.
decisions = Table(
    "decisions",
    metadata,
    Column("job_id", Integer, primary_key=True, autoincrement=False),
    Column("rule", Text, primary_key=True),
    Column("verdict", Text, primary_key=True),
    Column("ensemble_id", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),  # at which the member stood
    Column("evidence", Text, nullable=False),  # JSON
    Column("worker_id", Text, nullable=False),
    Column("time", Float(53), nullable=False),
    CheckConstraint(f"verdict IN ({_VERDICTS})", name="verdict"),
    Index(None, "ensemble_id"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("time", Float(53), nullable=False),
    Column("ensemble_id", Integer, ForeignKey("ensembles.id")),
    Column("job_id", Integer, ForeignKey("jobs.id")),
    Column("attempt", Integer),
    Column("worker_id", Text),
    Column("kind", Text, nullable=False),
    Column("message", Text, nullable=False),
    Index(None, "ensemble_id", "id"),
)

# Who asks SLURM about the jobs of a cluster: whoever moves ``turn`` on; see ensq.store.evidence.
slurm_clusters = Table(
    "slurm_clusters",
    metadata,
    Column("cluster", Text, primary_key=True),  # '' where its name is unknown
    Column("turn", Integer, nullable=False),
    Column("asked_at", Float(53), nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("answered_at", Float(53)),
)

# What SLURM said last of each run of a job. Advice for people: no rule of the queue reads it.
slurm_jobs = Table(
    "slurm_jobs",
    metadata,
    Column("cluster", Text, ForeignKey("slurm_clusters.cluster"), primary_key=True),
    Column("label", Text, primary_key=True),
    Column("restarts", Integer, primary_key=True, autoincrement=False),
    Column("job_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("node", Text),
    Column("submitted_at", Float(53)),
    Column("seen_at", Float(53), nullable=False),
)

# How many members a device trains together at best, as it was measured; see ensq.worker.packing.
probes = Table(
    "probes",
    metadata,
    Column("key", Text, primary_key=True),  # SHA-256 of the four parts that follow
    Column("model", Text, nullable=False),  # digest of what decides the work of a step
    Column("shape", Text, nullable=False),  # of the data
    Column("device", Text, nullable=False),
    Column("versions", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("most", Integer, nullable=False),  # members there were: more were not tried
    Column("rows", Text, nullable=False),  # JSON: members, seconds per member-step, bytes
    Column("worker", Text, nullable=False),
    Column("made_at", Float(53), nullable=False),
    CheckConstraint("size BETWEEN 1 AND most", name="size"),
)

# What every ensq database has had and will have: how one of ensq's is told from a stranger's.
LANDMARKS = frozenset({"ensembles", "jobs", "attempts", "alembic_version"})
