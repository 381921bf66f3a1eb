"""``ensq doctor``: CPUs, memory and the folder for temporary files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ensq.doctor import Finding, Share, check_machine, check_scratch, machine

GB = 10**9


def look(root: Path, cpus: int = 1, gpus: tuple[str, ...] = (), **slurm: str) -> dict[str, Finding]:
    share = Share(cpus=cpus, source="SLURM_CPUS_PER_TASK", gpus=gpus, trainer="threads 1")
    return {finding.key: finding for finding in check_machine(share, slurm, root)}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemFree: 1 kB\nMemTotal: {64 * GB // 1024} kB\n"}
V2 = {"proc/self/cgroup": "0::/slurm/job_1/step_0\n"}
V1 = {"proc/self/cgroup": "9:cpu,cpuacct:/x\n4:memory:/slurm/job_1\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "slurm", "seen"),
    [
        (MEMINFO, {}, "64.0 GB of memory (of the machine)"),
        (MEMINFO, {"SLURM_MEM_PER_NODE": "4096"}, "4.3 GB of memory (SLURM_MEM_PER_NODE)"),
        (MEMINFO, {"SLURM_MEM_PER_NODE": "0"}, "64.0 GB of memory (of the machine)"),
        (MEMINFO, {"SLURM_MEM_PER_CPU": "4096"}, "8.6 GB of memory (SLURM_MEM_PER_CPU)"),
        (
            MEMINFO
            | V2
            | {
                "sys/fs/cgroup/slurm/job_1/step_0/memory.max": "max\n",
                "sys/fs/cgroup/slurm/job_1/memory.max": f"{8 * GB}\n",
            },
            {"SLURM_MEM_PER_NODE": "99999"},
            "8.0 GB of memory (cgroup)",
        ),
        (
            MEMINFO | V1 | {"sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": f"{5 * GB}"},
            {},
            "5.0 GB of memory (cgroup)",
        ),
        (
            MEMINFO | V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
            {},
            "64.0 GB of memory (of the machine)",
        ),
    ],
)
def test_the_least_limit_of_memory_counts(
    files: dict[str, str], slurm: dict[str, str], seen: str, tmp_path: Path
) -> None:
    found = look(tree(tmp_path, files), cpus=2, **slurm)["memory"]
    assert (found.state, found.seen) == ("ok", seen)


def test_little_memory_is_a_warning_and_none_is_unknown(tmp_path: Path) -> None:
    assert look(tmp_path)["memory"].state == "unknown"
    tree(tmp_path, MEMINFO)
    assert look(tmp_path, SLURM_MEM_PER_NODE="1024")["memory"].state == "warning"


def test_fewer_cpus_than_slurm_says_are_a_warning(tmp_path: Path) -> None:
    assert look(tmp_path, cpus=1)["cpus"].state == "ok"
    found = look(tmp_path, cpus=10_000)["cpus"]
    assert found.state == "warning"
    assert f"may use {machine._affinity()}" in found.seen


def test_how_a_worker_would_take_gpus_is_told(tmp_path: Path) -> None:
    assert look(tmp_path)["worker"].seen == "a worker here: no GPU; threads 1"
    assert "GPU 0, 1 (" in look(tmp_path, gpus=("0", "1"))["worker"].seen


def test_a_folder_for_temporary_files_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (found,) = check_scratch({"TMPDIR": str(tmp_path)})
    assert found.state == "ok"
    assert "for temporary files (TMPDIR)" in found.seen
    assert os.listdir(tmp_path) == []


def test_a_tmpdir_that_is_not_there_is_a_warning() -> None:
    (found,) = check_scratch({"TMPDIR": "/nowhere/at/all"})
    assert found.state == "warning"
    assert "/nowhere/at/all: can't be written" in found.seen
