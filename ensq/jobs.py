"""Plain values of the queue: what an ensemble, a job, an attempt and a worker are.

A *job* is one member of an ensemble: one seed to train. An *attempt* is one worker's try at a
job. The attempt number and the owner (a worker's id) fence every write: see ``ensq.store``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The states of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})

# From each state, the states that may follow it.
FOLLOWS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset({State.QUEUED, State.DONE, State.FAILED, State.CANCELLED}),
    State.DONE: frozenset(),
    State.FAILED: frozenset({State.QUEUED, State.CANCELLED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}


class Outcome(StrEnum):
    """How an attempt ended. Only ``FAILURE`` and ``CRASH`` count against a job."""

    DONE = "done"
    FAILURE = "failure"  # an exception, or a loss that is not finite
    CRASH = "crash"  # the trainer process died
    INTERRUPTED = "interrupted"  # signal, time limit, pre-emption
    LOST = "lost"  # the worker died or stopped renewing its lease
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A configuration and the data it is trained on; its jobs share both."""

    id: int
    name: str
    config: str  # the full configuration as canonical JSON
    config_digest: str  # SHA-256 of it
    data_path: str  # relative to the database's root folder where possible
    data_digest: str  # SHA-256 of the data file
    run_path: str  # the run folder, relative to the root folder
    created_at: float  # seconds since 1970, UTC


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified place to go on from."""

    path: str  # relative to the run folder
    digest: str  # SHA-256 of the file
    epoch: int  # epochs completed
    step: int  # gradient steps done in the epoch after that


@dataclass(frozen=True, kw_only=True)
class Job:
    """One member: a row of the queue."""

    id: int
    ensemble_id: int
    index: int  # place in the ensemble, 0 to n-1
    seed: int
    state: State
    attempt: int  # number of the present or last attempt; 0 before the first
    owner: str | None  # id of the worker that holds it
    lease_until: float | None
    epochs: int  # epochs in all
    epoch: int  # epochs completed and recorded
    train_loss: float | None
    val_loss: float | None
    best_epoch: int | None
    best_loss: float | None
    seconds_per_epoch: float | None
    checkpoint: Checkpoint | None
    previous_checkpoint: Checkpoint | None
    result_path: str | None  # relative to the run folder
    result_digest: str | None
    failures: int
    crashes: int
    interruptions: int
    error: str | None  # why it failed, one line
    updated_at: float


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The losses of one member in one epoch, as they are stored."""

    epoch: int  # 1 is the first
    train_loss: float
    val_loss: float
    val_rmse_force: float | None  # per component, in the data's units
    val_rmse_energy: float | None  # per bead, in the data's units
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished member leaves: losses of the parameters that are exported."""

    best_epoch: int
    best_loss: float
    final_loss: float  # of the last epoch's parameters
    path: str  # relative to the run folder
    digest: str


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """Who a worker is; enough to tell whether its process still lives on this host."""

    id: str
    host: str
    pid: int
    pid_start: str  # start time of the process, from /proc
    boot_id: str
    slurm_job: str | None
    device: str | None = None
    started_at: float = 0.0
    last_seen: float = 0.0
    ended_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One worker's try at one job."""

    job_id: int
    number: int
    worker_id: str
    started_at: float
    ended_at: float | None
    outcome: Outcome | None
    start_epoch: int
    end_epoch: int | None
    reason: str | None
    log_path: str | None  # relative to the run folder


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that a worker holds: the key of every fenced write."""

    job_id: int
    attempt: int
    owner: str
