"""Checkpoints and results of one member as safetensors: written whole, verified before use.

Everything that affects the next step is in a checkpoint: parameters, optimiser state, averaged and
best parameters, place in the training, losses so far, digests of configuration and data, versions.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from ensq import __version__, seal
from ensq.errors import CheckpointError
from ensq.rundir import disk_error, sha256, write_atomic
from ensq.train import sealed

MAX_BYTES = 8 * 2**30  # of a file that is read into memory
HISTORY_COLUMNS = (
    "train_loss", "val_loss", "val_rmse_force", "val_rmse_energy", "learning_rate", "seconds"
)  # fmt: skip

# Away now and maybe back soon: not a reason to give a file up and to train its epochs again.
_AWAY = (errno.ESTALE, errno.ENXIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOTCONN)
_PART = re.compile(r"\['([^']+)'\]")
_PARAMETER = re.compile(r"params(\['[^']+'\]){1,16}")  # a deeper tree could end the interpreter
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
    meta = sealed.metadata(data, "checkpoint")
    with sealed.holding("checkpoint"):
        return sealed.whole(meta, "epoch"), sealed.whole(meta, "step")


class UnreadableError(CheckpointError):
    """A file is there and can't be read: what it holds may be as it should be."""


def read_verified(path: Path, digest: str | None) -> bytes:
    """The file's bytes, verified by their recorded SHA-256, or without one by their seal.

    Raises:
        CheckpointError: It can't be read, or is damaged.
        DiskError: The file server is away, which says nothing of the file.
    """
    try:
        data = _read(path)
    except OSError as error:
        away = disk_error(error, path, "read") if error.errno in _AWAY else None
        if away is not None:
            raise away from error
        text = f"{path}: can't be read: {error.strerror}"
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise (CheckpointError(text) if missing else UnreadableError(text)) from error
    if digest is not None and sha256(data) != digest:
        raise CheckpointError(f"{path}: damaged (its SHA-256 is not the recorded one)")
    if digest is None and not seal.is_whole(data):
        raise CheckpointError(f"{path}: damaged (it has no seal, or not the one of its bytes)")
    return data


def _read(path: Path) -> bytes:
    """The bytes of a plain file; a pipe is not waited for, nor is all memory filled."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(f"{path}: can't be read: it is no plain file")
        if about.st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: can't be read: it is of {about.st_size} bytes")
        return file.read(MAX_BYTES)


def restore(data: bytes, template: Any, identity: Identity) -> Restored:
    """A member from a checkpoint's bytes.

    Args:
        data: As returned by ``read_verified``.
        template: A state of the expected structure, shapes and dtypes.
        identity: The run that it must be of.

    Raises:
        CheckpointError: Another run's, another format's or another model's file.
    """
    meta = sealed.metadata(data, "checkpoint")
    _check_identity(meta, identity)
    tensors = sealed.tensors(data)
    with sealed.holding("checkpoint"):
        epoch, step = sealed.whole(meta, "epoch"), sealed.whole(meta, "step")
        best_epoch = sealed.whole(meta, "best_epoch", most=epoch)
        best_force = sealed.array(tensors, "best_force", (None,))
        record = Record(
            seed=sealed.whole(meta, "seed"),
            best_epoch=best_epoch,
            best_loss=sealed.exact(meta, "best_loss", finite=best_epoch > 0),
            best_force=best_force,
            best_energy=sealed.array(tensors, "best_energy", best_force.shape),
            best_species=sealed.array(tensors, "best_species", (None, None)),
            history=[
                tuple(map(float, row))
                for row in sealed.history(tensors, len(HISTORY_COLUMNS), epoch)
            ],
        )
        state = unflatten(template, {k: v for k, v in tensors.items() if k.startswith("state")})
        return Restored(state, record, epoch, step)


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
    early: dict[str, str] | None = None  # rule and evidence (JSON) that ended it before its time


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
    if result.early is not None:
        meta["early"] = result.early
    return _bytes(tensors, meta, result.identity)


def read_result(data: bytes) -> MemberResult:
    """A trained member from a result's bytes. Raises CheckpointError if it is none."""
    meta = sealed.metadata(data, "result")
    tensors = sealed.tensors(data)
    with sealed.holding("result"):
        species, proteins = sealed.texts(meta, "species_names"), sealed.texts(meta, "protein_names")
        return MemberResult(
            params=_nest({k: v for k, v in tensors.items() if k.startswith("params")}),
            seed=sealed.whole(meta, "seed"),
            best_epoch=sealed.whole(meta, "best_epoch"),
            best_loss=sealed.exact(meta, "best_loss"),
            final_loss=sealed.exact(meta, "final_loss"),
            **_result_arrays(tensors, len(proteins), len(species)),
            statistics=_statistics(sealed.table(meta, "statistics"), len(species)),
            species_names=species,
            protein_names=proteins,
            config=sealed.text(meta, "config"),
            identity=Identity(sealed.text(meta, "config_digest"), sealed.text(meta, "data_digest")),
            versions={
                key: sealed.text(sealed.table(meta, "versions"), key) for key in meta["versions"]
            },
            early=_early(meta),
        )


