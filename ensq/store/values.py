"""Values that only the store makes: what was added, and what happened when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ensq.jobs import Checkpoint, Claim, Ensemble, EpochRecord

# A job that failed (or crashed) this often is not tried again.
MAX_FAILURES = 3


class EventKind(StrEnum):
    """What happened: each change of a job's state has a kind of its own."""

    ADDED = "added"  # queued for the first time
    CLAIMED = "claimed"  # queued -> running
    DONE = "done"  # running -> done
    INTERRUPTED = "interrupted"  # running -> queued, given back
    LOST = "lost"  # running -> queued, taken from a worker that died or fell silent
    REQUEUED = "requeued"  # running -> queued after a failure
    FAILED = "failed"  # running -> failed
    CANCELLED = "cancelled"  # any but done -> cancelled
    RETRIED = "retried"  # failed or cancelled -> queued
    FELL_BACK = "fell_back"  # a checkpoint was damaged, the one before is used
    WORKER_STARTED = "worker_started"
    WORKER_ENDED = "worker_ended"


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


class EpochWrite(NamedTuple):
    """One member's part of an epoch's transaction."""

    claim: Claim
    record: EpochRecord
    best_epoch: int | None
    best_loss: float | None
    checkpoint: Checkpoint | None
