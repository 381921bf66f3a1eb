"""What SLURM says, as the store keeps it: who asks, what it means, and that it decides nothing."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden_tools as golden
import pytest
import store_tools as tools

from ensq.errors import DatabaseError
from ensq.jobs import SlurmJob, WorkerInfo
from ensq.store import Store, check, evidence, worker_info
from ensq.store.engine import Database
from ensq.store.target import Target

START = 1_000_000.0


def said(label: str = "120_3", state: str = "RUNNING", **other: Any) -> SlurmJob:
    values: dict[str, Any] = {
        "cluster": "lab",
        "restarts": 0,
        "job_id": "123",
        "name": "ensq-chignolin",
        "reason": None,
        "node": "n1",
        "submitted_at": START - 100,
    }
    return SlurmJob(label=label, state=state, **(values | other))


def in_slurm(name: str, label: str | None = "120_3", **other: Any) -> WorkerInfo:
    """A worker of another host, in a SLURM job."""
    values: dict[str, Any] = {
        "slurm_job": label,
        "slurm_cluster": "lab",
        "slurm_job_id": "123",
        "slurm_step": "0",
        "slurm_proc": "2",
        "slurm_restarts": 0,
        "slurm_node": "n1",
    }
    return replace(tools.elsewhere(name), **(values | other))


def host(url: str, skew: float = 0.0) -> Store:
    """A host whose clock on the wall is off; seconds pass alike on all."""
    return tools.open_by_hand(url, tools.Clock(START + skew))


def answer(store: Store, *rows: SlurmJob, who: str = "asker") -> None:
    """SLURM answers somebody."""
    known = {found.cluster: found.turn for found in store.slurm_said().clusters}
    assert store.ask_now("lab", who, known.get("lab")) is not None
    assert store.note_slurm("lab", who, rows)


# Identity


def test_identity_of_a_worker_is_kept(engine_url: str) -> None:
    with host(engine_url) as store:
        worker = in_slurm("w1")
        store.register_worker(worker)
        found = store.workers(["w1"])["w1"]
        assert {
            name: value for name, value in vars(found).items() if name.startswith("slurm_")
        } == {name: value for name, value in vars(worker).items() if name.startswith("slurm_")}
        store.register_worker(replace(worker, slurm_step="1"))
        assert store.workers(["w1"])["w1"].slurm_step == "1"


def test_worker_outside_slurm_has_none(engine_url: str) -> None:
    with host(engine_url) as store:
        store.register_worker(worker_info("w1"))
        assert store.workers(["w1"])["w1"].slurm_job is None
        assert evidence.run_of(store.workers(["w1"])["w1"], [said()]) is None


@pytest.mark.parametrize("revision", [one for one in golden.REVISIONS if one < "0003"])
@pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)
def test_worker_of_before_the_upgrade_goes_on(place: str, revision: str) -> None:
    """It is known by its label alone."""
    golden.quickly(golden.golden(revision, place), copy_first=False)
    with host(place) as store:
        worker = store.workers(["w2"])["w2"]
        assert (worker.slurm_job, worker.slurm_restarts) == ("1234_5", None)
        assert store.may_ask("lab", "w2") is not None
        (claim,) = tools.take(store, "w2")
        tools.train(store, claim, range(3, 4))
        assert store.renew([claim], "w2").held == [claim]
        newest = said("1234_5", "PENDING", restarts=2)
        assert store.note_slurm("lab", "w2", [said("1234_5"), newest])
        assert evidence.run_of(replace(worker, started_at=0.0), store.slurm_said().jobs) == replace(
            newest, seen_at=START
        )
    assert check(place) == []


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return golden.place(request, tmp_path, monkeypatch)


# Whose turn it is


def test_first_one_asks_at_once_and_others_a_minute_later(engine_url: str) -> None:
    with host(engine_url) as one, host(engine_url) as two:
        assert one.may_ask("lab", "w1") == []
        for _ in range(60):
            assert two.may_ask("lab", "w2") is None
            assert one.may_ask("lab", "w1") is None
            move(1, one, two)
        assert two.may_ask("lab", "w2") == []
        assert one.may_ask("lab", "w1") is None


def move(seconds: float, *stores: Store) -> None:
    for store in stores:
        store.clock.move(seconds)  # type: ignore[attr-defined]


@pytest.mark.parametrize("skews", [(0.0, 3600.0, -3600.0), (-86400.0, 0.0, 1.0)])
def test_clocks_that_differ_neither_stop_nor_multiply_questions(
    engine_url: str, skews: tuple[float, ...]
) -> None:
    stores = [host(engine_url, skew) for skew in skews]
    asked = []
    for second in range(0, 1800, 10):
        for number, store in enumerate(stores):
            if store.may_ask("lab", f"w{number}") is not None:
                asked.append(second)
        move(10, *stores)
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert 20 <= len(asked) <= 30 and min(gaps) >= 60 and max(gaps) <= 80, asked
    for store in stores:
        store.close()


def test_comparing_clocks_would_do_both(engine_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a rule with ``asked_at``, as one would write it first."""

    def by_the_clock(store: Store, who: str) -> bool:
        (found,) = store.slurm_said().clusters or [None]
        if found is not None and store.now() - found.asked_at < 60:
            return False
        return store.ask_now("lab", who, found.turn if found else None) is not None

    behind, ahead = host(engine_url, -3600), host(engine_url, 0)
    asked = []
    for second in range(0, 600, 10):
        asked += [second] * by_the_clock(behind, "w1")
        asked += [second] * by_the_clock(ahead, "w2")
        move(10, behind, ahead)
    # The one that is ahead takes the other's questions for old ones; that one never asks again.
    assert asked[:2] == [0, 0]
    behind.close()
    ahead.close()


