"""Leases without clocks that hosts share: an observer judges by how long it saw nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
import store_tools as tools
from sqlalchemy import text

from ensq.errors import LeaseLost
from ensq.jobs import Claim, Outcome, State
from ensq.store import Reaped, Store, check
from ensq.store.watch import Watch

LEASE = tools.LEASE
HOUR = 3600.0
KEY = (1, 1)


def test_silence_is_counted_from_the_first_look() -> None:
    clock = tools.Clock()
    watch = Watch(clock)
    assert watch.silence(KEY, 7) == 0.0
    clock.move(5)
    assert watch.silence(KEY, 7) == 5.0
    assert not watch.has_moved(KEY)
    clock.move(5)
    assert watch.silence(KEY, 8) == 0.0  # it may have moved just now
    assert watch.has_moved(KEY)
    clock.move(3)
    assert watch.silence(KEY, 8) == 3.0
    assert watch.silence((1, 2), 8) == 0.0  # another attempt is another owner


def test_beat_that_goes_backwards_is_a_sign_of_life_too() -> None:
    """Whoever wrote it: nothing is taken from a worker whose row changes."""
    clock = tools.Clock()
    watch = Watch(clock)
    watch.silence(KEY, 7)
    clock.move(5)
    assert watch.silence(KEY, 3) == 0.0


def test_attempts_that_have_ended_are_forgotten() -> None:
    watch = Watch(tools.Clock())
    for attempt in range(100):
        watch.silence((1, attempt), 1)
    watch.forget_others({(1, 99)})
    assert watch.has_moved((1, 5)) is False
    assert list(watch._seen) == [(1, 99)]


# Stores on several hosts


class Hosts:
    """Two stores on one database: a worker of another host, and an observer."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url = url
        self.stack = stack
        self.time = tools.Clock(0.0)  # what passes for all
        self.worker = self.host(0.0)
        tools.add(self.worker, seeds=[42])
        self.worker.register_worker(tools.elsewhere("w1"))
        tools.register(self.worker, "w2")

    def host(self, skew: float, since_boot: float = 0.0) -> Store:
        """A host whose clock is off by ``skew``, and whose monotonic one began where it liked."""
        return self.stack.enter_context(
            tools.HandStore.open(
                self.url,
                clock=lambda: 1e9 + self.time() + skew,
                monotonic=lambda: self.time() + since_boot,
                policy=tools.AT_ONCE,
            )
        )


@pytest.fixture
def hosts(engine_url: str) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(engine_url, stack)
    assert check(engine_url) == []


def claims_of(reaped: list[Reaped]) -> list[Claim]:
    return [one.claim for one in reaped]


@pytest.mark.parametrize("worker_skew", [-HOUR, 0.0, HOUR])
@pytest.mark.parametrize("observer_skew", [-HOUR, HOUR])
def test_clocks_that_are_an_hour_off_change_nothing(
    hosts: Hosts, worker_skew: float, observer_skew: float
) -> None:
    worker, observer = hosts.host(worker_skew, 5e6), hosts.host(observer_skew, -3e5)
    (claim,) = tools.take(worker)
    for _ in range(10):  # a worker that renews in time keeps its job
        assert observer.reap() == []
        hosts.time.move(LEASE - 1)
        assert worker.renew([claim]).held == [claim]
    assert observer.reap() == []
    hosts.time.move(LEASE)
    assert observer.reap() == []
    hosts.time.move(1)  # a silent one loses it as soon as its lease has passed, not later
    assert claims_of(observer.reap()) == [claim]


@pytest.mark.parametrize("skew", [-HOUR, HOUR])
def test_clock_that_jumps_while_a_worker_works_changes_nothing(hosts: Hosts, skew: float) -> None:
    (claim,) = tools.take(hosts.worker)
    jump = tools.Clock(0.0)
    observer = hosts.stack.enter_context(
        tools.HandStore.open(hosts.url, clock=jump, monotonic=hosts.time)
    )
    assert observer.reap() == []
    jump.move(skew)
    assert observer.reap() == []
    assert hosts.worker.renew([claim]).held == [claim]


def test_stored_times_are_never_looked_at(hosts: Hosts) -> None:
    """Whatever hosts wrote as times: a job is held as long as its owner lives."""
    observer = hosts.host(0.0)
    (claim,) = tools.take(hosts.worker)
    for nonsense in (0.0, 1e12, -5.0):
        with observer._database.write() as connection:
            for column in ("jobs.updated_at", "workers.last_seen", "attempts.started_at"):
                table, _, name = column.partition(".")
                connection.execute(text(f"UPDATE {table} SET {name} = :t"), {"t": nonsense})
        for _ in range(3):
            assert observer.reap() == []
            hosts.time.move(LEASE - 1)
            assert hosts.worker.renew([claim]).held == [claim]


def test_first_look_takes_nothing_however_long_ago_the_last_sign_was(hosts: Hosts) -> None:
    (claim,) = tools.take(hosts.worker)
    hosts.time.move(24 * HOUR)
    observer = hosts.host(0.0)
    assert observer.reap() == []
    assert hosts.worker.renew([claim]).held == [claim]
    hosts.time.move(LEASE + 1)
    assert observer.reap() == []  # the beat it sees now is another one
    hosts.time.move(LEASE + 1)
    assert claims_of(observer.reap()) == [claim]


