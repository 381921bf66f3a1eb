"""How many members a device trains together at best: measured by one worker, known to all."""

from __future__ import annotations

import json
import operator

from sqlalchemy import Connection, delete, insert, select

from ensq.errors import DatabaseError
from ensq.jobs import Probe, ProbeKey, ProbeRow
from ensq.schema import probes
from ensq.store.asking import Asking
from ensq.store.strict import made


class Probing(Asking):
    """The part of the store that keeps probes."""

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
