"""Values that only the store makes: what was added, and what happened when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ensq.jobs import Checkpoint, Claim, Ensemble, EpochRecord, Job, SlurmCluster, SlurmJob, State


class EventKind(StrEnum):
    """What happened: each change of a job's state has a kind of its own."""

    ADDED = "added"  # queued for the first time
    CLAIMED = "claimed"  # queued -> running
    DONE = "done"  # running -> done, early ones too
    INTERRUPTED = "interrupted"  # running -> queued or held, given back
    BLOCKED = "blocked"  # the same, since the host could not work
    LOST = "lost"  # running -> queued, taken from a worker that died or fell silent
    REQUEUED = "requeued"  # running -> queued after a failure or crash
    FAILED = "failed"  # running -> failed
    HELD = "held"  # queued -> held, or wished of a running one
    UNHELD = "unheld"  # held -> queued, or the wish taken back
    CANCELLED = "cancelled"  # any but done -> cancelled
    RETRIED = "retried"  # failed or cancelled -> queued
    FELL_BACK = "fell_back"  # a checkpoint was damaged, the one before is used
    ADOPTED = "adopted"  # a checkpoint or result that was never recorded is used
    DECIDED = "decided"  # a rule of early stopping holds for a member
    RESUMED = "resumed"  # done early -> queued
    SETTINGS = "settings"  # of an ensemble, as what stops its members
    DRAINED = "drained"  # a worker was asked to leave
    WORKER_STARTED = "worker_started"
    WORKER_ENDED = "worker_ended"


class Tally(NamedTuple):
    """The members of one ensemble that are in one state."""

    state: State
    members: int
    epoch: int  # epochs that they have completed, together
    epochs: int  # epochs that they are to train
    best_loss: float | None


class Standing(NamedTuple):
    """How far an ensemble is."""

    name: str
    tallies: tuple[Tally, ...]

    @property
    def members(self) -> int:
        return sum(tally.members for tally in self.tallies)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the history."""

    id: int
    time: float
    ensemble_id: int | None
    job_id: int | None
    attempt: int | None
    worker_id: str | None
    kind: EventKind
    message: str


@dataclass(frozen=True, kw_only=True)
class Added:
    """What ``add_ensemble`` did: seeds that are new, and seeds that were there before."""

    ensemble: Ensemble
    new_seeds: tuple[int, ...]
    existing_seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reaped:
    """A job that was taken back from a lost worker."""

    claim: Claim
    ensemble_id: int
    seed: int
    state: State
    reason: str


class Renewal(NamedTuple):
    """What a worker learns when it renews its leases."""

    held: list[Claim]  # those of the claims that still hold
    hold: frozenset[int]  # jobs among them that a person wants held
    drain: bool  # a person wants the worker to finish its epoch and leave


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a worker without work can expect."""

    claimable: int  # queued members that may be claimed now
    due_in: float | None  # seconds until the first pause after a failure ends; None without one
    running: int  # held by any worker
    unsure: tuple[Job, ...]  # running ones whose worker gave no sign of life yet since we look
    lost: int  # running ones whose worker is known to be lost: a claim takes them back

    @property
    def open(self) -> int:
        """Members that are not ended and not held back by a person."""
        return self.claimable + (self.due_in is not None) + self.running


class EpochWrite(NamedTuple):
    """One member's part of an epoch's transaction."""

    claim: Claim
    record: EpochRecord
    best_epoch: int | None
    best_loss: float | None
    checkpoint: Checkpoint | None
    blocks: Sequence[float] | None = None  # the validation loss by blocks of frames


class EarlyMember(NamedTuple):
    """Where a member stands, for rules that compare it with others."""

    job_id: int
    seed: int
    epoch: int  # epochs completed and recorded
    epochs: int
    exempt: bool  # a person wants it trained to the end
    stopped: bool  # a rule that compares took it from its ensemble
    gone: bool  # failed or cancelled, as it stands: nobody is compared with it

    @property
    def left(self) -> bool:
        """Whether it is one of those of which ``min_members`` are never stopped."""
        return not (self.stopped or self.gone)


class EarlyView(NamedTuple):
    """What is known of an ensemble before losses are read."""

    settings: str | None  # the section early_stopping in force, as JSON
    members: tuple[EarlyMember, ...]


class SlurmSaid(NamedTuple):
    """What SLURM said last of jobs, and when it was asked about each cluster."""

    clusters: list[SlurmCluster]
    jobs: list[SlurmJob]


class Run(NamedTuple):
    """A run of a SLURM job that a worker is part of."""

    label: str
    restarts: int | None  # None where the worker doesn't know
