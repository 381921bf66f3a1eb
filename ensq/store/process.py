"""Who this process is, and whether another process of this host still lives.

A process is known by host name, boot id, process id and start time together: ids are used again,
and containers on one machine share the boot id but not the process ids, so the namespace of the
process ids is kept with the boot id. A worker that holds a byte of the lock file is known by that
as well, across such namespaces. Where neither can be judged nothing is provable: leases decide.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path

from ensq.jobs import WorkerInfo
from ensq.store import locks
from ensq.store.target import Target


@functools.cache
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
    worker_id: str,
    *,
    slurm_job: str | None = None,
    device: str | None = None,
    lock_byte: int | None = None,
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
        lock_byte=lock_byte,
    )


def is_here(worker: WorkerInfo) -> bool:
    """Whether the worker runs, or ran, on this host."""
    return worker.host == socket.gethostname()


def is_alive(worker: WorkerInfo) -> bool:
    """Whether the worker's process is there, on this host; one that is stopped is, too."""
    here = boot_id()
    if not here or not is_here(worker) or worker.boot_id != here or worker.ended_at is not None:
        return False
    try:
        return start_time(worker.pid) == worker.pid_start
    except (OSError, IndexError):
        return False


def is_gone(worker: WorkerInfo, target: Target | None = None) -> bool:
    """Whether the worker's process is *provably* gone; False if it lives or can't be judged.

    ``target`` is the database, beside which the lock file lies.
    """
    here = boot_id()
    if not here or worker.boot_id.partition("/")[0] != here.partition("/")[0]:
        return False  # another machine, or another boot of this one with its own lock file
    if worker.host == socket.gethostname() and worker.boot_id == here:
        try:
            return start_time(worker.pid) != worker.pid_start
        except (OSError, IndexError):
            return False
    # Another namespace of process ids on this machine: the byte tells, as locks see them all.
    if target is None or worker.lock_byte is None:
        return False
    return locks.is_free(target, worker.lock_byte) is True
