"""What an ensemble predicts for some frames: means, spreads over the members, in stated units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.units import ENERGY, LENGTH

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of T frames by M members, in float64; padded beads (mask False) are 0 everywhere.

    Standard deviations are over the members, with ``ddof`` taken off their number; ``epsilon`` is
    sqrt(mean over members |F - <F>|^2) of each bead, always with ddof 0, as DeePMD has it.
    """

    energy_mean: Array  # [T]
    energy_std: Array  # [T]
    forces_mean: Array  # [T,N,3]
    forces_std: Array  # [T,N,3]
    epsilon: Array  # [T,N]
    mask: Array  # [T,N] bool, real beads
    ddof: int
    seeds: tuple[int, ...]
    energy_unit: str  # forces are in this per ``length_unit``
    length_unit: str = "Angstrom"
    energies: Array | None = None  # [M,T] of the members, if they were wanted
    forces: Array | None = None  # [M,T,N,3]
    virial_std: Array | None = None  # [T,3,3] population's, in the unit of energy, if wanted

    @property
    def n_members(self) -> int:
        return len(self.seeds)

    @property
    def n_frames(self) -> int:
        return len(self.energy_mean)

    @property
    def force_unit(self) -> str:
        return f"{self.energy_unit}/{self.length_unit}"

    @property
    def epsilon_max(self) -> Array:
        """[T] of the real beads of each frame."""
        return np.asarray(np.where(self.mask, self.epsilon, -np.inf).max(axis=1))

    @property
    def epsilon_min(self) -> Array:
        """[T] of the real beads of each frame."""
        return np.asarray(np.where(self.mask, self.epsilon, np.inf).min(axis=1))

    @property
    def epsilon_mean(self) -> Array:
        """[T] over the real beads of each frame."""
        return np.asarray(
            np.where(self.mask, self.epsilon, 0.0).sum(axis=1) / self.mask.sum(axis=1)
        )

    def converted(self, energy: str, length: str = "Angstrom") -> Prediction:
        """The same in other units: means and standard deviations by the factor, so that variances
        go by its square.

        Raises KeyError for a unit that ``ensq.units`` does not know.
        """
        of_energy = ENERGY[self.energy_unit] / ENERGY[energy]
        of_force = of_energy / (LENGTH[self.length_unit] / LENGTH[length])
        return replace(
            self,
            energy_mean=self.energy_mean * of_energy,
            energy_std=self.energy_std * of_energy,
            forces_mean=self.forces_mean * of_force,
            forces_std=self.forces_std * of_force,
            epsilon=self.epsilon * of_force,
            energies=_times(self.energies, of_energy),
            forces=_times(self.forces, of_force),
            virial_std=_times(self.virial_std, of_energy),
            energy_unit=energy,
            length_unit=length,
        )


def _times(values: Array | None, factor: float) -> Array | None:
    return None if values is None else values * factor


def summarize(
    energies: Array,
    forces: Array,
    mask: Array,
    *,
    seeds: Sequence[int],
    energy_unit: str,
    ddof: int = 0,
    virials: Array | None = None,
    members: bool = False,
) -> Prediction:
    """Means and spreads over the members of energies [M,T], forces [M,T,N,3], virials [M,T,3,3].

    Raises ValueError if there are not more members than ``ddof``, or something is not finite.
    """
    if len(energies) <= ddof:
        raise ValueError(f"{len(energies)} members: a spread with ddof {ddof} needs more")
    energies = np.asarray(energies, np.float64)
    forces = np.where(mask[..., None], np.asarray(forces, np.float64), 0.0)
    if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
        raise ValueError("an energy or a force is not finite")
    variance = forces.var(axis=0)
    return Prediction(
        energy_mean=energies.mean(axis=0),
        energy_std=energies.std(axis=0, ddof=ddof),
        forces_mean=forces.mean(axis=0),
        forces_std=forces.std(axis=0, ddof=ddof),
        epsilon=np.sqrt(variance.sum(axis=-1)),
        mask=np.asarray(mask, bool),
        ddof=ddof,
        seeds=tuple(seeds),
        energy_unit=energy_unit,
        energies=energies if members else None,
        forces=forces if members else None,
        virial_std=None if virials is None else np.asarray(virials, np.float64).std(axis=0),
    )


def concatenate(parts: Sequence[Prediction]) -> Prediction:
    """The predictions of consecutive batches as one; all have the same number of places N.

    Raises ValueError for no parts.
    """
    if not parts:
        raise ValueError("no frames were predicted")
    first = parts[0]

    def joined(name: str, axis: int = 0) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values, axis=axis)

    plain = ("energy_mean", "energy_std", "forces_mean", "forces_std", "epsilon", "mask")
    return replace(
        first,
        **{name: joined(name) for name in (*plain, "virial_std")},
        **{name: joined(name, axis=1) for name in ("energies", "forces")},
    )


def take(found: Prediction, frames: Array) -> Prediction:
    """The predictions of these frames, in this order."""

    def rows(values: Array | None) -> Array | None:
        return None if values is None else values[frames]

    def columns(values: Array | None) -> Array | None:
        return None if values is None else values[:, frames]

    return replace(
        found,
        energy_mean=found.energy_mean[frames],
        energy_std=found.energy_std[frames],
        forces_mean=found.forces_mean[frames],
        forces_std=found.forces_std[frames],
        epsilon=found.epsilon[frames],
        mask=found.mask[frames],
        virial_std=rows(found.virial_std),
        energies=columns(found.energies),
        forces=columns(found.forces),
    )
