"""Ensembles with random parameters, as loaded ones and as export folders, and their predictions
member by member."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from export_tools import crowd, member, small

from ensq import data
from ensq.ensemble import LoadedEnsemble
from ensq.exports import METADATA
from ensq.rundir import sha256
from ensq.train import checkpoint
from ensq.train.checkpoint import MemberResult
from ensq.train.reference import Reference
from ensq.trained import Members

SEEDS = (3, 5, 8)
Array = np.ndarray


def quick_compiles() -> Iterator[None]:
    """A fixture of a module: machine code that is not optimised takes a quarter of the time."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def results(
    boundary: str = "open", seeds: Sequence[int] = SEEDS, *overrides: str
) -> list[MemberResult]:
    """Members of one model for the frames of ``crowd``; it compiles quickly."""
    config = small("allegro", "model.allegro.max_ell=0", *overrides)
    first = member(config, crowd(boundary), seeds[0])
    return [first, *(_other(first, seed) for seed in seeds[1:])]


def _other(first: MemberResult, seed: int) -> MemberResult:
    """A member whose parameters are others: to draw them anew would take a compilation."""
    import jax

    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree_util.tree_flatten(first.params)
    drawn = [leaf * rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype) for leaf in leaves]
    return replace(first, seed=seed, params=jax.tree_util.tree_unflatten(tree, drawn))


def ensemble(members: Sequence[MemberResult], dtype: str = "float32") -> LoadedEnsemble:
    return LoadedEnsemble(
        Members(
            name="crowd",
            results=tuple(members),
            digests=tuple("0" * 64 for _ in members),
            analysis=Path("nowhere"),
            exported=None,
            data=None,
        ),
        dtype,
    )


def export(folder: Path, members: Sequence[MemberResult]) -> Path:
    """An export folder as far as predictions need it."""
    folder.mkdir(parents=True)
    files = {
        f"crowd_ensemble_{place}.safetensors": checkpoint.result_bytes(one)
        for place, one in enumerate(members)
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    about = {
        "ensemble": "crowd",
        "member_files": list(files),
        "files": {name: sha256(content) for name, content in files.items()},
    }
    (folder / METADATA).write_text(json.dumps(about))
    return folder


def singly(members: Sequence[MemberResult], frames: data.Data) -> tuple[Array, Array]:
    """Energies [M,T] and forces [M,T,N,3] by the models one after another, as exports are held
    against."""
    found = [Reference(frames, small().model.cutoff).predict(one) for one in members]
    return np.stack([one.energy for one in found]), np.stack([one.force for one in found])


def write_data(path: Path, frames: data.Data, **more: Any) -> Path:
    """Frames as an NPZ file in kcal/mol and Angstrom."""
    arrays: dict[str, Any] = {
        "R": frames.R,
        "species": frames.species,
        "species_names": np.array(frames.species_names),
        "mask": frames.mask,
    }
    if frames.cell is not None:
        arrays["cell"] = frames.cell
    np.savez(path, **arrays, **more)
    return path


def mixed(frames: int = 40) -> data.Data:
    """Frames of 9 to 27 beads, in no order of their sizes."""
    whole = crowd("open", frames)
    sizes = np.random.default_rng(1).choice([9, 15, 27], frames)
    mask = np.arange(27) < sizes[:, None]
    return data.Data(
        R=np.where(mask[..., None], whole.R, 0).astype(np.float32),
        F=None,
        U=None,
        species=np.where(mask, whole.species, 0).astype(np.int32),
        mask=mask,
        replica=None,
        species_names=whole.species_names,
    )
