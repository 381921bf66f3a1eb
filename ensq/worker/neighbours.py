"""The other hosts on this database: do file locks reach them?"""

from __future__ import annotations

from functools import partial

from ensq.errors import DatabaseError
from ensq.store import LockProbe, OtherWorker, Store
from ensq.store.filesystem import journal_for, postgresql_recipe
from ensq.store.locks import is_free
from ensq.store.process import is_here


class Neighbours:
    """Watches for the proof that locks don't propagate: then the file must not be shared.

    A worker of another host whose byte reads as free from here, and which gives a sign of life
    after that, holds a lock that does not reach this host. SQLite's own locks don't, either.
    """

    def __init__(self, store: Store, worker_id: str) -> None:
        self._store = store
        self._id = worker_id
        self._probe = LockProbe(partial(is_free, store.target))
        path = store.target.path
        # On a file system of this host alone there are no other hosts.
        self._shared = path is not None and journal_for(path) != "wal"

    def require_locks(self) -> None:
        """Look again. Raises DatabaseError, with what to do, if locks are known not to hold."""
        if not self._shared:
            return
        others = [
            OtherWorker(worker.id, worker.host, worker.lock_byte, worker.last_seen)
            for worker in self._store.living_workers()
            if worker.lock_byte is not None and worker.id != self._id and not is_here(worker)
        ]
        broken = self._probe.broken(others)
        if broken is not None:
            raise DatabaseError(f"{self._store.where}: {broken}.\n{postgresql_recipe()}")
