"""``ensq worker --pack auto``: a member is claimed, packs are measured or known, others join it."""

from __future__ import annotations

import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from train_tools import SETTINGS, write_tiny
from worker_tools import HERE, Queue, finish, wait_until

from ensq import config as configuration
from ensq import data
from ensq.jobs import Job, Outcome, State
from ensq.store import EventKind
from ensq.worker.packing import model_digest

GPU = {"platform": "gpu"}
AUTO: dict[str, Any] = {"pack": None}


def probes(queue: Queue) -> list[tuple[int, int]]:
    """Size and bound of what is remembered."""
    with closing(sqlite3.connect(queue.url)) as connection:
        return connection.execute("SELECT size, most FROM probes").fetchall()


def claims(queue: Queue) -> list[list[int]]:
    """The seeds that were trained together, claim by claim: each has a log of its own."""
    by_log: dict[str, list[int]] = {}
    for job in queue.jobs:
        for attempt in queue.store.attempts(job.id):
            by_log.setdefault(str(attempt.log_path), []).append(job.seed)
    return sorted(by_log.values())


def said(lines: list[str], words: str) -> bool:
    return any(words in line for line in lines)


# On a CPU, on an accelerator


def test_on_a_cpu_nobody_joins_and_nothing_is_measured(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=3)
    code, lines = queue.work(**AUTO)
    assert code == 0
    queue.require_sound()
    assert claims(queue) == [[1], [2], [3]]
    assert probes(queue) == [] and not said(lines, "packs of")


def test_on_an_accelerator_as_many_join_as_the_probe_says(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=6)
    code, lines = queue.work(settings=GPU | {"best": 4}, **AUTO)
    assert code == 0, lines
    queue.require_sound()
    assert claims(queue) == [[1, 2, 3, 4], [5, 6]]
    assert probes(queue) == [(4, 6)]
    assert said(lines, "packs of 4; measured: 1: 100 ms, 2: 50 ms, 4: 25 ms")
    assert said(lines, "claimed to train with it: seed 2 (attempt 1), 3 (attempt 1)")
    assert len([line for line in lines if "measuring" in line]) == 1
    packs = {job.seed: job.pack for job in queue.jobs}
    assert len({packs[seed] for seed in (1, 2, 3, 4)}) == 1 and packs[1] is not None
    assert packs[5] == packs[6] not in (None, packs[1])


def test_what_another_worker_measured_is_known(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=2)
    queue.work(settings=GPU | {"best": 2}, **AUTO)
    assert probes(queue) == [(2, 2)]
    # Of more members the probe tells nothing, since it ended for want of them.
    queue.add("more", 5)
    code, lines = queue.work(settings=GPU | {"best": 2}, **AUTO)
    assert said(lines, "packs of 2; measured") and probes(queue) == [(2, 5)]
    queue.add("again", 3)
    code, lines = queue.work(settings=GPU | {"probe_kills": True}, **AUTO)
    assert code == 0 and not said(lines, "measuring")
    assert said(lines, "packs of 2, as ")
    # Other data or another model are another matter.
    queue.add("other", 3)
    code, lines = queue.work(settings=GPU | {"best": 2, "shape": "9 x 9 x 9"}, **AUTO)
    assert said(lines, "packs of 2; measured") and len(probes(queue)) == 2
    for name in ("e", "more", "again", "other"):
        queue.require_sound(name)


def test_a_last_member_is_trained_at_once(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=1)
    assert queue.work(settings=GPU | {"probe_kills": True}, **AUTO)[0] == 0
    assert probes(queue) == []


def test_max_jobs_counts_those_that_joined(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=5)
    assert queue.work(settings=GPU, max_jobs=3, **AUTO)[0] == 0
    assert [job.state for job in queue.jobs].count(State.DONE) == 3
    assert claims(queue) == [[1, 2, 3]]


def test_two_workers_share_the_members(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=8)
    settings = GPU | {"best": 8, "probe_seconds": 1.0, "epoch_seconds": 0.2}
    with (
        queue.worker(settings=settings, **AUTO) as one,
        queue.worker(settings=settings, **AUTO) as two,
    ):
        assert finish(one)[0] == finish(two)[0] == 0
    queue.require_sound()
    assert sorted(map(len, claims(queue))) == [4, 4]


# While it is measured


def test_the_first_member_is_held_while_packs_are_measured(tmp_path: Path) -> None:
    """For much longer than its lease, which others watch."""
    queue = Queue(tmp_path, seeds=3)
    with queue.worker(settings=GPU | {"probe_seconds": 2.5}, lease_seconds=0.8, **AUTO) as worker:
        queue.wait(lambda job: job.state is State.RUNNING)
        while not probes(queue):
            assert worker.poll() is None
            # As seen by another host, which has nothing to go by but signs of life.
            assert queue.store.outlook().lost == 0
            time.sleep(0.1)
        assert finish(worker)[0] == 0
    queue.require_sound()
    assert [job.attempt for job in queue.jobs] == [1, 1, 1]
    assert queue.job.beat > 8  # a renewal for each quarter of the lease


def test_a_stop_while_packs_are_measured_gives_the_member_back_at_once(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=3)
    with queue.worker(settings=GPU | {"probe_seconds": 60.0}, **AUTO) as worker:
        wait_until(lambda: queue.job.state is State.RUNNING, "a claim")
        logs = queue.run_folder / "logs"
        wait_until(lambda: logs.is_dir() and any(logs.iterdir()), "a log")
        time.sleep(0.5)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        code, text = finish(worker)
    assert code == 75 and time.monotonic() - began < 10, text
    assert (queue.job.state, queue.job.crashes, queue.job.interruptions) == (State.QUEUED, 0, 1)
    assert queue.store.attempts(queue.job.id)[0].outcome is Outcome.INTERRUPTED
    assert probes(queue) == [] and not (queue.run_folder / "seed-1/attempt-1/result").exists()


