"""When SLURM will end this job."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping

from ensq.slurm import commands
from ensq.slurm.task import task_from_environment

_TIME_LEFT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)")


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
    timeout: float = commands.TIMEOUT,
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
    left = parse_time_left(
        commands.output(["squeue", "-h", "-j", task.job_id, "-o", "%L"], environment, timeout)
    )
    return None if left is None else clock() + left
