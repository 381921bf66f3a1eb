"""How JAX is set up in the trainer: precision, compile cache, and what is reported of it."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import platform as machine
import re
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from ensq.train import cache

PACKAGES = ("ensq", "jax", "jaxlib", "chemtrain", "optax", "e3nn-jax", "numpy")


_NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY", re.IGNORECASE)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": machine.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def device() -> str:
    """The first device in words, such as ``cpu`` or ``NVIDIA H100``."""
    devices = jax.devices()
    kind = str(devices[0].device_kind)
    return kind if len(devices) == 1 else f"{len(devices)} x {kind}"


def platform() -> str:
    """What JAX computes on: ``cpu``, ``gpu``, …"""
    return str(jax.devices()[0].platform)


def memory() -> tuple[int | None, int | None]:
    """Bytes of the device's memory in use at the peak so far, and those that JAX may use.

    None where the device does not say, as a CPU.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use"), stats.get("bytes_limit")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether XLA or the system has no memory left; XLA says it in words only."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def devices_in_words() -> str:
    """All devices that JAX sees; a trainer computes on all of them."""
    devices = jax.local_devices()
    seen = ", ".join(f"{one} ({one.device_kind})" for one in devices)
    return f"JAX sees {seen}" + ("" if len(devices) == 1 else ": a pack is divided among them")


def set_precision(precision: str) -> None:
    """Switch JAX's 64-bit mode for the run that comes next."""
    jax.config.update("jax_enable_x64", precision == "float64")


def use_compile_cache(folder: Path) -> None:
    """Keep compiled programs on disk, apart for each kind of processor.

    Programs for a CPU hold its instructions, so that machines which share a folder but not a
    processor model must not share them. A folder that the user set in the environment stays.
    """
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder) / _processor()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    cache.install()
    # Whatever was compiled on import has settled that there is no cache; forget that.
    compilation_cache.reset_cache()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    marks = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    text = "\n".join([machine.machine(), *marks, os.environ.get("XLA_FLAGS", "")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
