"""The part of the store that SLURM's answers go through: see ``ensq.store.evidence``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from ensq.jobs import SlurmJob
from ensq.store import evidence
from ensq.store.engine import Database
from ensq.store.reader import Reader
from ensq.store.values import Run

T = TypeVar("T")

_PROMPT = 0.02  # seconds that advice is worth waiting for


class Asking(Reader):
    """Who asks SLURM, and what it answered. Nothing here waits for another writer.

    Any method may raise errors.DatabaseError; then it changed nothing, and later will do.
    """

    def __init__(
        self, database: Database, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        super().__init__(database)
        self.clock = clock
        self._turns = evidence.Turns(monotonic)
        self._prompt: Database | None = None

    def now(self) -> float:
        """This host's time: seconds since 1970."""
        return self.clock()

    def _write(self, work: Callable[[Connection, float], T]) -> T:
        """Run a transaction that writes, with the time that counts for it."""
        return self._database.run(lambda connection: work(connection, self._time(connection)))

    def close(self) -> None:
        """Close the connection that is used for this alone."""
        if self._prompt is not None:
            self._prompt.close()

    def may_ask(self, cluster: str, who: str) -> list[Run] | None:
        """The runs of jobs that this worker may ask SLURM about now; None if it is not its turn.

        One worker of a cluster is told so in a minute, by the clocks of those that look.
        """
        turn = self._promptly(lambda c, now: evidence.turn_of(c, cluster), write=False)
        if turn is not None and not self._turns.is_due(cluster, turn):
            return None
        return self.ask_now(cluster, who, turn)

    def ask_now(self, cluster: str, who: str, seen: int | None) -> list[Run] | None:
        """The same without a look at the time; ``seen`` is the turn that must not have moved."""

        def work(connection: Connection, now: float) -> tuple[int | None, list[Run]]:
            turn = evidence.take_turn(connection, now, cluster, who, seen)
            if turn is None:
                return None, []
            return turn, evidence.runs_to_ask(connection, now, cluster or None)

        turn, runs = self._promptly(work)
        if turn is None:
            return None
        self._turns.own[cluster] = turn
        return runs

    def note_slurm(self, cluster: str, who: str, rows: Sequence[SlurmJob]) -> bool:
        """Keep SLURM's answer for all; False if it came so late that others have asked since."""
        turn = self._turns.own.get(cluster, 0)
        return self._promptly(
            lambda c, now: evidence.note(c, now, cluster, rows, turn=turn, who=who)
        )

    def _promptly(self, work: Callable[[Connection, float], T], *, write: bool = True) -> T:
        """A transaction that is given up rather than waited for."""
        if self._database.target.path is not None:
            if self._prompt is None:
                self._prompt = Database(
                    self._database.target, busy_timeout=_PROMPT, takes_turns=False
                )
            return self._prompt.run(lambda c: work(c, self._time(c)), write=write)

        def within(connection: Connection) -> T:
            if write:
                limit = int(1000 * _PROMPT)
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {limit}")
            return work(connection, self._time(connection))

        return self._database.run(within, write=write)

    def _time(self, connection: Connection) -> float:
        server = self._database.now(connection)
        return self.clock() if server is None else server
