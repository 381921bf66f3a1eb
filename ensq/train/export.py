"""Trained members as chemtrain-deploy model files for LAMMPS, and the proof that these are right.

The file is chemtrain's ``chemsim.Model`` protocol buffer around a StableHLO module with symbolic
shapes; ``pair_style chemtrain_deploy`` reads it. After writing, the bytes are parsed again, the
module is refined to concrete shapes, compiled for this machine's CPU and run.
"""

from __future__ import annotations

import functools
import json
import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jax_md_mod  # noqa: F401  (chemtrain and jax_md need it imported before them)
import numpy as np
from chemtrain.deploy import exporter, graphs
from chemtrain.deploy._protobuf import model_pb2
from google.protobuf.message import DecodeError
from jax._src.interpreters import mlir as jax_mlir
from jax._src.lib import xla_client, xla_extension  # type: ignore[attr-defined]
from jax._src.lib.mlir import ir  # type: ignore[attr-defined]
from jax.extend.backend import get_backend
from numpy.typing import NDArray

from ensq import config as configuration
from ensq.errors import ExportError
from ensq.train.checkpoint import MemberResult
from ensq.train.models import DataStatistics, EnergyModel, Frames, build_model
from ensq.train.neighbours import build_neighbours

ENTRY = "main"  # the exported module's function
UNIT_STYLES = {"kcal/mol": "real", "eV": "metal"}
# Hops of neighbours that local forces depend on: with newton on, energies of local beads need
# their own neighbours; with newton off, energies of ghost neighbours are needed too.
NEIGHBOUR_ORDER = (1, 2)


def model_of(result: MemberResult) -> EnergyModel:
    """The model of a trained member, reference energies included."""
    return _model(result.config, result.statistics)


def _model(config: str, statistics: dict[str, Any]) -> EnergyModel:
    return build_model(configuration.loads(config).model, DataStatistics.from_plain(statistics))


@functools.lru_cache(maxsize=2)
def _compute(config: str, statistics: str) -> Any:
    """Energies and forces by the trained model, compiled once for all members of an ensemble."""
    return jax.jit(_model(config, json.loads(statistics)).energy_and_forces)


def parameters_of(result: MemberResult) -> Any:
    """Parameters in float32, the precision of exported models."""
    return jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf, jnp.float32), result.params)


class _Exporter(exporter.Exporter):
    """chemtrain's exporter over a trained model."""

    graph_type = graphs.SimpleSparseNeighborList

    def __init__(self, model: EnergyModel, params: Any, cutoff: float, unit_style: str) -> None:
        self.model, self.params = model, params
        self.r_cutoff, self.unit_style = cutoff, unit_style
        self._valid: jax.Array | None = None
        self.nbr_order = list(NEIGHBOUR_ORDER)
        # chemtrain keeps these on the class, where a second export would find the first one's.
        self._symbols: list[str] = []
        self._constraints: list[str] = []
        self._init_fns: list[Any] = []

    def _energy_fn(
        self, position: Any, species: Any, n_local: Any, n_ghost: Any, newton: Any, *graph_args: Any
    ) -> Any:
        # chemtrain hands no mask to energy_fn; padding atoms must not join the chain of the priors.
        self._valid = jnp.arange(position.shape[0]) < (n_local + n_ghost)
        return super()._energy_fn(position, species, n_local, n_ghost, newton, *graph_args)

    def energy_fn(self, position: Any, species: Any, graph: Any) -> Any:
        assert self._valid is not None
        return self.model.per_bead_energy_sparse(
            self.params, position, species, graph.senders, graph.receivers, self._valid
        )


def to_bytes(result: MemberResult) -> bytes:
    """The model file of a member, the same bytes for the same parameters."""
    config = configuration.loads(result.config)
    source = _Exporter(
        model_of(result),
        parameters_of(result),
        config.model.cutoff,
        UNIT_STYLES[config.data.units.energy],
    )
    with warnings.catch_warnings(), _single_precision():
        # jax_md sums in float64 where it can, and says so where it can't.
        warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
        source.export()
    proto = source._proto
    proto.mlir_module = _without_locations(proto.mlir_module)
    return bytes(proto.SerializeToString(deterministic=True))


def _single_precision() -> Any:
    from jax.experimental import disable_x64

    return disable_x64()


def _without_locations(module: str) -> str:
    """The module without the paths of the machine that it was made on."""
    with jax_mlir.make_ir_context():
        return str(ir.Module.parse(module).operation.get_asm(enable_debug_info=False))


