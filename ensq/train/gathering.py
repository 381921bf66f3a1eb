"""How the trainers of several processes come together, before any of them asks for a device.

It must not import chemtrain, which computes as it is imported.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import jax

from ensq.train import channel
from ensq.train.environment import versions
from ensq.worker.meeting import read_meeting

PATIENCE = 300.0  # seconds for all processes to have come


def lead(file: Path, listener: int) -> channel.Company:
    """Gather the followers and meet them through JAX; before anything asks for a device.

    Raises Absent if they don't come.
    """
    meeting = read_meeting(file)
    if meeting is None:
        raise channel.Absent(f"{file} is gone")
    with socket.socket(fileno=listener) as taken:
        company = channel.gather(taken, meeting, versions(), PATIENCE)
    port = _free_port()
    company.welcome(meeting, port)
    meet(f"127.0.0.1:{port}", meeting.processes, 0)
    return company


def meet(coordinator: str, processes: int, process: int) -> None:
    """Become one of several processes whose devices compute together."""
    # gRPC would look for the other nodes behind a proxy for the web.
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    # Without it, CPUs of several processes can't exchange anything. GPUs have NCCL.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Programs of several processes that JAX 0.4.37 reads from its cache compute nonsense on CPUs.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=process,
        cluster_detection_method="deactivate",  # for SLURM it would take one GPU of each task
    )


def _free_port() -> int:
    with socket.create_server(("", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port
