"""The store: every SQL statement of ensq. Start with ``Store.open``."""

from ensq.store.checks import check, check_files
from ensq.store.locks import LockProbe, OtherWorker, WorkerLock
from ensq.store.policy import Policy
from ensq.store.process import is_gone, worker_info
from ensq.store.store import Store
from ensq.store.values import (
    Added,
    EarlyMember,
    EarlyView,
    EpochWrite,
    Event,
    EventKind,
    Outlook,
    Reaped,
    Renewal,
    SlurmSaid,
    Standing,
)

__all__ = [
    "Added",
    "EarlyMember",
    "EarlyView",
    "EpochWrite",
    "Event",
    "EventKind",
    "LockProbe",
    "OtherWorker",
    "Outlook",
    "Policy",
    "Reaped",
    "Renewal",
    "SlurmSaid",
    "Standing",
    "Store",
    "WorkerLock",
    "check",
    "check_files",
    "is_gone",
    "worker_info",
]
