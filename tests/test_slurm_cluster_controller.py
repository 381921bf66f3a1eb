"""slurmctld that is away for a while, and the cluster's own end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import SCRIPTS, Cluster, marked, until
from slurm_jobs import Fake

SAVED = 7.0  # seconds until slurmctld has written what it did


def test_workers_do_not_notice_that_the_controller_is_away(
    cluster: Cluster, tmp_path: Path
) -> None:
    place = Fake(cluster, tmp_path, seeds=4, epochs=8, epoch_seconds=0.5)
    job = place.submit("--array=0-1")
    place.wait_epochs(4)
    cluster.stop_controller()
    before = place.epochs_done()
    time.sleep(2.0)
    assert place.epochs_done() > before
    cluster.start_controller()
    assert {one.state for one in cluster.wait_ended(job)} == {"COMPLETED"}, place.said()
    assert {one.restarts for one in cluster.jobs(job)} == {0}
    place.require_sound()


def test_worker_that_ends_while_the_controller_is_dead_has_done_its_work(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Killed, as by a crash of its host, once it has written down that the job runs."""
    place = Fake(cluster, tmp_path, seeds=2, epochs=12, epoch_seconds=0.5)
    job = place.submit()
    place.wait_epochs(2)
    time.sleep(SAVED)
    cluster.stop_controller(signal.SIGKILL)
    place.wait_done()
    place.require_nobody()
    cluster.start_controller()
    assert {one.state for one in cluster.wait_ended(job)} == {"COMPLETED"}, place.said()
    assert place.outcomes() == ["done"]
    place.require_sound()


def test_cluster_goes_down_when_the_tests_are_killed() -> None:
    program = """
import subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from slurm_cluster import Cluster
cluster = Cluster(1)
cluster.run("sbatch", "--output=/dev/null", "--wrap", "sleep 1000")
while not cluster.processes():
    time.sleep(0.1)
print(cluster.base, flush=True)
time.sleep(1000)
"""
    tests = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert tests.stdout is not None
        base = Path(tests.stdout.readline().strip())
        assert base.name.startswith("ensq-slurm-")
        os.kill(tests.pid, signal.SIGKILL)
        until(lambda: not base.exists(), "the end of the cluster", 30)
        assert marked(base) == []
        assert _daemons(base) == []
    finally:
        tests.kill()
        tests.communicate()


def _daemons(base: Path) -> list[str]:
    """Command lines with the cluster's folder in them."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return [line for line in lines.splitlines() if f"{base}/" in line]


def test_scripts_say_how_they_are_used() -> None:
    for name in ("up.sh", "node.sh"):
        done = subprocess.run([str(SCRIPTS / name)], capture_output=True, text=True)
        assert done.returncode == 2
        assert f"{name} BASE" in done.stderr


def test_without_slurm_tests_are_skipped_and_fail_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_cluster.shutil, "which", lambda name, path: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt install slurm-wlm munge"):
        Cluster()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="SLURM is not installed"):
        Cluster()
