"""Data of a run as arrays for the device: frames, neighbour layout, labels, statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ensq import data
from ensq.config import RunConfig
from ensq.errors import MismatchError
from ensq.train.models import DataStatistics, Frames
from ensq.train.neighbours import build_neighbours


class Labelled(NamedTuple):
    """Frames [T] with their labels; energies are without the reference energies."""

    frames: Frames
    F: jax.Array  # [T,N,3]
    U: jax.Array  # [T]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All that a pack trains on."""

    training: Labelled
    validation: Labelled
    validation_index: NDArray[Any]  # [V] frame numbers in the data file
    validation_components: NDArray[Any]  # [V] real force components of each frame
    validation_beads: NDArray[Any]  # [V] real beads of each frame
    statistics: DataStatistics  # energy_shift included: what an exported model adds again
    species_names: tuple[str, ...]

    @property
    def n_training(self) -> int:
        return int(self.training.U.shape[0])

    @property
    def n_validation(self) -> int:
        return int(self.validation.U.shape[0])


def prepare(
    path: Path, expected_digest: str, config: RunConfig, phase: Callable[[str], None]
) -> Dataset:
    """Load, split and lay out the data; neighbour lists are built here, once.

    Args:
        path: The data file.
        expected_digest: Its SHA-256 as recorded when the ensemble was enqueued.
        config: The run's configuration.
        phase: Told what happens now.

    Raises:
        MismatchError: The file has changed since.
        DataError: It can't be read or is not fit for the configuration.
    """
    phase("loading data")
    found = data.digest(path)
    if found != expected_digest:
        raise MismatchError(
            f"{path}: the data have changed since the ensemble was enqueued (SHA-256 "
            f"{found[:12]}…, recorded {expected_digest[:12]}…); restore the file or enqueue "
            "under another name"
        )
    whole = data.load(path, config.training.gammas)
    split = data.split(whole, config, str(path))
    training, validation = whole.take(split.training), whole.take(split.validation)
    shift = reference_energies(training) if config.training.gammas.U else None
    n_species = len(whole.species_names)
    phase("building neighbour lists")
    layouts = [
        build_neighbours(part.R, part.mask, config.model.cutoff) for part in (training, validation)
    ]
    labelled = [
        _labelled(part, layout, shift, config)
        for part, layout in zip((training, validation), layouts, strict=True)
    ]
    components = 3 * validation.mask.sum(axis=1)
    return Dataset(
        training=labelled[0],
        validation=labelled[1],
        validation_index=split.validation,
        validation_components=components,
        validation_beads=validation.mask.sum(axis=1),
        statistics=DataStatistics(
            n_species=n_species,
            avg_num_neighbors=layouts[0].average,
            energy_shift=np.zeros(n_species) if shift is None else shift,
            energy_scale=force_scale(training),
        ),
        species_names=whole.species_names,
    )


def without_shift(statistics: DataStatistics) -> DataStatistics:
    """The statistics of the model as it is trained: reference energies are in the labels, so that
    large totals lose no digits in float32."""
    return statistics._replace(energy_shift=np.zeros_like(statistics.energy_shift))


def reference_energies(training: data.Data) -> NDArray[Any]:
    """Energy per bead of each species, by least squares over the training frames.

    Returns [n_species], the solution of smallest norm where compositions do not determine it.
    """
    assert training.U is not None
    n_species = len(training.species_names)
    counts = np.stack(
        [((training.species == s) & training.mask).sum(axis=1) for s in range(n_species)], axis=1
    ).astype(np.float64)
    return np.asarray(np.linalg.lstsq(counts, training.U, rcond=None)[0])


def force_scale(training: data.Data) -> float:
    """Root mean square of the training forces per real component, in energy/Angstrom; of the
    energies per bead where there are no forces. 1 if all are zero."""
    if training.F is not None:
        values = training.F[training.mask].astype(np.float64)
    else:
        assert training.U is not None
        values = (training.U - training.U.mean()) / training.mask.sum(axis=1)
    scale = float(np.sqrt(np.mean(values**2)))
    return scale if scale > 0 else 1.0


def _labelled(
    part: data.Data, neighbours: Any, shift: NDArray[Any] | None, config: RunConfig
) -> Labelled:
    dtype = jnp.dtype(config.training.precision)
    energies = np.zeros(part.n_frames) if part.U is None or shift is None else part.U.copy()
    if shift is not None:
        energies -= np.where(part.mask, shift[part.species], 0.0).sum(axis=1)
    forces = np.zeros_like(part.R) if part.F is None else part.F
    return Labelled(
        frames=Frames(
            R=jnp.asarray(part.R, dtype),
            species=jnp.asarray(part.species),
            mask=jnp.asarray(part.mask, dtype),
            nbr=jnp.asarray(neighbours.index),
            rev=jnp.asarray(neighbours.reverse),
            nbr_mask=jnp.asarray(neighbours.mask, dtype),
        ),
        F=jnp.asarray(forces, dtype),
        U=jnp.asarray(energies, dtype),
    )
