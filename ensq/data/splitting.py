"""Which frames train and which validate, by the configuration's data seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ensq.config.structs import DataConfig, RunConfig
from ensq.data.stored import Source, spans
from ensq.data.structs import Array
from ensq.errors import DataError

MIN_VALIDATION_FRAMES = 2


class _Groups(NamedTuple):
    """What decides on which side frames go."""

    n_frames: int
    replica: Array | None  # [T]
    protein: Array | None  # [T]


@dataclass(frozen=True)
class Split:
    """Indices of frames, sorted; no frame is in both."""

    training: Array  # [n] int
    validation: Array  # [m] int


def split(data: Source, config: RunConfig, source: str) -> Split:
    """Choose training and validation frames by ``data.split``, with the data seed.

    A frame that occurs twice is never on both sides: copies of training frames leave validation.
    """
    frames = _chosen(data, config.data)
    chosen = _Groups(
        len(frames),
        None if data.replica is None else data.replica[frames],
        None if data.protein is None else data.protein[frames],
    )
    is_validation = _is_validation(chosen, config, source)
    training, validation = frames[~is_validation], frames[is_validation]
    validation, copies = _without_copies(data, training, validation)
    training = np.sort(np.concatenate([training, copies]))
    if len(training) == 0 or len(validation) < MIN_VALIDATION_FRAMES:
        if len(copies):
            raise DataError(
                f"{source}: {len(validation)} validation frames are left, at least "
                f"{MIN_VALIDATION_FRAMES} are needed: {len(copies)} more are copies of training "
                "frames, which never validate; remove frames that occur twice"
            )
        raise DataError(
            f"{source}: {len(training)} training and {len(validation)} validation frames; at least "
            f"1 and {MIN_VALIDATION_FRAMES} are needed: change training.val_fraction, data.split "
            "or data.max_frames"
        )
    return Split(training, validation)


def _chosen(data: Source, config: DataConfig) -> Array:
    """At most ``max_frames`` frames, drawn with the data seed, in their order."""
    if config.max_frames is None or config.max_frames >= data.n_frames:
        return np.arange(data.n_frames)
    rng = np.random.default_rng([config.seed, 1])
    return np.sort(rng.permutation(data.n_frames)[: config.max_frames])


def _is_validation(data: _Groups, config: RunConfig, source: str) -> Array:
    how, fraction = config.data.split, config.training.val_fraction
    if how.by == "frame":
        return _shuffled(data, fraction, config.data.seed)
    if how.by == "replica":
        if data.replica is None:
            raise DataError(f"{source}: data.split by replica needs the key replica in the file")
        for replica in how.validation:
            if replica not in data.replica:
                present = ", ".join(map(str, np.unique(data.replica)))
                raise DataError(
                    f"{source}: data.split.validation names trajectory {replica}; there are "
                    f"{present}"
                )
        return np.isin(data.replica, how.validation)
    return _tails(data, fraction)


def _shuffled(data: _Groups, fraction: float, seed: int) -> Array:
    """A shuffled share of each protein's frames, to one frame; exact over all of them."""
    order = np.random.default_rng([seed, 0]).permutation(data.n_frames)
    flags = np.zeros(data.n_frames, bool)
    seen = 0
    for members in _by(order, None if data.protein is None else data.protein[order]):
        wanted = round(fraction * (seen + len(members))) - round(fraction * seen)
        flags[members[:wanted]] = True
        seen += len(members)
    return flags


def _tails(data: _Groups, fraction: float) -> Array:
    """The end of each trajectory of each protein."""
    flags = np.zeros(data.n_frames, bool)
    for protein in _by(np.arange(data.n_frames), data.protein):
        for members in _by(protein, None if data.replica is None else data.replica[protein]):
            flags[members[len(members) - round(fraction * len(members)) :]] = True
    return flags


def _by(frames: Array, group: Array | None) -> list[Array]:
    """The frames of each group, in the order in which they are given."""
    if group is None:
        return [frames]
    return [frames[group == number] for number in np.unique(group)]


def _without_copies(data: Source, training: Array, validation: Array) -> tuple[Array, Array]:
    """Validation frames that are no copies of training frames, and those that are."""
    mine = list(_digests(data, validation))
    wanted = set(mine)
    seen = {digest for digest in _digests(data, training) if digest in wanted}
    copy = np.array([digest in seen for digest in mine], bool)
    return validation[~copy], validation[copy]


def _digests(data: Source, frames: Array) -> Iterator[bytes]:
    """What only frames of the same positions have in common, in little memory."""
    for span in spans(data.n_beads, len(frames)):
        for positions in data.R[frames[span]]:
            yield hashlib.blake2b(positions.tobytes(), digest_size=16).digest()
