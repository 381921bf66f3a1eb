"""Who this process is, and whether another process of this host still lives.

A process is known by host name, boot id, process id and start time together: ids are used again,
and containers on one machine share the boot id but not the process ids, so the namespace of the
process ids is kept with the boot id. Where /proc is missing nothing is provable and leases decide.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ensq.jobs import WorkerInfo


def boot_id() -> str:
    """The id of this boot and of this namespace of process ids; '' where it can't be read."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def start_time(pid: int) -> str | None:
    """When process ``pid`` started, in ticks since boot; None if there's none, or only its remains.

    Raises OSError where /proc can't be read for another reason than that the process is gone.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold blanks and parentheses: count from the last one.
    fields = text.rpartition(")")[2].split()
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started


def worker_info(
    worker_id: str, *, slurm_job: str | None = None, device: str | None = None
) -> WorkerInfo:
    """This process as a worker: what ``Store.register_worker`` wants."""
    pid = os.getpid()
    identity = boot_id()
    return WorkerInfo(
        id=worker_id,
        host=socket.gethostname(),
        pid=pid,
        pid_start=(start_time(pid) or "") if identity else "",
        boot_id=identity,
        slurm_job=slurm_job,
        device=device,
    )


def is_gone(worker: WorkerInfo) -> bool:
    """Whether the worker's process is *provably* gone; False if it lives or can't be judged."""
    here = boot_id()
    if not here or worker.boot_id != here or worker.host != socket.gethostname():
        return False
    try:
        return start_time(worker.pid) != worker.pid_start
    except (OSError, IndexError):
        return False
