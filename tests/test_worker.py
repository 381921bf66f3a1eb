"""The supervisor with the fake trainer: what it records, retries, and leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worker_tools import NAME, Queue, environment, finish

from ensq.errors import DatabaseError, EnsqError
from ensq.jobs import Outcome, State
from ensq.rundir import sha256_file

Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Tells the trainers of this process's workers how to behave."""

    def tell(*rules: dict[str, Any], **settings: Any) -> None:
        for name, value in environment(rules=rules, **settings).items():
            monkeypatch.setenv(name, value)

    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    tell()
    return tell


def test_a_worker_drains_the_queue_with_one_trainer(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path, seeds=3)
    code, lines = queue.work()
    assert code == 0
    for job in queue.jobs:
        assert (job.state, job.epoch, job.attempt) == (State.DONE, 5, 1)
        assert queue.losses(job) == queue.expected(job)
        assert job.result_path == f"seed-{job.seed}/attempt-1/result.safetensors"
        assert job.result_digest == sha256_file(queue.run_folder / job.result_path)
        assert job.checkpoint is not None
        assert (queue.run_folder / job.checkpoint.path).is_file()
        [attempt] = queue.store.attempts(job.id)
        assert attempt.outcome is Outcome.DONE
        assert attempt.log_path is not None
        assert (queue.run_folder / attempt.log_path).is_file()
    assert sum("is ready" in line for line in lines) == 1
    assert any("seed 2 epoch 3/5: train 6.7067, val 3.3533" in line for line in lines)


def test_a_pack_is_claimed_and_trained_together(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path, seeds=3)
    code, lines = queue.work(pack=2)
    assert code == 0
    assert [line.split(": ", 1)[1] for line in lines if "claimed of" in line] == [
        "seed 1 (attempt 1), 2 (attempt 1)",
        "seed 3 (attempt 1)",
    ]
    assert all(queue.losses(job) == queue.expected(job) for job in queue.jobs)


