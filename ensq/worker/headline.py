"""The first lines of a log: where it runs, with what, and until when. Nothing secret."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping

from ensq import __version__, slurm
from ensq.worker.devices import devices_in_words


def headline(environment: Mapping[str, str], limit: str) -> list[str]:
    """Lines about this host, its task of a SLURM job, devices, and the time limit.

    Args:
        environment: Of the trainer; only named variables are told of.
        limit: The time limit in words.
    """
    return [
        f"host {socket.gethostname()}, {_task(environment)}; {limit}",
        devices_in_words(environment),
        f"ensq {__version__}, python {platform.python_version()}, "
        f"temporary files in {environment.get('TMPDIR', '/tmp')}",
    ]


def _task(environment: Mapping[str, str] = os.environ) -> str:
    task = slurm.task_from_environment(environment)
    if task is None:
        return "outside SLURM"
    parts = [f"SLURM job {task.label}"]
    if task.label != task.job_id:
        parts.append(f"id {task.job_id}")
    if task.step_id is not None:
        parts.append(f"step {task.step_id}")
    if task.proc_id is not None:
        parts.append(f"task {task.proc_id}")
    parts.append(f"restarts {task.restarts}")
    return ", ".join(parts)
