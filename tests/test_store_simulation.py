"""Thousands of seeded schedules of workers that die, stall and lose their database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, update
from store_hosts import databases
from store_simulation import EPOCHS, Faults, World
from test_store_machine import memory  # noqa: F401  (a fixture)

from ensq import schema
from ensq.errors import EnsqError
from ensq.store import endings, fences
from ensq.store.engine import Database
from ensq.store.watch import Watch

NONE = Faults(die=0, stall=0, outage=0, lost_answer=0, fail=0)


@pytest.fixture
def opened(memory: str) -> Iterator[list[Database]]:  # noqa: F811
    with databases(memory) as hosts:
        yield hosts


def run(opened: list[Database], seeds: Iterable[int]) -> Counter[str]:
    """Run schedules; how often attempts ended how."""
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        World(opened, seed).run()
        with opened[0].read() as connection:
            outcomes.update(connection.execute(select(schema.attempts.c.outcome)).scalars())
    return outcomes


def test_schedules_end_with_all_members_over(opened: list[Database]) -> None:
    outcomes = run(opened, range(150))
    # They were no easy ones.
    assert all(outcomes[outcome] > 0 for outcome in ("done", "lost", "failure", "crash"))
    assert outcomes["lost"] > 20, outcomes


def in_two_processes(schedules: int, timeout: float) -> None:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    half = schedules // 2
    runs = [
        subprocess.Popen(
            [sys.executable, str(tests / "store_simulation.py"), str(first), str(half)],
            env=os.environ | {"PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (10_000, 10_000 + half)
    ]
    said = [run.communicate(timeout=timeout)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert said == [f"{half} schedules, all over and sound\n"] * 2


@pytest.mark.skipif(
    os.environ.get("CI") != "true", reason="2,000 schedules take two minutes: CI=true runs them"
)
def test_two_thousand_schedules_in_two_processes() -> None:
    in_two_processes(2000, 1200)


@pytest.mark.slow
def test_a_hundred_thousand_schedules_in_two_processes() -> None:
    """About an hour and a half."""
    in_two_processes(100_000, 8 * 3600)


def test_schedule_without_faults_needs_one_attempt_for_each_member(opened: list[Database]) -> None:
    world = World(opened, 1, faults=NONE)
    world.run()
    assert world.finished == world.members
    with opened[0].read() as connection:
        tries = connection.execute(select(schema.attempts.c.number)).scalars().all()
        rows = connection.execute(select(schema.epochs.c.attempt)).scalars().all()
    assert tries == [1] * world.members
    assert rows == [1] * world.members * EPOCHS


def test_same_seed_is_the_same_schedule(opened: list[Database]) -> None:
    def history() -> list[object]:
        World(opened, 7).run()
        with opened[0].read() as connection:
            rows = connection.execute(select(schema.events).order_by(schema.events.c.id))
            return [tuple(row) for row in rows]

    assert history() == history()


# Controls: the simulation sees what comes of a protection that is taken away.


def fails(opened: list[Database], seeds: int = 60) -> None:
    with pytest.raises((AssertionError, EnsqError)):
        run(opened, range(seeds))


def test_simulation_sees_a_missing_fence(
    opened: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "held", lambda claim: schema.jobs.c.id == claim.job_id)
    fails(opened)


def test_simulation_sees_jobs_that_are_never_taken_back(
    opened: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "silence", lambda watch, key, beat: 0.0)
    fails(opened)


def test_simulation_sees_an_end_that_is_forgotten(
    opened: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is left as it was: queued again, but its attempt stays open."""

    def queue_only(connection: Connection, now: float, *other: object) -> None:
        connection.execute(update(schema.attempts).values(reason=None))

    monkeypatch.setattr(endings.history, "end_attempt", queue_only)
    fails(opened, 5)