def test_each_ensemble_has_its_own_log_and_trainer(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    queue.add("second", 1)
    code, lines = queue.work()
    assert code == 0
    assert sum("is ready" in line for line in lines) == 2
    assert len(list((tmp_path / "runs" / "second" / "logs").iterdir())) == 1


def test_a_worker_for_one_ensemble_leaves_others_alone(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    queue.add("second", 1)
    assert queue.work(ensemble="second")[0] == 0
    assert queue.job.state is State.QUEUED


def test_a_worker_leaves_after_the_number_of_members_asked_for(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path, seeds=3)
    assert queue.work(max_jobs=2, pack=3)[0] == 0
    assert [job.state for job in queue.jobs] == [State.DONE, State.DONE, State.QUEUED]


def test_a_worker_with_nothing_to_do_ends_well(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    queue.work()
    code, lines = queue.work(drain=True)
    assert code == 0
    assert "nothing is left" in lines[-1]


def test_the_worker_signs_on_and_off(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    queue.work()
    [attempt] = queue.store.attempts(queue.job.id)
    worker = queue.store.workers([attempt.worker_id])[attempt.worker_id]
    assert worker.pid == os.getpid()
    assert worker.ended_at is not None


def test_an_exception_is_retried_up_to_three_times(tmp_path: Path, fake: Fake) -> None:
    fake({"do": "exception", "epoch": 3})
    queue = Queue(tmp_path)
    code, lines = queue.work()
    assert code == 1
    assert (queue.job.state, queue.job.failures, queue.job.crashes) == (State.FAILED, 3, 0)
    assert queue.job.error == "failed 3 times, the last time: exception: told to fail in epoch 3"
    assert [a.start_epoch for a in queue.store.attempts(queue.job.id)] == [0, 2, 2]
    assert sum("tried again" in line for line in lines) == 2


def test_an_exception_that_passes_costs_one_attempt(tmp_path: Path, fake: Fake) -> None:
    fake({"do": "exception", "epoch": 3, "attempt": 1})
    queue = Queue(tmp_path)
    assert queue.work()[0] == 0
    assert (queue.job.attempt, queue.job.failures) == (2, 1)
    assert queue.losses(queue.job) == queue.expected(queue.job)


@pytest.mark.parametrize("kind", ["diverge", "data"])
def test_what_would_fail_again_is_not_retried_and_the_pack_goes_on(
    tmp_path: Path, fake: Fake, kind: str
) -> None:
    fake({"do": kind, "seed": 1, "epoch": 2})
    queue = Queue(tmp_path, seeds=2)
    assert queue.work(pack=2)[0] == 1
    assert [job.state for job in queue.jobs] == [State.FAILED, State.DONE]
    assert queue.job.attempt == 1


def test_changed_data_ends_the_worker_with_78_and_spares_the_rest(
    tmp_path: Path, fake: Fake
) -> None:
    fake({"do": "mismatch"})
    queue = Queue(tmp_path, seeds=3)
    assert queue.work()[0] == 78
    states = [job.state for job in queue.jobs]
    assert states == [State.FAILED, State.QUEUED, State.QUEUED]


@pytest.mark.parametrize(
    ("do", "evidence"),
    [
        ("segv", "was killed by signal 11 (SIGSEGV: a segmentation fault)"),
        ("kill", "was killed by signal 9 (SIGKILL: often the system's out-of-memory killer)"),
        ("exit", "ended with exit code 3"),
        ("rubbish", "what is no event"),
        ("hide_epoch", "epoch 4 can't follow epoch 2"),
    ],
)
def test_a_crash_of_the_trainer_costs_one_attempt_and_is_told_apart(
    tmp_path: Path, fake: Fake, do: str, evidence: str
) -> None:
    fake({"do": do, "epoch": 3, "attempt": 1})
    queue = Queue(tmp_path)
    code, lines = queue.work()
    assert code == 0
    job = queue.job
    assert (job.state, job.attempt, job.crashes, job.failures) == (State.DONE, 2, 1, 0)
    assert queue.losses(job) == queue.expected(job)
    first = queue.store.attempts(job.id)[0]
    assert first.outcome is Outcome.CRASH
    assert first.reason is not None
    assert evidence in first.reason
    assert sum("is ready" in line for line in lines) == 2


def test_the_last_lines_of_the_log_stand_in_the_reason(tmp_path: Path, fake: Fake) -> None:
    fake({"do": "segv", "epoch": 3, "attempt": 1})
    queue = Queue(tmp_path)
    queue.work()
    reason = queue.store.attempts(queue.job.id)[0].reason
    assert reason is not None
    assert "about to" in reason
    assert "\x1b" not in reason


def test_three_crashes_set_a_member_aside_and_the_others_go_on(tmp_path: Path, fake: Fake) -> None:
    fake({"do": "exit", "seed": 1})
    queue = Queue(tmp_path, seeds=2)
    assert queue.work()[0] == 1
    assert [job.state for job in queue.jobs] == [State.FAILED, State.DONE]
    assert queue.job.crashes == 3
    assert queue.job.error is not None
    assert "out of cheese" in queue.job.error


def test_a_trainer_that_cannot_start_is_not_the_members_fault(tmp_path: Path, fake: Fake) -> None:
    fake({"do": "no_start"})
    queue = Queue(tmp_path)
    with pytest.raises(EnsqError, match=r"exit code 1 before it was ready.*No module named 'jax'"):
        queue.work()
    job = queue.job
    assert (job.state, job.crashes, job.failures) == (State.QUEUED, 0, 0)


def test_a_trainer_that_forgets_a_member_has_failed_it(tmp_path: Path, fake: Fake) -> None:
    fake({"do": "forget", "attempt": 1})
    queue = Queue(tmp_path)
    assert queue.work()[0] == 0
    assert (queue.job.state, queue.job.failures) == (State.DONE, 1)


@pytest.mark.parametrize(("both", "start"), [(False, 2), (True, 0)])
def test_a_damaged_checkpoint_sends_its_row_back_to_the_one_before(
    tmp_path: Path, fake: Fake, both: bool, start: int
) -> None:
    """In a pack the other member goes on from its own."""
    fake({"do": "exit", "epoch": 4, "attempt": 1})
    queue = Queue(tmp_path, seeds=2)
    assert queue.work(max_jobs=2, pack=2)[0] == 0
    first, second = queue.job.checkpoint, queue.job.previous_checkpoint
    assert first is not None
    assert second is not None
    (queue.run_folder / first.path).write_bytes(b"torn")
    if both:
        (queue.run_folder / second.path).unlink()
    code, lines = queue.work(pack=2)
    assert code == 0
    assert any("did not verify" in line for line in lines)
    starts = [queue.store.attempts(job.id)[1].start_epoch for job in queue.jobs]
    assert starts == [start, 3]
    for job in queue.jobs:
        assert (job.state, job.attempt) == (State.DONE, 2)
        assert queue.losses(job) == queue.expected(job)


def test_a_stop_before_the_first_epoch_after_a_damaged_checkpoint_keeps_the_place(
    tmp_path: Path, fake: Fake
) -> None:
    fake({"do": "exit", "epoch": 4, "attempt": 1})
    queue = Queue(tmp_path)
    queue.work(max_jobs=1)
    damaged = queue.job.checkpoint
    assert damaged is not None
    (queue.run_folder / damaged.path).write_bytes(b"torn")
    with queue.worker(settings={"rules": [{"do": "slow", "epoch": 3}]}) as worker:
        assert worker.stderr is not None
        while "going on after epoch 2" not in worker.stderr.readline():
            pass
        worker.terminate()
        assert finish(worker)[0] == 75
    assert queue.job.checkpoint is not None
    assert (queue.job.epoch, queue.job.checkpoint.epoch) == (2, 2)
    fake()
    assert queue.work()[0] == 0
    assert queue.losses(queue.job) == queue.expected(queue.job)


def test_a_recorded_path_that_leads_out_of_the_run_folder_is_not_used(
    tmp_path: Path, fake: Fake
) -> None:
    fake({"do": "exit", "epoch": 4, "attempt": 1})
    queue = Queue(tmp_path)
    queue.work(max_jobs=1)
    elsewhere = tmp_path / "elsewhere"
    checkpoint = queue.job.checkpoint
    assert checkpoint is not None
    path = queue.run_folder / checkpoint.path
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    code, lines = queue.work()
    assert code == 0
    assert any("leads out of" in line for line in lines)
    assert queue.losses(queue.job) == queue.expected(queue.job)


def test_a_run_folder_that_cannot_be_written_gives_the_rows_back(
    tmp_path: Path, fake: Fake
) -> None:
    queue = Queue(tmp_path)
    (tmp_path / "runs").write_text("in the way")
    code, lines = queue.work()
    assert code == 75
    assert any("can't start training in" in line and "runs/e" in line for line in lines)
    job = queue.job
    assert (job.state, job.failures, job.crashes, job.stalls) == (State.QUEUED, 0, 0, 0)


def test_a_missing_database_is_exit_code_69(tmp_path: Path, fake: Fake) -> None:
    queue = Queue(tmp_path)
    with pytest.raises(DatabaseError) as error:
        queue.work(url=str(tmp_path / "no.db"))
    assert error.value.exit_code == 69


def test_failed_members_of_the_ensemble_asked_for_show_in_the_exit_code(
    tmp_path: Path, fake: Fake
) -> None:
    fake({"do": "diverge"})
    queue = Queue(tmp_path)
    assert queue.work()[0] == 1
    assert queue.work(ensemble=NAME, drain=True)[0] == 1
    assert queue.work()[0] == 0  # it found nothing and did nothing
