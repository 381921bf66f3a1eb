"""What an ensemble predicts for some frames: means, spreads over the members, in stated units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    sqrt(mean over members |F - <F>|^2) of each bead, always with ddof 0, as DeePMD has it. One
    member has no spread (``has_spread``): all of these are NaN then, which nobody takes for 0.
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
    # [T,3,3] minus the derivative of the energy by a strain, in the unit of energy, if wanted
    virial_mean: Array | None = None
    virial_std: Array | None = None  # always with ddof 0

    @property
    def n_members(self) -> int:
        return len(self.seeds)

    @property
    def n_frames(self) -> int:
        return len(self.energy_mean)

    @property
    def has_spread(self) -> bool:
        """Whether members can differ at all: it takes two."""
        return self.n_members > 1

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
            virial_mean=_times(self.virial_mean, of_energy),
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

    Raises ValueError if there are several members and not more than ``ddof``, or something is not
    finite.
    """
    count = len(energies)
    if 1 < count <= ddof:
        raise ValueError(f"{count} members: a spread with ddof {ddof} needs more")
    mask = np.asarray(mask, bool)
    energies = np.asarray(energies, np.float64)
    forces = np.where(mask[..., None], np.asarray(forces, np.float64), 0.0)
    if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
        raise ValueError("an energy or a force is not finite")
    if virials is not None:
        virials = np.asarray(virials, np.float64)
        if not np.isfinite(virials).all():
            raise ValueError("a virial is not finite")
    squares = forces.var(axis=0)  # with ddof 0
    if count == 1:
        squares = np.where(mask[..., None], np.nan, 0.0)
    return Prediction(
        energy_mean=energies.mean(axis=0),
        energy_std=_std(energies, ddof),
        forces_mean=forces.mean(axis=0),
        forces_std=np.sqrt(squares * (count / (count - ddof) if count > 1 else 1.0)),
        epsilon=np.sqrt(squares.sum(axis=-1)),
        mask=mask,
        ddof=ddof,
        seeds=tuple(seeds),
        energy_unit=energy_unit,
        energies=energies if members else None,
        forces=forces if members else None,
        virial_mean=None if virials is None else virials.mean(axis=0),
        virial_std=None if virials is None else _std(virials, 0),
    )


def _std(values: Array, ddof: int) -> Array:
    """Over the first axis; NaN for one member."""
    if len(values) == 1:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(values.std(axis=0, ddof=ddof))


# What has frames on its first axis, and on its second.
BY_FRAME = (
    *("energy_mean", "energy_std", "forces_mean", "forces_std", "epsilon", "mask"),
    *("virial_mean", "virial_std"),
)
BY_MEMBER = ("energies", "forces")


def arrays_of(found: Prediction) -> Iterator[tuple[str, Array, bool]]:
    """The arrays that there are: name, values, and whether frames are on the second axis."""
    for names, second in ((BY_FRAME, False), (BY_MEMBER, True)):
        for name in names:
            values = getattr(found, name)
            if values is not None:
                yield name, values, second


def gather(parts: Iterable[tuple[Array, Prediction]], frames: int) -> Prediction:
    """One prediction of all frames from those of some of them, each with the frames' numbers.

    Each array is there once, whatever the number of parts. Raises ValueError for no parts.
    """
    whole: dict[str, Any] = {}
    first = None
    for index, part in parts:
        first = first or part
        for name, values, second in arrays_of(part):
            shape = values.shape
            if name not in whole:
                full = (shape[0], frames, *shape[2:]) if second else (frames, *shape[1:])
                whole[name] = np.zeros(full, values.dtype)
            if second:
                whole[name][:, index] = values
            else:
                whole[name][index] = values
    if first is None:
        raise ValueError("no frames were predicted")
    return replace(first, **whole)


def take(found: Prediction, frames: Array) -> Prediction:
    """The predictions of these frames, in this order."""
    chosen: dict[str, Any] = {
        name: values[:, frames] if second else values[frames]
        for name, values, second in arrays_of(found)
    }
    return replace(found, **chosen)
