"""A first pass over frames that stay on the host: all that must be known of them together."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ensq import data
from ensq.config import RunConfig
from ensq.rundir import write_atomic
from ensq.train.buckets import choose_bounds, frame_sizes, members_of
from ensq.train.neighbours import count_neighbours, is_periodic

_VERSION = 1
_COUNTS = 1 << 22  # numbers of beads by frame and species that are held together


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Plain arrays; groups [G] of frames by their sizes as ``train.buckets`` makes them."""

    bounds: NDArray[Any]  # [G] beads
    group: NDArray[Any]  # [n] the group of each training frame
    more: NDArray[Any]  # [V] of each validation frame
    width: NDArray[Any]  # [2,G] the most neighbours of a bead in training and validation
    periodic: NDArray[Any]  # [2,G] whether some frame is periodic
    real: NDArray[Any]  # [G] real beads of the training frames
    beads: NDArray[Any]  # [V] of the validation frames
    species_components: NDArray[Any]  # [P,S] real force components of validation
    linked: int  # beads of the training frames that have neighbours
    average: float  # neighbours of these (1 where there are none)
    scale: float
    shift: NDArray[Any]  # [S], or [0] where there are no energies


def survey(
    source: data.Source, split: data.Split, config: RunConfig, key: str, cache: Path | None
) -> Survey:
    """What the pass finds; kept in the folder ``cache``, so that the next one need not look.

    ``key``: the digest of the data.
    """
    file = None if cache is None else cache / f"survey-{_digest(config, key)[:32]}.npz"
    found = None if file is None else _read(file)
    if found is not None and len(found.group) == len(split.training):
        return found
    found = _look(source, split, config)
    if file is not None:
        plain = {one.name: getattr(found, one.name) for one in fields(found)}
        content = io.BytesIO()
        np.savez(content, **plain)
        write_atomic(file, content.getvalue())
    return found


