"""Slow disks, files of earlier attempts, and hosts that file locks don't reach."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from worker_tools import Queue, finish

from ensq.errors import DatabaseError
from ensq.jobs import State
from ensq.store import Store, check, check_files, worker_info
from ensq.worker import neighbours
from ensq.worker.neighbours import Neighbours


@pytest.mark.parametrize("milliseconds", [1, 5, 50])
def test_slow_file_operations_change_nothing(
    milliseconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"point": "*", "do": "delay", "seconds": milliseconds / 1000}
    monkeypatch.setenv("ENSQ_FAULTS", json.dumps([rule]))
    queue = Queue(tmp_path, seeds=2, epochs=3)
    with queue.worker(lease_seconds=5.0) as first, queue.worker(lease_seconds=5.0) as second:
        assert [finish(worker)[0] for worker in (first, second)] == [0, 0]
    for job in queue.jobs:
        assert (job.state, job.attempt) == (State.DONE, 1)
        assert queue.losses(job) == queue.expected(job)
    assert check(queue.url) == check_files(queue.url) == []


def test_checkpoints_of_earlier_attempts_go_when_two_newer_are_recorded(tmp_path: Path) -> None:
    queue = Queue(tmp_path, epochs=6)
    with queue.worker(settings={"rules": [{"do": "kill", "epoch": 4, "attempt": 1}]}) as worker:
        code, text = finish(worker)
    assert code == 0, text
    assert (queue.job.state, queue.job.attempt) == (State.DONE, 2)
    earlier, later = (queue.run_folder / f"seed-1/attempt-{n}" for n in (1, 2))
    assert list(earlier.glob("epoch-*")) == []
    assert len(list(later.glob("epoch-*"))) >= 2
    assert check_files(queue.url) == []


def test_checkpoints_of_earlier_attempts_stay_while_they_may_be_needed(tmp_path: Path) -> None:
    """The other side of the test above: after one newer one they are still there."""
    queue = Queue(tmp_path, epochs=6)
    settings = {"rules": [{"do": "kill", "epoch": 4, "attempt": 1}, {"do": "slow", "epoch": 5}]}
    with queue.worker(settings=settings) as worker:
        queue.wait(lambda job: (job.attempt, job.epoch) == (2, 4))
        assert len(list((queue.run_folder / "seed-1/attempt-1").glob("epoch-*"))) >= 2
        worker.terminate()
        finish(worker)


def test_worker_that_is_alive_without_its_lock_shuts_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(tmp_path)
    far = dataclasses.replace(
        worker_info("far"), host="elsewhere", boot_id="other/1", lock_byte=2**30
    )
    queue.store.register_worker(far)
    looks = []
    monkeypatch.setattr(neighbours, "is_free", lambda target, byte: looks.append(byte) or True)
    monkeypatch.setattr(neighbours, "journal_for", lambda path: "delete")
    here = Neighbours(queue.store, "me")
    alive = Store.open(queue.url)
    here.require_locks()
    here.require_locks()  # silent: it may as well be dead
    alive.renew([], worker_id="far")
    with pytest.raises(DatabaseError, match="locks don't reach other hosts") as error:
        here.require_locks()
    assert error.value.exit_code == 69
    assert "postgresql://" in str(error.value)
    assert looks


def test_on_a_file_system_of_one_host_nobody_is_asked(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    asked = []
    queue.store.living_workers = lambda: asked.append(1) or []  # type: ignore[method-assign]
    Neighbours(queue.store, "me").require_locks()
    assert not asked
