"""GPUs, CPUs and threads from the allocation; the first lines of the logs."""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from worker_tools import Queue

from ensq.worker import devices
from ensq.worker.child import child_environment
from ensq.worker.devices import (
    Cpus,
    cpus_of_allocation,
    gpus_of_task,
    memory_fraction,
    tasks_here,
    trainer_settings,
    workers_per_gpu,
)
from ensq.worker.headline import headline

STEP = {
    "SLURM_STEP_GPUS": "0,1,2,3",
    "SLURM_GPUS_ON_NODE": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    "SLURM_STEP_TASKS_PER_NODE": "4",
    "SLURM_NODEID": "0",
}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if JAX could use CUDA."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def of_task(local: int, share: int = 1, tasks: str = "4") -> list[str] | None:
    mine = {"SLURM_LOCALID": str(local), "SLURM_STEP_TASKS_PER_NODE": tasks}
    return gpus_of_task(STEP | mine, share)


def test_tasks_that_all_see_the_nodes_gpus_take_one_each() -> None:
    assert [of_task(local) for local in range(4)] == [["0"], ["1"], ["2"], ["3"]]


def test_fewer_tasks_take_several_each() -> None:
    assert [of_task(local, tasks="2(x2),4") for local in range(2)] == [["0", "1"], ["2", "3"]]


