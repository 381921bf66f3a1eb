"""The SLURM job that the doctor itself runs in."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

from ensq.doctor.finding import Finding, State
from ensq.slurm import SlurmTask, commands, deadline, task_from_environment

_SHORT = 600.0  # seconds


def check_job(
    environment: Mapping[str, str] = os.environ, timeout: float = commands.TIMEOUT
) -> list[Finding]:
    """Nothing outside a job. Never raises."""
    task = task_from_environment(environment)
    if task is None:
        return []
    found = [_time_left(task, deadline(environment, timeout=timeout)), _gpus(environment)]
    if not task.step_id or not task.step_id.isdecimal():
        found.append(
            Finding(
                key="step",
                state="note",
                seen="this runs in the job's script, not in a step of srun",
                advice="start workers with srun (`ensq submit` does): SLURM warns steps only, and "
                "kills the others at once",
            )
        )
    return found


def _time_left(task: SlurmTask, end: float | None) -> Finding:
    seen = f"job {task.label}, run {task.restarts + 1}"
    seen += f", on {task.node}" if task.node else ""
    if end is None:
        return Finding(
            key="job",
            state="unknown",
            seen=f"{seen}; when it ends is not told",
            advice="a worker then stops by SLURM's signal alone: --signal=USR1@120",
        )
    left = end - time.time()
    state: State = "ok" if left >= _SHORT else "warning"
    advice = "" if left >= _SHORT else "too little for a training: ask for more (--time)"
    return Finding(key="job", state=state, seen=f"{seen}; {_words(left)}", advice=advice)


def _words(left: float) -> str:
    if left == math.inf:
        return "no time limit"
    hours, minutes = divmod(max(0, round(left / 60)), 60)
    return f"{hours} h {minutes:02d} min left"


def _gpus(environment: Mapping[str, str]) -> Finding:
    names = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "GPU_DEVICE_ORDINAL")
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        seen = "SLURM gave this job no GPU"
        return Finding(key="job_gpus", state="note", seen=seen, advice="ask for one: --gres=gpu:1")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "not set")
    seen = f"GPUs of the job on this node: {environment[name]}; CUDA_VISIBLE_DEVICES {visible}"
    return Finding(key="job_gpus", state="ok", seen=seen)
