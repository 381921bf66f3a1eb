"""Labelled frames, and the predictions of all members beside their labels, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq import data, prediction, resampling
from ensq.calibration.figures import Resampling
from ensq.calibration.samples import Energies, Forces, Frames, Observed
from ensq.config.structs import UnitsConfig
from ensq.ensemble import LoadedEnsemble
from ensq.errors import MismatchError, UsageError
from ensq.evaluation import Evaluated

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]

FRACTION = 0.2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for."""

    data: Path | None = None  # None: the run's own validation frames
    fit: bool = False  # factors, on a part of ``data`` …
    fraction: float = FRACTION
    calibration: Path | None = None  # … or on this file
    use_stored: bool = False  # judge the factors that are stored
    by_species: bool = False
    ddof: int = 0
    draws: int = resampling.DRAWS
    seed: int = 0
    batch: int | None = None
    # Of the files, but converted sets, which know theirs; None: as the training's data.
    units: UnitsConfig | None = None
    keys: Mapping[str, str] = field(default_factory=dict)  # names of their arrays

    @property
    def read_as_asked(self) -> tuple[Path, ...]:
        """The files that ``units`` and ``keys`` are of."""
        if self.units is None and not self.keys:
            return ()
        given = (path for path in (self.data, self.calibration) if path is not None)
        return tuple(path for path in given if not data.is_converted(path))


class Loaded(NamedTuple):
    """Frames with where they come from."""

    frames: data.Source
    places: Array  # [T] in the file
    about: Evaluated


def load(ensemble: LoadedEnsemble, path: Path | None, options: Options) -> Loaded:
    """Frames of a file, read as ``options`` say, or the run's validation frames.

    Raises:
        UsageError: The run's data are not known here.
        MismatchError: They have changed.
    """
    members = ensemble.members
    if path is not None:
        if path in options.read_as_asked:
            frames = ensemble.read(path, units=options.units, keys=options.keys)
        else:
            frames = ensemble.read(path)
        about = Evaluated(
            path=str(path),
            digest=data.digest(path),
            frames=frames.n_frames,
            which="all of the file",
            validation=False,
        )
        return Loaded(frames, np.arange(frames.n_frames), about)
    if members.data is None:
        raise UsageError(
            f"{members.name} was read from its export folder, which does not tell where its data "
            "are: name a data file"
        )
    first = members.results[0]
    digest = data.digest(members.data)
    if digest != first.identity.data_digest:
        raise MismatchError(
            f"{members.data}: the data have changed since the training; restore the file, or name "
            "another one"
        )
    index = np.asarray(first.validation_index)
    frames = ensemble.read(members.data).take(index)
    about = Evaluated(
        path=str(members.data.resolve()),
        digest=digest,
        frames=len(index),
        which="the validation frames",
        validation=True,
    )
    return Loaded(frames, index, about)


def predicted(
    ensemble: LoadedEnsemble, loaded: Loaded, options: Options, what: str, progress: Progress
) -> Observed:
    return observe(
        ensemble,
        loaded.frames,
        loaded.places,
        ddof=options.ddof,
        energies=ensemble.energies_trained,
        batch=options.batch,
        progress=lambda done, total: progress(what, done, total),
    )


def drawn_blocks(observed: Observed, options: Options) -> Resampling:
    frames = observed.frames
    block = resampling.blocks_of(
        frames.count, index=frames.index, replica=frames.replica, protein=frames.protein
    )
    return Resampling(block, options.draws, options.seed)