def test_tasks_that_share_take_the_same_one() -> None:
    assert [of_task(local, 2, "8") for local in range(8)] == [[str(n // 2)] for n in range(8)]


def test_more_tasks_than_that_share_all_the_same() -> None:
    eight = {"SLURM_STEP_TASKS_PER_NODE": "8"}
    assert [of_task(local, 1, "8") for local in range(8)] == [[str(n // 2)] for n in range(8)]
    assert workers_per_gpu(STEP | eight, 1) == 2


@pytest.mark.parametrize(
    "environment",
    [
        # Bound by SLURM 22.05 with --gpus-per-task=1, and by --gpu-bind=single:1.
        {
            "CUDA_VISIBLE_DEVICES": "2",
            "SLURM_STEP_GPUS": "2",
            "SLURM_LOCALID": "2",
            "SLURMD_TRES_BIND": "gpu:per_task:1",
        },
        {"SLURMD_TRES_BIND": "gpu:single:1", "SLURM_LOCALID": "2"},
        {"CUDA_VISIBLE_DEVICES": "2", "SLURM_STEP_GPUS": "2", "SLURM_LOCALID": "2"},
        {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_LOCALID": "0"},
        {"SLURM_STEP_TASKS_PER_NODE": "rubbish", "SLURM_LOCALID": "0"},
        {"SLURM_STEP_GPUS": "", "SLURM_LOCALID": "1"},  # not SLURM's choice: the user's
        {"CUDA_VISIBLE_DEVICES": "", "SLURM_LOCALID": "1"},
        {},
    ],
)
def test_what_is_visible_stays_where_there_is_nothing_to_divide(
    environment: dict[str, str],
) -> None:
    assert gpus_of_task(STEP | environment) is None
    assert workers_per_gpu(STEP | environment, 1) == 1


@pytest.mark.parametrize("tasks", range(1, 10))
@pytest.mark.parametrize("share", [1, 2, 3])
def test_a_task_never_sees_more_than_it_was_given(tasks: int, share: int) -> None:
    seen: list[str] = []
    for local in range(tasks):
        mine = of_task(local, share, str(tasks))
        assert mine is None or (mine and set(mine) <= set("0123"))
        seen += mine or []
    if share == 1 and 1 < tasks <= 4:
        assert len(seen) == len(set(seen))


def test_the_tasks_of_a_node_are_counted_as_slurm_writes_them() -> None:
    counts = {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}
    assert [tasks_here(counts | {"SLURM_NODEID": str(n)}) for n in range(5)] == [2, 2, 2, 1, 1]
    assert tasks_here({}) == 1


def test_workers_that_share_a_gpu_share_its_memory() -> None:
    assert [memory_fraction(n) for n in (1, 2, 3, 4, 7)] == ["0.9", "0.45", "0.3", "0.225", "0.128"]
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert trainer_settings({}, share=2)[name] == "0.45"
    assert name not in trainer_settings({}, share=1)
    assert name not in trainer_settings({name: "0.2"}, share=2)
    assert child_environment({name: "0.2"}, share=2)[name] == "0.2"
    kept = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    assert child_environment(kept, share=2).items() >= kept.items()


def test_threads_of_a_gpus_trainer_are_those_of_the_allocation(on_gpu: None) -> None:
    gpu = {"CUDA_VISIBLE_DEVICES": "0", "SLURM_CPUS_PER_TASK": "6"}
    settings = trainer_settings(gpu, share=1)
    assert settings == dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "6"
    )
    assert child_environment(gpu | {"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"


def test_a_cpu_trainer_keeps_one_thread_whatever_the_allocation() -> None:
    cpu = child_environment({"SLURM_CPUS_PER_TASK": "6"})
    assert (cpu["NPROC"], cpu["OMP_NUM_THREADS"]) == ("1", "1")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts this process into control groups of which these files are the quotas."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))

    def put(own: str, **files: str) -> None:
        for name, text in files.items():
            path = tmp_path / "fs" / name.replace("__", "/").replace("_MAX", ".max")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(devices, "_CGROUPS", tmp_path / "fs")
        monkeypatch.setattr(devices, "_OWN_CGROUP", tmp_path / "own")

    return put


def test_cpus_come_from_slurm_first(cgroup: Callable[..., None]) -> None:
    cgroup("0::/a\n", a__cpu_MAX="200000 100000\n")
    assert cpus_of_allocation({"SLURM_CPUS_PER_TASK": "3"}) == Cpus(3, "SLURM_CPUS_PER_TASK")


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/a/b\n", {"a__cpu_MAX": "400000 100000", "a__b__cpu_MAX": "max 100000"}, 4),
        ("0::/a\n", {"a__cpu_MAX": "50000 100000"}, 1),
        ("0::/a\n", {"a__cpu_MAX": "9900000 100000"}, 16),
        ("0::/\n", {"cpu_MAX": "250000 100000"}, 2),
        ("0::/gone\n", {}, 16),
        ("rubbish\n", {"cpu_MAX": "rubbish"}, 16),
    ],
)
def test_cpus_come_from_the_quota_of_the_control_groups(
    cgroup: Callable[..., None], own: str, files: dict[str, str], cpus: int
) -> None:
    cgroup(own, **files)
    assert cpus_of_allocation({}).count == cpus


def test_cpus_come_from_the_quota_of_version_1(cgroup: Callable[..., None]) -> None:
    cgroup(
        "5:memory:/m\n4:cpu,cpuacct:/job\n",
        cpu__job__cpu_cfs="",
        **{"cpu__job__cpu.cfs_quota_us": "300000", "cpu__job__cpu.cfs_period_us": "100000"},
    )
    assert cpus_of_allocation({}) == Cpus(3, "cgroup")


def test_the_first_lines_say_where_with_what_and_until_when() -> None:
    environment = {
        "SLURM_JOB_ID": "125",
        "SLURM_ARRAY_JOB_ID": "120",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "2",
        "SLURM_RESTART_COUNT": "1",
        "CUDA_VISIBLE_DEVICES": "1",
        "SLURM_CPUS_PER_TASK": "8",
        "OMP_NUM_THREADS": "8",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45",
        "ENSQ_DB": "postgresql://u:secret@h/d",
        "PGPASSWORD": "secret",
    }
    text = "\n".join(headline(environment, "time limit in 3 h 59 min"))
    for part in (
        "SLURM job 120_3, id 125, step 0, task 2, restarts 1; time limit in 3 h 59 min",
        "CUDA_VISIBLE_DEVICES 1; memory fraction 0.45; CPUs of the allocation 8 "
        "(SLURM_CPUS_PER_TASK); threads 8",
        "ensq ",
    ):
        assert part in text
    assert "secret" not in text
    assert "outside SLURM" in headline({}, "time limit unknown")[0]


def test_the_logs_begin_with_these_lines_and_each_claim_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("ENSQ_DB", "postgresql://u:secret@h/d")
    monkeypatch.setenv("PGPASSWORD", "secret")
    queue = Queue(tmp_path, seeds=3)
    code, lines = queue.work(settings={})
    assert code == 0
    said = "\n".join(lines)
    assert "threads 5" in said and "time limit unknown" in said
    logs = [queue.store.attempts(job.id)[0].log_path for job in queue.jobs]
    assert len(set(logs)) == 3
    for path in logs:
        assert path is not None
        text = (queue.run_folder / path).read_text()
        assert text.startswith("host ") and "threads 5" in text
        assert "secret" not in text + said


def test_a_pack_has_one_log(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=3)
    assert queue.work(settings={}, pack=3)[0] == 0
    assert len({queue.store.attempts(job.id)[0].log_path for job in queue.jobs}) == 1


@pytest.mark.parametrize("turns", [True, False], ids=["as it is", "one log for all"])
def test_the_last_lines_are_of_the_claim_though_the_trainer_stays(
    tmp_path: Path, turns: bool
) -> None:
    """A trainer that did not turn to the claim's log would leave no trace of its crash there."""
    queue = Queue(tmp_path, seeds=3)
    crash = {"do": "exit", "seed": 2, "attempt": 1, "epoch": 4}
    assert queue.work(crash, settings={"keeps_its_log": not turns})[0] == 0
    first = queue.store.attempts(queue.jobs[1].id)[0]
    assert first.log_path is not None and first.log_path.endswith("-2.log")
    assert first.log_tail == ("Traceback: out of cheese" if turns else None)
    with_it = [path.name for path in (queue.run_folder / "logs").iterdir()
               if "out of cheese" in path.read_text()]  # fmt: skip
    assert len(with_it) == 1
    assert with_it[0].endswith("-2.log" if turns else "-1.log")


def test_temporary_files_of_ensq_lie_beside_what_they_become() -> None:
    """Nothing goes to /tmp, which may be small, or memory; libraries get the user's TMPDIR."""
    root = Path(devices.__file__).parents[1]
    calls = 0
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            # TemporaryFile holds what SLURM's commands say: small, nameless, and in TMPDIR.
            if name.startswith("tempfile.") and name != "tempfile.TemporaryFile":
                calls += 1
                assert "dir" in [keyword.arg for keyword in node.keywords], f"{path}:{node.lineno}"
    assert calls >= 4
    assert child_environment({"TMPDIR": "/scratch"})["TMPDIR"] == "/scratch"
