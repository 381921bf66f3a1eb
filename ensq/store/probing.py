"""What a worker asks of the queue to find out how many members it trains together."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable

from sqlalchemy import Connection, delete, insert, select

from ensq.errors import DatabaseError
from ensq.jobs import Claim, Probe, ProbeKey, ProbeRow
from ensq.schema import probes
from ensq.store import packs
from ensq.store.asking import Asking
from ensq.store.engine import Database
from ensq.store.policy import Policy
from ensq.store.strict import made


class Probing(Asking):
    """Members that could join a pack, and probes: measured by one worker, known to all."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        policy: Policy,
    ) -> None:
        super().__init__(database, clock, monotonic)
        self.policy = policy

    def could_join(self, head: Claim) -> int:
        """How many members a claim beside ``head`` would take: its fair share of them.

        0 if ``head`` is held no more.
        """

        def work(connection: Connection) -> int:
            given = packs.times(self._time(connection), self.policy)
            return packs.could_join(connection, given, head, policy=self.policy)

        return self._read(work)

    def probe(self, key: ProbeKey) -> Probe | None:
        """What was measured last for such a model and data on such a device; None if nothing."""
        return self._read(lambda c: _probe(c, key))

    def remember_probe(self, probe: Probe) -> None:
        """Keep a probe, in place of the one before. Twice is the same as once."""
        self._write(lambda c, now: _remember(c, now, probe))


def _probe(connection: Connection, key: ProbeKey) -> Probe | None:
    row = connection.execute(select(probes).where(probes.c.key == key.digest)).one_or_none()
    if row is None:
        return None
    try:
        measured = tuple(made(ProbeRow, one) for one in json.loads(row.rows))
        size, most = operator.index(row.size), operator.index(row.most)
    except (ValueError, TypeError, RecursionError, DatabaseError):
        return None  # not what was written; it can be measured again
    return Probe(key=key, size=size, most=most, rows=measured, worker=str(row.worker))


def _remember(connection: Connection, now: float, probe: Probe) -> None:
    connection.execute(delete(probes).where(probes.c.key == probe.key.digest))
    connection.execute(
        insert(probes).values(
            key=probe.key.digest,
            **vars(probe.key),
            size=probe.size,
            most=probe.most,
            rows=json.dumps([vars(row) for row in probe.rows]),
            worker=probe.worker,
            made_at=now,
        )
    )
