"""Checkpoints and results of one member as safetensors: written whole, verified before use.

Everything that affects the next step is in a checkpoint: parameters, optimiser state, averaged and
best parameters, place in the training, losses so far, digests of configuration and data, versions.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from ensq import __version__
from ensq.errors import CheckpointError
from ensq.rundir import sha256, write_atomic

FORMAT = 2
HISTORY_COLUMNS = (
    "train_loss", "val_loss", "val_rmse_force", "val_rmse_energy", "learning_rate", "seconds"
)  # fmt: skip


_BEST_ARRAYS = ("best_force", "best_energy", "best_species")


@dataclass(kw_only=True)
class Record:
    """What the host knows of a member; changes with every epoch."""

    seed: int
    best_epoch: int = 0  # 0: no epoch yet
    best_loss: float = float("inf")
    best_force: NDArray[Any] = field(default_factory=lambda: np.zeros(0))  # [V] of the best epoch
    best_energy: NDArray[Any] = field(default_factory=lambda: np.zeros(0))  # [V]
    best_species: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0)))  # [P, S]
    history: list[tuple[float, ...]] = field(default_factory=list)  # HISTORY_COLUMNS per epoch


@dataclass(frozen=True)
class Identity:
    """Which run a file belongs to; a file of another one is refused."""

    config_digest: str
    data_digest: str


def write_checkpoint(
    path: Path, state: Any, record: Record, epoch: int, step: int, identity: Identity
) -> str:
    """Write a member's state (a tree of NumPy arrays); return the file's SHA-256."""
    tensors = {f"state{key}": value for key, value in flatten(state).items()}
    tensors["history"] = np.asarray(record.history, np.float64).reshape(-1, len(HISTORY_COLUMNS))
    for key in _BEST_ARRAYS:
        # safetensors writes an array's memory as it lies: it must be in the order of its indices
        tensors[key] = np.ascontiguousarray(getattr(record, key), np.float64)
    meta = {
        "kind": "checkpoint",
        "epoch": epoch,
        "step": step,
        "seed": record.seed,
        "best_epoch": record.best_epoch,
        # As hexadecimal, since JSON has no infinity and a resumed run must compare the same bits.
        "best_loss": float(record.best_loss).hex(),
    }
    return write_atomic(path, _bytes(tensors, meta, identity))


@dataclass(frozen=True)
class Restored:
    """A member as its checkpoint left it."""

    state: Any
    record: Record
    epoch: int
    step: int


def read_position(data: bytes) -> tuple[int, int]:
    """Epoch and step of a checkpoint, without its tensors."""
    meta = _metadata(data, "checkpoint")
    return int(meta["epoch"]), int(meta["step"])


def read_verified(path: Path, digest: str) -> bytes:
    """The file's bytes. Raises CheckpointError unless they have this SHA-256."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    if sha256(data) != digest:
        raise CheckpointError(f"{path}: damaged (its SHA-256 is not the recorded one)")
    return data


def restore(data: bytes, template: Any, identity: Identity) -> Restored:
    """A member from a checkpoint's bytes.

    Args:
        data: As returned by ``read_verified``.
        template: A state of the expected structure, shapes and dtypes.
        identity: The run that it must be of.

    Raises:
        CheckpointError: Another run's, another format's or another model's file.
    """
    meta = _metadata(data, "checkpoint")
    _check_identity(meta, identity)
    tensors = _tensors(data)
    try:
        record = Record(
            seed=int(meta["seed"]),
            best_epoch=int(meta["best_epoch"]),
            best_loss=float.fromhex(meta["best_loss"]),
            **{key: tensors[key] for key in _BEST_ARRAYS},
            history=[tuple(map(float, row)) for row in tensors["history"]],
        )
        state = unflatten(template, {k: v for k, v in tensors.items() if k.startswith("state")})
        return Restored(state, record, int(meta["epoch"]), int(meta["step"]))
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"a checkpoint does not hold what it should: {error}") from error


@dataclass(frozen=True, kw_only=True)
class MemberResult:
    """A trained member: the parameters that are exported and the errors that are reported."""

    params: dict[str, Any]  # nested
    seed: int
    best_epoch: int
    best_loss: float
    final_loss: float
    force_errors: NDArray[Any]  # [V] sum of squared errors of each validation frame
    energy_errors: NDArray[Any]  # [V]
    components: NDArray[Any]  # [V] real force components
    beads: NDArray[Any]  # [V] real beads
    protein: NDArray[Any]  # [V] place among the names of proteins
    species_errors: NDArray[Any]  # [P,S] sum of squared errors by protein and species
    species_components: NDArray[Any]  # [P,S] real force components
    validation_index: NDArray[Any]  # [V] frame numbers in the data file
    history: NDArray[Any]  # [E, columns]
    statistics: dict[str, Any]  # what the model takes from the data, for ``build_model``
    species_names: tuple[str, ...]
    protein_names: tuple[str, ...]
    config: str  # canonical JSON
    identity: Identity
    versions: dict[str, str]


