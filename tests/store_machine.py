"""The store under Hypothesis: three hosts do what workers and people do, well, badly and too late.

Each host has a store of its own, with a clock that is off by hours, on one database; a plain model
says what must come of each act. After each step the database is compared with it, row by row.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import store_tools as tools
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_hosts import (
    HOSTS,
    Host,
    all_rows,
    checkpoint,
    empty,
    loss,
    packs,
    records,
    result,
    same_job,
    same_row,
)
from store_model import EPOCHS, Member, Queue, Refused

from ensq import migrate, schema
from ensq.errors import EnsqError, LeaseLost
from ensq.jobs import Checkpoint, Claim, Outcome, State
from ensq.store import checks
from ensq.store.engine import Database

LEASE = tools.LEASE
SKEW = st.sampled_from([-3600.0, 0.0, 7200.0])
SEEDS = st.none() | st.lists(st.integers(1, 4), max_size=3)
YES_OR_NO = st.booleans()
TWICE = st.booleans()  # whether the answer to the first time is lost
# Which claim: one that holds, or (True) any that was ever made; counted from the newest.
WHICH = st.tuples(st.sampled_from([False, False, True]), st.integers(0, 5))
Which = tuple[bool, int]


has_claims = precondition(lambda self: bool(self.living()))


class StoreMachine(RuleBasedStateMachine):
    """See the module. ``shared`` is set by ``machine``."""

    shared: ClassVar[list[Database]]
    seen: ClassVar[Counter[tuple[str, str]]]  # how often which rule came to what

    def __init__(self) -> None:
        super().__init__()
        empty(self.shared[0])
        self.time = tools.Clock(0.0)
        self.model = Queue(self.time)
        self.hosts: dict[str, Host] = {}
        self.claims: list[Claim] = []  # all that were ever made
        self.host_of: dict[str, Host] = {}  # by worker
        self.done: dict[int, str] = {}

    @initialize(skews=st.tuples(SKEW, SKEW, SKEW), first=st.sampled_from([2, 3]))
    def start(self, skews: tuple[float, ...], first: int) -> None:
        for name, database, skew in zip(HOSTS, self.shared, skews, strict=True):
            host = Host(
                database,
                lambda skew=skew: 1e9 + skew + self.time(),  # type: ignore[misc]
                monotonic=lambda skew=skew: self.time() - 5 * skew,  # type: ignore[misc]
                policy=tools.AT_ONCE,
            )
            host.gone = set()
            self.hosts[name] = host
            self.new_worker(name)
        self.add("one", [1, 2, 3])
        self.claim("a", first, False)  # what a worker with packs of two, or of three, gets
        self.claim("b", 1, False)

    # Helpers

    def new_worker(self, name: str) -> None:
        host = self.hosts[name]
        host.worker = f"{name}{sum(worker[0] == name for worker in self.host_of)}"
        self.host_of[host.worker] = host
        tools.register(host, host.worker)

    def a_claim(self, which: Which) -> Claim:
        """A claim of a process that lives."""
        any_of_all, back = which
        living = self.living()
        held = [claim for claim in living if self.model.held(claim) is not None]
        claims = living if any_of_all or not held else held
        return claims[-1 - back % len(claims)]

    def living(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.owner not in self.model.gone]

    def member(self, claim: Claim) -> Member:
        return self.model.members[claim.job_id - 1]

    def write(
        self,
        claim: Claim,
        act: Callable[[Host, Claim], Any],
        expected: Callable[[Claim], bool],
        twice: bool = False,
    ) -> None:
        """Do what the owner of a claim does; it is accepted, lost or refused as the model says."""
        before = [vars(member).copy() for member in self.model.members]
        try:
            wanted = "accepted" if expected(claim) else "lost"
        except Refused:
            wanted = "refused"
            assert [vars(member) for member in self.model.members] == before
        host = self.host_of[claim.owner]
        host.twice = twice
        try:
            got = "lost" if act(host, claim) == [claim] else "accepted"
        except LeaseLost:
            got = "lost"
        except EnsqError:
            got = "refused"
        finally:
            host.twice = False
        assert got == wanted, (claim, got, wanted)
        self.seen[inspect.stack()[1].function, got] += 1

    # People

    @rule(name=st.sampled_from(["one", "two"]), seeds=st.lists(st.integers(1, 4), min_size=1))
    def add(self, name: str, seeds: list[int]) -> None:
        seeds = list(dict.fromkeys(seeds))
        added = tools.add(self.hosts["a"], name, seeds, epochs=EPOCHS)
        assert added.new_seeds == self.model.add(name, seeds)

    @rule()
    def upgrade(self) -> None:
        """Somebody asks for it while others work: there is nothing to do, and nobody notices."""
        url = self.shared[0].target.url.render_as_string(hide_password=False)
        assert migrate.create_or_upgrade(url) == schema.REVISION

    @rule(what=st.sampled_from(["cancel", "retry", "retry", "hold", "unhold"]), seeds=SEEDS)
    def person(self, what: str, seeds: list[int] | None) -> None:
        there = {member.seed for member in self.model.of("one")}
        seeds = None if seeds is None else sorted(there & set(seeds))
        changed = getattr(self.hosts["b"], what)("one", seeds)
        assert changed == getattr(self.model, what)("one", seeds)

    @rule(name=st.sampled_from(HOSTS))
    def drain(self, name: str) -> None:
        worker = self.hosts[name].worker
        assert self.hosts["a"].drain([worker]) == ([] if worker in self.model.drained else [worker])
        self.model.drained.add(worker)

    # Workers, alive

    @rule(name=st.sampled_from(HOSTS), limit=st.integers(1, 3), twice=TWICE, whole=YES_OR_NO)
    def claim(self, name: str, limit: int, twice: bool, whole: bool = False) -> None:
        self.take(
            name, twice, lambda worker: self.model.claim(worker, limit, whole),
            limit=limit, whole_pack=whole,
        )  # fmt: skip

    @has_claims
    @rule(which=WHICH, limit=st.integers(1, 3), twice=TWICE)
    def claim_beside(self, which: Which, limit: int, twice: bool) -> None:
        """A worker that holds a member, or thinks so, takes more to train with it."""
        head = self.a_claim(which)
        name = head.owner[0]
        if self.hosts[name].worker != head.owner:
            return
        self.take(
            name, twice, lambda worker: self.model.claim_beside(worker, head, limit),
            limit=limit, beside=head,
        )  # fmt: skip

    def take(self, name: str, twice: bool, wanted: Callable[[str], list[int]], **how: Any) -> None:
        host = self.hosts[name]
        self.model.reap(name)
        expected = wanted(host.worker)
        if twice and not expected:
            self.model.reap(name)
            expected = wanted(host.worker)
        host.twice = twice
        jobs = host.claim(host.worker, lease_seconds=LEASE, **how)
        host.twice = False
        assert [job.id for job in jobs] == expected
        self.seen["claim beside" if "beside" in how else "claim", str(len(jobs))] += 1
        for job in jobs:
            same_job(job, self.model.members[job.id - 1])
        self.claims += [tools.claim_of(job) for job in jobs]

    @rule(name=st.sampled_from(HOSTS), twice=TWICE)
    def renew(self, name: str, twice: bool) -> None:
        host = self.hosts[name]
        mine = [claim for claim in self.claims if claim.owner == host.worker]
        still = self.model.renew(mine)
        host.twice = twice
        renewal = host.renew(mine, host.worker)
        host.twice = False
        assert renewal.held == still
        assert renewal.drain == (host.worker in self.model.drained)
        wished = [self.member(claim) for claim in still]
        assert renewal.hold == {member.id for member in wished if member.wish}

    @has_claims
    @rule(which=WHICH, ahead=st.sampled_from([1, 1, 1, 0, 2]), saved=YES_OR_NO, twice=TWICE)
    def epoch(self, which: Which, ahead: int, saved: bool, twice: bool) -> None:
        claim = self.a_claim(which)
        epoch = max(1, self.member(claim).epoch + ahead)
        if epoch > EPOCHS:
            return
        at = checkpoint(claim.attempt, epoch) if saved else None
        self.record_epoch(claim, epoch, loss(claim.attempt, epoch), at, twice)

    def record_epoch(
        self, claim: Claim, epoch: int, value: float, at: Checkpoint | None, twice: bool = False
    ) -> None:
        self.write(
            claim,
            lambda host, c: host.record_epochs([tools.write(c, epoch, at, value)]),
            lambda c: self.model.record(c, epoch, value, at),
            twice,
        )

    @has_claims
    @rule(which=WHICH, step=st.integers(1, 2), off=st.sampled_from([0, 0, 0, 1]))
    def save(self, which: Which, step: int, off: int) -> None:
        claim = self.a_claim(which)
        member = self.member(claim)
        at = checkpoint(claim.attempt, member.epoch + off, step)
        self.write(
            claim,
            lambda host, c: host.record_checkpoint([(c, at)]),
            lambda c: self.model.save(c, at),
        )

    @has_claims
    @rule(which=WHICH, where=st.sampled_from(["none", "previous", "same"]), twice=TWICE)
    def fall_back(self, which: Which, where: str, twice: bool) -> None:
        claim = self.a_claim(which)
        member = self.member(claim)
        at = {"none": None, "previous": member.previous, "same": member.checkpoint}[where]
        self.write(
            claim,
            lambda host, c: host.stand_at(c, at, [], "damaged") and None,
            lambda c: self.model.stand_at(c, at, []),
            twice,
        )

    @has_claims
    @rule(which=WHICH, epoch=st.integers(1, EPOCHS), known=YES_OR_NO, twice=TWICE)
    def adopt(self, which: Which, epoch: int, known: bool, twice: bool) -> None:
        claim = self.a_claim(which)
        member = self.member(claim)
        at = checkpoint(claim.attempt, epoch, 3)  # a file of an attempt that never said so
        if member.checkpoint and (epoch, 3) <= (member.checkpoint.epoch, member.checkpoint.step):
            return
        losses = self.history(member, epoch) if known else []
        self.write(
            claim,
            lambda host, c: host.stand_at(c, at, records(losses), "found") and None,
            lambda c: self.model.stand_at(c, at, losses),
            twice,
        )

    @has_claims
    @rule(which=WHICH, found=st.sampled_from([False, False, True]), twice=TWICE)
    def finish(self, which: Which, found: bool, twice: bool) -> None:
        claim = self.a_claim(which)
        losses = self.history(self.member(claim), EPOCHS) if found else []
        self.publish(claim, losses, twice)

    def publish(self, claim: Claim, losses: list[float], twice: bool = False) -> None:
        self.write(
            claim,
            lambda host, c: host.finish(c, result(c.attempt), records(losses)),
            lambda c: self.model.finish(c, result(c.attempt).digest, losses),
            twice,
        )

    @has_claims
    @rule(which=WHICH, until=st.integers(1, EPOCHS))
    def train(self, which: Which, until: int) -> None:
        """What workers do nearly always."""
        claim = self.a_claim(which)
        for epoch in range(self.member(claim).epoch + 1, until + 1):
            value, at = loss(claim.attempt, epoch), checkpoint(claim.attempt, epoch)
            self.record_epoch(claim, epoch, value, at)
        if until == EPOCHS and self.member(claim).epoch == EPOCHS:
            self.publish(claim, [])

    @staticmethod
    def history(member: Member, epochs: int) -> list[float]:
        """All losses, as a file has them: those that are recorded, and further ones."""
        known = [value for value, _ in member.losses[:epochs]]
        return known + [loss(0, epoch) for epoch in range(len(known) + 1, epochs + 1)]

    @has_claims
    @rule(
        which=WHICH,
        outcome=st.sampled_from([Outcome.INTERRUPTED, Outcome.BLOCKED, Outcome.LOST]),
        asked=YES_OR_NO,
        twice=TWICE,
    )
    def give_back(self, which: Which, outcome: Outcome, asked: bool, twice: bool) -> None:
        self.write(
            self.a_claim(which),
            lambda host, c: host.release([c], outcome, "why", asked=asked),
            lambda c: self.model.end(c, outcome, asked=asked),
            twice,
        )

    @has_claims
    @rule(
        which=WHICH,
        outcome=st.sampled_from([Outcome.FAILURE, Outcome.CRASH]),
        retry=st.sampled_from([True, True, False]),
        twice=TWICE,
    )
    def fail(self, which: Which, outcome: Outcome, retry: bool, twice: bool) -> None:
        self.write(
            self.a_claim(which),
            lambda host, c: host.fail(c, outcome, "why", retry=retry) and None,
            lambda c: self.model.end(c, outcome, retry=retry),
            twice,
        )

    # Trouble

    @rule(name=st.sampled_from(HOSTS), signed_off=YES_OR_NO)
    def die(self, name: str, signed_off: bool) -> None:
        """The process is gone, provably so or by its own word, and another one starts."""
        worker = self.hosts[name].worker
        self.model.gone.add(worker)
        if signed_off:
            self.hosts[name].worker_ended(worker)
        else:
            for host in self.hosts.values():
                host.gone.add(worker)
        self.new_worker(name)

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, LEASE, LEASE + 1]))
    def wait(self, seconds: float) -> None:
        self.time.move(seconds)

    @rule(name=st.sampled_from(HOSTS))
    def look(self, name: str) -> None:
        assert [one.claim.job_id for one in self.hosts[name].reap()] == self.model.reap(name)

    @rule(observer=st.sampled_from(HOSTS), by=st.sampled_from(HOSTS))
    def supersede(self, observer: str, by: str) -> None:
        """All fall silent for longer than a lease, and somebody, perhaps the same, claims."""
        self.look(observer)
        self.wait(LEASE + 1)
        self.look(observer)
        self.claim(by, 2, False)

    @has_claims
    @rule(which=WHICH)
    def try_everything(self, which: Which) -> None:
        """Whoever was superseded may wake at any time, and is refused whatever it does."""
        claim = self.a_claim(which)
        if self.model.held(claim) is not None:
            return
        member = self.member(claim)
        epoch = min(EPOCHS, member.epoch + 1)
        host = self.host_of[claim.owner]
        assert host.renew([claim]).held == []
        assert host.record_epochs([tools.write(claim, epoch, checkpoint(9, epoch))]) == [claim]
        assert host.record_checkpoint([(claim, checkpoint(9, member.epoch, 9))]) == [claim]
        late: list[Callable[[], object]] = [
            lambda: host.stand_at(claim, None, [], "late"),
            lambda: host.finish(claim, result(99), records([1.0] * EPOCHS)),
        ]
        for act in late:
            try:
                act()
            except LeaseLost:
                continue
            raise AssertionError("a superseded attempt wrote")

    # What must hold

    def teardown(self) -> None:
        with self.shared[0].read() as connection:
            assert list(checks._everything(connection)) == []

    @invariant()
    def agrees(self) -> None:
        rows, tries, losses = all_rows(self.shared[0])
        assert len(rows) == len(self.model.members)
        # The ids are drawn: what counts is who shares one.
        assert packs([row.pack for row in rows]) == packs([m.pack for m in self.model.members])
        for row, member in zip(rows, self.model.members, strict=True):
            same_row(row, member)
            mine = [(one.worker_id, one.outcome) for one in tries if one.job_id == member.id]
            assert mine == [(one.owner, one.outcome) for one in member.tries]
            computed = [(one.val_loss, one.attempt) for one in losses if one.job_id == member.id]
            assert computed == member.losses
            if member.id in self.done:
                assert (row.state, row.result_digest) == (State.DONE, self.done[member.id])
            if row.state == State.DONE:
                self.done[member.id] = row.result_digest
            if row.state == State.RUNNING:
                assert row.owner in self.host_of and row.lease_seconds == LEASE


def machine(opened: list[Database]) -> type[StoreMachine]:
    """The machine on these databases."""
    return type("StoreMachineHere", (StoreMachine,), {"shared": opened, "seen": Counter()})
