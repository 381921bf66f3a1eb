"""GPUs and CPUs that a trainer here may use, found out without JAX, and how it is told of them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_DEVICES = Path("/dev")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_FRACTIONS = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
_SHARED = 0.9  # of a GPU's memory, for all workers that share it; each needs some of the rest
_BINDS = ("SLURMD_TRES_BIND", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def gpus_to_use(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that JAX would use here, as CUDA_VISIBLE_DEVICES names them; [] on a CPU machine.

    JAX itself is not asked, since asking would take memory on all of them.
    """
    if all(importlib.util.find_spec(plugin) is None for plugin in _PLUGINS):
        return []
    if environment.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu", ""):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return _names(environment["CUDA_VISIBLE_DEVICES"])
    names = (path.name.removeprefix("nvidia") for path in _DEVICES.glob("nvidia*"))
    return sorted((name for name in names if name.isdecimal()), key=int)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def gpus_of_task(environment: Mapping[str, str], share: int = 1) -> list[str] | None:
    """The GPUs of this task where SLURM shows those of the whole node to each task of the step.

    Tasks of one node divide them by their local ids; ``share`` tasks get one GPU together. None:
    what is visible stays as it is, since SLURM has bound GPUs to tasks, or there is nothing to
    divide. It never names a GPU that is not visible.
    """
    visible = _common_gpus(environment)
    local = environment.get("SLURM_LOCALID", "")
    if not visible or not local.isdecimal():
        return None
    share = workers_per_gpu(environment, share)
    groups = -(-tasks_here(environment) // share)  # of tasks that need GPUs of their own
    each = len(visible) // groups
    group = int(local) // share % groups
    return visible[group * each : (group + 1) * each]


def workers_per_gpu(environment: Mapping[str, str], share: int) -> int:
    """``share``, or more where a node has more tasks than that on GPUs that all of them see."""
    visible = _common_gpus(environment)
    return max(share, -(-tasks_here(environment) // len(visible))) if visible else share


def _common_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that each of several tasks sees; [] where tasks see their own, or there is one."""
    visible = _names(environment.get("CUDA_VISIBLE_DEVICES", ""))
    # Bound by --gpus-per-task, --gpu-bind or --ntasks-per-gpu: SLURM_STEP_GPUS are the task's then.
    if any(environment.get(name) for name in _BINDS) or not environment.get("SLURM_STEP_GPUS"):
        return []
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    shown_to_all = len(visible) == (int(on_node) if on_node.isdecimal() else 0)
    return visible if shown_to_all and tasks_here(environment) > 1 else []


def tasks_here(environment: Mapping[str, str]) -> int:
    """How many tasks of this step run on this node; 1 if SLURM does not say."""
    node = environment.get("SLURM_NODEID", "0")
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = _TASKS.fullmatch(part)
        if match is None or int(match[2] or 1) > 2**16:
            return 1
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else 1


@dataclass(frozen=True)
class Cpus:
    """The CPUs that this worker may use."""

    count: int
    source: str  # who says so


def cpus_of_allocation(environment: Mapping[str, str] = os.environ) -> Cpus:
    """SLURM's CPUs per task, else the quota of the control group, else the affinity."""
    per_task = environment.get("SLURM_CPUS_PER_TASK", "")
    if per_task.isdecimal() and int(per_task) > 0:
        return Cpus(int(per_task), "SLURM_CPUS_PER_TASK")
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    if quota is not None and quota < allowed:
        return Cpus(max(1, math.floor(quota)), "cgroup")
    return Cpus(allowed, "affinity")


def _cgroup_quota() -> float | None:
    """CPUs' worth of time that the control groups above this process grant; None: no limit."""
    quotas: list[float] = []
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            quotas += _quotas(_CGROUPS, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            quotas += _quotas(_CGROUPS / "cpu", path, _quota_v1)
    return min(quotas, default=None)


def _quotas(root: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """The quotas of a group and of those above it, of which the least counts."""
    group = root / path.lstrip("/")
    groups = [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return [quota for one in groups if (quota := read(one)) is not None]


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no limit is written as "max"
        return None


def _quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def trainer_settings(environment: Mapping[str, str], *, share: int) -> dict[str, str]:
    """What the trainer's environment gets besides the worker's: GPUs, their memory, threads.

    With a GPU, threads as the allocation grants. Without one it gets one thread: for such models
    more bring next to nothing, and their number would change the last bits of the results, so
    that a training could not be resumed on another number of cores to the same bits. What the
    user has set stays.
    """
    settings: dict[str, str] = {}
    mine = gpus_of_task(environment, share)
    if mine is not None:
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    share = workers_per_gpu(environment, share)
    if share > 1 and not any(name in environment for name in _FRACTIONS):
        settings[_FRACTIONS[0]] = memory_fraction(share)
    if gpus_to_use(environment):
        threads = str(cpus_of_allocation(environment).count)
        return settings | {name: threads for name in _THREADS if name not in environment}
    # NPROC is what XLA takes the size of its thread pool from.
    settings |= {name: "1" for name in ("NPROC", *_THREADS) if name not in environment}
    flags = environment.get("XLA_FLAGS", "").split()
    given = {flag.partition("=")[0] for flag in flags}
    more = [flag for flag in cpu_flags(_jaxlib()) if flag.partition("=")[0] not in given]
    if more:
        settings["XLA_FLAGS"] = " ".join([*flags, *more])
    return settings


def cpu_flags(jaxlib: tuple[int, ...]) -> list[str]:
    """What XLA is told where it computes on the CPU.

    The code that jaxlib 0.10 makes by default for our sums over neighbours and small products uses
    no vector instructions: a step takes six times as long. Other versions have no such switch, or
    need none, and a flag that XLA does not know ends the process.
    """
    flags = ["--xla_cpu_multi_thread_eigen=false"]
    if jaxlib[:2] == (0, 10):
        flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_experimental_ynn_fusion_type="]
    return flags


@functools.cache
def _jaxlib() -> tuple[int, ...]:
    """The version of jaxlib, which is not imported here; empty if there is none."""
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def memory_fraction(share: int) -> str:
    """The part of a GPU's memory for each of ``share`` workers, rounded down."""
    return f"{math.floor(1000 * _SHARED / share) / 1000:g}"


def devices_in_words(environment: Mapping[str, str]) -> str:
    """GPUs, memory fraction and threads of a trainer with this environment."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    fraction = next((environment[name] for name in _FRACTIONS if name in environment), None)
    cpus = cpus_of_allocation(environment)
    return "; ".join(
        [
            "CUDA_VISIBLE_DEVICES " + ("not set" if visible is None else (visible or "empty")),
            "memory fraction " + (fraction or "JAX's own"),
            f"CPUs of the allocation {cpus.count} ({cpus.source})",
            f"threads {environment.get('OMP_NUM_THREADS', 'as libraries choose')}",
        ]
    )
