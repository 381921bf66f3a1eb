"""What JAX sees. It is asked in a child process, since a bad driver hangs or crashes it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ensq.doctor.finding import Finding, State
from ensq.slurm import commands

_NO_GPU = ("", "-1", "NoDevFiles")  # what CUDA_VISIBLE_DEVICES holds where there is none
_CODE = """
import importlib.util, json, os
import jax
print("ensq: imported", jax.__version__, flush=True)
plugins = [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin")
           if importlib.util.find_spec(name)]
devices = [[str(one.platform), str(one.device_kind)] for one in jax.devices()]
print("ensq: devices", json.dumps([devices, plugins]), flush=True)
os._exit(0)  # a driver that hangs or crashes at the end is no matter
"""


def check_jax(
    environment: Mapping[str, str] = os.environ, timeout: float = commands.TIMEOUT
) -> Finding:
    """Never raises. The import may take six times ``timeout`` from a busy network disk."""
    limit = 6 * timeout
    # Beside a worker on the same GPU it must not take most of the memory.
    careful = {**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    answer = commands.ask((sys.executable, "-c", _CODE), careful, limit)
    told = _after(answer.out, "ensq: devices ")
    if told is None:
        return _failure(answer, environment, limit)
    devices, plugins = told
    seen = "JAX sees " + _counted([kind for _, kind in devices])
    if any(platform != "cpu" for platform, _ in devices):
        return Finding(key="devices", state="ok", seen=seen)
    return _without_gpu(seen, plugins, answer, environment, timeout)


def _after(text: str, mark: str) -> Any:
    for line in text.splitlines():
        if line.startswith(mark):
            with suppress(ValueError):
                return json.loads(line.removeprefix(mark))
    return None


def _counted(kinds: list[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


def _finding(seen: str, advice: str, state: State = "problem") -> Finding:
    return Finding(key="devices", state=state, seen=seen, advice=advice)


def _failure(answer: commands.Answer, environment: Mapping[str, str], limit: float) -> Finding:
    """JAX did not get as far as telling its devices."""
    imported = "ensq: imported" in answer.out
    if answer.timed_out and imported:
        return _finding(
            f"JAX hangs when it looks for devices (for {limit:g} s)",
            "the driver or a GPU hangs: try `nvidia-smi`, and use another node "
            "(sbatch --exclude=NODE)",
        )
    if answer.timed_out:
        return _finding(
            f"`import jax` does not end within {limit:g} s",
            "the disk with the Python packages is very slow or does not answer: try again, or "
            "install ensq on another one",
        )
    if answer.code is not None and answer.code < 0:
        return _crash(-answer.code, imported)
    words = answer.last_words or f"exit code {answer.code}"
    if not imported:
        return _finding(
            f"JAX can't be imported: {words}",
            "install it again (pip install --force-reinstall jax); is a jax.py in this folder?",
        )
    platforms = environment.get("JAX_PLATFORMS")
    if platforms:
        return _finding(
            f"JAX finds no devices of JAX_PLATFORMS={platforms}: {words}",
            "unset JAX_PLATFORMS, or install JAX for that platform",
        )
    return _finding(f"JAX finds no devices: {words}", "is the driver in order? try `nvidia-smi`")


_CRASHES = {
    signal.SIGKILL: "for too much memory, most likely: ask SLURM for more (--mem=8G)",
    signal.SIGILL: "jaxlib needs a processor with AVX: use another node",
}


def _crash(number: int, imported: bool) -> Finding:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    advice = (
        "the driver is not in order: try `nvidia-smi`, and use another node"
        if imported
        else "jaxlib is damaged, or made for another machine: install it again"
    )
    return _finding(
        f"JAX crashes ({name}) " + ("when it looks for devices" if imported else "on import"),
        next((text for known, text in _CRASHES.items() if known == number), advice),
    )


def _without_gpu(
    seen: str,
    plugins: list[str],
    answer: commands.Answer,
    environment: Mapping[str, str],
    timeout: float,
) -> Finding:
    """JAX works, on the CPU: is that all there is?"""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in _NO_GPU:
        return _finding(
            f"{seen}; CUDA_VISIBLE_DEVICES is {visible.strip() or 'empty'}",
            "ask SLURM for GPUs (--gres=gpu:1), or unset CUDA_VISIBLE_DEVICES",
            state="warning",
        )
    smi = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if smi is None:
        return _without_tools(seen, visible, environment)
    listed = commands.ask((smi, "-L"), environment, timeout)
    if listed.timed_out:
        return _finding(
            f"{seen}; nvidia-smi does not answer within {timeout:g} s",
            "the driver or a GPU hangs: use another node (sbatch --exclude=NODE)",
        )
    count = sum(line.startswith("GPU ") for line in listed.out.splitlines())
    if listed.code != 0 or count == 0:
        words = listed.last_words or "nothing"
        return _finding(
            f"{seen}; nvidia-smi is here and says: {words}",
            "right on a login node; in a job, ask for another node",
            state="note",
        )
    seen = f"{seen} only, though nvidia-smi lists {count} GPU{'s' if count > 1 else ''}"
    return _beside_gpus(seen, plugins, answer, environment)


def _without_tools(seen: str, visible: str | None, environment: Mapping[str, str]) -> Finding:
    """Neither JAX nor nvidia-smi sees a GPU."""
    given = visible or environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS")
    if not given:
        return _finding(f"{seen}, and there is no GPU here", "", state="note")
    return _finding(
        f"{seen} only, though this job has GPU {given}; nvidia-smi is not here",
        "in a container, let it see the GPUs (apptainer exec --nv); else install JAX for the GPU",
        state="warning",
    )


def _beside_gpus(
    seen: str, plugins: list[str], answer: commands.Answer, environment: Mapping[str, str]
) -> Finding:
    """There are GPUs that JAX does not use."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms.split(",")[0] == "cpu":
        return _finding(f"{seen}; JAX_PLATFORMS is {platforms}", "unset JAX_PLATFORMS", "warning")
    version = next(
        (line.split()[2] for line in answer.out.splitlines() if line.startswith("ensq: imported")),
        "0.4.37",
    )
    install = f'pip install "jax[cuda12]=={version}"'
    if not plugins:
        return _finding(f"{seen}: JAX has no plugin for CUDA", f"install it: {install}")
    words = answer.last_words if answer.errors.strip() else "JAX does not say why"
    return _finding(
        f"{seen}, and {plugins[0]} is installed: {words}",
        f"plugin and jaxlib must be of one version, and the driver new enough: {install}",
    )
