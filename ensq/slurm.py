"""SLURM as a worker sees it: who am I, and until when. All of it is advice, never proof."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

SQUEUE_TIMEOUT = 10.0  # seconds; a controller that restarts can keep squeue waiting for minutes

_TIME_LEFT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)")


@dataclass(frozen=True, kw_only=True)
class SlurmTask:
    """One task of a SLURM job; texts as SLURM gives them, None where it gives nothing."""

    job_id: str  # SLURM_JOB_ID: of this array element, a number of its own
    array_job_id: str | None
    array_task_id: str | None
    step_id: str | None
    proc_id: str | None  # rank of the task in its step
    node: str | None
    cluster: str | None
    restarts: int  # 0 in the first run; a requeued job keeps its id

    @property
    def label(self) -> str:
        """The id that squeue prints and scancel takes: ``123`` or ``120_3``."""
        if self.array_job_id and self.array_task_id:
            return f"{self.array_job_id}_{self.array_task_id}"
        return self.job_id


def task_from_environment(environment: Mapping[str, str] = os.environ) -> SlurmTask | None:
    """The task that this process is, or None outside a SLURM job."""
    job_id = environment.get("SLURM_JOB_ID")
    if not job_id:
        return None
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    return SlurmTask(
        job_id=job_id,
        array_job_id=environment.get("SLURM_ARRAY_JOB_ID"),
        array_task_id=environment.get("SLURM_ARRAY_TASK_ID"),
        step_id=environment.get("SLURM_STEP_ID"),
        proc_id=environment.get("SLURM_PROCID"),
        node=environment.get("SLURMD_NODENAME"),
        cluster=environment.get("SLURM_CLUSTER_NAME"),
        restarts=int(restarts) if restarts.isdecimal() else 0,
    )


def parse_time_left(text: str) -> float | None:
    """Seconds of squeue's ``%L``: [[days-]hours:]minutes:seconds; None for UNLIMITED and so on."""
    match = _TIME_LEFT.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def deadline(
    environment: Mapping[str, str] = os.environ,
    *,
    clock: Callable[[], float] = time.time,
    timeout: float = SQUEUE_TIMEOUT,
) -> float | None:
    """When SLURM will end this job (seconds since 1970), or None if unknown or never.

    SLURM_JOB_END_TIME if there is one (newer SLURM), else squeue's time left. No squeue, an
    error or no answer within ``timeout`` seconds mean unknown.
    """
    task = task_from_environment(environment)
    if task is None:
        return None
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal() and int(end) > 0:
        return float(end)
    if not task.job_id.isdecimal():
        return None
    left = parse_time_left(_squeue(["-h", "-j", task.job_id, "-o", "%L"], environment, timeout))
    return None if left is None else clock() + left


def _squeue(arguments: Sequence[str], environment: Mapping[str, str], timeout: float) -> str:
    """What squeue prints, or nothing."""
    try:
        done = subprocess.run(
            ["squeue", *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
