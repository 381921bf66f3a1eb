"""COMMIT was sent and the connection dropped: whatever is done again leads to the same as once."""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import store_tools as tools

from ensq import faults
from ensq.errors import DatabaseAway, EnsqError, LeaseLost
from ensq.jobs import Claim, EarlyEnd, Job, Outcome, Probe, ProbeKey, ProbeRow, State
from ensq.store import Store, check
from ensq.store.deciding import Deciding
from ensq.store.probing import Probing

Held = list[Claim]
Act = Callable[[Store, Held], Any]
# Of Store; they write nothing.
REACHES = [
    *("open", "close", "root", "where", "now", "outlook", "could_join", "probe"),
    *("early_view", "early_settings", "losses_between", "blocks_between", "orders"),
]


def trained(store: Store, held: Held) -> None:
    """Four members run; the first has all its losses, the others one epoch."""
    tools.train(store, held[0], range(1, 4))
    for claim in held[1:]:
        tools.train(store, claim, range(1, 2))


def fail_silently(store: Store, held: Held) -> Any:
    store.clock.move(tools.LEASE + 1)  # type: ignore[attr-defined]
    return store.reap()


RECORDS = [tools.record(epoch) for epoch in (1, 2, 3)]

PROBE = Probe(
    key=ProbeKey(model="m", shape="s", device="d", versions="v"),
    size=2,
    most=4,
    rows=(ProbeRow(members=1, seconds=0.5, bytes=None),),
    worker="w1",
)
EARLY = EarlyEnd(rule="plateau", epoch=1, evidence="{}", checkpoint=tools.point(1, 2))
EARLY_RESULT = replace(tools.result(), best_epoch=1)
# Every writing method, by name: what is done, and again without an answer to the first time.
ACTS: list[tuple[str, Act]] = [
    ("add_ensemble", lambda store, held: tools.add(store, name="new", seeds=[1, 2])),
    ("add_ensemble", lambda store, held: tools.add(store, seeds=[44, 99])),
    ("register_worker", lambda store, held: tools.register(store, "w9")),
    ("worker_ended", lambda store, held: store.worker_ended("w1")),
    ("claim", lambda store, held: tools.take(store, "w2", limit=2)),
    ("reap", fail_silently),
    ("renew", lambda store, held: store.renew(held)),
    ("record_epoch", lambda store, held: store.record_epoch(
        held[1], tools.record(2), best_epoch=2, best_loss=1.0, checkpoint=tools.point(2))),
    ("record_epochs", lambda store, held: store.record_epochs(
        [tools.write(held[1], 2, tools.point(2)), tools.write(held[2], 2)])),
    ("record_checkpoint", lambda store, held: store.record_checkpoint(
        [(claim, tools.point(1, 5)) for claim in held[1:]])),
    ("stand_at", lambda store, held: store.stand_at(held[0], tools.point(2), [], "older")),
    ("stand_at", lambda store, held: store.stand_at(held[0], None, [], "none")),
    ("stand_at", lambda store, held: store.stand_at(held[1], tools.point(2, 3), RECORDS, "newer")),
    ("finish", lambda store, held: store.finish(held[0], tools.result())),
    ("finish", lambda store, held: store.finish(held[1], tools.result(), RECORDS)),
    ("finish", lambda store, held: store.finish(held[1], EARLY_RESULT, early=EARLY)),
    ("decide", lambda store, held: store.decide(
        held[1], rule="paired", evidence="{}", stop=True, min_members=2)),
    ("decide", lambda store, held: store.decide(
        held[1], rule="sigma", evidence="{}", stop=False, min_members=2)),
    ("resume", lambda store, held: (
        store.finish(held[1], EARLY_RESULT, early=EARLY), store.resume("chignolin"))[1]),
    ("release", lambda store, held: store.release(held, reason="signal")),
    ("release", lambda store, held: store.release(held, Outcome.BLOCKED, "disk full")),
    ("release", lambda store, held: store.release(held, Outcome.LOST, "no answer")),
    ("fail", lambda store, held: store.fail(held[0], Outcome.FAILURE, "nan", retry=True)),
    ("fail", lambda store, held: store.fail(held[0], Outcome.CRASH, "killed", retry=True)),
    ("fail", lambda store, held: store.fail(held[0], Outcome.FAILURE, "bad key", retry=False)),
    ("cancel", lambda store, held: store.cancel("chignolin")),
    ("retry", lambda store, held: store.retry("chignolin")),
    ("hold", lambda store, held: store.hold("chignolin")),
    ("unhold", lambda store, held: store.unhold("chignolin")),
    ("drain", lambda store, held: store.drain()),
    ("remember_probe", lambda store, held: store.remember_probe(PROBE)),
]  # fmt: skip
# What comes back from people's acts says what changed, which the second time is nothing.
ANSWERS = {"add_ensemble", "resume", "cancel", "retry", "hold", "unhold", "drain", "reap"}
IDS = [f"{number}-{name}" for number, (name, _) in enumerate(ACTS)]


