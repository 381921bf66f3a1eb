"""Which task of a SLURM job this process is: what the environment says. Advice, never proof."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


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
