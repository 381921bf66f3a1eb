"""CPUs and memory of the allocation, and how a worker here would use it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ensq.doctor.finding import Finding

_LEAST_MEMORY = 2e9  # bytes; JAX and the packages alone take about half of it


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a worker started here would take: see ensq.worker.devices."""

    cpus: int
    source: str  # who says so
    gpus: tuple[str, ...]
    trainer: str  # in words


def check_machine(
    share: Share, environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> list[Finding]:
    """Never raises. ``root``: where proc and sys lie."""
    return [
        _cpus(share, _affinity()),
        _memory(share.cpus, environment, root),
        Finding(key="worker", state="ok", seen=f"a worker here: {_takes(share)}; {share.trainer}"),
    ]


def _takes(share: Share) -> str:
    if not share.gpus:
        return "no GPU"
    return f"GPU {', '.join(share.gpus)}" + (
        " (each of its packs is divided among them)" if len(share.gpus) > 1 else ""
    )


def _affinity() -> int:
    with suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpus(share: Share, affinity: int) -> Finding:
    if share.cpus > affinity:
        return Finding(
            key="cpus",
            state="warning",
            seen=f"{share.source} says {share.cpus} CPUs, and this process may use {affinity}",
            advice="give --cpus-per-task to srun as well: newer ones do not take it from sbatch",
        )
    return Finding(key="cpus", state="ok", seen=f"{share.cpus} CPUs ({share.source})")


def _memory(cpus: int, environment: Mapping[str, str], root: Path) -> Finding:
    limits = [*_of_slurm(environment, cpus), *_of_groups(root), *_of_machine(root)]
    if not limits:
        return Finding(key="memory", state="unknown", seen="how much memory there is isn't told")
    least, source = min(limits)
    seen = f"{least / 1e9:.1f} GB of memory ({source})"
    if least < _LEAST_MEMORY:
        advice = "a training may be killed: ask SLURM for more (--mem=8G)"
        return Finding(key="memory", state="warning", seen=seen, advice=advice)
    return Finding(key="memory", state="ok", seen=seen)


def _of_slurm(environment: Mapping[str, str], cpus: int) -> Iterator[tuple[float, str]]:
    for name, each in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus)):
        text = environment.get(name, "")
        if text.isdecimal() and int(text) > 0:  # 0: all of the node's
            yield int(text) * each * 2.0**20, name


def _of_groups(root: Path) -> Iterator[tuple[float, str]]:
    """The limits of the control groups above this process, of both versions."""
    top = root / "sys/fs/cgroup"
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            yield from _limits(top, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits(top / "memory", path, "memory.limit_in_bytes")


def _limits(top: Path, path: str, name: str) -> Iterator[tuple[float, str]]:
    group = top / path.lstrip("/")
    for one in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
        with suppress(OSError, ValueError):  # no limit is "max", or a very large number
            yield float(int((one / name).read_text())), "cgroup"


def _of_machine(root: Path) -> Iterator[tuple[float, str]]:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                yield 1024.0 * int(line.split()[1]), "of the machine"
