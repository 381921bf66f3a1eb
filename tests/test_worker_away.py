"""A database that is away while workers train: nothing is lost, nothing stands twice."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pg_tools
import pytest
from worker_tools import Queue, finish, fork_worker, wait_until

from ensq.jobs import Outcome, State
from ensq.rundir import RESULT_NAME, RunDir
from ensq.store import EventKind
from ensq.worker.ledger import Ledger

BRIEF: dict[str, Any] = {"busy_seconds": 0.1}  # a lock that lasts longer means "away"
SLOW_THIRD = {"rules": [{"do": "slow", "epoch": 3, "attempt": 1}], "slow_seconds": 60}


# SQLite: another process keeps the file locked


def test_training_goes_on_while_the_database_is_away(tmp_path: Path) -> None:
    queue = Queue(tmp_path, epochs=20)
    with queue.worker(settings={"epoch_seconds": 0.1}, **BRIEF) as worker:
        queue.wait(lambda job: job.epoch >= 2)
        with queue.locked():
            recorded = queue.job.epoch
            wait_until(lambda: len(queue.checkpoints()) >= recorded + 5, "checkpoints")
            assert queue.job.epoch == recorded
            assert not (RunDir(queue.run_folder).attempt(1, 1) / RESULT_NAME).exists()
        code, text = finish(worker)
    assert code == 0
    assert text.count("the database is away; training goes on, and what it gives is kept") == 1
    assert text.count("the database is back after") == 1
    queue.require_sound()
    assert queue.starts() == [0]


def test_a_result_is_handed_in_when_the_database_is_back(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=2)
    result = RunDir(queue.run_folder).attempt(1, 1) / RESULT_NAME
    with queue.worker(settings={"epoch_seconds": 0.1}, pack=2, **BRIEF) as worker:
        queue.wait(lambda job: job.epoch >= 1)
        with queue.locked():
            wait_until(result.exists, "the result")
            with pytest.raises(subprocess.TimeoutExpired):
                worker.wait(0.5)
            assert [job.state for job in queue.jobs] == [State.RUNNING] * 2
        code, _ = finish(worker)
    assert code == 0
    queue.require_sound()
    assert [queue.starts(job) for job in queue.jobs] == [[0], [0]]


def test_patience_has_an_end_and_the_next_worker_takes_up_what_lies_there(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    result = RunDir(queue.run_folder).attempt(1, 1) / RESULT_NAME
    with queue.worker(settings={"epoch_seconds": 0.1}, patience=0.5, **BRIEF) as worker:
        queue.wait(lambda job: job.epoch >= 1)
        with queue.locked():
            code, text = finish(worker)
            assert result.exists()
    assert code == 69
    assert "the database did not come back; what was trained lies in the attempts' folders" in text
    assert "error: " in text and "database is locked" in text
    assert queue.job.state is State.RUNNING
    never = {"do": "hang", "attempt": 2}  # a trainer that trains though there is nothing to train
    assert queue.work(never, drain=True, hang_first=3.0, hang_least=3.0)[0] == 0
    queue.require_sound()
    assert queue.job.result_path == f"seed-1/attempt-1/{RESULT_NAME}"
    assert [a.outcome for a in queue.store.attempts(queue.job.id)] == [Outcome.LOST, Outcome.DONE]


def test_patience_with_a_trainer_that_has_nothing_to_tell(tmp_path: Path) -> None:
    """Only a renewal finds the database away, in the middle of a long epoch."""
    queue = Queue(tmp_path)
    with queue.worker(settings=SLOW_THIRD, patience=0.5, lease_seconds=1.0, **BRIEF) as worker:
        queue.wait(lambda job: job.epoch == 2)
        with queue.locked():
            code, text = finish(worker)
    assert code == 69
    assert "the leases could not be renewed for" in text or "did not come back" in text
    assert queue.work(settings={}, drain=True)[0] == 0
    queue.require_sound()
    assert queue.starts() == [0, 2]


def test_a_worker_that_was_cut_off_may_find_that_another_took_over(tmp_path: Path) -> None:
    """Only this one can't reach the database; its lease runs out by the clocks of others."""
    queue = Queue(tmp_path)
    # Each rule sees only what those before it let pass: so they fail one after the other.
    cut = [{"point": "begin.before", "do": "error", "hit": 7}] * 36
    with queue.worker(settings=SLOW_THIRD, faults=cut, lease_seconds=0.8) as cut_off:
        queue.wait(lambda job: job.epoch == 2)
        assert queue.work(settings={}, drain=True)[0] == 0
        before = queue.job
        code, text = finish(cut_off)
    assert code == 0
    assert "the leases could not be renewed for" in text
    assert text.count("seed 1: superseded; the member belongs to another attempt now") == 1
    assert queue.job == before
    assert before.result_path == f"seed-1/attempt-2/{RESULT_NAME}"
    queue.require_sound()