def test_clusters_have_turns_of_their_own(engine_url: str) -> None:
    with host(engine_url) as store:
        assert store.may_ask("lab", "w1") == []
        assert store.may_ask("other", "w1") == []
        assert store.may_ask("lab", "w1") is None


def test_question_asked_twice_since_the_answer_was_lost_is_one(engine_url: str) -> None:
    with host(engine_url) as store:
        assert store.ask_now("lab", "w1", None) is not None
        assert store.ask_now("lab", "w1", None) is not None  # COMMIT was carried out unheard
        assert store.ask_now("lab", "w2", None) is None
        assert store.slurm_said().clusters[0].turn == 1


RUSH = """
import time
from ensq.store import Store
def work(number, meet):
    with Store.open(path) as store:
        meet()
        for _ in range(50):
            try:
                if store.may_ask("lab", f"w{number}") is not None:
                    print("asked", flush=True)
            except Exception as error:
                if "busy" not in str(error) and "lock" not in str(error):
                    raise
            time.sleep(0.01)
"""


def test_of_many_that_look_at_once_one_asks(engine_url: str) -> None:
    assert tools.in_processes(6, engine_url, RUSH).split() == ["asked"]


def test_answer_that_comes_too_late_is_not_kept(engine_url: str) -> None:
    """As of a worker that was stopped for an hour with the answer in its hands."""
    with host(engine_url) as slow, host(engine_url) as quick:
        assert slow.may_ask("lab", "w1") is not None
        assert quick.may_ask("lab", "w2") is None
        move(3600, slow, quick)
        assert quick.may_ask("lab", "w2") is not None
        assert quick.note_slurm("lab", "w2", [said(state="PENDING")])
        assert not slow.note_slurm("lab", "w1", [said(state="RUNNING")])
        assert [job.state for job in quick.slurm_said().jobs] == ["PENDING"]
        assert not quick.note_slurm("elsewhere", "w2", [said()])


def test_busy_database_is_not_waited_for(engine_url: str) -> None:
    """A writer that holds its lock for long delays nobody who only wants advice."""
    with host(engine_url) as store:
        assert store.may_ask("lab", "w1") is not None
        other = Database(Target.parse(engine_url))
        try:
            with other.write() as connection:
                connection.exec_driver_sql("UPDATE slurm_clusters SET turn = turn")
                began = time.monotonic()
                with pytest.raises(DatabaseError):
                    store.note_slurm("lab", "w1", [said()])
                assert time.monotonic() - began < 1.0
        finally:
            other.close()
        assert store.note_slurm("lab", "w1", [said()])  # later it does