def _early(meta: dict[str, Any]) -> dict[str, str] | None:
    """Why it ended before its last epoch, if it did."""
    if "early" not in meta:
        return None
    found = sealed.table(meta, "early")
    return {key: sealed.text(found, key) for key in ("rule", "evidence")}


def _result_arrays(
    tensors: dict[str, NDArray[Any]], proteins: int, species: int
) -> dict[str, NDArray[Any]]:
    """The arrays of a result, all of V frames, P proteins and S species."""
    frames = sealed.array(tensors, "force_errors", (None,)).shape
    found = {
        key: sealed.array(tensors, key, frames, kinds)
        for key, kinds in (
            ("force_errors", "f"),
            ("energy_errors", "f"),
            ("components", "iuf"),
            ("beads", "iuf"),
            ("protein", "iu"),
            ("validation_index", "iu"),
        )
    }
    for key in ("species_errors", "species_components"):
        found[key] = sealed.array(tensors, key, (proteins, species), "iuf")
    found["history"] = sealed.history(tensors, len(HISTORY_COLUMNS), None)
    return found


def _statistics(plain: dict[str, Any], species: int) -> dict[str, Any]:
    """What the model takes from the data; its fields are those of ``DataStatistics``."""
    shift = plain["energy_shift"]
    if sealed.whole(plain, "n_species") != species or len(shift) != species:
        raise ValueError(f"the statistics are not of {species} species")
    return {
        "n_species": species,
        "avg_num_neighbors": sealed.number(plain["avg_num_neighbors"], "avg_num_neighbors"),
        "energy_shift": [sealed.number(shift[i], "energy_shift") for i in range(species)],
        "energy_scale": sealed.number(plain["energy_scale"], "energy_scale"),
        "elements": bool(plain["elements"]),
    }


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
        if _PARAMETER.fullmatch(name) is None or value.dtype.kind not in "fiu":
            raise ValueError(f"{name[:100]!r} of {value.dtype} is no parameter")
        *path, last = _PART.findall(name)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name[:100]!r} is inside another parameter")
        if last in node:
            raise ValueError(f"{name[:100]!r} is there twice")
        node[last] = value
    return tree


# -- files -------------------------------------------------------------------------------------


def _bytes(tensors: dict[str, NDArray[Any]], meta: dict[str, Any], identity: Identity) -> bytes:
    full = {
        "ensq": __version__,
        "jax": jax.__version__,
        "config_digest": identity.config_digest,
        "data_digest": identity.data_digest,
        **meta,
    }
    return sealed.to_bytes(tensors, full)


def _check_identity(meta: dict[str, Any], identity: Identity) -> None:
    for key in ("config_digest", "data_digest"):
        if meta.get(key) != getattr(identity, key):
            found = str(meta.get(key))[:80]
            raise CheckpointError(f"a checkpoint of another run: its {key} is {found}")