def test_a_worker_starts_when_the_database_is_there_and_waits_no_longer_than_told(
    tmp_path: Path,
) -> None:
    queue = Queue(tmp_path)
    with queue.locked():
        with queue.worker(settings={}, patience=0.2, open_patience=0.2, **BRIEF) as hasty:
            assert finish(hasty)[0] == 69
        log = tmp_path / "patient.log"
        patient = fork_worker(queue, log, settings={}, faults=[], **BRIEF)
        wait_until(lambda: log.exists() and "away, trying again" in log.read_text(), "it waits")
        assert queue.job.attempt == 0
    patient.join(30)
    assert patient.exitcode == 0
    assert "the database is back" in log.read_text()
    queue.require_sound()


def test_an_error_of_the_file_system_for_some_time_costs_nothing(tmp_path: Path) -> None:
    queue = Queue(tmp_path, epochs=8)
    faults = [
        {"point": "begin.before", "do": "error", "probability": 0.25, "seed": 1},
        {"point": "commit.before", "do": "error", "probability": 0.2, "seed": 2},
        {"point": "commit.after", "do": "error", "probability": 0.2, "seed": 3},
    ]
    with queue.worker(settings={}, faults=faults) as worker:
        code, text = finish(worker)
    assert code == 0, text
    queue.require_sound()
    assert queue.starts() == [0]
    assert len(queue.events(EventKind.CLAIMED)) == 1


# PostgreSQL


@pytest.fixture
def served(
    tmp_path: Path, postgres: pg_tools.Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Queue]:
    """A queue on a server, with run folders in ``tmp_path``."""
    monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
    queue = Queue(tmp_path, seeds=2, epochs=20, url=postgres.new_database())
    yield queue
    queue.store.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_is_restarted_while_members_train(
    served: Queue, postgres: pg_tools.Server, mode: str
) -> None:
    with served.worker(settings={"epoch_seconds": 0.1}, pack=2) as worker:
        recorded = served.wait(lambda job: job.epoch >= 2).epoch
        postgres.stop(mode)
        wanted = min(recorded + 6, served.epochs)
        wait_until(lambda: len(served.checkpoints()) >= wanted, "checkpoints")
        postgres.start()
        code, text = finish(worker)
    assert code == 0, text
    assert text.count("the database is away; training goes on") == 1
    served.require_sound()
    assert [served.starts(job) for job in served.jobs] == [[0], [0]]


def test_connections_that_are_cut_again_and_again(served: Queue, postgres: pg_tools.Server) -> None:
    name = served.url.rpartition("/")[2]
    cut = 0
    with served.worker(settings={"epoch_seconds": 0.05}) as one, served.worker() as other:
        until = time.monotonic() + 60
        while (one.poll(), other.poll()) != (0, 0):
            assert time.monotonic() < until
            cut += postgres.kill_connections(name)
            time.sleep(0.1)
    assert cut >= 5
    served.require_sound()
    assert [job.attempt for job in served.jobs] == [1, 1]
    assert all(len(served.events(EventKind.CLAIMED, job)) == 1 for job in served.jobs)


def test_a_worker_waits_for_a_server_that_is_down(served: Queue, postgres: pg_tools.Server) -> None:
    postgres.stop()
    with served.worker(open_patience=0.1) as hasty:
        code, text = finish(hasty)
    assert code == 69
    assert "error: " in text and "can't be reached" in text
    log = served.folder / "patient.log"
    patient = fork_worker(served, log, settings={}, faults=[], open_patience=60.0)
    wait_until(lambda: log.exists() and "away, trying again" in log.read_text(), "it waits")
    postgres.start()
    patient.join(30)
    assert patient.exitcode == 0
    assert "the database is back" in log.read_text()
    served.require_sound()


def test_a_signal_while_the_server_is_down(served: Queue, postgres: pg_tools.Server) -> None:
    with served.worker(settings=SLOW_THIRD, pack=2, grace=1.5) as worker:
        served.wait(lambda job: job.epoch == 2)
        postgres.stop("immediate")
        worker.send_signal(signal.SIGTERM)
        code, text = finish(worker)
    postgres.start()
    assert code == 69, text
    assert "Traceback" not in text
    assert served.work(settings={}, drain=True, pack=2)[0] == 0
    served.require_sound()
    assert [served.starts(job) for job in served.jobs] == [[0, 2], [0, 2]]


# The ledger


def test_tries_become_rarer_and_order_is_kept() -> None:
    from ensq.errors import DatabaseAway

    now, away, done, lines = [0.0], [True], [], []  # type: ignore[var-annotated]

    def write(number: int) -> None:
        if away[0]:
            raise DatabaseAway("gone")
        done.append(number)

    ledger = Ledger(lines.append, monotonic=lambda: now[0])
    for number in range(3):
        ledger.add(lambda number=number: write(number))  # type: ignore[misc]
    pauses = []
    for _ in range(7):
        pause = ledger.due_in()
        assert pause is not None
        pauses.append(pause)
        now[0] += pause
        ledger.flush()
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]
    assert (done, ledger.has_writes(), ledger.away_for) == ([], True, 35.5)
    away[0] = False
    ledger.flush()
    assert done == []  # it is not time yet
    ledger.flush(at_once=True)
    assert (done, ledger.has_writes(), ledger.away_for, ledger.error) == ([0, 1, 2], False, 0, None)
    assert len(lines) == 2
