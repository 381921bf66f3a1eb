"""What the end of an attempt means for its job: counts, budgets and pauses."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import store_tools as tools

from ensq.jobs import Claim, Job, Outcome, State
from ensq.store import Policy, Store, check
from ensq.store.policy import Ending, Verdict, judge

F, C, L, I, B = (  # noqa: E741
    *(Outcome.FAILURE, Outcome.CRASH, Outcome.LOST),
    *(Outcome.INTERRUPTED, Outcome.BLOCKED),
)
POLICY = Policy()
HOUR = 3600.0

JOB = Job(
    id=1,
    ensemble_id=1,
    index=0,
    seed=42,
    state=State.RUNNING,
    attempt=5,
    owner="w1",
    lease_seconds=60.0,
    beat=9,
    not_before=0.0,
    wish=None,
    epochs=10,
    epoch=4,
    train_loss=None,
    val_loss=None,
    best_epoch=None,
    best_loss=None,
    seconds_per_epoch=None,
    checkpoint=None,
    previous_checkpoint=None,
    result_path=None,
    result_digest=None,
    failures=0,
    crashes=0,
    losses=0,
    interruptions=0,
    strikes=0,
    stalls=0,
    error="an old error",
    updated_at=0.0,
)


def end(
    job: Job, outcome: Outcome, *, progressed: bool = False, policy: Policy = POLICY, **other: Any
) -> Verdict:
    return judge(
        policy, job, Ending(outcome=outcome, reason="why\nnot", **other), progressed=progressed
    )


def counts(job: Job) -> tuple[int, int, int, int, int, int]:
    return (job.failures, job.crashes, job.losses, job.interruptions, job.strikes, job.stalls)


# Outcome, progressed, asked; failures, crashes, losses, interruptions, strikes, stalls after (1, 1,
# 1, 1, 1, 1) before; the pause.
COUNTED = [
    (F, False, False, (2, 1, 1, 1, 1, 1), 60),
    (F, True, False, (2, 1, 1, 1, 0, 0), 60),
    (C, False, False, (1, 2, 1, 1, 2, 1), 60),
    (C, True, False, (1, 2, 1, 1, 1, 0), 10),
    (L, False, False, (1, 1, 2, 1, 2, 1), 10),
    (L, True, False, (1, 1, 2, 1, 1, 0), 0),
    (I, False, False, (1, 1, 1, 2, 1, 2), 0),
    (I, True, False, (1, 1, 1, 2, 0, 0), 0),
    (I, False, True, (1, 1, 1, 2, 1, 1), 0),
    (I, True, True, (1, 1, 1, 2, 0, 0), 0),
    (B, False, False, (1, 1, 1, 1, 1, 1), 60),
    (B, True, False, (1, 1, 1, 1, 0, 0), 60),
]


@pytest.mark.parametrize(("outcome", "progressed", "asked", "after", "pause"), COUNTED)
def test_each_cause_is_counted_apart(
    outcome: Outcome, progressed: bool, asked: bool, after: tuple[int, ...], pause: float
) -> None:
    before = replace(JOB, failures=1, crashes=1, losses=1, interruptions=1, strikes=1, stalls=1)
    verdict = end(before, outcome, progressed=progressed, asked=asked)
    assert counts(verdict.job) == after
    assert (verdict.job.state, verdict.job.error) == (State.QUEUED, None)
    assert verdict.pause == pytest.approx(pause)


# What is set aside: outcome, counts before, progressed, asked; words of the error, None for none.
SET_ASIDE: list[tuple[Outcome, dict[str, int], bool, bool, str | None]] = [
    (F, {"failures": 1}, False, False, None),
    (F, {"failures": 2}, False, False, "failed 3 times, the last time: why not"),
    (F, {"failures": 2}, True, False, "failed 3 times, the last time: why not"),
    (F, {"failures": 0, "strikes": 2, "stalls": 2}, False, False, None),
    (C, {"strikes": 1}, False, False, None),
    (C, {"strikes": 2}, False, False, "set aside: it ended 3 trainers or workers in a row"),
    (C, {"strikes": 2}, True, False, None),
    (C, {"crashes": 50, "strikes": 1}, False, False, None),
    (C, {"failures": 2}, False, False, None),
    (L, {"strikes": 2}, False, False, "without a new checkpoint, the last time: why not"),
    (L, {"strikes": 2}, True, False, None),
    (L, {"losses": 50}, False, False, None),
    (I, {"stalls": 1}, False, False, None),
    (I, {"stalls": 2}, False, False, "no progress: 3 attempts in a row were interrupted"),
    (I, {"stalls": 2}, True, False, None),
    (I, {"stalls": 2}, False, True, None),
    (I, {"interruptions": 50}, False, False, None),
    (I, {"failures": 2, "strikes": 2}, False, False, None),
    (B, {"failures": 2, "strikes": 2, "stalls": 2}, False, False, None),
]


@pytest.mark.parametrize(("outcome", "before", "progressed", "asked", "words"), SET_ASIDE)
def test_budgets(
    outcome: Outcome, before: dict[str, int], progressed: bool, asked: bool, words: str | None
) -> None:
    verdict = end(replace(JOB, **before), outcome, progressed=progressed, asked=asked)  # type: ignore[arg-type]
    if words is None:
        assert (verdict.job.state, verdict.job.error) == (State.QUEUED, None)
    else:
        assert (verdict.job.state, verdict.pause) == (State.FAILED, 0.0)
        assert words in (verdict.job.error or "") and "\n" not in (verdict.job.error or "")


def test_what_would_fail_again_is_not_tried_again() -> None:
    verdict = end(JOB, F, retry=False)
    assert (verdict.job.state, verdict.job.error) == (State.FAILED, "why not")
    assert verdict.job.failures == 1


@pytest.mark.parametrize("outcome", [F, C, L, I, B])
def test_job_that_a_person_wants_held_is_held_unless_it_failed(outcome: Outcome) -> None:
    wished = replace(JOB, wish="hold")
    assert end(wished, outcome, retry=True).job.state is State.HELD
    spent = replace(wished, failures=2, strikes=2, stalls=2)
    expected = State.HELD if outcome is B else State.FAILED
    assert end(spent, outcome).job.state is expected


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.CANCELLED])
def test_other_outcomes_are_no_such_end(outcome: Outcome) -> None:
    with pytest.raises(ValueError, match=f"being {outcome}"):
        end(JOB, outcome)


def test_budgets_are_the_policys() -> None:
    once = Policy(failures=1, strikes=1, stalls=1)
    assert {end(JOB, outcome, policy=once).job.state for outcome in (F, C, L, I)} == {State.FAILED}
    many = Policy(failures=9, strikes=9, stalls=9)
    spent = replace(JOB, failures=7, strikes=7, stalls=7)
    assert {end(spent, outcome, policy=many).job.state for outcome in (F, C, L, I)} == {
        State.QUEUED
    }


def test_every_job_that_only_ends_badly_is_set_aside_in_the_end() -> None:
    """Whatever the order of causes: no job without progress goes round for ever."""
    for causes in itertools.product([F, C, L, I], repeat=7):
        job = JOB
        for number, outcome in enumerate(causes):
            job = end(job, outcome).job
            if job.state is State.FAILED:
                assert number >= 2, "nothing is set aside before the third time"
                break
        else:
            pytest.fail(f"goes on after {causes}")


def test_pauses_grow_to_the_longest() -> None:
    assert [POLICY.pause_after(times) for times in range(-1, 6)] == [0, 0, 10, 60, 300, 300, 300]
    assert all(math.isfinite(POLICY.pause_after(times)) for times in (50, 200))


# In the queue


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url, policy=POLICY) as opened:
        tools.add(opened, seeds=[42])
        tools.register(opened, "w1", "w2")
        yield opened
    assert check(engine_url) == []


def fail(store: Store, claim: Claim) -> None:
    assert store.fail(claim, F, "nan", retry=True) is State.QUEUED


def test_job_that_failed_is_left_for_its_pause(store: Store) -> None:
    (claim,) = tools.take(store)
    fail(store, claim)
    outlook = store.outlook()
    assert (outlook.claimable, outlook.due_in, outlook.running, outlook.open) == (0, 10.0, 0, 1)
    store.clock.move(9.5)  # type: ignore[attr-defined]
    assert tools.take(store) == []
    assert store.outlook("chignolin").due_in == 0.5
    store.clock.move(0.5)  # type: ignore[attr-defined]
    assert store.outlook().claimable == 1
    (claim,) = tools.take(store)
    assert store.job(claim.job_id).not_before == 0.0
    fail(store, claim)
    assert store.outlook().due_in == 60.0


def test_others_go_first_while_one_pauses(store: Store) -> None:
    tools.add(store, seeds=[42, 43])
    (claim,) = tools.take(store)
    fail(store, claim)
    assert [store.job(taken.job_id).seed for taken in tools.take(store, limit=5)] == [43]


@pytest.mark.parametrize("skew", [HOUR, -HOUR])
def test_clock_that_is_an_hour_off_makes_no_pause_long(
    store: Store, engine_url: str, skew: float
) -> None:
    """The host whose job failed has another time than the one that wants to claim."""
    other = tools.open_by_hand(engine_url, tools.Clock(store.now() + skew), policy=POLICY)
    with other:
        (claim,) = tools.take(store)
        fail(other, claim)
        # Whether the pause is seen or not, it is not seen for longer than a pause is.
        store.clock.move(POLICY.longest_pause + 1)  # type: ignore[attr-defined]
        assert store.outlook().claimable == 1
        assert len(tools.take(store)) == 1


def test_without_the_limit_a_clock_ahead_would_hold_the_job_for_an_hour(
    store: Store, engine_url: str
) -> None:
    """The control."""
    endless = replace(POLICY, longest_pause=1e9)
    ahead = tools.open_by_hand(engine_url, tools.Clock(store.now() + HOUR), policy=POLICY)
    with ahead, tools.open_by_hand(engine_url, tools.Clock(store.now()), policy=endless) as naive:
        (claim,) = tools.take(store)
        fail(ahead, claim)
        naive.clock.move(POLICY.longest_pause + 1)  # type: ignore[attr-defined]
        assert tools.take(naive) == []


@pytest.mark.parametrize("skew", [HOUR, -HOUR, 0.0])
def test_postgresql_counts_pauses_by_its_own_clock(engine_url: str, skew: float) -> None:
    """So hosts may be off as they like; with SQLite a host that is off sees no pause at all."""
    with Store.open(engine_url, clock=lambda: time.time() + skew, policy=POLICY) as failing:
        tools.add(failing, seeds=[42])
        tools.register(failing, "w1")
        (claim,) = tools.take(failing)
        fail(failing, claim)
        server = "://" in engine_url
        assert (abs(failing.job(1).not_before - time.time() - 10) < 5) == (server or skew == 0.0)
        with Store.open(engine_url, policy=POLICY) as claiming:
            assert tools.take(claiming) == [] or (skew and not server)
        if server:  # what a worker expects is what a claim would find
            outlook = failing.outlook()
            assert outlook.claimable == 0 and 0 < (outlook.due_in or 0) <= 10


@pytest.mark.parametrize(("pause", "times"), [(B, 60.0), (L, 0.0), (I, 0.0)])
def test_jobs_that_are_given_back_pause_as_judged(
    store: Store, pause: Outcome, times: float
) -> None:
    (claim,) = tools.take(store)
    assert store.release([claim], pause, "why") == []
    expected = store.now() + times if times else 0.0
    assert store.job(claim.job_id).not_before == expected


def test_three_lost_workers_set_a_job_aside_with_evidence(store: Store) -> None:
    for number in (1, 2, 3):
        (claim,) = tools.take(store)
        (reaped,) = tools.fall_silent(store)
        job = store.job(claim.job_id)
        assert (job.losses, job.strikes, job.failures, job.interruptions) == (number, number, 0, 0)
        assert reaped.state is job.state is (State.FAILED if number == 3 else State.QUEUED)
        store.clock.move(POLICY.longest_pause)  # type: ignore[attr-defined]
    assert (job.error or "").startswith("set aside: it ended 3 trainers or workers in a row")
    assert "no sign of life of worker w1 for 61 s" in (job.error or "")
    assert [attempt.outcome for attempt in store.attempts(job.id)] == [L, L, L]
    assert tools.take(store) == []
    assert store.retry("chignolin") == [42]
    assert len(tools.take(store)) == 1


def test_a_new_checkpoint_resets_strikes_and_stalls(store: Store) -> None:
    ends = [(C, 1), (L, 2), (I, 1), (I, 2)]
    strikes, stalls = [], []
    for epoch in (1, 2, 3):
        for outcome, _ in ends:
            (claim,) = tools.take(store)
            if outcome is C:
                tools.train(store, claim, range(epoch, epoch + 1))
            give_back(store, claim, outcome)
            job = store.job(claim.job_id)
            assert job.state is State.QUEUED
            strikes.append(job.strikes)
            stalls.append(job.stalls)
            store.clock.move(POLICY.longest_pause)  # type: ignore[attr-defined]
    assert strikes == [1, 2, 2, 2] * 3 and stalls == [0, 0, 1, 2] * 3
    assert (job.crashes, job.losses, job.interruptions, job.failures) == (3, 3, 6, 0)


def give_back(store: Store, claim: Claim, outcome: Outcome) -> None:
    if outcome is C:
        store.fail(claim, outcome, "killed", retry=True)
    else:
        assert store.release([claim], outcome, "why") == []


def test_step_within_an_epoch_is_progress_and_losses_alone_are_not(store: Store) -> None:
    (claim,) = tools.take(store)
    tools.train(store, claim, range(1, 2), saved=False)
    store.release([claim], reason="time limit")
    assert store.job(1).stalls == 1  # it begins where it began
    (claim,) = tools.take(store)
    assert store.record_checkpoint([(claim, tools.point(0, 3))]) == []
    store.release([claim], reason="time limit")
    assert store.job(1).stalls == 0
    (claim,) = tools.take(store)
    store.release([claim], reason="time limit")
    assert store.job(1).stalls == 1


def test_attempt_that_fell_back_makes_progress_only_beyond_where_it_then_stood(
    store: Store,
) -> None:
    (claim,) = tools.take(store)
    tools.train(store, claim, range(1, 3))
    store.stand_at(claim, tools.point(1), [], "2-0 is damaged")
    store.fail(claim, C, "killed", retry=True)
    assert store.job(1).strikes == 1


def test_interruptions_never_use_the_budget_of_failures(store: Store) -> None:
    for _ in range(20):
        (claim,) = tools.take(store)
        assert store.release([claim], reason="drained", asked=True) == []
    job = store.job(1)
    assert (job.state, job.interruptions, job.failures, job.stalls) == (State.QUEUED, 20, 0, 0)
    (claim,) = tools.take(store)
    fail(store, claim)


def test_three_interruptions_without_progress_say_that_the_limit_is_too_short(
    store: Store,
) -> None:
    for _ in range(3):
        (claim,) = tools.take(store)
        assert store.release([claim], reason="time limit reached") == []
    job = store.job(1)
    assert (job.state, job.failures) == (State.FAILED, 0)
    assert job.error == (
        "no progress: 3 attempts in a row were interrupted before a new checkpoint, the last "
        "time: time limit reached; is the time limit too short?"
    )