def _digest(config: RunConfig, key: str) -> str:
    """Of all that the result depends on."""
    settings = msgspec.to_builtins(config.data)
    del settings["path"], settings["placement"]
    parts = (
        _VERSION,
        key,
        settings,
        config.training.val_fraction,
        config.training.batch_per_device,
        msgspec.to_builtins(config.training.gammas),
        config.model.cutoff,
        config.unit,
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(file: Path) -> Survey | None:
    """None if the file is not there or is damaged: another pass makes it again."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            values = {one.name: arrays[one.name] for one in fields(Survey)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    numbers = {name: float(values[name]) for name in ("average", "scale")}
    return Survey(**{**values, **numbers, "linked": int(values["linked"])})


# -- the pass ----------------------------------------------------------------------------------


def _look(source: data.Source, split: data.Split, config: RunConfig) -> Survey:
    sizes, more = _sizes(source, split.training), _sizes(source, split.validation)
    bounds = choose_bounds(
        sizes,
        np.concatenate([sizes, more]),
        groups=config.data.max_buckets,
        fewest=config.training.batch_per_device,
    )
    groups, more_groups = members_of(sizes, bounds), members_of(more, bounds)
    looks = [
        [
            _Group(source, frames[members], bound, config.model.cutoff)
            for members, bound in zip(of, bounds, strict=True)
        ]
        for frames, of in ((split.training, groups), (split.validation, more_groups))
    ]
    linked = sum(one.linked for one in looks[0])
    counts, beads = _validation_counts(source, split.validation)
    shift = reference_energies(source, split.training) if config.training.gammas.U else np.zeros(0)
    return Survey(
        bounds=np.array(bounds),
        group=_group_of(groups, len(sizes)),
        more=_group_of(more_groups, len(more)),
        width=np.array([[one.width for one in row] for row in looks]),
        periodic=np.array([[one.periodic for one in row] for row in looks]),
        real=np.array([one.real for one in looks[0]]),
        beads=beads,
        species_components=counts,
        linked=linked,
        average=float(sum(one.edges for one in looks[0])) / linked if linked else 1.0,
        scale=_scale(source, split.training),
        shift=shift,
    )


def _sizes(source: data.Source, frames: NDArray[Any]) -> NDArray[np.int64]:
    parts = [frame_sizes(source.mask[frames[span]]) for span in _spans(source, frames)]
    return np.concatenate(parts)


def _spans(source: data.Source, frames: NDArray[Any]) -> list[slice]:
    return list(data.spans(source.n_beads, len(frames)))


def _group_of(groups: list[NDArray[np.int64]], frames: int) -> NDArray[np.int8]:
    found = np.zeros(frames, np.int8)
    for number, members in enumerate(groups):
        found[members] = number
    return found


class _Group:
    """The neighbours of the frames of one group."""

    def __init__(
        self, source: data.Source, frames: NDArray[Any], bound: int, cutoff: float
    ) -> None:
        self.periodic = source.cell is not None and any(
            is_periodic(source.cell[frames[span]]) for span in data.spans(3, len(frames))
        )
        self.width, self.edges, self.linked, self.real = 1, 0, 0, 0
        for span in _spans(source, frames):
            part = source.take(frames[span]).cut(bound)
            counts = count_neighbours(part.R, part.mask, cutoff, part.cell, periodic=self.periodic)
            self.width = max(self.width, int(counts.max(initial=0)))
            self.edges += int(counts.sum())
            self.linked += int(np.count_nonzero(counts))
            self.real += int(part.mask.sum())


def _scale(source: data.Source, frames: NDArray[Any]) -> float:
    """``force_scale`` of the training frames."""
    if source.F is None:
        assert source.U is not None
        energies = source.U[frames]
        beads = [source.mask[frames[span]].sum(axis=1) for span in _spans(source, frames)]
        values = (energies - energies.mean()) / np.concatenate(beads)
        scale = float(np.sqrt(np.mean(values**2)))
    else:
        total, count = 0.0, 0
        for span in _spans(source, frames):
            real = source.F[frames[span]][source.mask[frames[span]]].astype(np.float64)
            total += float(np.sum(real**2))
            count += real.size
        scale = float(np.sqrt(total / count))
    return scale if scale > 0 else 1.0


def _validation_counts(
    source: data.Source, frames: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Real force components by protein and species, and real beads of each frame."""
    counts = np.zeros((len(source.protein_names or ("all",)), len(source.species_names)))
    beads = []
    for span in _spans(source, frames):
        chosen = frames[span]
        mask, species = source.mask[chosen], source.species[chosen]
        protein = np.zeros(len(chosen), int) if source.protein is None else source.protein[chosen]
        frame, bead = np.nonzero(mask)
        np.add.at(counts, (protein[frame], species[frame, bead]), 3)
        beads.append(mask.sum(axis=1))
    return counts, np.concatenate(beads)


def reference_energies(source: data.Source, frames: NDArray[Any]) -> NDArray[Any]:
    """As ``dataset.reference_energies``; of many frames, those of one composition are drawn
    together, which has the same solution."""
    assert source.U is not None
    n_species = len(source.species_names)
    gathered: dict[tuple[int, ...], tuple[int, float]] = {}
    whole = []
    for span in _spans(source, frames):
        mask, species = source.mask[frames[span]], source.species[frames[span]]
        counts = np.stack(
            [((species == s) & mask).sum(axis=1) for s in range(n_species)], axis=1
        ).astype(np.float64)
        if len(frames) * n_species <= _COUNTS:
            whole.append(counts)
            continue
        rows, place, number = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
        energy = np.bincount(place, source.U[frames[span]], minlength=len(rows))
        for row, n, e in zip(rows, number, energy, strict=True):
            before = gathered.get(tuple(row), (0, 0.0))
            gathered[tuple(row)] = (before[0] + int(n), before[1] + float(e))
    if whole:
        return np.asarray(np.linalg.lstsq(np.concatenate(whole), source.U[frames], rcond=None)[0])
    numbers, sums = np.array(list(gathered.values())).T
    weight = np.sqrt(numbers)
    matrix = np.array(list(gathered)) * weight[:, None]
    return np.asarray(np.linalg.lstsq(matrix, sums / weight, rcond=None)[0])
