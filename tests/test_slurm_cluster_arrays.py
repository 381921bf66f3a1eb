"""Arrays of workers on a real SLURM cluster: who gets what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from slurm_cluster import Cluster
from slurm_jobs import Fake

GPUS = re.compile(r"CUDA_VISIBLE_DEVICES (\S+);")


def devices(place: Fake) -> set[tuple[str, str]]:
    """Node and GPUs as the trainers' logs begin with them, of all workers; no two have the same."""
    found = []
    for name, worker in place.workers().items():
        (log, *_) = place.folder.glob(f"runs/*/logs/{name}-*.log")
        match = GPUS.search(log.read_text())
        assert match is not None and worker.slurm_node is not None, log.read_text()
        found.append((worker.slurm_node, match[1]))
    assert len(set(found)) == len(found), found
    return set(found)


def test_array_of_four_workers_on_four_nodes_drains_eight_seeds(
    cluster: Cluster, tmp_path: Path
) -> None:
    place = Fake(cluster, tmp_path, seeds=8, epochs=4, epoch_seconds=0.8)
    # So much memory that no two workers find room on one node.
    job = place.submit("--array=0-3", "--gres=gpu:1", "--mem=3000")
    found = cluster.wait_ended(job)
    assert {(one.state, one.exit_code) for one in found} == {("COMPLETED", "0:0")}, place.said()
    place.require_sound()
    used = devices(place)
    assert len(used) == 4, used
    assert {gpu for _, gpu in used} <= {"0", "1"}, used
    assert {node for node, _ in used} == {one.node for one in found} == set(cluster.nodes)
    labels = {one.slurm_job for one in place.workers().values()}
    assert labels == {f"{job}_{index}" for index in range(4)}


@pytest.mark.parametrize(
    "gpus", [("--gpus-per-task=1",), ("--gres=gpu:2",)], ids=["of-tasks", "of-the-node"]
)
def test_two_tasks_on_each_of_four_nodes_have_eight_devices(
    cluster: Cluster, tmp_path: Path, gpus: tuple[str, ...]
) -> None:
    """GPUs that SLURM binds to tasks, and those of a node that tasks divide among themselves."""
    place = Fake(cluster, tmp_path, seeds=8, epochs=2)
    job = place.submit(
        *("--array=0-3", "--ntasks=2", "--mem=3000", "--output=%x-%A_%a.out", *gpus),
        options=("--max-jobs", "1"),
        hand_written=True,
    )
    found = cluster.wait_ended(job)
    assert {one.state for one in found} == {"COMPLETED"}, place.said()
    place.require_sound()
    assert devices(place) == {(node, gpu) for node in cluster.nodes for gpu in "01"}
    infos = list(place.workers().values())
    assert len(infos) == 8
    assert {one.slurm_proc for one in infos} == {"0", "1"}
    assert len({(one.slurm_node, one.slurm_proc) for one in infos}) == 8
    assert len({one.slurm_job_id for one in infos}) == 4
    assert {one.slurm_cluster for one in infos} == {"lab"}


def test_two_arrays_train_two_ensembles_at_once(cluster: Cluster, tmp_path: Path) -> None:
    place = Fake(cluster, tmp_path, seeds=4, epochs=4, epoch_seconds=0.4, names=("one", "two"))
    arrays = {
        name: place.submit("--array=0-1", "--gres=gpu:1", name=name) for name in ("one", "two")
    }
    for job in arrays.values():
        assert {one.state for one in cluster.wait_ended(job)} == {"COMPLETED"}, place.said()
    place.require_sound()
    for name, job in arrays.items():
        theirs = [place.attempts(one)[-1].worker_id for one in place.jobs(name)]
        infos = place.workers()
        assert {infos[worker].slurm_job for worker in theirs} <= {f"{job}_0", f"{job}_1"}
    assert len(devices(place)) == 4


def test_one_job_of_three_tasks_on_two_nodes_of_different_shares(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Two tasks divide the GPUs of one node; the one on the other node sees both of its own."""
    place = Fake(cluster, tmp_path, seeds=3, epochs=2)
    job = place.submit(
        *("--nodes=2", "--ntasks=3", "--gres=gpu:2", "--distribution=plane=2"),
        "--output=%x-%A_%a.out",
        options=("--max-jobs", "1"),
        hand_written=True,
    )
    assert {one.state for one in cluster.wait_ended(job)} == {"COMPLETED"}, place.said()
    place.require_sound()
    found = devices(place)
    shares = sorted(gpus for _, gpus in found)
    assert shares == ["0", "0,1", "1"], found
    assert len({node for node, _ in found}) == 2


def test_two_workers_share_each_gpu(cluster: Cluster, tmp_path: Path) -> None:
    # Long enough for the slowest start: each of the four workers is to find one.
    place = Fake(cluster, tmp_path, seeds=4, epochs=14, epoch_seconds=0.5)
    job = place.submit("--array=0-1", "--nodelist=n1", gpus="1", workers_per_gpu=2)
    assert {one.state for one in cluster.wait_ended(job)} == {"COMPLETED"}, place.said()
    place.require_sound()
    logs = place.logs(place.name)
    assert len(logs) == 4
    assert sorted(GPUS.search(log)[1] for log in logs) == ["0", "0", "1", "1"]  # type: ignore[index]
    assert all("memory fraction 0.45" in log for log in logs), logs


def test_nodes_that_mount_the_shared_folder_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    """What the database holds is relative to its folder, so each node may call it as it likes."""
    if (cluster.base / "run" / "ns").read_text().strip() != "1":
        pytest.skip("nodes of their own mounts need the right to make namespaces")
    here, there = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    there.mkdir()
    place = Fake(cluster, here, seeds=2, epochs=12, epoch_seconds=0.3)
    cluster.node("exec", "n2", "mount", "--bind", str(here), str(there))
    try:
        other = {"ENSQ_DB": str(there / "ensq.db")}
        away = place.submit("--nodelist=n2", f"--chdir={there}", environment=other, database=None)
        place.wait_epochs(3)
        at_home = place.submit("--nodelist=n1")
        cluster.run("scancel", "--signal=TERM", away)
        assert cluster.wait_ended(at_home)[0].state == "COMPLETED", place.said()
        cluster.wait_ended(away)
    finally:
        cluster.node("exec", "n2", "umount", str(there))
    nodes = {one.slurm_node for one in place.workers().values()}
    assert nodes == {"n1", "n2"}
    place.require_sound()
    assert str(there) not in "".join(map(str, place.jobs()))
