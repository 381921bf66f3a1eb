"""``hold``, ``release``, ``show``, ``drain``, ``reap``, and what ``status`` says of trouble."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ensemble_tools import ensq, with_losses
from store_tools import claim_of, point, record, train
from worker_tools import Queue, finish

from ensq.jobs import Job, Outcome, State
from ensq.store import EpochWrite, Policy, Store, worker_info


def out(*arguments: str, cwd: Path, code: int = 0) -> str:
    done = ensq(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert "\x1b" not in done.stdout
    return str(done.stdout)


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """Three queued members of three epochs."""
    return Queue(tmp_path, seeds=3, epochs=3)


def claim(queue: Queue, worker: str = "w1", **other: Any) -> Job:
    """A member held by a worker: this process, unless told otherwise."""
    queue.store.register_worker(worker_info(worker))
    (job,) = queue.store.claim(worker, limit=1, lease_seconds=60.0, **other)
    return job


def test_held_members_are_not_claimed_until_released(queue: Queue) -> None:
    assert out("hold", "e", "--seed", "1", cwd=queue.folder) == "held: seeds 1\n"
    assert out("hold", "e", "--seed", "1", cwd=queue.folder) == "nothing to hold\n"
    assert claim(queue).seed == 2
    assert "held" in out("status", "e", cwd=queue.folder)
    assert out("release", "e", cwd=queue.folder) == "released: seeds 1\n"
    assert queue.job.state is State.QUEUED
    done = ensq("hold", "e", "--seed", "9", cwd=queue.folder)
    assert (done.returncode, "no seed 9" in done.stderr) == (2, True)


def test_finalize_when_done_waits_for_the_last_member_without_an_error(tmp_path: Path) -> None:
    """So that each of several batch jobs may call it at its end."""
    store, ensemble = with_losses(tmp_path, [1.0, None])
    store.close()
    command = ("finalize", ensemble.name, "--when-done")
    said = out(*command, cwd=tmp_path)
    assert said == "not finalized yet: 1 of 2 members are open\n"
    assert "not done" in ensq("finalize", ensemble.name, cwd=tmp_path).stderr
    out("cancel", ensemble.name, cwd=tmp_path)
    done = ensq(*command, cwd=tmp_path)
    assert (done.returncode, "cancelled" in done.stderr) == (1, True), done.stderr


def test_status_names_the_way_on_when_all_are_held(queue: Queue) -> None:
    out("hold", cwd=queue.folder)
    assert "next: `ensq release e`" in out("status", cwd=queue.folder)


def test_show_tells_attempts_reasons_and_the_log(queue: Queue) -> None:
    store = Store.open(queue.url, policy=Policy(pause=0.0))
    job = claim(queue, log_path="logs/w1.log")
    train(store, claim_of(job), range(1, 3))
    store.fail(
        claim_of(job),
        Outcome.CRASH,
        "the trainer was killed by signal 11 (SIGSEGV)",
        retry=True,
        log_tail="Fatal Python error\n  in \x1b[31mforward\x1b[0m",
    )
    (again,) = store.claim("w1", limit=1, lease_seconds=60.0)
    assert (again.id, again.attempt) == (job.id, 2)
    store.stand_at(claim_of(again), point(1), [], "a checkpoint did not verify: torn")
    text = out("show", "e/1", cwd=queue.folder)
    for part in (
        "e: seed 1: running, epoch 1/3",
        "crashes 1, lost workers 0",
        "attempt 1: the trainer was killed by signal 11 (SIGSEGV)",
        "attempt 2: a checkpoint did not verify: torn; goes on from epoch 1",
        "| Fatal Python error",
        "logs/w1.log",
    ):
        assert part in text
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 80
    assert "seed 1, attempt 2: a checkpoint did not verify" in out("status", cwd=queue.folder)
    shown = json.loads(out("show", str(job.id), "--json", cwd=queue.folder))
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["crash", None]
    assert shown["job"]["crashes"] == shown["job"]["strikes"] == 1


@pytest.mark.parametrize("text", ["e/9", "x/1", "77", "e", "e/"])
def test_show_of_what_is_not_there_is_one_clear_line(text: str, queue: Queue) -> None:
    done = ensq("show", text, cwd=queue.folder)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_status_says_how_long_a_member_pauses(queue: Queue) -> None:
    job = claim(queue)
    queue.store.fail(claim_of(job), Outcome.FAILURE, "exception: no", retry=True)
    assert "seed 1: pauses for" in out("status", cwd=queue.folder)
    assert "failures 1" in out("show", "e/1", cwd=queue.folder)


def test_drain_makes_workers_leave_after_their_epoch(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=2, epochs=50)
    settings = {"epoch_seconds": 0.2}
    with queue.worker(settings=settings, lease_seconds=1.0) as worker:
        queue.wait(lambda job: job.epoch >= 2)
        assert "asked to leave" in out("drain", cwd=tmp_path)
        code, text = finish(worker)
    assert code == 0
    assert "asked this worker to leave" in text
    job = queue.job
    assert (job.state, job.interruptions, job.stalls) == (State.QUEUED, 1, 0)
    assert job.checkpoint is not None and job.checkpoint.epoch == job.epoch >= 3
    assert out("drain", cwd=tmp_path) == "no worker to ask\n"


def test_reap_takes_back_from_a_process_that_is_gone(queue: Queue) -> None:
    with queue.worker(settings={"epoch_seconds": 30}) as worker:
        queue.wait(lambda job: job.state is State.RUNNING)
        worker.kill()
        finish(worker)
    text = out("reap", "--no-wait", cwd=queue.folder)
    assert "e: seed 1 is queued" in text and "is gone" in text
    assert out("reap", "--no-wait", cwd=queue.folder) == "nothing to take back\n"
    assert (queue.job.losses, queue.job.failures) == (1, 0)


def test_reap_watches_workers_of_other_hosts_by_its_own_clock(queue: Queue) -> None:
    """The holder's clock, an hour ahead in the rows, plays no part."""
    import dataclasses

    ahead = Store.open(queue.url, clock=lambda: time.time() + 3600)
    elsewhere = dataclasses.replace(worker_info("far"), host="elsewhere", boot_id="other/1")
    ahead.register_worker(elsewhere)
    (job,) = ahead.claim("far", limit=1, lease_seconds=1.0)
    ahead.record_epochs([EpochWrite(claim_of(job), record(1), 1, 1.0, None)])
    text = json.loads(out("reap", "--no-wait", "--json", cwd=queue.folder))
    assert (text["taken_back"], text["running"]) == ([], 1)
    began = time.monotonic()
    text = json.loads(out("reap", "--json", cwd=queue.folder))
    assert time.monotonic() - began > 1.0
    assert [item["worker"] for item in text["taken_back"]] == ["far"]
    assert "no sign of life" in text["taken_back"][0]["reason"]