@dataclass(frozen=True)
class System:
    """One frame as an engine would hand it over: local beads only, then padding."""

    position: NDArray[Any]  # [n,3]
    species: NDArray[Any]  # [n]


class LoadedModel:
    """A model file, read back and runnable on this machine's CPU."""

    def __init__(self, data: bytes) -> None:
        proto = model_pb2.Model()
        try:
            proto.ParseFromString(data)
        except DecodeError as error:
            raise ExportError(f"not a model file of chemtrain-deploy: {error}") from error
        if not proto.mlir_module:
            raise ExportError("not a model file of chemtrain-deploy: it holds no module")
        self.cutoff = float(proto.neighbor_list.cutoff)
        self.neighbour_order = tuple(proto.neighbor_list.nbr_order)
        self.unit_style = str(proto.unit_style)
        self._module = str(proto.mlir_module)
        self._compiled: dict[tuple[int, int], Any] = {}

    def energy_and_forces(
        self, system: System, *, newton: bool, n_local: int | None = None
    ) -> tuple[float, NDArray[Any]]:
        """Energy and forces [n,3] of one system of local beads.

        With ``n_local``, what comes after that many beads is padding.
        """
        n = len(system.species)
        local = n if n_local is None else n_local
        senders, receivers = self._edges(system.position[:local], half=not newton)
        slots = max(8, n * (n - 1))
        edge = np.full((2, slots), n, np.int32)
        edge[0, : len(senders)], edge[1, : len(receivers)] = senders, receivers
        arguments = (
            system.position.astype(np.float32),
            system.species.astype(np.int32),
            np.int32(local),
            np.int32(0),
            np.bool_(newton),
            edge[0],
            edge[1],
            np.zeros(2 * slots, np.bool_),
        )
        force, energy = self._run(n, slots, arguments)[:2]
        return float(energy), np.asarray(force)

    def _edges(self, position: NDArray[Any], half: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """The list as LAMMPS hands it over: full with newton on, half with newton off."""
        distance = np.linalg.norm(position[:, None] - position[None], axis=-1)
        near = (distance <= self.cutoff) & ~np.eye(len(position), dtype=bool)
        first, second = np.nonzero(np.triu(near) if half else near)
        return first, second

    def _run(self, n: int, slots: int, arguments: tuple[Any, ...]) -> list[NDArray[Any]]:
        if (n, slots) not in self._compiled:
            shapes = [np.shape(argument) for argument in arguments]
            self._compiled[n, slots] = _compile(self._module, shapes)
        client = get_backend("cpu")
        device = client.local_devices()[0]
        buffers = [client.buffer_from_pyval(np.asarray(a), device) for a in arguments]
        outputs = self._compiled[n, slots].execute(buffers)
        return [np.asarray(output) for output in outputs]


def _compile(module: str, shapes: list[tuple[int, ...]]) -> Any:
    """The module with its symbolic sizes set to these, compiled for the CPU.

    A new entry point with concrete shapes calls the exported one; XLA's shape refinement then
    carries the sizes through the whole module, as an engine that loads the file has it done.
    """
    with jax_mlir.make_ir_context():
        parsed = ir.Module.parse(module)
        main = next(op for op in parsed.body.operations if _symbol(op) == ENTRY)
        signature = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)
        dynamic = [str(kind) for kind in signature.inputs]
        returned = [str(kind) for kind in signature.results]
        static = [
            _tensor(shape, str(ir.RankedTensorType(kind).element_type))
            for shape, kind in zip(shapes, signature.inputs, strict=True)
        ]
    sized = [_tensor(shapes[0], "f32"), *returned[1:]]  # forces [n,3]; the rest are scalars
    entry = _entry_point(dynamic, static, returned, sized)
    renamed = module.replace(f"func.func public @{ENTRY}(", "func.func private @exported(", 1)
    body = renamed.rstrip().removesuffix("}")
    with jax_mlir.make_ir_context():
        bytecode = jax_mlir.module_to_bytecode(ir.Module.parse(f"{body}{entry}}}\n"))
    refined = xla_extension.mlir.refine_polymorphic_shapes(
        mlir_module=bytecode, enable_shape_assertions=True, validate_static_shapes=True
    )
    options = xla_client.CompileOptions()
    # The module is run a few times only: a quick compile serves better than quick code.
    options.executable_build_options.debug_options.xla_backend_optimization_level = 0
    return get_backend("cpu").compile(refined, compile_options=options)


