"""SLURM's commands, asked with patience that has an end. What isn't there is unknown, no error."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

TIMEOUT = 10.0  # seconds; a controller that restarts can keep squeue waiting for minutes


def output(
    command: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    timeout: float = TIMEOUT,
) -> str:
    """What the command prints; nothing if it isn't there, fails, or takes too long."""
    try:
        done = subprocess.run(
            command,
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