def test_observer_that_was_stopped_for_long_takes_only_from_those_that_stayed_silent(
    hosts: Hosts,
) -> None:
    """SIGSTOP, or a laptop's lid: its own clock went on, and it must not hold that against others.

    A worker that renewed meanwhile moved its beat, so the time counts from the next look on.
    """
    observer = hosts.host(0.0)
    (claim,) = tools.take(hosts.worker)
    assert observer.reap() == []
    hosts.time.move(HOUR)
    hosts.worker.renew([claim])
    hosts.time.move(HOUR)
    assert observer.reap() == []
    hosts.time.move(LEASE)
    assert observer.reap() == []
    hosts.time.move(1)
    assert claims_of(observer.reap()) == [claim]


def test_looks_may_be_rare(hosts: Hosts) -> None:
    """A job is never taken back earlier than its lease after the last sign of life."""
    observer = hosts.host(0.0)
    (claim,) = tools.take(hosts.worker)
    assert observer.reap() == []
    hosts.time.move(LEASE / 2)
    hosts.worker.renew([claim])
    hosts.time.move(LEASE / 2 + 1)
    assert observer.reap() == []
    hosts.time.move(LEASE / 2)
    assert observer.reap() == []  # silent for a lease by now, but seen to be so for half of one
    hosts.time.move(LEASE)
    assert claims_of(observer.reap()) == [claim]


# What a worker may still try that woke too late, after its job was given to another.
ZOMBIE: dict[str, Callable[[Store, Claim], object]] = {
    "renew": lambda store, claim: store.renew([claim]).held,
    "epoch": lambda store, claim: not store.record_epochs([tools.write(claim, 1, tools.point(1))]),
    "checkpoint": lambda store, claim: not store.record_checkpoint([(claim, tools.point(0, 1))]),
    "release": lambda store, claim: not store.release([claim], reason="stopped"),
    "finish": lambda store, claim: store.finish(claim, tools.result()) is None,
    "fail": lambda store, claim: store.fail(claim, Outcome.CRASH, "late", retry=True),
    "stand_at": lambda store, claim: store.stand_at(claim, tools.point(0, 2), [], "late"),
}


def test_zombie_writes_nothing_and_is_no_sign_of_life_for_its_successor(hosts: Hosts) -> None:
    observer, third = hosts.host(HOUR), hosts.host(-HOUR)
    (old,) = tools.take(hosts.worker)
    assert observer.reap() == []
    hosts.time.move(LEASE + 1)
    observer.register_worker(tools.elsewhere("w3"))
    (new,) = tools.take(observer, "w3")
    assert (new.attempt, new.owner) == (2, "w3")
    assert third.reap() == []
    hosts.time.move(LEASE)
    before = tools.state_of(hosts.url)
    for name, attempt in ZOMBIE.items():
        with suppress(LeaseLost):
            assert not attempt(hosts.worker, old), name
        assert tools.state_of(hosts.url) == before, name
    hosts.time.move(1)
    assert claims_of(third.reap()) == [new]


def test_process_that_is_gone_here_is_lost_at_the_first_look(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = hosts.host(HOUR)
    (claim,) = tools.take(hosts.worker)
    monkeypatch.setattr(observer, "is_gone", lambda worker: worker.id == "w1")
    assert observer.outlook().lost == 1
    assert claims_of(observer.reap()) == [claim]


def test_outlook_tells_who_lives_who_is_unsure_and_who_is_lost(hosts: Hosts) -> None:
    tools.add(hosts.worker, seeds=[42, 43, 44])
    tools.add(hosts.worker, name="other", seeds=[1])
    observer = hosts.host(0.0)
    alive, silent = tools.take(hosts.worker, limit=2)
    before = tools.dump(hosts.url)
    outlook = observer.outlook("chignolin")
    assert (outlook.claimable, outlook.running, outlook.lost) == (1, 2, 0)
    assert [job.seed for job in outlook.unsure] == [42, 43]
    assert tools.dump(hosts.url) == before
    hosts.worker.renew([alive])
    assert [job.seed for job in observer.outlook().unsure] == [43]
    assert observer.outlook().open == 4
    hosts.time.move(LEASE)
    hosts.worker.renew([alive])
    hosts.time.move(1)
    outlook = observer.outlook()
    assert (outlook.running, outlook.lost, outlook.unsure) == (2, 1, ())
    assert claims_of(observer.reap()) == [silent]


def test_living_process_of_this_host_is_not_unsure(hosts: Hosts) -> None:
    """It need not be waited for until it renews: that it lives can be seen."""
    tools.take(hosts.worker, "w2")
    assert hosts.host(HOUR).outlook().unsure == ()


@pytest.mark.parametrize("engine_url", ["postgresql"], indirect=True)
def test_what_a_locked_row_holds_is_not_taken(hosts: Hosts) -> None:
    """On PostgreSQL a worker may be writing at this moment; SQLite has one writer at a time."""
    observer = hosts.host(0.0)
    (claim,) = tools.take(hosts.worker)
    assert observer.reap() == []
    hosts.time.move(LEASE + 1)
    with hosts.worker._database.write() as connection:
        connection.execute(text("SELECT 1 FROM jobs FOR UPDATE"))
        assert observer.reap() == []
    # Not seen, it was forgotten: it is watched anew.
    assert observer.reap() == []
    assert hosts.worker.job(claim.job_id).state is State.RUNNING
    hosts.time.move(LEASE + 1)
    assert claims_of(observer.reap()) == [claim]
