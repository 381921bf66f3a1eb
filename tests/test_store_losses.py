"""What a worker records: losses, checkpoints, results, failures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import store_tools as tools

from ensq.errors import EnsqError, LeaseLost
from ensq.jobs import Claim, Outcome, State
from ensq.store import Store, check

LEASE = tools.LEASE


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        tools.add(opened, seeds=[42, 43])
        tools.register(opened, "w1")
        yield opened
    assert check(engine_url) == []


@pytest.fixture
def claim(store: Store) -> Claim:
    return tools.take(store)[0]


def test_epoch_is_recorded_with_losses_best_checkpoint_and_sign_of_life(
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
        )
    job = store.job(claim.job_id)
    assert (job.epoch, job.train_loss, job.val_loss) == (2, 2.0, 1.0)
    assert (job.best_epoch, job.best_loss, job.seconds_per_epoch) == (1, 0.5, 0.25)
    assert (job.checkpoint, job.previous_checkpoint) == (tools.point(2), tools.point(1))
    assert (job.beat, job.lease_seconds, job.updated_at) == (3, LEASE, store.now())
    assert store.epochs(claim.job_id) == [tools.record(1, 0.5), tools.record(2, 1.0)]


def test_losses_that_are_not_finite_are_kept(store: Store, claim: Claim) -> None:
    bad = replace(tools.record(1, math.nan), train_loss=math.inf)
    store.record_epoch(claim, bad, best_epoch=None, best_loss=math.nan, checkpoint=None)
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
    )
    (kept,) = store.epochs(claim.job_id)
    assert (kept.epoch, kept.train_loss, kept.val_rmse_force) == (1, 0.5, 0.25)
    assert (store.job(1).best_epoch, store.job(1).best_loss) == (1, 0.5)


def test_epoch_recorded_again_changes_nothing(store: Store, claim: Claim, engine_url: str) -> None:
    """As when its acknowledgement was lost."""
    tools.train(store, claim, range(1, 4))
    before = tools.state_of(engine_url)
    for epoch in (3, 2, 1):
        tools.train(store, claim, range(epoch, epoch + 1))
    assert tools.state_of(engine_url) == before


def test_epoch_recorded_again_with_other_losses_is_refused(
    store: Store, claim: Claim, engine_url: str
) -> None:
    (other,) = tools.take(store)
    tools.train(store, claim, range(1, 3))
    tools.train(store, other, range(1, 2))
    before = tools.state_of(engine_url)
    for epoch in (1, 2):
        for loss in (math.nan, 1.0 + 1e-15):
            with pytest.raises(EnsqError, match=f"epoch {epoch} is recorded already, with other"):
                # Neither is the other's part written, whichever comes first.
                store.record_epochs(
                    [tools.write(other, 2), tools.write(claim, epoch, val_loss=loss)]
                )
    assert tools.state_of(engine_url) == before


def test_epoch_of_an_earlier_attempt_can_not_be_recorded_again(store: Store, claim: Claim) -> None:
    """The same losses, but what this attempt computes is not what stands there."""
    tools.train(store, claim, range(1, 3))
    store.release([claim], reason="signal")
    (claim,) = tools.take(store)
    with pytest.raises(EnsqError, match="epoch 2 is recorded already"):
        tools.train(store, claim, range(2, 3))


def test_losses_that_are_not_numbers_can_be_recorded_again(store: Store, claim: Claim) -> None:
    for _ in range(2):
        assert store.record_epochs([tools.write(claim, 1, val_loss=math.nan)]) == []


def test_gap_in_the_losses_is_refused_for_the_whole_pack(store: Store, engine_url: str) -> None:
    one, two = tools.take(store, limit=2)
    before = tools.dump(engine_url)
    with pytest.raises(EnsqError, match="epoch 2 can't follow epoch 0"):
        store.record_epochs([tools.write(one, 1), tools.write(two, 2)])
    assert tools.dump(engine_url) == before


@pytest.mark.parametrize("wrong", [tools.point(1), tools.point(3), tools.point(2, 1)])
def test_checkpoint_of_another_epoch_is_refused(store: Store, claim: Claim, wrong: object) -> None:
    tools.train(store, claim, range(1, 2))
    with pytest.raises(EnsqError, match="can't be recorded with epoch 2"):
        store.record_epochs([tools.write(claim, 2, wrong)])  # type: ignore[arg-type]
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


def test_checkpoint_can_not_be_followed_by_an_earlier_one(store: Store, claim: Claim) -> None:
    """It would be gone on from, and the later one be what is fallen back to."""
    tools.train(store, claim, range(1, 2))
    for step in (4, 4, 6):
        assert store.record_checkpoint([(claim, tools.point(1, step))]) == []
    with pytest.raises(EnsqError, match="epoch 1, step 5 can't be recorded after a later one"):
        store.record_checkpoint([(claim, tools.point(1, 5))])
    job = store.job(claim.job_id)
    assert (job.checkpoint, job.previous_checkpoint) == (tools.point(1, 6), tools.point(1, 4))


def test_damaged_checkpoints_are_fallen_back_from_one_by_one(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 4))
    job = store.stand_at(claim, tools.point(2), [], "digest of 3-0 differs")
    assert (job.checkpoint, job.previous_checkpoint, job.epoch) == (tools.point(2), None, 2)
    assert job == store.job(claim.job_id)
    assert [record.epoch for record in store.epochs(job.id)] == [1, 2]
    job = store.stand_at(claim, None, [], "digest of 2-0 differs")
    assert (job.checkpoint, job.epoch, job.best_loss) == (None, 0, None)
    event = store.events()[-1]
    assert (event.kind, event.message) == (
        "fell_back",
        "digest of 2-0 differs; goes on from epoch 0",
    )
    assert store.attempts(job.id)[0].start_epoch == 0
    tools.train(store, claim, range(1, 4))
    store.finish(claim, tools.result())


def test_older_checkpoint_keeps_the_one_before_it(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 3))
    assert store.record_checkpoint([(claim, tools.point(2, 5))]) == []
    job = store.stand_at(claim, tools.point(2, 1), [], "2-5 is damaged")
    assert (job.checkpoint, job.previous_checkpoint) == (tools.point(2, 1), tools.point(2))
    assert [record.epoch for record in store.epochs(job.id)] == [1, 2]
    assert store.events()[-1].message == "2-5 is damaged; goes on from epoch 2, step 1"


def test_newer_checkpoint_that_was_never_recorded_is_adopted(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 2))
    store.release([claim], Outcome.LOST, "died")
    (claim,) = tools.take(store)
    losses = [tools.record(1), tools.record(2, 0.5), tools.record(3, 0.75)]
    job = store.stand_at(claim, tools.point(2, 7), losses, "found on disk")
    assert (job.checkpoint, job.previous_checkpoint) == (tools.point(2, 7), tools.point(1))
    assert (job.epoch, job.best_epoch, job.best_loss, job.strikes) == (2, 2, 0.5, 0)
    assert job == store.job(claim.job_id)
    assert store.epochs(job.id) == losses[:2]  # those after the checkpoint are computed again
    attempt = store.attempts(job.id)[-1]
    assert (attempt.start_epoch, attempt.start_step) == (2, 7)
    event = store.events()[-1]
    assert (event.kind, event.message) == ("adopted", "found on disk; goes on from epoch 2, step 7")
    tools.train(store, claim, range(3, 4))
    store.finish(claim, tools.result())


def test_checkpoint_without_its_losses_is_not_adopted(
    store: Store, claim: Claim, engine_url: str
) -> None:
    tools.train(store, claim, range(1, 2))
    before = tools.dump(engine_url)
    for losses in ([], [tools.record(1), tools.record(3)]):
        with pytest.raises(EnsqError, match="can't stand at epoch 3"):
            store.stand_at(claim, tools.point(3), losses, "found")
    assert tools.dump(engine_url) == before


def test_standing_where_the_row_stands_changes_nothing(
    store: Store, claim: Claim, engine_url: str
) -> None:
    tools.train(store, claim, range(1, 3))
    before = tools.dump(engine_url)
    assert store.stand_at(claim, tools.point(2), [], "same") == store.job(claim.job_id)
    assert tools.dump(engine_url) == before


def test_result_that_was_never_recorded_is_adopted(store: Store, claim: Claim) -> None:
    """A worker published the last file and died before it could say so."""
    tools.train(store, claim, range(1, 3), saved=False)
    store.release([claim], Outcome.LOST, "died")
    (claim,) = tools.take(store)
    assert store.job(claim.job_id).epoch == 0
    losses = [tools.record(epoch, 1 / epoch) for epoch in (1, 2, 3)]
    store.finish(claim, tools.result(), losses)
    job = store.job(claim.job_id)
    assert (job.state, job.epoch, job.val_loss) == (State.DONE, 3, 1 / 3)
    assert (job.best_epoch, job.best_loss) == (3, 0.5)
    assert store.epochs(job.id) == losses
    assert "the result of an earlier attempt" in store.events()[-1].message


def test_adopted_result_needs_all_its_losses(store: Store, claim: Claim, engine_url: str) -> None:
    before = tools.dump(engine_url)
    for losses in ([1, 2], [1, 3], [2, 3]):
        with pytest.raises(EnsqError, match="can't stand at epoch 3: the losses of 2 epochs"):
            store.finish(claim, tools.result(), [tools.record(epoch) for epoch in losses])
    assert tools.dump(engine_url) == before


def test_done_job_keeps_its_result(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 4))
    assert store.result(claim.job_id) is None
    store.clock.move(7)  # type: ignore[attr-defined]
    store.finish(claim, tools.result())
    job = store.job(claim.job_id)
    assert (job.state, job.owner, job.lease_seconds) == (State.DONE, None, None)
    assert (job.result_path, job.result_digest) == ("result", "r" * 64)
    assert (job.best_epoch, job.best_loss) == (3, 0.5)
    assert store.result(claim.job_id) == tools.result()
    (attempt,) = store.attempts(job.id)
    assert (attempt.outcome, attempt.end_epoch) == (Outcome.DONE, 3)
    assert attempt.ended_at == store.now()
    assert store.events()[-1].kind == "done"
    with pytest.raises(LeaseLost):
        store.finish(claim, replace(tools.result(), digest="s" * 64))
    assert store.result(claim.job_id) == tools.result()


def test_job_with_missing_losses_is_not_done(
    store: Store, claim: Claim, engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.train(store, claim, range(1, 3))
    before = tools.dump(engine_url)
    words = r"seed 42\) can't stand at epoch 3: the losses of 2 epochs are recorded, 3 are"
    with pytest.raises(EnsqError, match=words):
        store.finish(claim, tools.result())
    assert tools.dump(engine_url) == before
    # The control: without the look at the losses it would be done.
    with monkeypatch.context() as patch:
        patch.setattr("ensq.store.writes._require_dense", lambda connection, job, wanted: None)
        store.finish(claim, tools.result())
    assert store.job(claim.job_id).state is State.DONE
    problems = check(engine_url)
    assert problems == ["job 1 (seed 42): is done, but not all epochs are"]
    with store._database.write() as connection:  # make it sound again for the fixture's check
        connection.exec_driver_sql("UPDATE jobs SET epochs = 2 WHERE id = 1")


def test_interruption_gives_the_job_back_and_never_counts_as_failure(
    store: Store, claim: Claim
) -> None:
    for number in range(1, 6):
        tools.train(store, claim, range(1, 2), saved=False)
        assert store.release([claim], Outcome.INTERRUPTED, "SIGTERM", asked=True) == []
        job = store.job(claim.job_id)
        assert (job.state, job.interruptions, job.failures) == (State.QUEUED, number, 0)
        assert (job.strikes, job.stalls, job.not_before) == (0, 0, 0.0)
        (claim,) = tools.take(store)
    attempt = store.attempts(claim.job_id)[0]
    assert (attempt.outcome, attempt.reason) == (Outcome.INTERRUPTED, "SIGTERM")
    assert (attempt.start_epoch, attempt.end_epoch, attempt.end_step) == (0, 1, 0)


def test_attempt_notes_the_steps_that_it_began_and_ended_at(store: Store, claim: Claim) -> None:
    tools.train(store, claim, range(1, 2))
    assert store.record_checkpoint([(claim, tools.point(1, 4))]) == []
    store.release([claim], reason="SIGTERM")
    (claim,) = tools.take(store)
    tools.train(store, claim, range(2, 3))
    store.release([claim], reason="SIGTERM")
    first, second = store.attempts(claim.job_id)
    assert (first.start_epoch, first.start_step, first.end_epoch, first.end_step) == (0, 0, 1, 4)
    assert (second.start_epoch, second.start_step, second.end_epoch, second.end_step) == (
        *(1, 4),
        *(2, 0),
    )


@pytest.mark.parametrize(
    ("outcome", "counter", "error"),
    [
        (Outcome.FAILURE, "failures", "failed 3 times, the last time: why not"),
        (
            Outcome.CRASH,
            "crashes",
            "set aside: it ended 3 trainers or workers in a row without a new checkpoint, "
            "the last time: why not",
        ),
    ],
)
def test_job_is_tried_again_until_the_third_failure_of_a_kind(
    store: Store, claim: Claim, outcome: Outcome, counter: str, error: str
) -> None:
    for number in (1, 2):
        assert store.fail(claim, outcome, "why\nnot", retry=True) is State.QUEUED
        job = store.job(claim.job_id)
        assert (getattr(job, counter), job.failures + job.crashes) == (number, number)
        assert job.error is None
        (claim,) = tools.take(store)
        assert claim.attempt == number + 1
    assert store.fail(claim, outcome, "why\nnot", retry=True, log_tail="last\nlines") is (
        State.FAILED
    )
    job = store.job(claim.job_id)
    assert (job.state, job.error, job.owner) == (State.FAILED, error, None)
    attempts = store.attempts(job.id)
    assert {attempt.outcome for attempt in attempts} == {outcome}
    assert [attempt.log_tail for attempt in attempts] == [None, None, "last\nlines"]
    assert attempts[0].reason == "why\nnot"
    assert [(event.kind, event.message) for event in store.events() if event.kind != "claimed"][
        -3:
    ] == [("requeued", "why\nnot"), ("requeued", "why\nnot"), ("failed", error)]


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
