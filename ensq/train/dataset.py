"""Data of a run as arrays for the device: frames, neighbour layout, labels, statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ensq import data
from ensq.config import RunConfig
from ensq.errors import DataError, MismatchError
from ensq.resampling import blocks_of
from ensq.train import placement
from ensq.train.buckets import choose_bounds, frame_sizes, members_of
from ensq.train.hosted import Hosted, keep
from ensq.train.labelled import Labelled, label
from ensq.train.models import DataStatistics
from ensq.train.neighbours import Neighbours, build_neighbours
from ensq.train.survey import Survey, survey


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The validation frames [V] in their fixed order, as plain numbers."""

    index: NDArray[Any]  # [V] frame numbers in the data
    components: NDArray[Any]  # [V] real force components of each frame
    beads: NDArray[Any]  # [V] real beads
    protein: NDArray[Any]  # [V] place among the names of proteins
    species_components: NDArray[Any]  # [P,S] real force components by protein and species
    place: NDArray[Any]  # [V] where each frame stands in the groups, put one after another
    block: NDArray[Any]  # [V] part of a trajectory, from 0: see ``ensq.resampling.blocks_of``


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All that a pack trains on; frames are grouped by size (``train.buckets``)."""

    training: tuple[Labelled, ...]  # on the device; none where the frames stay on the host
    validation: tuple[Labelled, ...]
    hosted: Hosted | None = None
    validated: Validation
    statistics: DataStatistics  # energy_shift included: what an exported model adds again
    species_names: tuple[str, ...]
    protein_names: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Training frames of each group."""
        parts = self.training if self.hosted is None else self.hosted.training
        return tuple(part.n_frames for part in parts)

    @property
    def real_beads(self) -> tuple[float, ...]:
        """Real beads of the training frames of each group."""
        if self.hosted is not None:
            return self.hosted.real
        return tuple(
            float(np.asarray(part.frames.mask, np.float64).sum()) for part in self.training
        )

    @property
    def n_training(self) -> int:
        return sum(self.sizes)

    @property
    def n_validation(self) -> int:
        return len(self.validated.index)


def prepare(
    path: Path,
    expected_digest: str,
    config: RunConfig,
    phase: Callable[[str], None],
    cache: Path | None = None,
) -> Dataset:
    """Load, split and lay out the data; neighbour lists are built here, once, if they fit.

    Args:
        path: The data file, folder or converted set.
        expected_digest: Its SHA-256 as recorded when the ensemble was enqueued.
        config: The run's configuration.
        phase: Told what happens now.
        cache: A folder that keeps what was found out about frames that stay on the host.

    Raises:
        MismatchError: The file has changed since.
        DataError: It can't be read or is not fit for the configuration.
        ConfigError: The configuration needs frames on the device that do not fit there.
    """
    phase("loading data")
    found = data.digest(path)
    if found != expected_digest:
        raise MismatchError(
            f"{path}: the data have changed since the ensemble was enqueued (SHA-256 "
            f"{found[:12]}…, recorded {expected_digest[:12]}…); restore the file or enqueue "
            "under another name"
        )
    whole = data.load(path, config.data, config.training.gammas, config.unit)
    if config.model.use_priors:
        data.check_open(whole, str(path))
    split = data.split(whole, config, str(path))
    if not placement.on_device(whole, split, config):
        phase("looking through the data, which stay on the host")
        return _hosted(whole, split, config, survey(whole, split, config, found, cache))
    training, validation = whole.take(split.training), whole.take(split.validation)
    phase("building neighbour lists")
    return lay_out(training, validation, split.validation, config)


def lay_out(
    training: data.Data, validation: data.Data, index: NDArray[Any], config: RunConfig
) -> Dataset:
    """The data set of these frames; ``index`` [V] are the validation frames' numbers.

    Raises DataError if there is a network and no bead has a neighbour.
    """
    shift = reference_energies(training) if config.training.gammas.U else None
    sizes, more = frame_sizes(training.mask), frame_sizes(validation.mask)
    bounds = choose_bounds(
        sizes,
        np.concatenate([sizes, more]),
        groups=config.data.max_buckets,
        fewest=config.training.batch_per_device,
    )
    groups, validation_groups = members_of(sizes, bounds), members_of(more, bounds)
    parts, layouts = _groups(training, groups, bounds, shift, config)
    validation_parts, _ = _groups(validation, validation_groups, bounds, shift, config)
    if not config.model.prior_only and not any(layout.mask.any() for layout in layouts):
        raise DataError(f"training frames: {data.no_neighbours(config.model.cutoff)}")
    n_species = len(training.species_names)
    return Dataset(
        training=parts,
        validation=validation_parts,
        validated=_validated(validation, index, np.concatenate(validation_groups)),
        statistics=DataStatistics(
            n_species=n_species,
            avg_num_neighbors=_average(layouts),
            energy_shift=np.zeros(n_species) if shift is None else shift,
            energy_scale=force_scale(training),
            elements=training.elements,
        ),
        species_names=training.species_names,
        protein_names=_protein_names(training),
    )


