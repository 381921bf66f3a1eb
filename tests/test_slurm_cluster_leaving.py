"""Workers that SLURM or a person sends away: pre-emption, scancel, requeue, hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster
from slurm_jobs import Fake

from ensq.jobs import State

EPOCHS = 20  # so many that what is done to the job comes before its end


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Iterator[Fake]:
    """One member, of which a worker needs some seconds."""
    yield Fake(cluster, tmp_path, epochs=EPOCHS, epoch_seconds=0.4)


def runs_of_one_job(place: Fake, job: str) -> list[int | None]:
    """Restart counts of the runs that had attempts; all of them by the same job."""
    infos = place.workers()
    found = [infos[attempt.worker_id] for attempt in place.attempts()]
    assert {one.slurm_job_id for one in found} == {job}, found
    return [one.slurm_restarts for one in found]


def no_epoch_was_lost(place: Fake) -> bool:
    """Whether each attempt went on where the one before had left off."""
    starts = [attempt.start_epoch for attempt in place.attempts()]
    return starts == sorted(starts) and len(set(starts)) == len(starts)


@pytest.mark.parametrize(
    "partition",
    ["low", pytest.param("lowc", marks=pytest.mark.slow)],
    ids=["requeue", "cancel"],
)
def test_preempted_job_comes_back_once_and_goes_on(
    place: Fake, cluster: Cluster, partition: str
) -> None:
    """The first SIGTERM is for the step alone; the worker leaves at once, and SLURM would call the
    job completed. So the script requeues it, also where SLURM would cancel it."""
    job = place.submit(f"--partition={partition}", "--nodelist=n1", "--exclusive")
    place.wait_epochs(3)
    higher = cluster.run(
        *("sbatch", "--parsable", "--nodelist=n1", "--exclusive", "--output=/dev/null"),
        *("--wrap", "sleep 2"),
    ).strip()
    cluster.wait(higher, {"RUNNING", "COMPLETED"})
    (ended,) = cluster.wait_ended(job)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), place.said()
    assert place.outcomes() == ["interrupted", "done"]
    assert runs_of_one_job(place, job) == [0, 1]
    assert no_epoch_was_lost(place)
    place.require_sound()


def test_cancelled_job_stays_cancelled_and_its_member_goes_on_in_another(
    place: Fake, cluster: Cluster
) -> None:
    job = place.submit()
    place.wait_epochs(3)
    cluster.cancel(job)
    (ended,) = cluster.wait_ended(job)
    assert (ended.state, ended.restarts) == ("CANCELLED", 0), place.said()
    (member,) = place.jobs()
    assert (member.state, member.interruptions) == (State.QUEUED, 1)
    assert member.checkpoint is not None and member.checkpoint.epoch == member.epoch
    place.require_nobody()
    other = place.submit()
    assert cluster.wait_ended(other)[0].state == "COMPLETED"
    assert place.outcomes() == ["interrupted", "done"]
    assert no_epoch_was_lost(place)
    place.require_sound()
    assert cluster.job(job).state == "CANCELLED"


def test_cancelled_array_leaves_nothing_behind(cluster: Cluster, tmp_path: Path) -> None:
    place = Fake(cluster, tmp_path, seeds=4, epochs=EPOCHS, epoch_seconds=0.3)
    job = place.submit("--array=0-3")
    place.wait_epochs(6)
    cluster.cancel(f"{job}_[0-1]")
    cluster.cancel(job)
    assert {one.state for one in cluster.wait_ended(job)} == {"CANCELLED"}
    assert {one.state for one in place.jobs()} == {State.QUEUED}
    place.require_nobody()
    assert {one.state for one in cluster.wait_ended(place.submit("--array=0-3"))} == {"COMPLETED"}
    place.require_sound()


def test_job_that_an_operator_requeues_starts_again_once_under_its_number(
    place: Fake, cluster: Cluster
) -> None:
    job = place.submit()
    place.wait_epochs(3)
    cluster.run("scontrol", "requeue", job)
    (ended,) = cluster.wait_ended(job)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), place.said()
    assert runs_of_one_job(place, job) == [0, 1]
    assert place.outcomes() == ["interrupted", "done"]
    assert no_epoch_was_lost(place)
    place.require_sound()


def test_held_job_waits_until_it_is_released(place: Fake, cluster: Cluster) -> None:
    job = place.submit()
    place.wait_epochs(3)
    cluster.run("scontrol", "requeuehold", job)
    cluster.wait(job, lambda one: one.state == "PENDING" and "held" in one.reason.lower())
    place.require_nobody()
    (member,) = place.jobs()
    assert member.state is State.QUEUED
    cluster.run("scontrol", "release", job)
    (ended,) = cluster.wait_ended(job)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), place.said()
    assert place.outcomes() == ["interrupted", "done"]
    place.require_sound()


@pytest.mark.slow
def test_hold_of_a_job_that_runs_holds_its_next_run(place: Fake, cluster: Cluster) -> None:
    """The worker that runs is not disturbed; what it requeues waits until it is released."""
    job = place.submit()
    place.wait_epochs(2)
    cluster.run("scontrol", "hold", job)
    place.wait_epochs(4)
    cluster.run("scancel", "--signal=USR1", f"{job}.0")
    cluster.wait(job, lambda one: one.state == "PENDING" and "held" in one.reason.lower())
    cluster.run("scontrol", "release", job)
    (ended,) = cluster.wait_ended(job)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), place.said()
    assert place.outcomes() == ["interrupted", "done"]
    assert no_epoch_was_lost(place)
    place.require_sound()


def test_last_element_of_an_array_requeues_itself_and_not_the_array(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its SLURM_JOB_ID is that of the whole array."""
    place = Fake(cluster, tmp_path, seeds=2, epochs=EPOCHS, epoch_seconds=0.4)
    job = place.submit("--array=0-1")
    place.wait_epochs(4)
    last = cluster.jobs(f"{job}_1")[0]
    assert last.job_id == job
    # To the worker alone, as a time limit or a pre-emption does.
    cluster.run("scancel", "--signal=USR1", f"{job}_1.0")
    found = {one.label: one for one in cluster.wait_ended(job)}
    assert {one.state for one in found.values()} == {"COMPLETED"}, place.said()
    assert [found[f"{job}_{index}"].restarts for index in (0, 1)] == [0, 1]
    place.require_sound()