def queue(store: Store) -> Held:
    """Four members run, one of each other state stands by, and three are queued."""
    tools.register(store, "w1", "w2", "w3")
    tools.add(store, seeds=[42, 43, 44, 45, 1, 2, 3, 4, 5, 6])
    store.hold("chignolin", [1])
    held = tools.take(store, limit=4)
    store.cancel("chignolin", [2])
    (spent,) = tools.take(store, "w3")
    store.fail(spent, Outcome.FAILURE, "bad", retry=False)
    store.hold("chignolin", [45])
    trained(store, held)
    assert store.reap() == []
    return held


def left(url: str) -> dict[str, list[dict[str, Any]]]:
    """All that is in a database but signs of life; numbers that the database gives out, by rank.

    PostgreSQL skips a number where a transaction was undone. Ids of packs are drawn: by the first
    member that has each.
    """
    whole = tools.dump(url)
    packs = [job["pack"] for job in whole["jobs"]]
    for job in whole["jobs"]:
        del job["beat"]
        job["pack"] = None if job["pack"] is None else packs.index(job["pack"])
    for table, column in (("ensembles", "ensemble_id"), ("jobs", "job_id"), ("events", "")):
        rank = {row["id"]: number for number, row in enumerate(whole[table], start=1)}
        for row in whole[table]:
            row["id"] = rank[row["id"]]
        for other in whole.values():
            for row in other:
                if row.get(column) is not None:
                    row[column] = rank[row[column]]
    return whole


def unnamed(answer: Any) -> Any:
    """Without the id of its pack, if it is a job."""
    return replace(answer, pack=None) if isinstance(answer, Job) else answer


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        yield opened
    assert check(engine_url) == []


@pytest.fixture
def drops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Points at which the next transactions lose their connection, each once, in this order."""
    wanted: list[str] = []

    def point(name: str, about: str = "") -> None:
        if wanted and wanted[0] == name:
            del wanted[0]
            raise OSError(5, "the connection is gone")

    monkeypatch.setattr(faults, "point", point)
    monkeypatch.setattr("ensq.store.engine.random.uniform", lambda low, high: 0.0)
    return wanted


@functools.cache
def once(number: int) -> tuple[Any, dict[str, list[dict[str, Any]]]]:
    """What an act answers and leaves behind where nothing goes wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.db"
        with tools.fresh(path) as store:
            answer = ACTS[number][1](store, queue(store))
        return answer, left(str(path))


@pytest.mark.parametrize("number", range(len(ACTS)), ids=IDS)
@pytest.mark.parametrize(
    ("engine_url", "lost"),
    [
        ("sqlite", ["commit.after"]),
        ("postgresql", ["commit.after"]),
        ("postgresql", ["commit.before"]),
        ("sqlite", ["commit.after"] * 2),
    ],
    indirect=["engine_url"],
)
def test_lost_acknowledgement_leads_to_the_same_as_none(
    store: Store, engine_url: str, drops: list[str], number: int, lost: list[str]
) -> None:
    (name, act), (answer, state) = ACTS[number], once(number)
    held = queue(store)
    drops += lost
    again = act(store, held)
    assert not drops
    assert left(engine_url) == state
    if name not in ANSWERS:
        assert unnamed(again) == unnamed(answer)


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("number", range(len(ACTS)), ids=IDS)
def test_act_that_gave_up_without_an_answer_may_be_done_again_later(
    store: Store, engine_url: str, drops: list[str], number: int
) -> None:
    (name, act), (answer, state) = ACTS[number], once(number)
    held = queue(store)
    drops += ["commit.after"] * 3
    with pytest.raises(DatabaseAway):
        act(store, held)
    assert not drops
    again = act(store, held)
    assert without_times(left(engine_url)) == without_times(state)
    if name not in ANSWERS:
        assert unnamed(again) == unnamed(answer)