def test_a_member_that_is_cancelled_meanwhile_takes_nobody_along(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=3)
    settings = GPU | {"probe_seconds": 1.5}
    with queue.worker(settings=settings, lease_seconds=0.8, **AUTO) as worker:
        queue.wait(lambda job: job.state is State.RUNNING)
        queue.store.cancel("e", [1])
        code, text = finish(worker)
    assert code == 0, text
    assert [job.state for job in queue.jobs] == ["cancelled", "done", "done"]
    assert claims(queue) == [[1], [2, 3]]


def test_a_trainer_that_dies_of_a_probe_is_not_asked_again(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=3)
    code, lines = queue.work(settings=GPU | {"probe_kills": True}, **AUTO)
    assert code == 0, lines
    queue.require_sound()
    assert [job.crashes for job in queue.jobs] == [1, 0, 0]
    assert len([line for line in lines if "measuring" in line]) == 1
    assert probes(queue) == []


def test_a_probe_that_failed_is_not_remembered(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=2)
    code, lines = queue.work(settings=GPU | {"probe_error": "INTERNAL: bug"}, **AUTO)
    assert code == 0 and probes(queue) == []
    assert said(lines, "no size of packs was found: INTERNAL: bug")
    assert claims(queue) == [[1], [2]]


# Again


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_a_pack_that_was_stopped_is_taken_up_as_the_same_pack(
    tmp_path: Path, platform: str
) -> None:
    """Also by a worker that would not have made one, and one that may take two members only."""
    queue = Queue(tmp_path, seeds=5, epochs=6)
    slow = GPU | {"best": 4, "rules": [{"do": "slow", "epoch": 4, "attempt": 1}]}
    with queue.worker(settings=slow, **AUTO) as worker:
        queue.wait(lambda job: job.epoch == 3)
        worker.send_signal(signal.SIGTERM)
        assert finish(worker)[0] == 75
    assert [job.state for job in queue.jobs] == ["queued"] * 5
    settings = {"platform": platform, "probe_kills": True}
    assert queue.work(settings=settings, max_jobs=2, **AUTO)[0] == 0
    assert claims(queue) == [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert [job.state for job in queue.jobs] == [*["done"] * 4, "queued"]
    assert queue.work(**AUTO)[0] == 0
    queue.require_sound()


def test_after_two_crashes_its_members_are_tried_one_by_one(tmp_path: Path) -> None:
    """Seed 2 kills its trainers; the others were only there."""
    queue = Queue(tmp_path, seeds=4, epochs=4)
    code, lines = queue.work({"do": "segv", "seed": 2, "epoch": 2}, settings=GPU, **AUTO)
    assert code == 1, lines
    assert [job.state for job in queue.jobs] == ["done", "failed", "done", "done"]
    assert claims(queue)[:2] == [[1], [1, 2, 3, 4]]
    assert queue.events(EventKind.FAILED, queue.jobs[1])


def test_a_pack_that_crashes_is_one_failure_of_this_host(tmp_path: Path) -> None:
    """Not one for each member, or a worker would leave after the first."""
    queue = Queue(tmp_path, seeds=5)
    rule = {"do": "exit", "epoch": 1, "attempt": 1}
    code, lines = queue.work(rule, settings=GPU, failures_in_a_row=3, **AUTO)
    assert code == 0, lines
    assert [job.crashes for job in queue.jobs] == [1] * 5


# What a probe holds for


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("training.stages.0.epochs=9", True),
        ("optimizer.adam.lr=0.5", True),
        ("training.batch_per_device=4", False),
        ("training.precision=float64", False),
        ("model.cutoff=5.0", False),
        ("training.gammas.U=0.0", False),
        ("training.stages.0.optimizer=adamw", False),
    ],
)
def test_a_probe_holds_for_what_costs_the_same(change: str, same: bool) -> None:
    plain, other = (
        model_digest(configuration.dumps(configuration.parse(SETTINGS, "settings", changes)))
        for changes in ([], [change])
    )
    assert (plain == other) is same


# The real trainer


def test_the_real_trainer_measures_packs_and_trains_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that looks like an accelerator: the same bits as a pack of that size gives."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    write_tiny(tmp_path / "tiny.npz")
    made = configuration.parse(SETTINGS.replace(", {optimizer: lion, epochs: 1}", ""), "settings")
    queue = Queue(tmp_path, seeds=0)
    for name in ("auto", "two"):
        queue.store.add_ensemble(
            name=name,
            config=configuration.dumps(made),
            config_digest=configuration.digest(made),
            data_path="tiny.npz",
            data_digest=data.digest(tmp_path / "tiny.npz"),
            run_path=f"runs/{name}",
            seeds=[1, 2],
            epochs=made.epochs,
        )
    trainer = (sys.executable, str(HERE / "accelerator_trainer.py"))
    code, lines = queue.work(settings={}, trainer=trainer, ensemble="auto", **AUTO)
    assert code == 0, lines
    assert said(lines, "packs of 2; measured: 1: ") and probes(queue) == [(2, 2)]
    code, lines = queue.work(settings={}, trainer=trainer, ensemble="two", pack=2)
    assert code == 0, lines
    auto, two = queue.jobs_of("auto"), queue.jobs_of("two")
    assert [losses(queue, job) for job in auto] == [losses(queue, job) for job in two]
    assert [len(queue.store.epochs(job.id)) for job in auto] == [2, 2]
    assert len({job.pack for job in auto}) == len({job.pack for job in two}) == 1


def losses(queue: Queue, job: Job) -> list[tuple[float, float]]:
    return [(row.train_loss, row.val_loss) for row in queue.store.epochs(job.id)]
