from __future__ import annotations

import math
import stat
import time
from pathlib import Path

import pytest

from ensq import slurm

ARRAY = {
    "SLURM_JOB_ID": "125",
    "SLURM_ARRAY_JOB_ID": "120",
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURMD_NODENAME": "n3",
    "SLURM_CLUSTER_NAME": "c",
    "SLURM_RESTART_COUNT": "1",
}


def squeue(folder: Path, script: str) -> dict[str, str]:
    """An environment in which squeue is this shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / "squeue"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"SLURM_JOB_ID": "77", "PATH": f"{folder}:/usr/bin:/bin"}


def test_outside_slurm_there_is_no_task_and_no_deadline() -> None:
    assert slurm.task_from_environment({}) is None
    assert slurm.deadline({}) is None


def test_a_task_knows_its_array_element_step_and_restarts() -> None:
    task = slurm.task_from_environment(ARRAY)
    assert task is not None
    assert (task.label, task.step_id, task.proc_id, task.node) == ("120_5", "0", "2", "n3")
    assert task.restarts == 1


def test_a_plain_job_is_called_by_its_id() -> None:
    task = slurm.task_from_environment({"SLURM_JOB_ID": "77"})
    assert task is not None
    assert (task.label, task.restarts) == ("77", 0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93784.0),
        ("02:03:04", 7384.0),
        ("9:58\n", 598.0),
        ("0:00", 0.0),
        ("UNLIMITED", math.inf),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
        ("12", None),
    ],
)
def test_time_left_is_read_as_squeue_writes_it(text: str, seconds: float | None) -> None:
    assert slurm.parse_time_left(text) == seconds


def test_the_end_time_of_newer_slurm_is_used_without_asking_squeue(tmp_path: Path) -> None:
    environment = squeue(tmp_path, "echo 1:00") | {"SLURM_JOB_END_TIME": "1800000000"}
    assert slurm.deadline(environment) == 1800000000.0


def test_the_deadline_is_now_plus_what_squeue_says_is_left(tmp_path: Path) -> None:
    environment = squeue(tmp_path, 'test "$*" = "-h -j 77 -o %L" && echo 1:30')
    assert slurm.deadline(environment, clock=lambda: 1000.0) == 1090.0


@pytest.mark.parametrize("script", ["exit 1", "echo 1:00; exit 1", "echo rubbish", "echo; echo"])
def test_a_squeue_that_fails_means_unknown(tmp_path: Path, script: str) -> None:
    assert slurm.deadline(squeue(tmp_path, script)) is None


def test_no_squeue_means_unknown(tmp_path: Path) -> None:
    assert slurm.deadline({"SLURM_JOB_ID": "77", "PATH": str(tmp_path)}) is None


def test_a_squeue_that_hangs_is_left_after_the_time_out(tmp_path: Path) -> None:
    began = time.monotonic()
    assert slurm.deadline(squeue(tmp_path, "exec sleep 60"), timeout=0.2) is None
    assert time.monotonic() - began < 5
