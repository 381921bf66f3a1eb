"""The store: every SQL statement of ensq. Start with ``Store.open``."""

from ensq.store.checks import check
from ensq.store.process import is_gone, worker_info
from ensq.store.store import Store
from ensq.store.values import MAX_FAILURES, Added, EpochWrite, Event, EventKind

__all__ = [
    "MAX_FAILURES",
    "Added",
    "EpochWrite",
    "Event",
    "EventKind",
    "Store",
    "check",
    "is_gone",
    "worker_info",
]