_RESULT_ARRAYS = (
    "force_errors",
    "energy_errors",
    "components",
    "beads",
    "protein",
    "species_errors",
    "species_components",
    "validation_index",
    "history",
)


def write_result(path: Path, result: MemberResult) -> str:
    """Write a trained member; return the file's SHA-256."""
    return write_atomic(path, result_bytes(result))


def result_bytes(result: MemberResult) -> bytes:
    """A trained member as safetensors; the same member gives the same bytes."""
    tensors = {f"params{key}": value for key, value in flatten(result.params).items()}
    for key in _RESULT_ARRAYS:
        tensors[key] = np.ascontiguousarray(getattr(result, key))
    meta = {
        "kind": "result",
        "seed": result.seed,
        "best_epoch": result.best_epoch,
        "best_loss": result.best_loss.hex(),
        "final_loss": result.final_loss.hex(),
        "statistics": result.statistics,
        "species_names": list(result.species_names),
        "protein_names": list(result.protein_names),
        "config": result.config,
        "versions": result.versions,
    }
    return _bytes(tensors, meta, result.identity)


def read_result(data: bytes) -> MemberResult:
    """A trained member from a result's bytes. Raises CheckpointError if it is none."""
    meta = _metadata(data, "result")
    tensors = _tensors(data)
    try:
        return MemberResult(
            params=_nest({k: v for k, v in tensors.items() if k.startswith("params")}),
            seed=int(meta["seed"]),
            best_epoch=int(meta["best_epoch"]),
            best_loss=float.fromhex(meta["best_loss"]),
            final_loss=float.fromhex(meta["final_loss"]),
            **{key: tensors[key] for key in _RESULT_ARRAYS},
            statistics=dict(meta["statistics"]),
            species_names=tuple(meta["species_names"]),
            protein_names=tuple(meta["protein_names"]),
            config=str(meta["config"]),
            identity=Identity(meta["config_digest"], meta["data_digest"]),
            versions=dict(meta["versions"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"a result does not hold what it should: {error}") from error


# -- trees -------------------------------------------------------------------------------------


def flatten(tree: Any) -> dict[str, NDArray[Any]]:
    """Leaves by their path, such as ``.params['embedding']['w0']``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf, order="C") for path, leaf in leaves}


def unflatten(template: Any, tensors: dict[str, NDArray[Any]]) -> Any:
    """The tensors in the template's structure. Raises ValueError where shape or dtype differ."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    if len(leaves) != len(tensors):
        raise ValueError(f"{len(tensors)} arrays instead of {len(leaves)}: another model")
    found = []
    for path, leaf in leaves:
        name = f"state{jax.tree_util.keystr(path)}"
        value = tensors[name]
        if value.shape != leaf.shape or value.dtype != leaf.dtype:
            raise ValueError(
                f"{name} is {value.dtype}{value.shape}, not {leaf.dtype}{tuple(leaf.shape)}"
            )
        found.append(value)
    return jax.tree_util.tree_unflatten(structure, found)


def _nest(tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """A nested dict from paths such as ``params['latent']['w0']``."""
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        parts = name.removeprefix("params").removeprefix("['").removesuffix("']").split("']['")
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    return tree


# -- files -------------------------------------------------------------------------------------


def _bytes(tensors: dict[str, NDArray[Any]], meta: dict[str, Any], identity: Identity) -> bytes:
    full = {
        "format": FORMAT,
        "ensq": __version__,
        "jax": jax.__version__,
        "config_digest": identity.config_digest,
        "data_digest": identity.data_digest,
        **meta,
    }
    text = json.dumps(full, sort_keys=True)
    return bytes(safetensors.numpy.save(tensors, {"ensq": text}))


def _metadata(data: bytes, kind: str) -> dict[str, Any]:
    """The JSON that ensq put into a safetensors header."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        meta = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["ensq"])
        found = (meta["format"], meta["kind"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"not a {kind} of ensq") from error
    if found != (FORMAT, kind):
        raise CheckpointError(f"a {found[1]} of format {found[0]}, not a {kind} of format {FORMAT}")
    return dict(meta)


def _tensors(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        # Sorted, since the library's own order changes from call to call.
        return dict(sorted(safetensors.numpy.load(data).items()))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"not a readable safetensors file: {error}") from error


def _check_identity(meta: dict[str, Any], identity: Identity) -> None:
    for key in ("config_digest", "data_digest"):
        if meta.get(key) != getattr(identity, key):
            raise CheckpointError(f"a checkpoint of another run: its {key} is {meta.get(key)}")
