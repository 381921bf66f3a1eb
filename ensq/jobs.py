"""Plain values of the queue: what an ensemble, a job, an attempt and a worker are.

A *job* is one member of an ensemble: one seed to train. An *attempt* is one worker's try at a
job. The attempt number and the owner (a worker's id) fence every write: see ``ensq.store``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256


class State(StrEnum):
    """The states of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    HELD = "held"  # queued, but not to be claimed: a person said so
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})

# From each state, the states that may follow it.
FOLLOWS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.HELD, State.CANCELLED}),
    State.RUNNING: frozenset({State.QUEUED, State.HELD, State.DONE, State.FAILED, State.CANCELLED}),
    State.HELD: frozenset({State.QUEUED, State.CANCELLED}),
    State.DONE: frozenset({State.QUEUED}),  # if it was stopped early, and a person resumes it
    State.FAILED: frozenset({State.QUEUED, State.CANCELLED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}


class Outcome(StrEnum):
    """How an attempt ended; each kind is counted apart, see ``ensq.store.policy``."""

    DONE = "done"
    EARLY = "early"  # done before the last epoch, by a rule of early stopping
    FAILURE = "failure"  # an exception, or a loss that is not finite
    CRASH = "crash"  # the trainer process died, hung or ran out of memory
    LOST = "lost"  # the worker died or stopped renewing its lease
    INTERRUPTED = "interrupted"  # signal, time limit, pre-emption, drain, hold
    BLOCKED = "blocked"  # the host could not: disk full, no trainer; no fault of the job
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
    early_stopping: str | None = None  # the section as JSON, as it was enqueued last; None: off
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
    lease_seconds: float | None  # how long the owner may be silent
    beat: int  # counts the owner's signs of life; leases are judged by its changes, not by clocks
    not_before: float  # back-off: not claimed before this time (seconds since 1970); 0 for none
    wish: str | None  # what a person wants of a running job: 'hold'
    pack: str | None = None  # the members that it trains with, or last did, have the same
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
    # How often attempts ended so, since the job was queued or retried by a person:
    failures: int
    crashes: int
    losses: int  # of workers
    interruptions: int
    # In a row, without a new checkpoint in between:
    strikes: int  # crashes and losses
    stalls: int  # interruptions that nobody asked for
    early: str | None = None  # the rule that ended it before its last epoch, if it is done so
    exempt: bool = False  # resumed by a person after such an end: no rule stops it again
    error: str | None  # why it failed, one line
    updated_at: float

    @property
    def to_train(self) -> int:
        """Epochs in all that it is trained for: fewer once a rule has stopped it."""
        return self.epochs if self.early is None else self.epoch


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


class Verdict(StrEnum):
    """What came of a rule of early stopping that held."""

    REPORTED = "would stop"  # mode: report
    STOPPED = "stop"
    KEPT = "kept"  # no member may be stopped any more: ``min_members``


@dataclass(frozen=True, kw_only=True)
class Decision:
    """That a rule of early stopping held for a member, and by which numbers."""

    ensemble_id: int
    job_id: int
    rule: str  # sigma, paired or plateau
    verdict: Verdict
    attempt: int
    epoch: int  # at which the member stood
    evidence: str  # JSON; see ensq.early
    worker_id: str
    time: float


@dataclass(frozen=True, kw_only=True)
class EarlyEnd:
    """How a member ends before its last epoch."""

    rule: str
    epoch: int  # epochs that it has trained
    evidence: str  # JSON; '' where the decision is recorded already
    checkpoint: Checkpoint | None  # from which it can be resumed


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """Who a worker is; enough to tell whether its process still lives on this host."""

    id: str
    host: str
    pid: int
    pid_start: str  # start time of the process, from /proc
    boot_id: str
    slurm_job: str | None  # the label, as squeue prints it: 120_3
    slurm_cluster: str | None = None
    slurm_job_id: str | None = None  # the number that an element of an array has for itself
    slurm_step: str | None = None
    slurm_proc: str | None = None  # rank of the task in its step
    slurm_restarts: int | None = None  # 0 in the first run; a requeued job keeps its id
    slurm_node: str | None = None
    device: str | None = None
    lock_byte: int | None = None  # the byte that it holds in the lock file; see ensq.store.locks
    drain: bool = False  # asked to finish its epoch and leave
    started_at: float = 0.0
    last_seen: float = 0.0
    ended_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What SLURM said last of one run of a job. Advice, never proof."""

    cluster: str  # '' where its name is unknown
    label: str  # as squeue prints it: 123 or 120_3
    restarts: int  # which run
    job_id: str
    name: str
    state: str  # in SLURM's words: RUNNING, PENDING, NODE_FAIL, …
    reason: str | None  # why it waits
    node: str | None
    submitted_at: float | None  # by the clock of SLURM's controller
    seen_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """When SLURM was asked last about the jobs of a cluster, and when it answered."""

    cluster: str
    turn: int  # counts the questions
    asked_at: float
    asked_by: str  # id of a worker, or another text
    answered_at: float | None


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
    start_step: int
    end_epoch: int | None  # epochs completed and recorded
    end_step: int | None  # of the checkpoint, if it lies after these
    reason: str | None
    log_path: str | None  # relative to the run folder
    log_tail: str | None  # the last lines of the log, if it failed or crashed


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that a worker holds: the key of every fenced write."""

    job_id: int
    attempt: int
    owner: str


@dataclass(frozen=True, kw_only=True)
class ProbeKey:
    """What the best size of a pack depends on."""

    model: str  # digest of what decides the work of a step
    shape: str  # of the data, in words
    device: str  # its kind and memory
    versions: str  # of JAX and of the packages around it

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        return sha256(repr(tuple(vars(self).values())).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """What a pack of one size took."""

    members: int
    seconds: float  # per step and member
    bytes: int | None  # of the device's memory at its peak; None if the device does not say


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Measured: how many members train together at best."""

    key: ProbeKey
    size: int
    most: int  # members that there were; more were not tried
    rows: tuple[ProbeRow, ...]
    worker: str  # id of the one that measured
