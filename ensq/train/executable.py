"""A StableHLO module compiled for this machine's CPU and run, below what JAX documents.

JAX has no public way to run a module that it did not trace itself; names of what it uses moved
between 0.4 and 0.10, and both are known here.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax._src.interpreters import mlir as jax_mlir
from jax._src.lib import xla_client  # type: ignore[attr-defined]
from jax._src.lib.mlir import ir  # type: ignore[attr-defined]
from jax.extend.backend import get_backend
from numpy.typing import NDArray

try:
    from jax._src.lib import _jax as _library  # type: ignore[attr-defined]
except ImportError:  # JAX 0.4
    from jax._src.lib import xla_extension as _library


class Executable:
    """A module whose entry point has concrete shapes."""

    def __init__(self, module: str) -> None:
        """Compile MLIR text, carrying the sizes of its entry point through the whole of it."""
        with jax_mlir.make_ir_context():
            bytecode = jax_mlir.module_to_bytecode(ir.Module.parse(module))
        refined = _library.mlir.refine_polymorphic_shapes(
            mlir_module=bytecode, enable_shape_assertions=True, validate_static_shapes=True
        )
        options = xla_client.CompileOptions()
        # The module is run a few times only: a quick compile serves better than quick code.
        options.executable_build_options.debug_options.xla_backend_optimization_level = 0
        client: Any = get_backend("cpu")
        self._device = client.local_devices()[0]
        if hasattr(client, "compile_and_load"):
            devices = _library.DeviceList((self._device,))
            self._program = client.compile_and_load(refined, devices, options)
        else:
            self._program = client.compile(refined, compile_options=options)

    def __call__(self, *arguments: Any) -> list[NDArray[Any]]:
        """Run it on these arrays, whose types must be those of the entry point."""
        with jax.default_device(self._device):
            buffers = [jax.device_put(np.asarray(one), self._device) for one in arguments]
        return [np.asarray(one) for one in self._program.execute(buffers)]
