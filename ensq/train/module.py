"""A model file read back and run on this machine's CPU, as chemtrain-deploy runs it in LAMMPS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import numpy as np
from chemtrain.deploy._protobuf import model_pb2
from google.protobuf.message import DecodeError
from jax._src.interpreters import mlir as jax_mlir
from jax._src.lib.mlir import ir  # type: ignore[attr-defined]
from numpy.typing import NDArray

from ensq.errors import ExportError
from ensq.train.domains import SKIN, System, neighbour_list, total_forces
from ensq.train.executable import Executable

ENTRY = "main"  # the exported module's function
RESTRICTION = "ensq.restriction"  # attribute of the module: how it must be run
# Sizes are rounded up to multiples, so that one program serves many systems.
_ATOMS, _EDGES, _ROW = 8, 64, 4


class LoadedModel:
    """A model file, read back and runnable."""

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
        # a list of edges, or a row of neighbours for each atom
        self._rows = proto.neighbor_list.type == proto.NeighborListType.SIMPLE_DENSE
        self._half_list = bool(proto.neighbor_list.half_list)
        self._module = str(proto.mlir_module)
        self.restriction = _restriction(self._module)
        self._programs: dict[tuple[int, int], Executable] = {}

    def reach(self, *, newton: bool) -> float:
        """How far from its domain a rank must see ghosts."""
        return self.neighbour_order[0 if newton else 1] * self.cutoff

    def edges(self, system: System, *, newton: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Senders and receivers as the engine hands them over: a row's atom is the sender."""
        ghost_rows = self.neighbour_order[0 if newton else 1] > 1
        distance = self.cutoff + SKIN
        half = self._half_list and not newton
        return neighbour_list(system, distance, half=half, ghost_rows=ghost_rows)

    def energy_and_forces(
        self, systems: Sequence[System], *, newton: bool
    ) -> tuple[float, NDArray[Any]]:
        """Energy and forces [N,3] of all atoms from the systems of all ranks."""
        parts = [self.of_rank(system, newton=newton) for system in systems]
        n_atoms = sum(system.n_local for system in systems)
        forces = total_forces(systems, [force for _, force in parts], n_atoms, newton=newton)
        return sum(energy for energy, _ in parts), forces

    def of_rank(
        self,
        system: System,
        *,
        newton: bool,
        edges: tuple[NDArray[Any], NDArray[Any]] | None = None,
    ) -> tuple[float, NDArray[Any]]:
        """Energy of a rank's own atoms, and forces [n,3] on all atoms that it sees.

        ``edges`` stand in for the list that the engine would hand over.
        """
        edges = edges or self.edges(system, newton=newton)
        n, size = self._program(system.n_atoms, self._size(edges))
        position = np.zeros((n, 3), np.float32)
        position[: system.n_atoms] = system.position
        species = np.zeros(n, np.int32)
        species[: system.n_atoms] = system.species
        arguments = (
            position,
            species,
            np.int32(system.n_local),
            np.int32(system.n_ghost),
            np.bool_(newton),
            *self._neighbours(edges, n, size),
        )
        force, energy = self._programs[n, size](*arguments)[:2]
        return float(energy), force[: system.n_atoms]

    def reserve(self, systems: Sequence[System]) -> None:
        """Compile one program that is large enough for all these systems."""
        sizes = [self._size(self.edges(s, newton=n)) for s in systems for n in (True, False)]
        self._program(max(system.n_atoms for system in systems), max(sizes))

    def _size(self, edges: tuple[NDArray[Any], NDArray[Any]]) -> int:
        """Edges, or the longest row."""
        senders, _ = edges
        return int(np.bincount(senders).max(initial=0)) if self._rows else len(senders)

    def _neighbours(
        self, edges: tuple[NDArray[Any], NDArray[Any]], n: int, size: int
    ) -> tuple[NDArray[Any], ...]:
        """The arguments that hold the neighbours; free places hold n."""
        senders, receivers = edges
        if not self._rows:
            padded = np.full((2, size), n, np.int32)
            padded[0, : len(senders)], padded[1, : len(receivers)] = senders, receivers
            return padded[0], padded[1], np.zeros(2 * size, np.bool_)
        rows = np.full((n, size), n, np.int32)
        order = np.argsort(senders, kind="stable")
        ordered = senders[order]
        place = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        rows[ordered, place] = receivers[order]
        return rows, np.zeros(1, np.bool_), np.zeros(1, np.bool_)

    def _program(self, n_atoms: int, size: int) -> tuple[int, int]:
        """The sizes of the smallest program that holds so much; a new one if there is none."""
        fitting = [key for key in self._programs if key[0] >= n_atoms and key[1] >= size]
        if fitting:
            return min(fitting)
        step = _ROW if self._rows else _EDGES
        n = -(-max(n_atoms, 1) // _ATOMS) * _ATOMS
        size = -(-max(size, 1) // step) * step
        neighbours = self._neighbours((np.zeros(0, np.int64), np.zeros(0, np.int64)), n, size)
        shapes = [(n, 3), (n,), (), (), (), *(array.shape for array in neighbours)]
        self._programs[n, size] = _compile(self._module, shapes)
        return n, size


def _restriction(module: str) -> str | None:
    with jax_mlir.make_ir_context():
        try:
            attributes = ir.Module.parse(module).operation.attributes
        except ir.MLIRError as error:
            raise ExportError("not a model file of chemtrain-deploy: damaged module") from error
        if RESTRICTION not in attributes:
            return None
        return str(ir.StringAttr(attributes[RESTRICTION]).value)


def _compile(module: str, shapes: list[tuple[int, ...]]) -> Executable:
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
    return Executable(f"{body}{entry}}}\n")


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