def without_times(whole: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return whole | {"workers": [worker | {"last_seen": None} for worker in whole["workers"]]}


def test_every_writing_method_is_among_the_acts() -> None:
    own = vars(Store).keys() | vars(Deciding).keys() | vars(Probing).keys()
    methods = {name for name in own if not name.startswith("_")}
    assert methods - set(REACHES) == {name for name, _ in ACTS}
    assert all(inspect.getdoc(getattr(Store, name)) for name in methods)


# Controls: without the looks at what was done before, the second time does harm or is refused.


def test_without_looking_for_unacknowledged_claims_others_are_claimed_as_well(
    store: Store, drops: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensq.store.claims.unacknowledged", lambda *arguments: [])
    queue(store)
    drops += ["commit.after"]
    assert len(tools.take(store, "w2")) == 1
    owners = [job.owner for job in store.jobs(1)]
    assert owners.count("w2") == 2  # and nobody works at one of them


@pytest.mark.parametrize(
    ("patched", "names"),
    [
        ("ensq.store.endings.was_ended", ["finish", "release", "fail"]),
        ("ensq.store.writes._require_recorded", []),
    ],
)
def test_without_looking_at_how_the_attempt_ended_the_second_time_is_refused(
    store: Store,
    drops: list[str],
    monkeypatch: pytest.MonkeyPatch,
    patched: str,
    names: list[str],
) -> None:
    held = queue(store)
    monkeypatch.setattr(patched, lambda *arguments: False)
    refused = []
    for name, act in [
        ("finish", lambda: store.finish(held[0], tools.result())),
        ("fail", lambda: store.fail(held[1], Outcome.CRASH, "why", retry=True)),
        ("release", lambda: store.release([held[2]], reason="why")),
    ]:
        drops += ["commit.after"]
        try:
            if act():
                refused += [name] if name == "release" else []
        except LeaseLost:
            refused.append(name)
    assert sorted(refused) == sorted(names)


# Claims whose acknowledgement was lost


def test_claim_without_an_answer_is_handed_out_at_the_next_call(
    store: Store, drops: list[str]
) -> None:
    queue(store)
    drops += ["commit.after"] * 3
    with pytest.raises(DatabaseAway):
        tools.take(store, "w2", limit=2)
    taken = [job.id for job in store.jobs(1) if job.owner == "w2"]
    assert len(taken) == 2
    assert [claim.job_id for claim in tools.take(store, "w2", limit=2)] == taken
    # Known by now: the next claim is another.
    (more,) = tools.take(store, "w2")
    assert more.job_id not in taken
    assert tools.take(store, "w2") == []


def test_claim_without_an_answer_that_was_not_carried_out_takes_anew(
    store: Store, drops: list[str]
) -> None:
    queue(store)
    drops += ["commit.before"] * 3
    with pytest.raises(DatabaseAway):
        tools.take(store, "w2")
    assert [job for job in store.jobs(1) if job.owner == "w2"] == []
    assert len(tools.take(store, "w2")) == 1


def test_unacknowledged_claim_that_was_taken_back_meanwhile_is_not_handed_out(
    store: Store, drops: list[str]
) -> None:
    queue(store)
    drops += ["commit.after"] * 3
    with pytest.raises(DatabaseAway):
        tools.take(store, "w2")
    (job,) = (job for job in store.jobs(1) if job.owner == "w2")
    store.cancel("chignolin", [job.seed])
    (claim,) = tools.take(store, "w2")
    assert claim.job_id != job.id


def test_refused_claim_leaves_no_doubt_about_claims(store: Store, drops: list[str]) -> None:
    """A worker that holds jobs is not given them again after an error of another kind."""
    held = queue(store)
    with pytest.raises(EnsqError):
        tools.take(store, "w1", ensemble="unknown")
    drops += ["begin.before"] * 3
    with pytest.raises(DatabaseAway):
        tools.take(store, "w1")
    (claim,) = tools.take(store, "w1")
    assert claim not in held


def test_end_of_an_attempt_is_no_end_of_the_next_one(store: Store, drops: list[str]) -> None:
    """Given back, claimed again by the same worker, and then the first answer is asked for."""
    held = queue(store)
    drops += ["commit.after"] * 3
    with pytest.raises(DatabaseAway):
        store.release(held[:1], reason="signal")
    (again,) = tools.take(store, "w1")
    assert (again.job_id, again.attempt) == (held[0].job_id, 2)
    assert store.release(held[:1], reason="signal") == []  # that one did end so
    assert store.job(again.job_id).state is State.RUNNING
    assert store.release([again], reason="signal") == []
    assert store.job(again.job_id).interruptions == 2
