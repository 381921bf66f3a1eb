"""What is kept of every frame while predictions go by: a few numbers each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.prediction import Prediction

Array = NDArray[Any]
Part = tuple[Array, Prediction]
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True)
class PerFrame:
    """Of T frames, in the units of the predictions that it was filled from."""

    energy_mean: Array  # [T]
    energy_std: Array  # [T]
    epsilon_max: Array  # [T]
    epsilon_mean: Array  # [T]
    epsilon_min: Array  # [T]
    beads: Array  # [T] real ones
    virial_std: Array  # [T,3,3], 0 where virials were not asked for

    @classmethod
    def empty(cls, frames: int) -> PerFrame:
        names = ("energy_mean", "energy_std", "epsilon_max", "epsilon_mean", "epsilon_min")
        return cls(
            **{name: np.zeros(frames) for name in names},
            beads=np.zeros(frames, np.int64),
            virial_std=np.zeros((frames, 3, 3)),
        )

    @property
    def frames(self) -> int:
        return len(self.energy_mean)

    def watch(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The same parts, noted as they pass."""
        for index, part in parts:
            for name in ("energy_mean", "energy_std", "epsilon_max", "epsilon_mean", "epsilon_min"):
                getattr(self, name)[index] = getattr(part, name)
            self.beads[index] = part.mask.sum(axis=1)
            if part.virial_std is not None:
                self.virial_std[index] = part.virial_std
            yield index, part

    def uncertainty(self, by: str) -> Array:
        """[T] ``max`` or ``mean`` of epsilon over beads, or ``energy``: its std per bead."""
        if by == "energy":
            return np.asarray(self.energy_std / self.beads)
        return np.asarray({"max": self.epsilon_max, "mean": self.epsilon_mean}[by])

    def summary(self) -> dict[str, dict[str, float | int]]:
        """Mean, quantiles and the largest value, with its frame, of each kind of spread."""
        kinds = {
            "energy_std": self.energy_std,
            "energy_std_per_bead": self.energy_std / self.beads,
            "epsilon_max": self.epsilon_max,
            "epsilon_mean": self.epsilon_mean,
        }
        return {name: _summary(values) for name, values in kinds.items()}


def _summary(values: Array) -> dict[str, float | int]:
    worst = int(np.argmax(values))
    quantiles = np.quantile(values, QUANTILES)
    return {
        "mean": float(values.mean()),
        **{f"q{round(100 * q)}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
        "max": float(values[worst]),
        "max_frame": worst,
    }
