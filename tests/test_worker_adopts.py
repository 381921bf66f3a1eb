"""What dead workers wrote and never recorded is used, and what zombies write is not."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from worker_tools import (
    Queue,
    finish,
    fork_worker,
    freeze,
    is_stopped,
    trainer_of,
    wait_until,
    wake,
)

from ensq.jobs import Outcome, State
from ensq.rundir import RESULT_NAME, RunDir
from ensq.store import EventKind
from ensq.worker import members

# The write transactions of a worker: it signs on, claims, and records epochs 1, 2, 3 …
OF_EPOCH_3, OF_RESULT = 5, 8
WAITS_IN_4 = {"rules": [{"do": "slow", "epoch": 4, "attempt": 1}], "slow_seconds": 60}
# Whoever trains though there is nothing to train never ends, or soon after.
NEVER_TRAIN = {"do": "hang", "attempt": 2}
SOON = {"hang_first": 3.0, "hang_least": 3.0}


def kill_at(queue: Queue, hit: int, **settings: Any) -> None:
    """Attempt 1: its worker dies before it commits its ``hit``-th transaction."""
    faults = [{"point": "commit.before", "do": "kill", "hit": hit}]
    with queue.worker(settings=settings, faults=faults) as worker:
        code, text = finish(worker)
    assert code == -signal.SIGKILL, text


def damage(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# Checkpoints and results that nobody recorded


@pytest.mark.parametrize("looks", [True, False], ids=["looked for", "not looked for"])
def test_a_checkpoint_that_was_never_recorded_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """Not looked for, its epoch is trained again: the negative control."""
    queue = Queue(tmp_path)
    kill_at(queue, OF_EPOCH_3, **WAITS_IN_4)
    assert (queue.job.state, queue.job.epoch) == (State.RUNNING, 2)
    assert len(queue.checkpoints()) == 3
    if not looks:
        monkeypatch.setattr(RunDir, "unrecorded", lambda *args: ([], []))
    assert queue.work(drain=True)[0] == 0
    queue.require_sound()
    assert queue.starts() == [0, 3 if looks else 2]
    adopted = queue.events(EventKind.ADOPTED)
    assert len(adopted) == looks
    if looks:
        assert adopted[0].message.endswith("never recorded; goes on from epoch 3")
        # Whoever gets further is no poison.
        assert (queue.job.losses, queue.job.strikes) == (1, 0)


@pytest.mark.parametrize("looks", [True, False], ids=["looked for", "not looked for"])
def test_a_result_that_was_never_recorded_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    queue = Queue(tmp_path)
    kill_at(queue, OF_RESULT)
    assert (queue.job.state, queue.job.epoch) == (State.RUNNING, 5)
    if not looks:
        monkeypatch.setattr(RunDir, "unrecorded", lambda *args: ([], []))
    code, lines = queue.work(NEVER_TRAIN, drain=True, **SOON)
    assert code == 0
    queue.require_sound()
    assert queue.job.result_path == f"seed-1/attempt-{1 if looks else 2}/{RESULT_NAME}"
    [done] = queue.events(EventKind.DONE)
    assert ("never recorded" in done.message) is looks
    assert any("by an earlier attempt" in line for line in lines) is looks


def stopped_while_its_trainer_ends(queue: Queue) -> None:
    """Attempt 1: its worker stands still before epoch 3 is recorded, its trainer does it all."""
    faults = [{"point": "begin.before", "do": "stop", "hit": OF_EPOCH_3}]
    result = RunDir(queue.run_folder).attempt(1, 1) / RESULT_NAME
    with queue.worker(faults=faults) as worker:
        wait_until(lambda: is_stopped(worker.pid), "the worker stands still")
        wait_until(result.exists, "the result of the stopped worker's trainer")
        worker.kill()
    assert queue.job.epoch == 2


def test_a_result_is_used_though_epochs_before_it_were_not_recorded(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    stopped_while_its_trainer_ends(queue)
    assert queue.work(NEVER_TRAIN, drain=True, **SOON)[0] == 0
    queue.require_sound()
    assert queue.job.result_path == f"seed-1/attempt-1/{RESULT_NAME}"


@pytest.mark.parametrize("whole", [4, 3, 2], ids="up to epoch {}".format)
def test_what_was_never_recorded_and_is_torn_is_refused(tmp_path: Path, whole: int) -> None:
    """The newest that is whole is used; from epoch 2 on it is the recorded one."""
    queue = Queue(tmp_path)
    stopped_while_its_trainer_ends(queue)
    folder = RunDir(queue.run_folder).attempt(1, 1)
    damage(folder / RESULT_NAME)
    for name in queue.checkpoints()[whole:]:
        damage(folder / name)
    code, lines = queue.work(drain=True)
    assert code == 0
    queue.require_sound()
    assert queue.starts() == [0, whole]
    assert queue.job.result_path == f"seed-1/attempt-2/{RESULT_NAME}"
    refused = [line for line in lines if "did not verify" in line]
    assert len(refused) == 5 - whole
    assert len(queue.events(EventKind.ADOPTED)) == (whole > 2)


@pytest.mark.parametrize("known", [True, False], ids=["given up", "not known to be given up"])
def test_what_an_attempt_left_before_the_one_that_recorded_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Attempt 2 went another way from epoch 2 on and recorded it: attempt 1's way is given up."""
    queue = Queue(tmp_path)
    stopped_while_its_trainer_ends(queue)
    with monkeypatch.context() as patches:
        patches.setattr(RunDir, "unrecorded", lambda *args: ([], []))
        queue.work({"do": "exit", "epoch": 4}, max_jobs=1, drain=True)
    assert queue.job.checkpoint is not None
    assert queue.job.checkpoint.path.startswith("seed-1/attempt-2/epoch-000003")
    if not known:
        monkeypatch.setattr(members, "_attempt_of", lambda path: 1)
    assert queue.work(settings={})[0] == 0
    queue.require_sound()
    assert queue.starts() == [0, 2, 3]
    assert queue.job.result_path == f"seed-1/attempt-{3 if known else 1}/{RESULT_NAME}"


