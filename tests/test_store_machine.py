"""The store does what a plain model says, whatever hosts do; and the machine sees it if not."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_tools as golden
import pytest
import store_tools as tools
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Connection, and_, select, update
from store_hosts import databases
from store_machine import machine

from ensq.jobs import Job, State
from ensq.schema import jobs
from ensq.store import claims, fences, packs
from ensq.store.rows import to_job
from ensq.store.watch import Watch

QUIET = settings(
    deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@pytest.fixture
def memory() -> Iterator[str]:
    """A fresh SQLite file where nothing waits for a disk."""
    with tempfile.TemporaryDirectory(dir=tools.FAST) as folder:
        yield str(tools.fresh_file(Path(folder) / "q.db"))


def run(url: str, examples: int, steps: int = 50, **other: Any) -> Counter[tuple[str, str]]:
    """How often each rule that writes was accepted, refused, or came too late."""
    with databases(url) as opened:
        here = machine(opened)
        how = settings(QUIET, max_examples=examples, stateful_step_count=steps, **other)
        run_state_machine_as_test(here, settings=how)
        return here.seen


def test_store_agrees_with_the_model_on_sqlite(memory: str) -> None:
    # The machine must get somewhere: owners write, and others try to; packs are claimed.
    writes = ("record_epoch", "save", "fall_back", "adopt", "publish", "give_back", "fail")
    wanted = {(rule, end) for rule in writes for end in ("accepted", "lost")}
    wanted |= {("claim", "3"), ("claim beside", "1")}
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(12):  # it goes by chance
        seen += run(memory, 40)
        if seen.keys() >= wanted:
            break
    assert wanted - seen.keys() == set()


def test_store_agrees_with_the_model_on_an_upgraded_file(memory: str) -> None:
    golden.golden("0001", memory)
    assert golden.quickly(memory, copy_first=False) == "0001"
    run(memory, 10)


@pytest.mark.slow
def test_store_agrees_with_the_model_for_long(memory: str) -> None:
    run(memory, 3000, steps=100)


@pytest.mark.parametrize("engine_url", ["postgresql"], indirect=True)
def test_store_agrees_with_the_model_on_postgresql(engine_url: str) -> None:
    run(engine_url, 10)


@pytest.mark.slow
@pytest.mark.parametrize("engine_url", ["postgresql"], indirect=True)
def test_store_agrees_with_the_model_for_long_on_postgresql(engine_url: str) -> None:
    run(engine_url, 500, steps=100)


# Controls: with a protection taken away, the machine finds what comes of it.


def finds_a_violation(url: str) -> None:
    """Within 1,500 sequences; nearly always the first few hundred do."""
    for _ in range(5):
        try:
            run(url, 300, phases=(Phase.generate,), report_multiple_bugs=False)
        except AssertionError:
            return
    pytest.fail("nothing was found")


def test_machine_sees_a_fence_that_looks_at_the_job_alone(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "held", lambda claim: jobs.c.id == claim.job_id)
    finds_a_violation(memory)


def test_machine_sees_a_fence_without_the_attempt(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that claims again what it lost is another attempt."""
    monkeypatch.setattr(
        fences,
        "held",
        lambda claim: and_(
            jobs.c.id == claim.job_id,
            jobs.c.state == State.RUNNING.value,
            jobs.c.owner == claim.owner,
        ),
    )
    finds_a_violation(memory)


def test_machine_sees_a_claim_in_two_statements(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers look, then each takes what it saw."""
    seen: list[list[int]] = []

    def look_then_take(
        connection: Connection, given: dict[str, Any], *, limit: int, **other: Any
    ) -> list[Job]:
        queued = select(jobs.c.id).where(jobs.c.state == State.QUEUED.value).limit(limit)
        if seen:  # this one looked at the same time as the one before
            mine = seen.pop()
        else:
            mine = list(connection.execute(queued).scalars())
            seen.append(mine)
        take = (
            update(jobs)
            .where(jobs.c.id.in_(mine))
            .values(
                state=State.RUNNING.value,
                owner=given["p_worker"],
                attempt=jobs.c.attempt + 1,
                lease_seconds=60.0,
            )
        )
        return [to_job(row) for row in connection.execute(take.returning(*jobs.c))]

    monkeypatch.setattr(packs, "take", look_then_take)
    finds_a_violation(memory)


def test_machine_sees_packs_that_are_bound_from_the_start(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "_take_statement", packs._take_statement.__wrapped__)
    monkeypatch.setattr(packs, "_is_free", lambda: jobs.c.pack.is_(None))
    finds_a_violation(memory)


@pytest.mark.parametrize("silence", [0.0, 1e9])
def test_machine_sees_leases_that_never_end_or_end_at_once(
    memory: str, monkeypatch: pytest.MonkeyPatch, silence: float
) -> None:
    monkeypatch.setattr(Watch, "silence", lambda watch, key, beat: silence)
    finds_a_violation(memory)


def test_machine_sees_losses_that_are_not_dropped(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_rewind", lambda connection, job: job)
    finds_a_violation(memory)


def test_machine_sees_answers_that_were_not_kept_in_mind(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "unacknowledged", lambda *arguments: [])
    finds_a_violation(memory)