def _symbol(operation: Any) -> str:
    return str(ir.StringAttr(operation.attributes["sym_name"]).value)


def _tensor(shape: tuple[int, ...], element: str) -> str:
    return f"tensor<{''.join(f'{size}x' for size in shape)}{element}>"


def _entry_point(
    dynamic: list[str], static: list[str], returned: list[str], sized: list[str]
) -> str:
    """A function of concrete types around the exported one, as MLIR text."""
    arguments = ", ".join(f"%a{i}: {kind}" for i, kind in enumerate(static))
    lines = [f"func.func public @{ENTRY}({arguments}) -> ({', '.join(sized)}) {{"]
    for i, (new, old) in enumerate(zip(static, dynamic, strict=True)):
        lines.append(f"%c{i} = stablehlo.convert %a{i} : ({new}) -> {old}")
    operands = ", ".join(f"%c{i}" for i in range(len(dynamic)))
    lines.append(
        f"%r:{len(returned)} = call @exported({operands}) : "
        f"({', '.join(dynamic)}) -> ({', '.join(returned)})"
    )
    for i, (old, new) in enumerate(zip(returned, sized, strict=True)):
        lines.append(f"%s{i} = stablehlo.convert %r#{i} : ({old}) -> {new}")
    results = ", ".join(f"%s{i}" for i in range(len(sized)))
    lines += [f"return {results} : {', '.join(sized)}", "}"]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Agreement:
    """How far the file's model is from the trained one, over some frames."""

    frames: int
    energy_error: float  # largest |difference|, relative to the range of the frames' energies
    force_error: float  # largest |difference| relative to the largest force of the frame


def compare(
    data: bytes,
    result: MemberResult,
    position: NDArray[Any],
    species: NDArray[Any],
    mask: NDArray[Any],
    tolerance: float = 1e-4,
) -> Agreement:
    """Hold the energies and forces of a model file against the trained member's.

    Args:
        data: The file's bytes.
        result: The trained member.
        position: [T,N,3] frames to compare on; ``species`` and ``mask`` [T,N].
        tolerance: Largest relative difference that is accepted.

    Raises:
        ExportError: They differ by more.
    """
    loaded = LoadedModel(data)
    energies, forces = reference(result, position, species, mask)
    worst_energy = worst_force = 0.0
    # Energies are compared on the scale on which the frames differ, so that a large constant can't
    # hide an error; the second term is what float32 can resolve beside such a constant.
    spread = max(float(np.ptp(energies)), 1e-2 * float(np.abs(energies).max()), 1e-6)
    for frame in range(len(position)):
        real = mask[frame] > 0
        system = System(position[frame][real], species[frame][real])
        for newton in (True, False):
            energy, force = loaded.energy_and_forces(system, newton=newton)
            expected = forces[frame][real]
            worst_energy = max(worst_energy, abs(energy - energies[frame]) / spread)
            scale = max(float(np.abs(expected).max()), 1e-6)
            worst_force = max(worst_force, float(np.abs(force - expected).max()) / scale)
    if not (worst_energy <= tolerance and worst_force <= tolerance):
        raise ExportError(
            f"the exported model of seed {result.seed} is not the trained one: relative "
            f"difference {worst_energy:.1e} in energies and {worst_force:.1e} in forces over "
            f"{len(position)} frames; {tolerance:.0e} is allowed. Nothing was replaced"
        )
    return Agreement(len(position), worst_energy, worst_force)


def reference(
    result: MemberResult, position: NDArray[Any], species: NDArray[Any], mask: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Energies [T] and forces [T,N,3] of the trained member, by the model as it was trained."""
    config = configuration.loads(result.config)
    layout = build_neighbours(position, mask, config.model.cutoff)
    frames = Frames(
        R=jnp.asarray(position, jnp.float32),
        species=jnp.asarray(species, jnp.int32),
        mask=jnp.asarray(mask, jnp.float32),
        nbr=jnp.asarray(layout.index),
        rev=jnp.asarray(layout.reverse),
        nbr_mask=jnp.asarray(layout.mask, jnp.float32),
    )
    compute = _compute(result.config, json.dumps(result.statistics, sort_keys=True))
    energy, force = compute(parameters_of(result), frames)
    return np.asarray(energy, np.float64), np.asarray(force, np.float64)