# Zombies: stopped for longer than their leases, and awake again


def require_superseded(queue: Queue, zombie: subprocess.Popen[str]) -> None:
    """The zombie wakes up after attempt 2 is done, and changes nothing."""
    before = queue.job
    assert before.result_path == f"seed-1/attempt-2/{RESULT_NAME}"
    trainer = trainer_of(zombie)
    wake(zombie.pid, trainer)
    code, text = finish(zombie)
    assert (code, text.count("superseded")) == (0, 1), text
    assert queue.job == before
    queue.require_sound()
    ends = [attempt.outcome for attempt in queue.store.attempts(before.id)]
    assert ends == [Outcome.LOST, Outcome.DONE]


@pytest.mark.parametrize("both", [True, False], ids=["with its trainer", "alone"])
def test_a_worker_frozen_in_the_middle_of_an_epoch_is_superseded(
    tmp_path: Path, both: bool
) -> None:
    queue = Queue(tmp_path)
    settings = {"rules": [{"do": "slow", "epoch": 3, "attempt": 1}], "slow_seconds": 60}
    with queue.worker(settings=settings, lease_seconds=0.5) as zombie:
        queue.wait(lambda job: job.epoch == 2)
        freeze(queue, zombie.pid, *[trainer_of(zombie)] * both)
        assert queue.work(drain=True)[0] == 0
        require_superseded(queue, zombie)


@pytest.mark.parametrize(("point", "start"), [("write.written", 2), ("write.renamed", 3)])
def test_a_worker_frozen_while_its_trainer_writes_a_checkpoint_is_superseded(
    tmp_path: Path, point: str, start: int
) -> None:
    """As soon as the file has its name the next attempt may go on from it: it is whole."""
    queue = Queue(tmp_path)
    faults = [{"point": point, "do": "stop", "hit": 3, "match": "/attempt-1/"}]
    with queue.worker(faults=faults, lease_seconds=0.5) as zombie:
        queue.wait(lambda job: job.epoch == 2)
        trainer = trainer_of(zombie)
        wait_until(lambda: is_stopped(trainer), "the trainer stands still")
        freeze(queue, zombie.pid)
        assert queue.work(drain=True)[0] == 0
        assert queue.starts() == [0, start]
        require_superseded(queue, zombie)


@pytest.mark.parametrize("hit", [OF_EPOCH_3, OF_RESULT], ids=["epoch", "result"])
def test_a_worker_frozen_on_its_way_to_the_database_is_superseded(tmp_path: Path, hit: int) -> None:
    queue = Queue(tmp_path)
    faults = [{"point": "begin.before", "do": "stop", "hit": hit}]
    settings = WAITS_IN_4 if hit == OF_EPOCH_3 else {}
    with queue.worker(faults=faults, settings=settings, lease_seconds=2.0) as zombie:
        wait_until(lambda: is_stopped(zombie.pid), "the worker stands still")
        if hit == OF_EPOCH_3:
            assert queue.work(drain=True, settings={})[0] == 0
            require_superseded(queue, zombie)
            return
        result = RunDir(queue.run_folder).attempt(1, 1) / RESULT_NAME
        wait_until(result.exists, "the result")  # which is taken over as it stands
        assert queue.work(drain=True, settings={})[0] == 0
        before = queue.job
        wake(zombie.pid)
        code, text = finish(zombie)
    assert (code, text.count("superseded")) == (0, 1), text
    assert queue.job == before
    assert before.result_path == f"seed-1/attempt-1/{RESULT_NAME}"
    queue.require_sound()


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "awake again"])
def test_a_worker_frozen_inside_a_transaction_holds_others_up_and_no_longer(
    tmp_path: Path, killed: bool
) -> None:
    """It holds the lock of the file: whatever its lease says, nobody can take its member over."""
    queue = Queue(tmp_path)
    faults = [{"point": "commit.before", "do": "stop", "hit": OF_EPOCH_3}]
    options: dict[str, Any] = {"lease_seconds": 0.5, "busy_seconds": 0.3}
    with queue.worker(faults=faults, settings={}, **options) as frozen:
        wait_until(lambda: is_stopped(frozen.pid), "the worker stands still")
        log = tmp_path / "other.log"
        other = fork_worker(queue, log, settings={}, faults=[], drain=True, **options)
        wait_until(lambda: log.exists() and "away, trying again" in log.read_text(), "it waits")
        other.join(0.6)  # longer than the lease
        assert (other.exitcode, queue.job.state, queue.job.attempt) == (None, State.RUNNING, 1)
        frozen.send_signal(signal.SIGKILL if killed else signal.SIGCONT)
        _, first = finish(frozen)
        other.join(30)
    assert other.exitcode == 0
    assert "the database is back" in log.read_text()
    queue.require_sound()
    assert queue.job.attempt == (2 if killed else 1)
    assert "superseded" not in first
