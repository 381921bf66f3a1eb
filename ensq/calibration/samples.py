"""What an ensemble said of some frames, beside their labels: real beads alone, in flat arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.calibration.accuracy import Errors

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """T frames and what groups them."""

    index: Array  # [T] place in the data file
    beads: Array  # [T] real ones
    protein: Array  # [T] place in ``protein_names``
    protein_names: tuple[str, ...]
    replica: Array | None  # [T] number of the trajectory

    @property
    def count(self) -> int:
        return len(self.index)

    @property
    def trajectories(self) -> Array:
        """[T] numbers from 0, one for each pair of protein and replica."""
        replica = np.zeros(self.count, np.int64) if self.replica is None else self.replica
        pairs = np.stack([np.asarray(self.protein, np.int64), np.asarray(replica, np.int64)])
        return np.asarray(np.unique(pairs, axis=1, return_inverse=True)[1]).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Forces:
    """Of the n real beads of all frames, frame after frame; float32 as the models have it."""

    mean: Array  # [n,3] over the members
    error: Array  # [n,3] mean minus label
    sigma: Array | None  # [n,3] over the members; None for a single one
    frame: Array  # [n]
    place: Array  # [n] index of the bead in its molecule
    species: Array  # [n] place in the names of species
    member_squares: Array  # [M,T] squared errors of the members, added up over each frame
    member_sizes: Array  # [M,T] absolute errors

    @property
    def errors(self) -> Errors:
        return Errors(self.error, self.sigma, self.frame)


@dataclass(frozen=True, kw_only=True)
class Energies:
    """Of T frames, in all."""

    mean: Array  # [T]
    error: Array  # [T] mean minus label
    sigma: Array | None  # [T]
    member_errors: Array  # [M,T]

    @property
    def errors(self) -> Errors:
        return Errors(self.error, self.sigma, np.arange(len(self.error)))


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Predictions and labels of some frames; sigma has ``ddof`` taken off the members."""

    frames: Frames
    forces: Forces | None
    energies: Energies | None
    seeds: tuple[int, ...]
    ddof: int
    species_names: tuple[str, ...]

    def take(self, chosen: Array) -> Observed:
        """The same of some frames, given by their sorted numbers among these."""
        whole = self.frames
        frames = replace(
            whole,
            index=whole.index[chosen],
            beads=whole.beads[chosen],
            protein=whole.protein[chosen],
            replica=None if whole.replica is None else whole.replica[chosen],
        )
        return replace(
            self,
            frames=frames,
            forces=None if self.forces is None else _forces_of(self.forces, chosen, whole.count),
            energies=None if self.energies is None else _energies_of(self.energies, chosen),
        )


def _forces_of(forces: Forces, chosen: Array, total: int) -> Forces:
    number = np.full(total, -1)
    number[chosen] = np.arange(len(chosen))
    kept = number[forces.frame] >= 0
    return replace(
        forces,
        mean=forces.mean[kept],
        error=forces.error[kept],
        sigma=None if forces.sigma is None else forces.sigma[kept],
        frame=number[forces.frame[kept]],
        place=forces.place[kept],
        species=forces.species[kept],
        member_squares=forces.member_squares[:, chosen],
        member_sizes=forces.member_sizes[:, chosen],
    )


def _energies_of(energies: Energies, chosen: Array) -> Energies:
    return replace(
        energies,
        mean=energies.mean[chosen],
        error=energies.error[chosen],
        sigma=None if energies.sigma is None else energies.sigma[chosen],
        member_errors=energies.member_errors[:, chosen],
    )