def _hosted(source: data.Source, split: data.Split, config: RunConfig, found: Survey) -> Dataset:
    """The data set of frames that stay on the host. Raises as ``lay_out`` does."""
    if not config.model.prior_only and not found.linked:
        raise DataError(f"training frames: {data.no_neighbours(config.model.cutoff)}")
    n_species, shift = len(source.species_names), found.shift
    protein = np.zeros(source.n_frames) if source.protein is None else source.protein
    order = [np.flatnonzero(found.more == number) for number in range(len(found.bounds))]
    return Dataset(
        training=(),
        validation=(),
        hosted=keep(source, split, config, found),
        validated=Validation(
            index=split.validation,
            components=3 * found.beads,
            beads=found.beads,
            protein=np.asarray(protein[split.validation], np.int64),
            species_components=found.species_components,
            place=_places(np.concatenate(order)),
            block=_blocks(split.validation, source.replica, source.protein),
        ),
        statistics=DataStatistics(
            n_species=n_species,
            avg_num_neighbors=found.average,
            energy_shift=shift if len(shift) else np.zeros(n_species),
            energy_scale=found.scale,
            elements=source.elements,
        ),
        species_names=source.species_names,
        protein_names=source.protein_names or ("all",),
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
    scale = training.force_rms()
    if scale is None:
        assert training.U is not None
        values = (training.U - training.U.mean()) / training.mask.sum(axis=1)
        scale = float(np.sqrt(np.mean(values**2)))
    return scale if scale > 0 else 1.0


def _groups(
    whole: data.Data,
    groups: list[NDArray[np.int64]],
    bounds: tuple[int, ...],
    shift: NDArray[Any] | None,
    config: RunConfig,
) -> tuple[tuple[Labelled, ...], list[Neighbours]]:
    """Each group's frames, cut to its size."""
    parts, layouts = [], []
    for members, size in zip(groups, bounds, strict=True):
        part = whole.take(members).cut(size)
        layout = build_neighbours(part.R, part.mask, config.model.cutoff, part.cell)
        parts.append(label(part, layout, shift, jnp.dtype(config.training.dtype)))
        layouts.append(layout)
    return tuple(parts), layouts


def _average(layouts: list[Neighbours]) -> float:
    """Neighbours per bead that has any, over all groups (1 where there is no edge at all)."""
    counts = [layout.mask.sum(axis=-1) for layout in layouts]
    beads = sum(int(np.count_nonzero(count)) for count in counts)
    return float(sum(count.sum() for count in counts)) / beads if beads else 1.0


def _places(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each frame stands in an order."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def _blocks(
    index: NDArray[Any], replica: NDArray[Any] | None, protein: NDArray[Any] | None
) -> NDArray[Any]:
    """Blocks of the frames ``index``; the other two are of all frames."""
    chosen = [None if one is None else one[index] for one in (replica, protein)]
    return blocks_of(len(index), index=index, replica=chosen[0], protein=chosen[1])


def _protein_names(whole: data.Data) -> tuple[str, ...]:
    return whole.protein_names or ("all",)


def _validated(validation: data.Data, index: NDArray[Any], order: NDArray[np.int64]) -> Validation:
    """``order``: the places of the frames in the groups, put one after another."""
    n_species, T = len(validation.species_names), validation.n_frames
    protein = np.zeros(T, np.int64) if validation.protein is None else validation.protein
    counts = np.zeros((len(_protein_names(validation)), n_species))
    frame, bead = np.nonzero(validation.mask)
    np.add.at(counts, (protein[frame], validation.species[frame, bead]), 3)
    beads = validation.mask.sum(axis=1)
    return Validation(
        index=index,
        components=3 * beads,
        beads=beads,
        protein=np.asarray(protein, np.int64),
        species_components=counts,
        place=_places(order),
        block=blocks_of(T, index=index, replica=validation.replica, protein=validation.protein),
    )