# Which jobs are asked about


def labels(store: Store) -> list[str]:
    known = {found.cluster: found.turn for found in store.slurm_said().clusters}
    found = store.ask_now("lab", "asker", known.get("lab"))
    assert found is not None
    return sorted(run.label for run in found)


def test_jobs_of_workers_that_may_live_are_asked_about(engine_url: str) -> None:
    with host(engine_url) as store:
        tools.add(store)
        store.register_worker(in_slurm("w1", "1"))
        store.register_worker(in_slurm("w2", "2"))
        store.register_worker(in_slurm("w3", "3"))
        store.register_worker(in_slurm("w4", "4", slurm_cluster="other"))
        store.register_worker(in_slurm("w5", "5", slurm_cluster=None))
        store.register_worker(worker_info("w6"))
        store.worker_ended("w2")
        assert labels(store) == ["1", "3", "5"]
        tools.take(store, "w3")
        move(100_000, store)
        assert labels(store) == ["3"]  # which holds a member; the rest died long ago


def test_jobs_that_have_ended_are_not_asked_about_again(engine_url: str) -> None:
    with host(engine_url) as store:
        store.register_worker(in_slurm("w1", "1"))
        store.register_worker(in_slurm("w2", "2"))
        answer(store, said("1", "NODE_FAIL"), said("2", "RUNNING"))
        assert labels(store) == ["2"]
        answer(store, said("1", "RUNNING", restarts=1))
        assert labels(store) == ["2"]
        store.register_worker(in_slurm("w3", "1", slurm_restarts=1))
        assert sorted(store.ask_now("lab", "x", 4) or []) == [("1", 1), ("2", 0)]


# What is kept


def test_answers_replace_those_before_run_by_run(engine_url: str) -> None:
    with host(engine_url) as store:
        answer(store, said("1"), said("2", "PENDING", reason="Priority", node=None))
        move(60, store)
        answer(store, said("1", "COMPLETING"), said("1", "PENDING", restarts=1), said("1"))
        found = [(job.label, job.restarts, job.state) for job in store.slurm_said().jobs]
        assert found == [("1", 0, "RUNNING"), ("1", 1, "PENDING"), ("2", 0, "PENDING")]
        clusters, jobs = store.slurm_said()
        waiting = evidence.latest_waiting(clusters, jobs, "ensq-chignolin")
        assert [(job.label, job.restarts) for job in waiting] == [("1", 1)]  # 2 waits no more
        assert evidence.latest_waiting(clusters, jobs, "ensq-other") == []
        move(8 * 86400, store)
        answer(store)
        assert store.slurm_said().jobs == []
    assert check(engine_url) == []


# What it means for a worker


def test_run_is_told_from_the_next_by_its_number() -> None:
    worker = replace(in_slurm("w"), started_at=START)
    first, second = said(state="RUNNING"), said(state="PENDING", restarts=1)
    assert evidence.run_of(worker, [second]) is None
    assert evidence.run_of(worker, [second, first]) == first
    assert evidence.run_after(worker, [second, first]) == second
    again = replace(worker, slurm_restarts=1)
    assert evidence.run_of(again, [first, replace(second, seen_at=START + 1)]) is not None
    assert evidence.run_after(again, [first, second]) is None


@pytest.mark.parametrize(
    "other",
    [
        {"job_id": "124"},
        {"cluster": "other"},
        {"label": "120_4"},
        {"submitted_at": START + 90_000},  # the ids were used up and began again
    ],
)
def test_another_job_of_the_same_number_is_not_the_workers(other: dict[str, Any]) -> None:
    worker = replace(in_slurm("w"), started_at=START)
    assert evidence.run_of(worker, [said()]) is not None
    assert evidence.run_of(worker, [said(**other)]) is None