def observe(
    ensemble: LoadedEnsemble,
    frames: data.Source,
    index: Array,
    *,
    ddof: int = 0,
    energies: bool = True,
    batch: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Observed:
    """Errors and spreads for all frames; in the run's unit of energy and Angstrom.

    Args:
        ensemble: The members.
        frames: With labels, of ``LoadedEnsemble.read``.
        index: [T] the frames' places in their file.
        ddof: Taken off the number of members in standard deviations.
        energies: Whether the energies mean something.
        batch: Frames at once; None: as memory allows.
        progress: Told how many frames are done, and of how many.

    Raises DataError for frames that the model can't take.
    """
    members = len(ensemble)
    spread = members > 1
    gathered = _Gathered(frames, index, members, energies)
    parts = ensemble.parts(frames, ddof=ddof, members=True, batch=batch, progress=progress)
    for numbers, found in parts:
        gathered.add(numbers, frames.take(numbers), found)
    return gathered.observed(ensemble.seeds, ddof, frames.species_names, spread)


class _Gathered:
    """Arrays that batches are written into, in the order of the frames."""

    def __init__(self, frames: data.Source, index: Array, members: int, energies: bool) -> None:
        every, total = np.arange(frames.n_frames), frames.n_frames
        mask = np.concatenate(
            [np.asarray(frames.mask[every[s]], bool) for s in data.spans(frames.n_beads, total)]
        )
        beads = mask.sum(axis=1)
        frame, place = np.nonzero(mask)
        self.first = np.cumsum(beads) - beads  # [T] place of each frame's first bead
        protein = np.zeros(total, np.int64) if frames.protein is None else frames.protein[every]
        self.frames = Frames(
            index=np.asarray(index),
            beads=beads,
            protein=np.asarray(protein, np.int64),
            protein_names=frames.protein_names or ("all",),
            replica=None if frames.replica is None else np.asarray(frames.replica[every]),
        )
        n = len(frame)
        self.forces = (
            None
            if frames.F is None
            else Forces(
                mean=np.zeros((n, 3), np.float32),
                error=np.zeros((n, 3), np.float32),
                sigma=np.zeros((n, 3), np.float32),
                frame=frame,
                place=place,
                species=np.zeros(n, np.int32),
                member_squares=np.zeros((members, total)),
                member_sizes=np.zeros((members, total)),
            )
        )
        self.energies = (
            None
            if frames.U is None or not energies
            else Energies(
                mean=np.zeros(total),
                error=np.zeros(total),
                sigma=np.zeros(total),
                member_errors=np.zeros((members, total)),
            )
        )

    def add(self, index: Array, part: data.Data, found: prediction.Prediction) -> None:
        """Write one batch; ``index`` [b] are its frames."""
        mask = found.mask
        beads = mask.sum(axis=1)
        rank = np.arange(beads.sum()) - np.repeat(np.cumsum(beads) - beads, beads)
        rows = np.repeat(self.first[index], beads) + rank
        if self.forces is not None and found.forces is not None and part.F is not None:
            mine, label = self.forces, np.asarray(part.F, np.float64)
            mine.mean[rows] = found.forces_mean[mask]
            mine.error[rows] = (found.forces_mean - label)[mask]
            assert mine.sigma is not None
            mine.sigma[rows] = found.forces_std[mask]
            mine.species[rows] = part.species[mask]
            for place, forces in enumerate(found.forces):  # one by one: less memory
                away = np.where(mask[..., None], forces - label, 0.0)
                mine.member_squares[place, index] = (away**2).sum(axis=(1, 2))
                mine.member_sizes[place, index] = np.abs(away).sum(axis=(1, 2))
        if self.energies is not None and found.energies is not None and part.U is not None:
            own = self.energies
            own.mean[index] = found.energy_mean
            own.error[index] = found.energy_mean - part.U
            assert own.sigma is not None
            own.sigma[index] = found.energy_std
            own.member_errors[:, index] = found.energies - part.U

    def observed(
        self, seeds: tuple[int, ...], ddof: int, species: tuple[str, ...], spread: bool
    ) -> Observed:
        forces, energies = self.forces, self.energies
        if not spread:
            forces = None if forces is None else replace(forces, sigma=None)
            energies = None if energies is None else replace(energies, sigma=None)
        return Observed(
            frames=self.frames,
            forces=forces,
            energies=energies,
            seeds=seeds,
            ddof=ddof,
            species_names=species,
        )
