"""Early stopping in the queue: decisions, members that end early, members that go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import store_tools as tools
from sqlalchemy import Connection

from ensq.errors import DatabaseError, EnsqError, LeaseLost, MismatchError, UsageError
from ensq.jobs import Claim, EarlyEnd, Result, State, Verdict
from ensq.store import EpochWrite, EventKind, Store, check, early

sqlite = pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
EVIDENCE = json.dumps({"rule": "paired", "epoch": 2})


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        tools.register(opened, "w1", "w2")
        yield opened
    assert check(engine_url) == []


def members(store: Store, count: int = 4, epochs: int = 5) -> list[Claim]:
    """So many members of an ensemble, each in training after two epochs."""
    tools.add(store, seeds=list(range(1, count + 1)), epochs=epochs)
    held = tools.take(store, limit=count)
    for claim in held:
        tools.train(store, claim, range(1, 3))
    return held


def decide(store: Store, claim: Claim, *, stop: bool = True, rule: str = "paired") -> Verdict:
    return store.decide(claim, rule=rule, evidence=EVIDENCE, stop=stop, min_members=2)


def result(epoch: int = 2) -> Result:
    return Result(best_epoch=epoch, best_loss=0.5, final_loss=0.75, path="early", digest="e" * 64)


def end(epoch: int = 2, rule: str = "paired", evidence: str = "") -> EarlyEnd:
    at = tools.point(epoch, 3)
    return EarlyEnd(rule=rule, epoch=epoch, evidence=evidence, checkpoint=at)


def test_losses_by_blocks_come_back_as_they_were_written(store: Store) -> None:
    (claim,) = members(store, 1)
    blocks = [0.1, 1e-300, 3.0]
    written = tools.write(claim, 3)._replace(blocks=blocks)
    assert store.record_epochs([written]) == store.record_epochs([written]) == []
    assert store.blocks_between([claim.job_id], 1, 9) == {(claim.job_id, 3): tuple(blocks)}
    assert store.losses_between([claim.job_id], 2, 3) == {
        (claim.job_id, 2): 1.0,
        (claim.job_id, 3): 1.0,
    }


@sqlite
def test_losses_that_are_no_number_have_none(store: Store) -> None:
    (claim,) = members(store, 1)
    store.record_epochs([EpochWrite(claim, tools.record(3, float("nan")), 2, 1.0, None)])
    assert store.losses_between([claim.job_id], 3, 3) == {(claim.job_id, 3): None}


def test_damaged_losses_by_blocks_are_an_error() -> None:
    for data in (b"1234567", "12345678", 3):
        with pytest.raises(DatabaseError, match="losses by blocks"):
            early.unpacked(data)


def test_report_is_recorded_once_and_changes_nothing_else(store: Store) -> None:
    held = members(store)
    before = store.jobs(1)
    for _ in range(3):
        assert decide(store, held[0], stop=False) is Verdict.REPORTED
    (row,) = store.decisions(1)
    assert (row.job_id, row.rule, row.verdict) == (held[0].job_id, "paired", Verdict.REPORTED)
    assert (row.attempt, row.epoch, row.worker_id) == (1, 2, "w1")
    assert json.loads(row.evidence) == {"rule": "paired", "epoch": 2}
    assert store.jobs(1) == before and store.orders([job.id for job in before]) == {}
    assert [event.kind for event in store.events(1)].count(EventKind.DECIDED) == 1


@sqlite
def test_other_rule_or_mode_is_another_decision(store: Store) -> None:
    held = members(store)
    decide(store, held[0], stop=False)
    decide(store, held[0], stop=False, rule="sigma")
    assert decide(store, held[0]) is Verdict.STOPPED
    assert decide(store, held[0], rule="sigma") is Verdict.STOPPED  # by the rule before
    assert decide(store, held[0], stop=False, rule="sigma") is Verdict.STOPPED
    said = [(row.rule, str(row.verdict)) for row in store.decisions(1)]
    assert sorted(said) == [("paired", "stop"), ("paired", "would stop"), ("sigma", "would stop")]


def test_so_many_members_are_never_stopped(store: Store) -> None:
    held = members(store, 4)
    assert [decide(store, claim) for claim in held] == ["stop", "stop", "kept", "kept"]
    assert [decide(store, claim) for claim in held] == ["stop", "stop", "kept", "kept"]
    assert sorted(store.orders([claim.job_id for claim in held])) == [1, 2]
    stopped = [member.stopped for member in store.early_view(1).members]
    assert stopped == [True, True, False, False]


@sqlite
def test_members_that_failed_or_were_cancelled_are_not_left(store: Store) -> None:
    held = members(store, 4)
    store.cancel("chignolin", [4])
    assert [member.left for member in store.early_view(1).members] == [True, True, True, False]
    assert decide(store, held[0]) is Verdict.STOPPED
    assert decide(store, held[1]) is Verdict.KEPT
    assert [member.left for member in store.early_view(1).members] == [False, True, True, False]


@sqlite
def test_plateau_takes_no_member_from_the_others(store: Store) -> None:
    held = members(store, 3)
    assert decide(store, held[0], rule="plateau") is Verdict.STOPPED
    assert decide(store, held[1], rule="plateau") is Verdict.STOPPED
    assert decide(store, held[2]) is Verdict.STOPPED  # two are left, and trained by themselves
    assert [member.stopped for member in store.early_view(1).members] == [False, False, True]


@sqlite
def test_superseded_attempt_decides_nothing(store: Store) -> None:
    held = members(store)
    store.release(held[:1], reason="signal")
    with pytest.raises(LeaseLost):
        decide(store, held[0])
    assert store.decisions(1) == []


def test_member_that_is_stopped_is_done_with_the_epochs_that_it_has(store: Store) -> None:
    held = members(store)
    decide(store, held[0])
    store.finish(held[0], result(), early=end())
    store.finish(held[0], result(), early=end())  # the answer was lost
    job = store.job(held[0].job_id)
    assert (job.state, job.early, job.epoch, job.exempt) == (State.DONE, "paired", 2, False)
    assert (job.best_epoch, job.best_loss, job.result_path) == (2, 0.5, "early")
    assert job.checkpoint == tools.point(2, 3) and job.previous_checkpoint is not None
    (attempt,) = store.attempts(job.id)
    assert (attempt.outcome, attempt.end_epoch, attempt.end_step) == ("early", 2, 3)
    assert attempt.reason == "stopped early by the rule paired, after epoch 2"
    assert len(store.decisions(1)) == 1
    assert store.early_view(1).members[0].stopped  # it counts still


@sqlite
def test_decision_that_came_too_late_takes_nobody(store: Store) -> None:
    held = members(store, 3)
    decide(store, held[0])
    tools.train(store, held[0], range(3, 6))
    store.finish(held[0], tools.result())
    assert not any(member.stopped for member in store.early_view(1).members)
    assert decide(store, held[1]) is Verdict.STOPPED


@sqlite
def test_member_that_a_plateau_ended_first_is_not_taken_by_the_other_rule(store: Store) -> None:
    held = members(store, 3)
    decide(store, held[0])
    store.finish(held[0], result(), early=end(rule="plateau", evidence="{}"))
    assert not any(member.stopped for member in store.early_view(1).members)
    assert decide(store, held[1]) is Verdict.STOPPED


@sqlite
def test_end_brings_its_decision_where_it_is_not_recorded(store: Store) -> None:
    held = members(store)
    store.finish(held[0], result(), early=end(rule="plateau", evidence='{"since": 1}'))
    (row,) = store.decisions(1)
    assert (row.rule, row.verdict, row.evidence) == ("plateau", "stop", '{"since": 1}')


@sqlite
def test_result_of_an_earlier_attempt_may_have_ended_early(store: Store) -> None:
    (claim,) = members(store, 1)
    records = [tools.record(epoch) for epoch in (1, 2, 3)]
    store.finish(claim, result(3), records, early=end(3, "plateau", "{}"))
    assert (store.job(claim.job_id).epoch, store.job(claim.job_id).early) == (3, "plateau")


@sqlite
@pytest.mark.parametrize("epoch", [1, 3])
def test_losses_must_be_dense_up_to_the_stop(store: Store, epoch: int) -> None:
    held = members(store)
    with pytest.raises(EnsqError, match=f"can't stand at epoch {epoch}"):
        store.finish(held[0], result(), early=replace(end(), epoch=epoch))
    assert store.job(held[0].job_id).state is State.RUNNING


@sqlite
def test_without_a_rule_all_epochs_are_needed(store: Store) -> None:
    """The control of the tests before."""
    held = members(store)
    with pytest.raises(EnsqError, match="can't stand at epoch 5"):
        store.finish(held[0], result())


def test_stopped_member_can_be_resumed_and_is_exempt_then(store: Store) -> None:
    held = members(store)
    decide(store, held[0])
    store.finish(held[0], result(), early=end())
    assert store.resume("chignolin", [1, 2]) == [1]  # seed 2 was not stopped
    assert store.resume("chignolin") == []
    job = store.job(held[0].job_id)
    assert (job.state, job.early, job.exempt, job.result_path) == ("queued", None, True, None)
    assert store.orders([job.id]) == {} and not store.early_view(1).members[0].stopped
    (again,) = tools.take(store, "w2")
    assert (again.job_id, again.attempt) == (job.id, 2)
    assert decide(store, again) is Verdict.KEPT and len(store.decisions(1)) == 1
    tools.train(store, again, range(3, 6))
    store.finish(again, tools.result())
    job = store.job(job.id)
    assert (job.state, job.early, job.exempt, job.epoch) == (State.DONE, None, True, 5)
    assert [attempt.outcome for attempt in store.attempts(job.id)] == ["early", "done"]
    assert store.resume("chignolin") == []
    with pytest.raises(UsageError, match="no seed 99"):
        store.resume("chignolin", [99])


@sqlite
def test_member_that_was_resumed_is_left_again(store: Store) -> None:
    held = members(store, 3)
    decide(store, held[0])
    assert decide(store, held[1]) is Verdict.KEPT
    store.finish(held[0], result(), early=end())
    store.resume("chignolin", [1])
    assert decide(store, held[1]) is Verdict.STOPPED


@sqlite
def test_another_section_is_in_force_from_then_on(store: Store) -> None:
    tools.add(store)
    assert store.early_settings(1) is None
    tools.add(store, early_stopping='{"mode":"report"}')
    assert store.early_settings(1) == store.early_view(1).settings == '{"mode":"report"}'
    tools.add(store, early_stopping='{"mode":"report"}')
    tools.add(store)  # an older program, which knows of no section
    added = tools.add(store, early_stopping='{"mode":"stop"}')
    assert added.ensemble.early_stopping == store.early_settings(1) == '{"mode":"stop"}'
    with pytest.raises(MismatchError):
        tools.add(store, config_digest="x" * 64, early_stopping='{"mode":"off"}')
    assert store.early_settings(1) == '{"mode":"stop"}'
    assert [event.kind for event in store.events(1)].count(EventKind.SETTINGS) == 2


RUSH = """
def work(number, meet):
    with Store.open(path) as store:
        mine = [tools.claim_of(job) for job in store.jobs(1) if job.seed == number]
        meet()
        verdict = store.decide(mine[0], rule="paired", evidence="{}", stop=True, min_members=2)
        print(str(verdict))
"""


def test_members_are_counted_when_all_decide_at_once(store: Store, engine_url: str) -> None:
    tools.add(store, seeds=list(range(6)), epochs=5)
    for claim in tools.take(store, limit=6):
        tools.train(store, claim, range(1, 2))
    said = tools.in_processes(6, engine_url, RUSH).split()
    assert sorted(said) == ["kept"] * 2 + ["stop"] * 4


@pytest.mark.parametrize("engine_url", ["postgresql"], indirect=True)
def test_without_the_lock_two_that_decide_at_once_stop_too_many(
    store: Store, engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: each counts before the other has written."""
    held = members(store, 3)
    monkeypatch.setattr(early, "_one_by_one", lambda connection, job_id: None)
    insert = early._insert
    with tools.open_by_hand(engine_url) as other:

        def meanwhile(connection: Connection, *rest: object) -> None:
            monkeypatch.setattr(early, "_insert", insert)
            assert decide(other, held[1]) is Verdict.STOPPED
            insert(connection, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(early, "_insert", meanwhile)
        assert decide(store, held[0]) is Verdict.STOPPED
    assert sum(member.stopped for member in store.early_view(1).members) == 2  # one is left
