"""Claims: never twice, one pack at a time, and losses that stay dense."""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import store_tools as tools
from sqlalchemy import ClauseElement
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError

from ensq.errors import EnsqError, UsageError
from ensq.jobs import Outcome, State
from ensq.store import Store, check, claims
from ensq.store.process import worker_info

LEASE = tools.LEASE
PROCESSES, JOBS = 8, 400

WORK = """
def work(number, meet):
    name = f"w{number}"
    with Store.open(path) as store:
        store.register_worker(worker_info(name))
        meet()
        while jobs := store.claim(name, limit=4, lease_seconds=600):
            for job in jobs:
                print(f"{name} {job.id} {job.attempt}\\n", end="", flush=True)
        meet()  # a process that ended would be taken for lost
"""


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        tools.register(opened, "w1", "w2")
        yield opened
    assert check(engine_url) == []


def test_eight_processes_never_claim_a_job_twice(engine_url: str) -> None:
    with Store.open(engine_url) as store:
        tools.add(store, seeds=range(JOBS))
    lines = [line.split() for line in tools.in_processes(PROCESSES, engine_url, WORK).splitlines()]
    claims_made = Counter(job for _, job, _ in lines)
    assert len(claims_made) == claims_made.total() == JOBS
    assert {attempt for _, _, attempt in lines} == {"1"}
    assert len({worker for worker, _, _ in lines}) > 1  # they did work side by side
    with Store.open(engine_url) as store:
        assert {len(store.attempts(job.id)) for job in store.jobs(1)[::20]} == {1}


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_select_then_update_claims_twice(store: Store, engine_url: str) -> None:
    """The control: what a claim in two statements does when two workers meet."""
    tools.add(store)
    workers = [sqlite3.connect(engine_url, isolation_level=None) for _ in range(2)]
    look = "SELECT id FROM jobs WHERE state = 'queued' ORDER BY id LIMIT 1"
    seen = [worker.execute(look).fetchone()[0] for worker in workers]
    take = "UPDATE jobs SET state = 'running', owner = 'w1', lease_seconds = 1 WHERE id = ?"
    taken = [
        worker.execute(take, (job,)).rowcount for worker, job in zip(workers, seen, strict=True)
    ]
    assert seen[0] == seen[1] and taken == [1, 1]
    undo = "UPDATE jobs SET state = 'queued', owner = NULL, lease_seconds = NULL"
    workers[0].execute(undo)
    for worker in workers:
        worker.close()
    # The one statement of the store, between the same two workers:
    first, second = tools.take(store, "w1"), tools.take(store, "w2")
    assert first[0].job_id != second[0].job_id


def test_claim_gives_jobs_by_index_up_to_the_limit(store: Store) -> None:
    tools.add(store, seeds=[9, 5, 7])
    jobs = store.claim("w1", limit=2, lease_seconds=LEASE)
    assert [(job.index, job.seed) for job in jobs] == [(0, 9), (1, 5)]
    for job in jobs:
        assert (job.state, job.attempt, job.owner) == (State.RUNNING, 1, "w1")
        assert (job.lease_seconds, job.beat, job.updated_at) == (LEASE, 1, store.now())
        assert job == store.job(job.id)
    assert [job.seed for job in store.claim("w2", limit=2, lease_seconds=LEASE)] == [7]
    assert store.claim("w2", limit=2, lease_seconds=LEASE) == []


def test_claim_stays_in_one_ensemble(store: Store) -> None:
    tools.add(store, name="a", seeds=[1])
    tools.add(store, name="b", seeds=[1, 2])
    assert len(tools.take(store, limit=5)) == 1
    assert {store.job(claim.job_id).ensemble_id for claim in tools.take(store, limit=5)} == {2}


def test_claim_takes_from_the_ensemble_that_is_asked_for(store: Store) -> None:
    tools.add(store, name="a")
    tools.add(store, name="b'; DROP TABLE jobs; --")
    (claim,) = tools.take(store, ensemble="b'; DROP TABLE jobs; --")
    assert store.job(claim.job_id).ensemble_id == 2
    with pytest.raises(UsageError, match=r"no ensemble is called 'c'; there are: 'a', "):
        tools.take(store, ensemble="c")


def test_pack_takes_only_members_at_the_same_checkpoint(store: Store) -> None:
    tools.add(store, seeds=range(6))
    claims = tools.take(store, limit=6)
    stand = [(0, 0), (1, 0), (2, 0), (1, 7), (2, 0), (0, 0)]
    for claim, (epoch, step) in zip(claims, stand, strict=True):
        tools.train(store, claim, range(1, epoch + 1))
        if step:
            assert store.record_checkpoint([(claim, tools.point(epoch, step))]) == []
    assert store.release(claims, reason="test") == []
    packs = []
    while pack := tools.take(store, limit=6):
        packs.append([claim.job_id - 1 for claim in pack])
    # Those that are furthest go first, and a step within an epoch counts.
    assert packs == [[2, 4], [3], [1], [0, 5]]


