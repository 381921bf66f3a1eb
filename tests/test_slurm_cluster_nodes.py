"""Nodes that die, lose their slurmd, or hang and come back while their job runs elsewhere."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
from slurm_cluster import Cluster
from slurm_jobs import Fake, Real

GONE = ("down", "down*")
EPOCHS = 40


def where(place: Fake | Real) -> str:
    """The node of the job that runs."""
    (job,) = [one for one in place.cluster.jobs() if one.state == "RUNNING"]
    return job.node


def nodes_of(place: Fake | Real) -> list[str | None]:
    """The nodes of the first member's attempts."""
    infos = place.workers()
    return [infos[attempt.worker_id].slurm_node for attempt in place.attempts()]


def test_real_training_goes_on_elsewhere_after_a_power_cut(
    cluster: Cluster, tmp_path: Path
) -> None:
    place = Real(cluster, tmp_path, epochs=600)  # some seconds, also on a fast machine
    job = place.submit()
    place.wait_epochs(4)
    lost = where(place)
    cluster.node("kill", lost)
    (ended,) = cluster.wait_ended(job, 120)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), place.said()
    assert place.outcomes() == ["lost", "done"]
    first, second = place.attempts()
    assert second.start_epoch >= 4 > first.start_epoch
    assert nodes_of(place)[0] == lost != nodes_of(place)[1]
    place.require_sound()
    assert place.ensq("db", "check", "--files").returncode == 0


def test_worker_whose_slurmd_was_killed_keeps_its_member_while_it_lives(
    cluster: Cluster, tmp_path: Path
) -> None:
    """SLURM calls the job requeued and starts it again; the old worker still trains, and renews
    its lease, so that nobody else does."""
    place = Fake(cluster, tmp_path, epochs=60, epoch_seconds=0.4)
    job = place.submit(options=("--drain",))
    place.wait_epochs(3)
    alone = where(place)
    cluster.node("kill-slurmd", alone)
    cluster.wait_node(alone, GONE)
    cluster.wait(job, {"PENDING"})
    (again,) = cluster.wait(job, {"RUNNING"})
    assert (again.restarts, again.node != alone) == (1, True)
    (ended,) = cluster.wait_ended(job)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), place.said()
    _each_worker_for_itself(place, alone)
    cluster.node("start", alone)
    place.require_sound()


def _each_worker_for_itself(place: Fake, alone: str) -> None:
    """One trained it all, or the other took over after that one had died."""
    attempts, nodes = place.attempts(), nodes_of(place)
    assert nodes[0] == alone
    assert len(attempts) <= 2, attempts
    for one, next_one in itertools.pairwise(attempts):
        assert one.ended_at is not None and one.ended_at <= next_one.started_at


def freeze_and_wake(place: Fake, **environment: str) -> tuple[str, str]:
    """Freeze the node of the job, have the job start elsewhere and take over; wake the old worker.

    As after a network that was cut, SLURM can't reach its node yet. Returns the job, and the
    node's name.
    """
    cluster = place.cluster
    job = place.submit(options=("--drain",), environment=environment)
    place.wait_epochs(3)
    frozen = where(place)
    place.freeze(frozen)
    cluster.wait_node(frozen, GONE)
    (again,) = cluster.wait(job, lambda one: one.state == "RUNNING" and one.restarts == 1)
    assert again.node != frozen
    place.wait(lambda: len(place.attempts()) == 2, "the second attempt", 60)
    begun = place.epochs_done()
    place.wait_epochs(begun + 2)
    for pid in cluster.processes(frozen):
        if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGCONT)
    return job, frozen


@pytest.mark.parametrize(
    "deaf", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["hears", "deaf"]
)
def test_node_that_thaws_while_its_job_runs_elsewhere_is_superseded(
    cluster: Cluster, tmp_path: Path, deaf: bool
) -> None:
    """A deaf one hears no signal of SLURM, and trains on until SIGKILL.

    The old run's srun, as it wakes up, aborts "its" step, by a number that is the new run's now:
    SLURM kills that worker, too, unless the srun itself was killed first. Its job starts anew then.
    """
    place = Fake(cluster, tmp_path, epochs=EPOCHS, epoch_seconds=0.3)
    job, frozen = freeze_and_wake(place, **({"ENSQ_TEST_DEAF": "1"} if deaf else {}))
    place.wait(lambda: "superseded" in place.said(), "the old worker to notice", 20)
    cluster.node("thaw", frozen)
    (ended,) = cluster.wait_ended(job)
    assert ended.state == "COMPLETED", place.said()
    assert ended.restarts in (1, 2)
    first, second, *rest = place.attempts()
    assert str(first.outcome) == "lost"
    assert nodes_of(place)[0] == frozen != nodes_of(place)[1]
    assert rest or str(second.outcome) == "done"
    infos = place.workers()
    theirs = [infos[attempt.worker_id] for attempt in (first, second)]
    assert [one.slurm_job_id for one in theirs] == [job, job]
    assert [one.slurm_restarts for one in theirs] == [0, 1]
    place.require_sound()


@pytest.mark.slow
def test_without_the_fence_the_thawed_worker_breaks_the_queue(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The control: what the test above looks at would be seen."""
    place = Fake(cluster, tmp_path, epochs=EPOCHS, epoch_seconds=0.3)
    job, frozen = freeze_and_wake(place, ENSQ_TEST_UNFENCED="1")
    place.wait(place.strange_writes, "the old worker to write", 20)
    cluster.node("thaw", frozen)
    cluster.wait_ended(job)
    assert "superseded" not in place.said()
    assert place.strange_writes(), "nothing was broken"
    with pytest.raises(AssertionError):
        place.require_sound()
