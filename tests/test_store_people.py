"""What people want of members and workers: hold and unhold, drain, cancel and retry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import store_tools as tools

from ensq.errors import LeaseLost
from ensq.jobs import Outcome, State
from ensq.store import Policy, Store, check
from ensq.store.values import Renewal

NAME = "chignolin"


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        tools.add(opened, seeds=[42, 43])
        tools.register(opened, "w1", "w2")
        yield opened
    assert check(engine_url) == []


def kinds(store: Store, last: int) -> list[str]:
    return [event.kind.value for event in store.events(limit=last)]


# Hold


def test_held_member_is_not_claimed_until_it_is_let_go(store: Store) -> None:
    assert store.hold(NAME, [42]) == [42]
    assert store.hold(NAME, [42]) == []
    assert [store.job(claim.job_id).seed for claim in tools.take(store, limit=5)] == [43]
    assert store.outlook().claimable == 0
    assert store.unhold(NAME) == [42]
    assert store.unhold(NAME) == []
    assert [store.job(claim.job_id).seed for claim in tools.take(store)] == [42]
    assert kinds(store, 4) == ["held", "claimed", "unheld", "claimed"]


def test_running_member_is_held_when_its_worker_gives_it_back(store: Store) -> None:
    one, two = tools.take(store, limit=2)
    assert store.hold(NAME, [43]) == [43]
    assert store.hold(NAME) == [42]  # the other is asked already
    job = store.job(one.job_id)
    assert (job.state, job.wish, job.owner) == (State.RUNNING, "hold", "w1")
    assert store.unhold(NAME, [42]) == [42]
    # The worker learns it when it renews its lease; until then it goes on and may write.
    assert store.renew([one, two]) == Renewal([one, two], frozenset({two.job_id}), False)
    tools.train(store, two, range(1, 2))
    assert store.record_checkpoint([(two, tools.point(1, 2))]) == []
    assert store.release([two], reason="a person holds it", asked=True) == []
    job = store.job(two.job_id)
    assert (job.state, job.wish, job.owner, job.stalls) == (State.HELD, None, None, 0)
    assert store.unhold(NAME, [43]) == [43]
    (job,) = store.claim("w2", limit=1, lease_seconds=tools.LEASE)
    assert (job.seed, job.checkpoint) == (43, tools.point(1, 2))


@pytest.mark.parametrize("outcome", [Outcome.FAILURE, Outcome.CRASH])
def test_member_that_fails_while_a_hold_is_wished_is_held(store: Store, outcome: Outcome) -> None:
    (claim,) = tools.take(store)
    store.hold(NAME, [42])
    assert store.fail(claim, outcome, "why", retry=True) is State.HELD
    assert store.job(claim.job_id).wish is None


def test_member_of_a_worker_that_is_lost_is_held_if_that_was_wished(store: Store) -> None:
    tools.take(store)
    store.hold(NAME, [42])
    store.worker_ended("w1")
    (reaped,) = store.reap()
    assert (reaped.state, store.job(1).state) == (State.HELD, State.HELD)


def test_member_that_is_done_first_is_not_held(store: Store) -> None:
    (claim,) = tools.take(store)
    tools.train(store, claim, range(1, 4))
    store.hold(NAME, [42])
    store.finish(claim, tools.result())
    job = store.job(claim.job_id)
    assert (job.state, job.wish) == (State.DONE, None)
    assert store.hold(NAME, [42]) == store.unhold(NAME, [42]) == []


def test_members_that_have_ended_are_not_held(store: Store) -> None:
    (claim,) = tools.take(store)
    store.fail(claim, Outcome.FAILURE, "why", retry=False)
    store.cancel(NAME, [43])
    assert store.hold(NAME) == []
    assert [job.state for job in store.jobs(1)] == [State.FAILED, State.CANCELLED]


def test_held_member_that_paused_is_due_at_once_when_it_is_let_go(engine_url: str) -> None:
    with tools.open_by_hand(engine_url, policy=Policy()) as store:
        tools.add(store, seeds=[42])
        tools.register(store, "w1")
        (claim,) = tools.take(store)
        store.fail(claim, Outcome.FAILURE, "why", retry=True)
        assert store.hold(NAME) == [42]
        assert store.outlook().due_in is None
        assert store.unhold(NAME) == [42]
        assert len(tools.take(store)) == 1


def test_held_member_can_be_cancelled_and_comes_back_queued(store: Store) -> None:
    store.hold(NAME, [42])
    assert store.retry(NAME, [42]) == []
    assert store.cancel(NAME, [42]) == [42]
    assert store.retry(NAME, [42]) == [42]
    assert store.job(1).state is State.QUEUED


def test_wish_does_not_outlive_a_cancellation(store: Store) -> None:
    tools.take(store)
    store.hold(NAME, [42])
    store.cancel(NAME, [42])
    store.retry(NAME, [42])
    (claim,) = tools.take(store)
    assert store.renew([claim]).hold == frozenset()


# Drain


def test_worker_that_is_to_leave_learns_it_when_it_renews(store: Store) -> None:
    held = tools.take(store)
    assert store.renew(held, "w1").drain is False
    assert store.drain(["w1", "nobody"]) == ["w1"]
    assert store.drain(["w1"]) == []
    assert store.renew(held, "w1").drain is True
    assert store.renew([], "w1").drain is True  # also one that has nothing to do
    assert store.renew([], "w2").drain is False
    assert (store.workers(["w1"])["w1"].drain, store.workers(["w2"])["w2"].drain) == (True, False)
    assert (store.events()[-1].kind, store.events()[-1].worker_id) == ("drained", "w1")


def test_all_workers_but_those_that_have_left_are_drained(store: Store) -> None:
    tools.register(store, "w3")
    store.worker_ended("w2")
    assert store.drain() == ["w1", "w3"]


def test_drained_worker_gives_its_members_back_without_harm(store: Store) -> None:
    store.drain()
    for _ in range(5):
        held = tools.take(store, limit=2)
        assert store.release(held, reason="drained", asked=True) == []
    assert {(job.state, job.stalls, job.failures) for job in store.jobs(1)} == {
        (State.QUEUED, 0, 0)
    }


# Cancel and retry


def test_cancelled_member_takes_nothing_more_from_its_worker(store: Store) -> None:
    (claim,) = tools.take(store)
    tools.train(store, claim, range(1, 4))
    assert store.cancel(NAME, [42]) == [42]
    assert store.renew([claim], "w1").held == []
    with pytest.raises(LeaseLost):
        store.finish(claim, tools.result())
    assert store.job(1).state is State.CANCELLED
    attempt = store.attempts(1)[0]
    assert (attempt.outcome, attempt.reason) == (Outcome.CANCELLED, "cancelled by a person")


def test_worker_of_before_a_cancellation_is_fenced_off_after_the_retry(store: Store) -> None:
    """Cancelled and retried while the worker did not look: the attempt's number tells."""
    (old,) = tools.take(store)
    store.cancel(NAME, [42])
    store.retry(NAME, [42])
    assert store.renew([old]).held == []
    (new,) = tools.take(store)
    assert (new.job_id, new.attempt, new.owner) == (old.job_id, 2, old.owner)
    assert store.renew([old, new]).held == [new]


def test_retry_gives_all_budgets_anew(store: Store) -> None:
    for outcome in (Outcome.FAILURE, Outcome.CRASH) * 2:
        (claim,) = tools.take(store)
        store.fail(claim, outcome, "why", retry=True)
    (claim,) = tools.take(store)
    assert store.fail(claim, Outcome.FAILURE, "why", retry=True) is State.FAILED
    assert store.retry(NAME) == [42]
    job = store.job(claim.job_id)
    assert (job.failures, job.crashes, job.strikes, job.error) == (0, 0, 0, None)
    for state in (State.QUEUED, State.QUEUED, State.FAILED):
        (claim,) = tools.take(store)
        assert store.fail(claim, Outcome.CRASH, "why", retry=True) is state
    assert store.job(claim.job_id).attempt == 8


def test_people_may_name_seeds_in_any_order_and_more_than_once(store: Store) -> None:
    assert store.hold(NAME, [43, 42, 43]) == [42, 43]
    assert store.unhold(NAME, []) == []
    assert store.unhold(NAME, [43, 42]) == [42, 43]
