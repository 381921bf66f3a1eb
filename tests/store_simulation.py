"""Workers on a virtual clock, with deaths, stalls, skewed clocks and outages, by a seed.

Each worker is a generator that does one transaction and yields how long it then works or sleeps; a
scheduler wakes whoever is due. So a schedule of hours takes milliseconds, and is the same each time
for the same seed. After a while faults stop, and all members must come to an end.

    python tests/store_simulation.py FIRST COUNT    # runs that many seeds
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import store_tools as tools
from sqlalchemy import Connection, select
from store_hosts import Host, checkpoint, databases, empty, loss, result

from ensq import schema
from ensq.errors import DatabaseAway, LeaseLost
from ensq.jobs import TERMINAL, Checkpoint, Claim, Job, Outcome, State
from ensq.store import checks
from ensq.store.engine import Database
from ensq.store.policy import Policy

LEASE = 60.0
EPOCHS = 3
FAULTY = 600.0  # seconds in which faults happen
PATIENCE = 3_000.0  # seconds in which all must be over
Life = Generator[float, None, None]


class Died(Exception):
    """The process is gone: whatever it wanted to do next is not done."""


@dataclass
class Faults:
    """How often what goes wrong: shares of the transactions."""

    die: float = 0.02
    stall: float = 0.03  # SIGSTOP: the worker wakes later, and goes on
    outage: float = 0.03
    lost_answer: float = 0.03
    fail: float = 0.06
    save: float = 0.6  # epochs that end with a checkpoint


class Unsteady(Host):
    """A host's store, whose database is away now and then."""

    world: World

    def _write(self, work: Callable[[Connection, float], Any]) -> Any:
        chance, faults = self.world.chance, self.world.faults
        if chance(faults.outage):
            raise DatabaseAway("nobody answers")
        done = super()._write(work)
        if chance(faults.lost_answer):
            raise DatabaseAway("no answer to COMMIT")
        return done


