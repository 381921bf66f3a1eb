"""Fences: what a superseded attempt writes changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import store_tools as tools

from ensq.errors import LeaseLost
from ensq.jobs import Claim, EarlyEnd, Outcome, State
from ensq.schema import jobs
from ensq.store import Store, check, fences


def _record_epoch(store: Store, claim: Claim) -> object:
    store.record_epoch(claim, tools.record(2), best_epoch=2, best_loss=0.1, checkpoint=None)
    return None


# Each write that a worker can do; each says that the claim is lost by raising or returning it.
WRITES: dict[str, Callable[[Store, Claim], object]] = {
    "renew": lambda store, claim: [] if store.renew([claim]).held else [claim],
    "record_epoch": _record_epoch,
    "record_epochs": lambda store, claim: store.record_epochs([tools.write(claim, 2)]),
    "record_epochs with a checkpoint": lambda store, claim: store.record_epochs(
        [tools.write(claim, 2, tools.point(2))]
    ),
    "record_checkpoint": lambda store, claim: store.record_checkpoint([(claim, tools.point(1, 5))]),
    "stand_at an older one": lambda store, claim: store.stand_at(claim, None, [], "torn"),
    "stand_at a newer one": lambda store, claim: store.stand_at(
        claim, tools.point(2), [tools.record(1), tools.record(2)], "was not recorded"
    ),
    "finish": lambda store, claim: store.finish(claim, tools.result()),
    "finish with an adopted result": lambda store, claim: store.finish(
        claim, tools.result(), [tools.record(epoch) for epoch in (1, 2, 3)]
    ),
    "finish early": lambda store, claim: store.finish(
        claim,
        tools.result(),
        early=EarlyEnd(rule="paired", epoch=1, evidence="{}", checkpoint=None),
    ),
    "decide": lambda store, claim: store.decide(
        claim, rule="paired", evidence="{}", stop=True, min_members=2
    ),
    "release": lambda store, claim: store.release([claim], reason="late"),
    "release as blocked": lambda store, claim: store.release([claim], Outcome.BLOCKED, "late"),
    "fail": lambda store, claim: store.fail(claim, Outcome.FAILURE, "late", retry=True),
    "fail for good": lambda store, claim: store.fail(claim, Outcome.CRASH, "late", retry=False),
}

# How an attempt can lose its job.
SUPERSEDED: dict[str, Callable[[Store, Claim], object]] = {
    "claimed by another worker": lambda store, claim: (
        tools.fall_silent(store),
        tools.take(store, "w2"),
    ),
    "claimed again by the same worker": lambda store, claim: (
        tools.fall_silent(store),
        tools.take(store, "w1"),
    ),
    "taken back": lambda store, claim: tools.fall_silent(store),
    "cancelled": lambda store, claim: store.cancel("chignolin"),
    "given back": lambda store, claim: store.release([claim], reason="signal"),
    "failed": lambda store, claim: store.fail(claim, Outcome.FAILURE, "nan", retry=False),
    "done by another worker": lambda store, claim: _done_by_another(store),
}


def _done_by_another(store: Store) -> None:
    tools.fall_silent(store)
    (claim,) = tools.take(store, "w2")
    tools.train(store, claim, range(2, 4))
    store.finish(claim, tools.result())


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        tools.add(opened, seeds=[42])
        tools.register(opened, "w1", "w2")
        yield opened


def started(store: Store) -> Claim:
    (claim,) = tools.take(store)
    tools.train(store, claim, range(1, 2))
    return claim


@pytest.mark.parametrize("supersede", SUPERSEDED.values(), ids=SUPERSEDED)
def test_superseded_attempt_changes_nothing(
    store: Store, engine_url: str, supersede: Callable[[Store, Claim], object]
) -> None:
    claim = started(store)
    supersede(store, claim)
    store.clock.move(1)  # type: ignore[attr-defined]
    before = tools.state_of(engine_url)
    for name, stale_write in WRITES.items():
        if was_repeated(supersede, name):
            continue
        try:
            assert stale_write(store, claim) == [claim], name
        except LeaseLost as error:
            assert f"job {claim.job_id}: attempt 1 of worker w1" in str(error)
        assert tools.state_of(engine_url) == before, name
    assert check(engine_url) == []


def was_repeated(supersede: Callable[[Store, Claim], object], name: str) -> bool:
    """Whether the write is no stale one, but the very end of the attempt that happened."""
    return (supersede, name) in [
        (SUPERSEDED["given back"], "release"),
        (SUPERSEDED["failed"], "fail"),
    ]


@pytest.mark.parametrize("stale_write", WRITES.values(), ids=WRITES)
def test_without_the_fence_the_stale_write_goes_through(
    store: Store,
    engine_url: str,
    stale_write: Callable[[Store, Claim], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: the condition on owner and attempt is what holds stale writes back."""
    claim = started(store)
    tools.fall_silent(store)
    (fresh,) = tools.take(store, "w2")
    if stale_write is WRITES["finish"]:
        tools.train(store, fresh, range(2, 4))
    store.clock.move(1)  # type: ignore[attr-defined]
    before = tools.state_of(engine_url)
    monkeypatch.setattr(fences, "held", lambda claim: jobs.c.id == claim.job_id)
    assert stale_write(store, claim) != [claim]
    assert tools.state_of(engine_url) != before


def test_pack_goes_on_without_the_member_that_was_lost(store: Store, engine_url: str) -> None:
    tools.add(store, seeds=[42, 43, 44])
    claims = tools.take(store, limit=3)
    store.cancel("chignolin", [43])
    lost = store.record_epochs([tools.write(claim, 1, tools.point(1)) for claim in claims])
    assert lost == [claims[1]]
    assert [job.epoch for job in store.jobs(1)] == [1, 0, 1]
    assert store.renew(claims).held == [claims[0], claims[2]]
    assert store.record_checkpoint([(claim, tools.point(1, 3)) for claim in claims]) == [claims[1]]
    assert store.release(claims, reason="signal") == [claims[1]]
    assert store.counts() | {} == dict.fromkeys(State, 0) | {State.QUEUED: 2, State.CANCELLED: 1}
    assert check(engine_url) == []
