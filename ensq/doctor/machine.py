"""Python, packages, and what JAX sees."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from ensq import __version__
from ensq.doctor.finding import Finding
from ensq.slurm import commands

_PACKAGES = ("jax", "jaxlib", "chemtrain", "optax")
_CODE = "import jax; print('devices', *(d.platform for d in jax.devices()))"


def check_machine(timeout: float = commands.TIMEOUT) -> list[Finding]:
    """Never raises; JAX is asked in a child process, since a bad driver hangs or crashes it."""
    python = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    found = [
        Finding(key="python", state="ok", seen=f"Python {python}, ensq {__version__}")
        if fits
        else Finding(
            key="python", state="problem", seen=f"Python {python}", advice="use Python 3.11 or 3.12"
        )
    ]
    return [*found, *map(_package, _PACKAGES), _jax(timeout)]


def _package(name: str) -> Finding:
    try:
        return Finding(key=name, state="ok", seen=f"{name} {version(name)}")
    except PackageNotFoundError:
        return Finding(
            key=name, state="problem", seen=f"{name} is not installed", advice="install ensq again"
        )


def _jax(timeout: float) -> Finding:
    # The import alone takes seconds from a busy network disk.
    said = commands.output((sys.executable, "-c", _CODE), timeout=6 * timeout)
    line = next((line for line in said.splitlines() if line.startswith("devices ")), "")
    kinds = line.split()[1:]
    if not kinds:
        return Finding(
            key="devices",
            state="problem",
            seen=f"JAX fails, or does not answer within {6 * timeout:g} s",
            advice="try `python -c 'import jax; jax.devices()'`; is the driver in order?",
        )
    seen = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    if set(kinds) != {"cpu"}:
        return Finding(key="devices", state="ok", seen=f"JAX sees {seen}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Finding(
            key="devices",
            state="warning",
            seen=f"JAX sees {seen}; CUDA_VISIBLE_DEVICES is empty",
            advice="ask SLURM for GPUs (--gres=gpu:1), or unset CUDA_VISIBLE_DEVICES",
        )
    if shutil.which("nvidia-smi") and commands.output(("nvidia-smi", "-L"), timeout=timeout):
        return Finding(
            key="devices",
            state="problem",
            seen=f"JAX sees {seen} only, though nvidia-smi lists a GPU",
            advice='install JAX for CUDA, of the same version: pip install "jax[cuda12]==0.4.37"',
        )
    return Finding(key="devices", state="note", seen=f"JAX sees {seen}, and there is no GPU here")
