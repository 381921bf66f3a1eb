"""Which frames train and which validate, by the configuration's data seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensq.config.structs import DataConfig, RunConfig
from ensq.data.structs import Array, Data
from ensq.errors import DataError

MIN_VALIDATION_FRAMES = 2


@dataclass(frozen=True)
class Split:
    """Indices of frames, sorted; no frame is in both."""

    training: Array  # [n] int
    validation: Array  # [m] int


def split(data: Data, config: RunConfig, source: str) -> Split:
    """Choose training and validation frames by ``data.split``, with the data seed.

    A frame that occurs twice is never on both sides: copies of training frames leave validation.
    """
    frames = _chosen(data, config.data)
    chosen = data.take(frames)
    is_validation = _is_validation(chosen, config, source)
    training, validation = frames[~is_validation], frames[is_validation]
    validation, copies = _without_copies(data.R, training, validation)
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


def _chosen(data: Data, config: DataConfig) -> Array:
    """At most ``max_frames`` frames, drawn with the data seed, in their order."""
    if config.max_frames is None or config.max_frames >= data.n_frames:
        return np.arange(data.n_frames)
    rng = np.random.default_rng([config.seed, 1])
    return np.sort(rng.permutation(data.n_frames)[: config.max_frames])


def _is_validation(data: Data, config: RunConfig, source: str) -> Array:
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


def _shuffled(data: Data, fraction: float, seed: int) -> Array:
    """A shuffled share of each protein's frames, to one frame; exact over all of them."""
    order = np.random.default_rng([seed, 0]).permutation(data.n_frames)
    flags = np.zeros(data.n_frames, bool)
    seen = 0
    for members in _by(order, None if data.protein is None else data.protein[order]):
        wanted = round(fraction * (seen + len(members))) - round(fraction * seen)
        flags[members[:wanted]] = True
        seen += len(members)
    return flags


def _tails(data: Data, fraction: float) -> Array:
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


def _without_copies(R: Array, training: Array, validation: Array) -> tuple[Array, Array]:
    """Validation frames that are no copies of training frames, and those that are."""
    seen = {R[frame].tobytes() for frame in training}
    copy = np.array([R[frame].tobytes() in seen for frame in validation], bool)
    return validation[~copy], validation[copy]