@dataclass
class World:
    """One schedule."""

    databases: list[Database]
    seed: int
    faults: Faults = field(default_factory=Faults)
    members: int = 4
    workers: int = 3

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.time = tools.Clock(0.0)
        self.gone: set[str] = set()
        self.order = itertools.count()
        self.due: list[tuple[float, int, Life]] = []
        self.accepted: dict[int, list[tuple[int, str]]] = {}  # job: claims whose writes went in
        self.completed: dict[int, int] = {}
        self.finished = 0

    def chance(self, share: float) -> bool:
        return self.time() < FAULTY and self.random.random() < share

    def host(self, number: int) -> Unsteady:
        skew = self.random.choice([-3600.0, 0.0, 3600.0])
        host = Unsteady(
            self.databases[number],
            clock=lambda: 1e9 + skew + self.time(),
            monotonic=lambda: self.time() - skew,
            policy=Policy(failures=9, strikes=9, stalls=9, pause=5.0, longest_pause=30.0),
        )
        host.gone, host.world = self.gone, self
        return host

    def run(self) -> None:
        empty(self.databases[0])
        plain = tools.HandStore(self.databases[0], clock=lambda: 1e9)
        tools.add(plain, seeds=range(self.members), epochs=EPOCHS)
        for number in range(self.workers):
            host = self.host(number)
            self.wake(self.life(host, f"w{number}", 0), self.random.random())
        while self.due:
            self.time.time, _, life = heapq.heappop(self.due)
            assert self.time() < PATIENCE, f"seed {self.seed}: not over after {PATIENCE:g} s"
            try:
                pause = next(life)
            except StopIteration:
                continue
            self.wake(life, self.time() + pause)
        self.look()
        with self.databases[0].read() as connection:
            states = connection.execute(select(schema.jobs.c.state)).scalars().all()
            assert list(checks._everything(connection)) == [], f"seed {self.seed}"
        assert all(State(state) in TERMINAL for state in states), f"seed {self.seed}: {states}"

    def wake(self, life: Life, when: float) -> None:
        heapq.heappush(self.due, (when, next(self.order), life))

    # What must hold

    def wrote(self, claim: Claim) -> None:
        """A write was accepted: never after one of a later attempt."""
        newest = self.accepted.get(claim.job_id, (0, ""))
        mine = (claim.attempt, claim.owner)
        assert mine[0] >= newest[0], f"seed {self.seed}: a stale write of {claim} was accepted"
        if mine[0] == newest[0]:
            assert mine == newest, f"seed {self.seed}: two writers, {claim} and {newest}"
        self.accepted[claim.job_id] = mine

    def look(self) -> None:
        with self.databases[0].read() as connection:
            done = connection.execute(
                select(schema.jobs.c.id, schema.jobs.c.attempt).where(schema.jobs.c.state == "done")
            ).all()
        now = {row.id: row.attempt for row in done}
        assert self.completed.items() <= now.items(), f"seed {self.seed}: done, and then no more"
        self.completed = now

    # Workers

    def life(self, host: Unsteady, name: str, number: int) -> Life:
        """A worker; when it dies, another one starts in its place."""
        worker = f"{name}.{number}"
        try:
            yield from self.work(host, worker)
        except Died:
            if self.random.random() < 0.5:
                self.gone.add(worker)  # seen to be gone; else only its lease ends
            yield self.random.uniform(1, 200)
            yield from self.life(self.host(int(name[1:])), name, number + 1)

    def work(self, host: Unsteady, worker: str) -> Life:
        yield from self.insist(lambda: host.register_worker(tools.elsewhere(worker)))
        while True:
            self.look()
            jobs = yield from self.insist(
                lambda: host.claim(
                    worker,
                    limit=self.random.randint(1, 3),
                    lease_seconds=LEASE,
                    whole_pack=self.random.random() < 0.5,
                )
            )
            if len(jobs) == 1 and self.random.random() < 0.5:
                jobs += yield from self.take_beside(host, worker, tools.claim_of(jobs[0]))
            if jobs:
                yield from self.train(host, jobs)
            elif host.outlook().open == 0:
                return
            else:
                yield self.random.uniform(20, 60)

    def take_beside(
        self, host: Unsteady, worker: str, head: Claim
    ) -> Generator[float, None, list[Job]]:
        return (
            yield from self.insist(
                lambda: host.claim(worker, limit=2, lease_seconds=LEASE, beside=head)
            )
        )

    def insist(self, act: Callable[[], Any]) -> Generator[float, None, Any]:
        """Do it until it is answered, as a worker does through an outage; or die before that."""
        while True:
            if self.chance(self.faults.die):
                raise Died
            if self.chance(self.faults.stall):
                yield self.random.uniform(1, 4 * LEASE)
            try:
                return act()
            except DatabaseAway:
                yield self.random.uniform(1, 30)

    def train(self, host: Unsteady, jobs: list[Job]) -> Life:
        held = [tools.claim_of(job) for job in jobs]
        for epoch in range(jobs[0].epoch + 1, EPOCHS + 1):
            held = yield from self.epoch(host, held, epoch)
        for claim in held:
            yield from self.publish(host, claim)

    def epoch(
        self, host: Unsteady, held: list[Claim], epoch: int
    ) -> Generator[float, None, list[Claim]]:
        """Train one epoch; the claims that still hold."""
        if self.random.random() < 0.3:
            all_held = held
            renewal = yield from self.insist(lambda: host.renew(all_held))
            held = self.still(held, renewal.held)
        yield self.random.uniform(1, 20)
        if held and self.chance(self.faults.fail):
            held = yield from self.end(host, held)
        pack, saved = held, self.random.random() < self.faults.save
        lost = yield from self.insist(lambda: self.record(host, pack, epoch, saved))
        return self.still(held, [claim for claim in held if claim not in lost])

    def still(self, held: list[Claim], now: list[Claim]) -> list[Claim]:
        for claim in now:
            self.wrote(claim)
        return [claim for claim in held if claim in now]

    def record(self, host: Unsteady, held: list[Claim], epoch: int, saved: bool) -> list[Claim]:
        def at(claim: Claim) -> Checkpoint | None:
            return checkpoint(claim.attempt, epoch) if saved else None

        return host.record_epochs(
            [tools.write(claim, epoch, at(claim), loss(claim.attempt, epoch)) for claim in held]
        )

    def end(self, host: Unsteady, held: list[Claim]) -> Generator[float, None, list[Claim]]:
        """One of the pack fails, crashes or is given back."""
        claim, *others = held
        outcome = self.random.choice([Outcome.FAILURE, Outcome.CRASH, Outcome.INTERRUPTED])
        try:
            if outcome is Outcome.INTERRUPTED:
                yield from self.insist(lambda: host.release([claim], outcome, "signal"))
            else:
                yield from self.insist(lambda: host.fail(claim, outcome, "why", retry=True))
        except LeaseLost:
            pass
        return others

    def publish(self, host: Unsteady, claim: Claim) -> Life:
        try:
            yield from self.insist(lambda: host.finish(claim, result(claim.attempt)))
        except LeaseLost:
            return
        self.wrote(claim)
        self.finished += 1


def main(first: int, count: int) -> None:
    with tempfile.TemporaryDirectory(dir=tools.FAST) as folder:
        url = str(tools.fresh_file(Path(folder) / "q.db"))
        with databases(url) as opened:
            for seed in range(first, first + count):
                World(opened, seed).run()
    print(f"{count} schedules, all over and sound")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
