"""One worker that is a step of two tasks, on two nodes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from slurm_cluster import Cluster
from slurm_jobs import Real

from ensq.jobs import State

EPOCHS = 20  # of some tenths of a second
STAGE = f"training.stages=[{{optimizer: adam, epochs: {EPOCHS}}}]"


def trainers(place: Real, module: str) -> list[int]:
    """The processes of jobs that run a module of ensq."""
    found = []
    for pid in place.cluster.processes():
        if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            found.append(pid)
    return found


@pytest.mark.parametrize(
    "killed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["calm", "killed"]
)
def test_a_step_of_two_nodes_trains_a_member(
    cluster: Cluster, tmp_path: Path, killed: bool
) -> None:
    """A trainer that is killed on one node ends both; both come back, and go on."""
    place = Real(cluster, tmp_path, epochs=EPOCHS + 1, settings=(STAGE,))
    job = place.submit(
        environment={"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        processes=2,  # as `ensq submit` has it from slurm.processes
    )
    if killed:
        place.wait_epochs(2, 90)
        (follower,) = trainers(place, "ensq.train.follower")
        os.kill(follower, signal.SIGKILL)
    (ended,) = cluster.wait_ended(job, 90)
    assert (ended.state, ended.restarts) == ("COMPLETED", 0), place.said()
    assert [job.state for job in place.jobs()] == [State.DONE]
    attempts = place.attempts()
    assert [one.start_epoch >= 2 for one in attempts] == ([False, True] if killed else [False])
    if killed:
        assert place.outcomes() == ["crash", "done"], place.said()
        assert "process 1 on n2 is gone" in (attempts[0].reason or "")
    assert {one.slurm_node for one in place.workers().values()} == {"n1"}
    place.require_nobody()
    assert not list(tmp_path.glob(".ensq-step-*"))