def test_claim_drops_the_losses_after_the_checkpoint(store: Store) -> None:
    tools.add(store, seeds=[42], epochs=6)
    (claim,) = tools.take(store)
    losses = [3.0, 1.0, math.nan, 0.5, 0.25]
    for epoch, loss in enumerate(losses, start=1):
        saved = tools.point(epoch) if epoch == 3 else None
        store.record_epochs([tools.write(claim, epoch, saved, loss)])
    store.release([claim], reason="test")
    assert store.job(claim.job_id).epoch == 5
    (job,) = store.claim("w2", limit=1, lease_seconds=LEASE)
    assert (job.epoch, job.best_epoch, job.best_loss, job.attempt) == (3, 2, 1.0, 2)
    assert (job.train_loss, job.val_loss) == (2.0, None)
    assert job == store.job(job.id)
    assert [record.epoch for record in store.epochs(job.id)] == [1, 2, 3]
    assert store.attempts(job.id)[1].start_epoch == 3
    tools.train(store, tools.claim_of(job), range(4, 7))
    store.finish(tools.claim_of(job), tools.result())
    assert [record.epoch for record in store.epochs(job.id)] == [1, 2, 3, 4, 5, 6]


def test_claim_without_a_checkpoint_starts_from_nothing(store: Store) -> None:
    tools.add(store, seeds=[42])
    (claim,) = tools.take(store)
    tools.train(store, claim, range(1, 3), saved=False)
    store.fail(claim, Outcome.CRASH, "killed", retry=True)
    (job,) = store.claim("w1", limit=1, lease_seconds=LEASE)
    assert (job.epoch, job.best_epoch, job.best_loss, job.val_loss) == (0, None, None, None)
    assert store.epochs(job.id) == []


def test_without_dropping_losses_a_second_attempt_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the losses of an epoch can't stand twice, nor be those of another attempt."""
    tools.add(store, seeds=[42])
    (claim,) = tools.take(store)
    tools.train(store, claim, range(1, 3), saved=False)
    store.release([claim], reason="test", asked=True)
    with monkeypatch.context() as patch:
        patch.setattr("ensq.store.claims._rewind", lambda connection, job: job)
        (claim,) = tools.take(store)
    with pytest.raises(EnsqError, match="epoch 1 is recorded already"):
        tools.train(store, claim, range(1, 2))


def test_claim_by_an_unknown_or_ended_worker_is_refused(store: Store) -> None:
    tools.add(store)
    store.worker_ended("w2")
    for name in ("nobody", "w2"):
        with pytest.raises(EnsqError, match=f"worker '{name}' is not registered, or has ended"):
            tools.take(store, name)
    assert store.counts()[State.RUNNING] == 0


def test_claim_notes_attempt_log_worker_and_event(store: Store) -> None:
    tools.add(store, seeds=[42])
    (claim,) = tools.take(store, log_path="logs/w1.log")
    (attempt,) = store.attempts(claim.job_id)
    assert (attempt.number, attempt.worker_id, attempt.log_path) == (1, "w1", "logs/w1.log")
    assert (attempt.outcome, attempt.ended_at, attempt.start_epoch) == (None, None, 0)
    event = store.events()[-1]
    assert (event.kind, event.job_id, event.attempt, event.worker_id) == ("claimed", 1, 1, "w1")


def test_claims_and_renewals_are_signs_of_life(store: Store) -> None:
    tools.add(store, seeds=[42])
    acts: list[Callable[[], object]] = [
        lambda: tools.take(store),
        lambda: store.renew([], worker_id="w1"),
        lambda: store.renew([tools.claim_of(store.job(1))]),
        lambda: store.record_epochs([tools.write(tools.claim_of(store.job(1)), 1)]),
    ]
    for act in acts:
        store.clock.move(5)  # type: ignore[attr-defined]
        act()
        assert store.workers(["w1", "w2", "no"])["w1"].last_seen == store.now()
    assert store.job(1).beat == 3  # the claim, the renewal of what it holds, and the epoch


@pytest.mark.parametrize("limit", [0, -1])
def test_claim_of_no_job_is_refused(store: Store, limit: int) -> None:
    tools.add(store)
    with pytest.raises(ValueError, match="at least one job"):
        tools.take(store, limit=limit)


def test_claim_locks_rows_in_ctes_that_postgresql_runs_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    with store._database.write() as connection:
        execute = connection.execute

        def listen(statement: ClauseElement, *values: object) -> object:
            seen.append(" ".join(str(statement.compile(dialect=dialect)).split()))
            return execute(statement, *values)  # type: ignore[call-overload]

        monkeypatch.setattr(connection, "execute", listen)
        claims.claim(connection, 0.0, "w1", limit=2, lease_seconds=LEASE, policy=tools.AT_ONCE)
    (statement,) = [text for text in seen if "WITH head AS" in text]
    assert statement.count("FOR UPDATE SKIP LOCKED") == 2
    assert re.search(r"UPDATE jobs SET .* WHERE jobs.id IN \(SELECT pack.id FROM pack\)", statement)
    assert "RETURNING" in statement


@pytest.mark.parametrize("engine_url", ["sqlite"], indirect=True)
def test_claims_use_the_index_of_the_queue(store: Store) -> None:
    plan = "EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE state = ? ORDER BY ensemble_id, "
    plan += "checkpoint_epoch DESC, checkpoint_step DESC, position LIMIT 1"
    with store._database.read() as connection:
        rows = connection.exec_driver_sql(plan, ("queued",)).all()
    assert "ix_jobs_queue" in rows[0][3] and len(rows) == 1  # and no sorting


def test_registering_again_updates_the_device_and_another_process_is_refused(
    store: Store,
) -> None:
    store.register_worker(worker_info("w1", device="cpu", slurm_job="7"))
    worker = store.workers(["w1"])["w1"]
    assert (worker.device, worker.slurm_job, worker.started_at) == ("cpu", "7", store.now())
    other = replace(worker_info("w1"), pid=worker.pid + 1)
    with pytest.raises(IntegrityError):
        store.register_worker(other)
