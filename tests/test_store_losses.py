"""What a worker records: losses, checkpoints, results, failures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import store_tools as tools
from sqlalchemy.exc import IntegrityError

from ensq.errors import EnsqError, LeaseLost
from ensq.jobs import Claim, Outcome, State
from ensq.store import MAX_FAILURES, Store, check

LEASE = tools.LEASE


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with tools.fresh(tmp_path / "q.db", tools.Clock()) as opened:
        tools.add(opened, seeds=[42, 43])
        tools.register(opened, "w1")
        yield opened
    assert check(tmp_path / "q.db") == []


@pytest.fixture
def claim(store: Store) -> Claim:
    return tools.take(store)[0]


def test_epoch_is_recorded_with_losses_best_checkpoint_and_lease(
    store: Store, claim: Claim
) -> None:
    store.clock.move(10)  # type: ignore[attr-defined]
    for epoch in (1, 2):
        store.record_epoch(
            claim,
            tools.record(epoch, val_loss=epoch * 0.5),
            best_epoch=1,
            best_loss=0.5,
            checkpoint=tools.point(epoch),
            lease_seconds=LEASE,
        )
    job = store.job(claim.job_id)
    assert (job.epoch, job.train_loss, job.val_loss) == (2, 2.0, 1.0)
    assert (job.best_epoch, job.best_loss, job.seconds_per_epoch) == (1, 0.5, 0.25)
    assert (job.checkpoint, job.previous_checkpoint) == (tools.point(2), tools.point(1))
    assert job.lease_until == store.now() + LEASE
    assert store.epochs(claim.job_id) == [tools.record(1, 0.5), tools.record(2, 1.0)]


def test_losses_that_are_not_finite_are_kept(store: Store, claim: Claim) -> None:
    bad = replace(tools.record(1, math.nan), train_loss=math.inf)
    store.record_epoch(
        claim, bad, best_epoch=None, best_loss=math.nan, checkpoint=None, lease_seconds=LEASE
    )
    (kept,) = store.epochs(claim.job_id)
    assert math.isnan(kept.val_loss) and kept.train_loss == math.inf
    assert store.job(claim.job_id).val_loss is None


def test_kinds_of_numpy_are_stored_as_numbers(store: Store, claim: Claim) -> None:
    numpy = pytest.importorskip("numpy")
    record = replace(
        tools.record(1),
        epoch=numpy.int64(1),
        train_loss=numpy.float32(0.5),
        val_rmse_force=numpy.float32(0.25),
        learning_rate=numpy.float32(0.125),
    )
    store.record_epoch(
        claim,
        record,
        best_epoch=numpy.int32(1),
        best_loss=numpy.float32(0.5),
        checkpoint=None,
        lease_seconds=LEASE,
    )
    (kept,) = store.epochs(claim.job_id)
    assert (kept.epoch, kept.train_loss, kept.val_rmse_force) == (1, 0.5, 0.25)
    assert (store.job(1).best_epoch, store.job(1).best_loss) == (1, 0.5)


def test_epoch_recorded_twice_is_refused_and_changes_nothing(
    store: Store, claim: Claim, tmp_path: Path
) -> None:
    tools.train(store, claim, range(1, 3))
    before = tools.dump(tmp_path / "q.db")
    with pytest.raises(IntegrityError):
        tools.train(store, claim, range(2, 3))
    assert tools.dump(tmp_path / "q.db") == before


def test_gap_in_the_losses_is_refused_for_the_whole_pack(store: Store, tmp_path: Path) -> None:
    one, two = tools.take(store, limit=2)
    before = tools.dump(tmp_path / "q.db")
    with pytest.raises(EnsqError, match="epoch 2 can't follow epoch 0"):
        store.record_epochs([tools.write(one, 1), tools.write(two, 2)], LEASE)
    assert tools.dump(tmp_path / "q.db") == before


@pytest.mark.parametrize("wrong", [tools.point(1), tools.point(3), tools.point(2, 1)])
def test_checkpoint_of_another_epoch_is_refused(store: Store, claim: Claim, wrong: object) -> None:
    tools.train(store, claim, range(1, 2))
    with pytest.raises(EnsqError, match="can't be recorded with epoch 2"):
        store.record_epochs([tools.write(claim, 2, wrong)], LEASE)  # type: ignore[arg-type]
    assert store.job(claim.job_id).epoch == 1


def test_checkpoint_within_an_epoch_moves_the_one_before_back(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 3))
    assert store.record_checkpoint([(claim, tools.point(2, 5))]) == []
    job = store.job(claim.job_id)
    assert job.checkpoint == tools.point(2, 5)
    assert job.previous_checkpoint == tools.point(2)


def test_checkpoint_recorded_twice_is_not_its_own_fallback(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 3))
    assert store.record_checkpoint([(claim, tools.point(2))]) == []
    job = store.job(claim.job_id)
    assert (job.checkpoint, job.previous_checkpoint) == (tools.point(2), tools.point(1))


@pytest.mark.parametrize("epoch", [1, 3])
def test_checkpoint_must_be_at_the_epoch_that_is_recorded(
    store: Store, claim: Claim, epoch: int
) -> None:
    tools.train(store, claim, range(1, 3))
    with pytest.raises(EnsqError, match="while 2 epochs are"):
        store.record_checkpoint([(claim, tools.point(epoch, 1))])
    assert store.job(claim.job_id).checkpoint == tools.point(2)


def test_damaged_checkpoints_are_fallen_back_from_one_by_one(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 4))
    job = store.fall_back(claim, "digest of 3-0 differs")
    assert (job.checkpoint, job.previous_checkpoint, job.epoch) == (tools.point(2), None, 2)
    assert job == store.job(claim.job_id)
    assert [record.epoch for record in store.epochs(job.id)] == [1, 2]
    job = store.fall_back(claim, "digest of 2-0 differs")
    assert (job.checkpoint, job.epoch, job.best_loss) == (None, 0, None)
    event = store.events()[-1]
    assert (event.kind, event.message) == (
        "fell_back",
        "digest of 2-0 differs; goes on from epoch 0",
    )
    assert store.attempts(job.id)[0].start_epoch == 0
    tools.train(store, claim, range(1, 4))
    store.finish(claim, tools.result())


def test_done_job_keeps_its_result(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 4))
    assert store.result(claim.job_id) is None
    store.clock.move(7)  # type: ignore[attr-defined]
    store.finish(claim, tools.result())
    job = store.job(claim.job_id)
    assert (job.state, job.owner, job.lease_until) == (State.DONE, None, None)
    assert (job.result_path, job.result_digest) == ("result", "r" * 64)
    assert (job.best_epoch, job.best_loss) == (3, 0.5)
    assert store.result(claim.job_id) == tools.result()
    (attempt,) = store.attempts(job.id)
    assert (attempt.outcome, attempt.end_epoch) == (Outcome.DONE, 3)
    assert attempt.ended_at == store.now()
    assert store.events()[-1].kind == "done"
    with pytest.raises(LeaseLost):
        store.finish(claim, tools.result())


def test_job_with_missing_losses_is_not_done(
    store: Store, claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.train(store, claim, range(1, 3))
    before = tools.dump(tmp_path / "q.db")
    words = r"seed 42\) can't be done: the losses of 2 epochs are recorded, 3 are needed"
    with pytest.raises(EnsqError, match=words):
        store.finish(claim, tools.result())
    assert tools.dump(tmp_path / "q.db") == before
    # The control: without the look at the losses it would be done.
    with monkeypatch.context() as patch:
        patch.setattr("ensq.store.writes._require_dense", lambda connection, job: None)
        store.finish(claim, tools.result())
    assert store.job(claim.job_id).state is State.DONE
    problems = check(tmp_path / "q.db")
    assert problems == ["job 1 (seed 42): is done, but not all epochs are"]
    with store._database.write() as connection:  # make it sound again for the fixture's check
        connection.exec_driver_sql("UPDATE jobs SET epochs = 2 WHERE id = 1")


def test_interruption_gives_the_job_back_and_never_counts_as_failure(
    store: Store, claim: Claim
) -> None:
    for number in range(1, 6):
        tools.train(store, claim, range(1, 2), saved=False)
        assert store.release([claim], Outcome.INTERRUPTED, "SIGTERM") == []
        job = store.job(claim.job_id)
        assert (job.state, job.interruptions, job.failures) == (State.QUEUED, number, 0)
        (claim,) = tools.take(store)
    attempt = store.attempts(claim.job_id)[0]
    assert (attempt.outcome, attempt.reason, attempt.end_epoch) == (
        Outcome.INTERRUPTED,
        "SIGTERM",
        1,
    )


@pytest.mark.parametrize(
    ("outcome", "counter"), [(Outcome.FAILURE, "failures"), (Outcome.CRASH, "crashes")]
)
def test_job_is_tried_again_until_the_third_failure_of_a_kind(
    store: Store, claim: Claim, outcome: Outcome, counter: str
) -> None:
    for number in range(1, MAX_FAILURES):
        assert store.fail(claim, outcome, "why\nnot", retry=True) is State.QUEUED
        job = store.job(claim.job_id)
        assert (getattr(job, counter), job.failures + job.crashes) == (number, number)
        assert job.error is None
        (claim,) = tools.take(store)
        assert claim.attempt == number + 1
    assert store.fail(claim, outcome, "why\nnot", retry=True) is State.FAILED
    job = store.job(claim.job_id)
    assert (job.state, job.error, job.owner) == (State.FAILED, "why not", None)
    assert {attempt.outcome for attempt in store.attempts(job.id)} == {outcome}
    assert store.attempts(job.id)[0].reason == "why\nnot"
    assert [event.kind for event in store.events() if event.message == "why\nnot"] == [
        "requeued",
        "requeued",
        "failed",
    ]


def test_failures_and_crashes_have_budgets_of_their_own(store: Store, claim: Claim) -> None:
    for outcome in (Outcome.FAILURE, Outcome.CRASH) * 2:
        assert store.fail(claim, outcome, "why", retry=True) is State.QUEUED
        (claim,) = tools.take(store)
    assert store.fail(claim, Outcome.CRASH, "why", retry=True) is State.FAILED


def test_error_that_repeats_itself_is_not_tried_again(store: Store, claim: Claim) -> None:
    assert store.fail(claim, Outcome.FAILURE, "bad key", retry=False) is State.FAILED
    assert store.job(claim.job_id).failures == 1


def test_outcomes_are_not_mixed_up(store: Store, claim: Claim) -> None:
    with pytest.raises(ValueError, match="use fail"):
        store.release([claim], Outcome.CRASH, "why")
    with pytest.raises(ValueError, match="use release"):
        store.fail(claim, Outcome.INTERRUPTED, "why", retry=True)
    assert store.job(claim.job_id).state is State.RUNNING
