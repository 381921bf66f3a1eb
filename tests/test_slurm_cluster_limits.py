"""Trainings that need several time limits, and complete through requeues."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import Cluster, until
from slurm_jobs import Ensemble, Fake, Real

from ensq.jobs import State

# A limit of 26 s, which SLURM enforces, and tells jobs of as newer versions do (22.05 does not).
SHORT = """
scontrol update "JobId=$me" EndTime=now+26
export SLURM_JOB_END_TIME=$(($(date +%s) + 26))
"""
MINUTES = ("--time=1",)
# SLURM warns at the first of its looks, half a minute apart, in the last minute: within 30 s here.
WARNED = (*MINUTES, "--exclusive", "--signal=USR1@30")
EPOCHS = 2400  # more than one run can do on a fast machine


def completed_in_runs(place: Ensemble, job: str, seconds: float = 300) -> int:
    """The runs that a completed training needed, each from where the one before had stopped."""
    (ended,) = place.cluster.wait_ended(job, seconds)
    assert ended.state == "COMPLETED", place.said()
    *stopped, last = place.attempts()
    assert str(last.outcome) == "done"
    assert {str(one.outcome) for one in stopped} == {"interrupted"}, stopped
    assert all("the time limit" in (one.reason or "") for one in stopped), stopped
    ends = [one.end_epoch or 0 for one in stopped]  # 0: it was still loading
    assert [one.start_epoch for one in place.attempts()] == [0, *ends], place.said()
    infos = place.workers()
    runs = [infos[one.worker_id] for one in place.attempts()]
    assert [one.slurm_restarts for one in runs] == list(range(ended.restarts + 1))
    assert {one.slurm_job_id for one in runs} == {job}
    assert place.said().count("requeued") == ended.restarts, place.said()
    return len(runs)


def test_training_longer_than_its_time_limit_completes_to_the_same_bits(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Two jobs: one whose worker knows its end and leaves in time, and one that
    is warned by a signal, before its trainer could be done."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    knows = Real(cluster, tmp_path / "a", epochs=EPOCHS)
    warned = Fake(cluster, tmp_path / "b", epochs=110, epoch_seconds=0.4)
    job = knows.submit(*MINUTES, "--exclusive", before=SHORT)
    other = warned.submit(*WARNED)
    assert completed_in_runs(knows, job) >= 2
    assert completed_in_runs(warned, other) >= 2
    assert "says SIGUSR1" in warned.said()
    knows.require_sound()
    warned.require_sound()


def test_without_a_requeue_it_does_not_complete(cluster: Cluster, tmp_path: Path) -> None:
    """The control: nothing else starts it again."""
    place = Fake(cluster, tmp_path, epochs=100, epoch_seconds=0.5)
    job = place.submit(*MINUTES, before=SHORT, requeue=False)
    (ended,) = cluster.wait_ended(job)
    assert (ended.state, ended.exit_code, ended.restarts) == ("FAILED", "75:0", 0)
    (member,) = place.jobs()
    assert member.state is State.QUEUED and 0 < member.epoch < 100
    place.require_nobody()


# A limit that comes soon, within 36 s, in the first run only.
SOON = """
me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
[ -e first ] || { touch first && scontrol update "JobId=$me" EndTime=now+6; }
"""
# The worker, as in a container without SLURM, can't ask for it.
BLIND = ("env", "PATH=/nowhere")


def test_worker_that_cannot_know_its_limit_goes_on_in_one_successor(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It hears SIGTERM at the limit, together with the script: SLURM requeues nothing then."""
    place = Fake(cluster, tmp_path, epochs=130, epoch_seconds=0.3)
    place.worker = (*BLIND, *place.worker)
    job = place.submit(*MINUTES, before=SOON)
    (ended,) = cluster.wait_ended(job)
    assert (ended.state, ended.restarts) == ("TIMEOUT", 0), place.said()
    assert place.said().count(" goes on") == 1, place.said()
    (member,) = place.jobs()
    assert member.state in (State.QUEUED, State.RUNNING)
    place.wait_done()
    until(lambda: not cluster.run("squeue", "-h"), "the end of all jobs", 30)
    runs = [place.workers()[one.worker_id] for one in place.attempts()]
    assert len({one.slurm_job_id for one in runs}) == len(runs) == 2
    assert [one.slurm_restarts for one in runs] == [0] * len(runs)
    assert place.said().count(" goes on") == len(runs) - 1
    place.require_sound()


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["USR1", "B:USR1", "B:USR2", "TERM"])
def test_warnings_by_each_signal_to_workers_and_to_the_script(
    cluster: Cluster, tmp_path: Path, signal: str
) -> None:
    place = Fake(cluster, tmp_path, epochs=150, epoch_seconds=0.3)
    place.worker = (*BLIND, *place.worker)
    job = place.submit("--time=2", f"--signal={signal}@60")
    (ended,) = cluster.wait_ended(job, 200)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), place.said()
    assert place.outcomes() == ["interrupted", "done"]
    place.require_sound()


@pytest.mark.slow
def test_time_limit_of_a_minute_with_a_training_of_three(cluster: Cluster, tmp_path: Path) -> None:
    """As it is: the worker asks squeue for its limit."""
    place = Real(cluster, tmp_path, epochs=4 * EPOCHS)
    assert completed_in_runs(place, place.submit(*MINUTES), 600) >= 3
    place.require_sound()


@pytest.mark.slow
def test_warnings_of_a_real_trainer(cluster: Cluster, tmp_path: Path) -> None:
    place = Real(cluster, tmp_path, epochs=EPOCHS)
    assert completed_in_runs(place, place.submit(*WARNED), 600) >= 2
    place.require_sound()