def test_answer_from_while_the_job_waited_says_nothing_of_its_worker() -> None:
    worker = replace(in_slurm("w"), started_at=START)
    assert evidence.run_of(worker, [said(state="PENDING", seen_at=START - 5)]) is None
    assert evidence.run_of(worker, [said(state="PENDING", seen_at=START + 5)]) is not None


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ""),
        ([said(state="NODE_FAIL")], "; SLURM says NODE_FAIL"),
        ([said(state="RUNNING")], "; SLURM said RUNNING 61 s before"),
        ([said(), said(state="PENDING", restarts=1)], "; SLURM has requeued its job (PENDING)"),
        ([said(state="NODE_FAIL"), said(state="PENDING", restarts=1)], "; SLURM says NODE_FAIL"),
        ([said(state="NODE_FAIL", job_id="9")], ""),
        ([said("7", "NODE_FAIL")], ""),
    ],
)
def test_reason_of_a_lost_worker_says_what_slurm_said(
    engine_url: str, rows: list[SlurmJob], words: str
) -> None:
    with host(engine_url) as store:
        tools.add(store)
        store.register_worker(in_slurm("w1"))
        tools.take(store, "w1")
        answer(store, *rows)
        (lost,) = tools.fall_silent(store)
        assert lost.reason == f"no sign of life of worker w1 for 61 s{words}"
        assert store.attempts(1)[0].reason == lost.reason
    assert check(engine_url) == []


# It decides nothing


ENDED = sorted(evidence.FINAL)


@pytest.mark.parametrize("state", [*ENDED, "PENDING", "RUNNING", None])
def test_lease_ends_when_it_ends_whatever_slurm_says(engine_url: str, state: str | None) -> None:
    """CANCELLED takes nothing from a worker that lives, and RUNNING keeps nothing alive."""
    with host(engine_url) as store:
        tools.add(store)
        store.register_worker(in_slurm("w1"))
        store.register_worker(worker_info("here"))
        (claim,) = tools.take(store, "w1")
        assert store.reap() == []
        for _ in range(5):
            move(tools.LEASE - 1, store)
            if state is not None:
                answer(store, said(state=state))
            assert store.reap() == []
            assert store.outlook().lost == 0
            assert store.renew([claim], "w1").held == [claim]
            assert store.reap() == []  # sees the sign of life
        tools.train(store, claim, range(1, 2))
        assert store.reap() == []
        move(tools.LEASE + 1, store)
        if state is not None:
            answer(store, said(state=state))
        assert [lost.claim for lost in store.reap()] == [claim]


def test_of_what_is_tested_there_a_rule_that_believes_slurm_would_fail(
    engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with such a rule the test before finds members taken away."""
    from ensq.store import reaping

    why = reaping._why_lost

    def gullible(worker: WorkerInfo, gone: Any) -> str | None:
        return "SLURM says so" if worker.slurm_job == "120_3" else why(worker, gone)

    monkeypatch.setattr(reaping, "_why_lost", gullible)
    with pytest.raises(AssertionError):
        test_lease_ends_when_it_ends_whatever_slurm_says(engine_url, "CANCELLED")


# What `ensq db check` finds


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE workers SET slurm_job = NULL", "part of a SLURM job without a label"),
        ("UPDATE workers SET slurm_restarts = -1", "a negative number of times"),
        ("UPDATE slurm_jobs SET restarts = -1", "none that SLURM can name"),
        ("UPDATE slurm_jobs SET state = ''", "none that SLURM can name"),
        ("UPDATE slurm_clusters SET answered_at = NULL", "without a question"),
        ("UPDATE slurm_clusters SET turn = 0", "without a question"),
    ],
)
def test_broken_rules_are_named(engine_url: str, statement: str, words: str) -> None:
    with host(engine_url) as store:
        store.register_worker(in_slurm("w1"))
        answer(store, said())
    assert check(engine_url) == []
    assert golden.execute(engine_url, statement) == 1
    (problem,) = check(engine_url)
    assert words in problem
