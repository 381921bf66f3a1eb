"""Which GPUs a trainer here would use, found out without JAX."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

_DEVICES = Path("/dev")


def gpus_to_use(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that JAX would use here, as CUDA_VISIBLE_DEVICES names them; [] on a CPU machine.

    JAX itself is not asked, since asking would take memory on all of them.
    """
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        return []
    if environment.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu", ""):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    names = (path.name.removeprefix("nvidia") for path in _DEVICES.glob("nvidia*"))
    return sorted((name for name in names if name.isdecimal()), key=int)
