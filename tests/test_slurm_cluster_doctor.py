"""``ensq doctor`` on a real cluster: outside and inside jobs, and without the controller."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ensemble_tools import ensq
from slurm_cluster import KILL_WAIT, Cluster

from ensq.store import Store

Found = dict[str, list[dict[str, str]]]


def read(text: str) -> Found:
    found: Found = {}
    for finding in json.loads(text)["findings"]:
        found.setdefault(finding["key"], []).append(finding)
    return found


def look(cluster: Cluster, folder: Path) -> Found:
    done = ensq("doctor", "--json", cwd=folder, **cluster.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(done.stdout)


def test_a_real_cluster_is_told_and_put_in_words(cluster: Cluster, tmp_path: Path) -> None:
    Store.open(str(tmp_path / "ensq.db"), create=True).close()
    found = look(cluster, tmp_path)
    states = {key: one[0]["state"] for key, one in found.items()}
    good = ("slurm", "controller", "requeue", "arrays", "settings", "slurm_clock", "munge")
    assert {states[key] for key in good} == {"ok"}, found
    assert found["slurm"][0]["seen"].startswith("slurm")
    assert found["controller"][0]["seen"].startswith("Slurmctld(primary) at ")
    assert f"KillWait is {KILL_WAIT} sec: less than the 25 s" in found["kill_wait"][0]["seen"]
    # accounting_storage/none
    assert states["accounting"] == "note"
    names = [one["seen"].split()[1].rstrip(":") for one in found["partition"]]
    assert names == ["main", "low", "lowc"]
    advice = {name: one["advice"] for name, one in zip(names, found["partition"], strict=True)}
    assert advice["main"] == ""
    assert "to save" in advice["low"]
    assert "ensq submit" in advice["lowc"]
    assert "job" not in found
    text = ensq("doctor", cwd=tmp_path, **cluster.environment).stdout
    assert max(map(len, text.splitlines())) <= 80


def test_inside_a_job_its_gpus_and_its_end_are_told(cluster: Cluster, tmp_path: Path) -> None:
    command = f"cd {tmp_path}; srun {sys.executable} -m ensq.cli doctor --json >step.json"
    (tmp_path / "job.sh").write_text(
        f"#!/bin/bash\n{command}\n{sys.executable} -m ensq.cli doctor --json >script.json\n"
    )
    job = cluster.submit(tmp_path / "job.sh", "--gres=gpu:2", "--time=30", "--output=out.txt")
    (ended,) = cluster.wait_ended(job)
    assert ended.state == "COMPLETED", (tmp_path / "out.txt").read_text()
    step = read((tmp_path / "step.json").read_text())
    assert step["job"][0]["seen"].startswith(f"job {job}, run 1, on {ended.node}; 0 h ")
    assert step["job"][0]["state"] == "ok"
    assert "GPUs of the job on this node: 0,1;" in step["job_gpus"][0]["seen"]
    assert step["munge"][0]["state"] == "ok"
    # These GPUs are no real ones, and nvidia-smi is not there.
    assert "this job has GPU 0,1" in step["devices"][0]["seen"]
    assert "step" not in step
    script = read((tmp_path / "script.json").read_text())
    assert "srun" in script["step"][0]["advice"]


def test_without_the_controller_it_answers_all_the_same(cluster: Cluster, tmp_path: Path) -> None:
    cluster.stop_controller()
    found = look(cluster, tmp_path)
    assert found["controller"][0]["state"] == "warning"
    assert "DOWN" in found["controller"][0]["seen"]
    assert "partition" not in found
