"""What exports are held against: energies and forces by the model as it was trained."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from ensq.config.structs import GammasConfig
from ensq.data import Data
from ensq.train import statistics
from ensq.train.checkpoint import MemberResult
from ensq.train.export import model_of, parameters_of
from ensq.train.labelled import frames_of
from ensq.train.models import Frames
from ensq.train.neighbours import Neighbours, build_neighbours
from ensq.train.statistics import Scores

FRAMES_AT_ONCE = 8  # of one compiled program, which all members and all sets of frames share


class Predictions(NamedTuple):
    """Of T frames, in float64."""

    energy: NDArray[Any]  # [T]
    force: NDArray[Any]  # [T,N,3], 0 on padding


class Errors(NamedTuple):
    """What results keep of every frame."""

    force: NDArray[Any]  # [T] sum of squared errors over real components
    energy: NDArray[Any]  # [T] U - U_ref
    components: NDArray[Any]  # [T] real force components
    beads: NDArray[Any]  # [T] real beads

    def scores(self, gammas: GammasConfig) -> Scores:
        return statistics.scores(*self, gammas)


class Reference:
    """Some frames with their neighbours, laid out once for all members of an ensemble."""

    def __init__(self, frames: Data, cutoff: float) -> None:
        self.frames = frames
        self._layout = build_neighbours(frames.R, frames.mask, cutoff, frames.cell)

    def predict(
        self, result: MemberResult, places: NDArray[Any] | None = None, *, priors: bool = True
    ) -> Predictions:
        """Energies, reference energies included, and forces of the frames at ``places`` (all).

        Without its priors those of the network alone.
        """
        chosen = np.arange(self.frames.n_frames) if places is None else places
        batch = min(FRAMES_AT_ONCE, self.frames.n_frames)
        compute, params = _compute(_Model(result), priors), parameters_of(result)
        found = []
        for start in range(0, len(chosen), batch):
            # the last batch is filled with its last frame: one shape, one program
            index = chosen[np.minimum(np.arange(start, start + batch), len(chosen) - 1)]
            found.append(compute(params, self._batch(index)))
        energy, force = (
            np.concatenate([np.asarray(part, np.float64) for part in parts])[: len(chosen)]
            for parts in zip(*found, strict=True)
        )
        return Predictions(energy, force)

    def _batch(self, index: NDArray[Any]) -> Frames:
        part = self.frames.take(index)
        layout = self._layout
        rows = Neighbours(
            layout.index[index],
            layout.reverse[index],
            layout.mask[index],
            None if layout.offset is None else layout.offset[index],
        )
        return frames_of(part.R, part.species, part.mask, rows, np.float32)


def errors(predictions: Predictions, frames: Data) -> Errors:
    """Errors of predictions against the labels of the frames; 0 where there are no labels."""
    force = np.zeros(frames.n_frames)
    if frames.F is not None:
        difference = np.where(frames.mask[..., None], predictions.force - frames.F, 0.0)
        force = np.square(difference).sum(axis=(1, 2))
    energy = np.zeros(frames.n_frames)
    if frames.U is not None:
        energy = predictions.energy - frames.U
    beads = frames.mask.sum(axis=1)
    return Errors(force, energy, 3 * beads, beads)


class _Model:
    """A member's model as a key: members of one ensemble have the same."""

    def __init__(self, result: MemberResult) -> None:
        self.result = result
        self._key = (result.config, repr(sorted(result.statistics.items())))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Model) and self._key == other._key


@functools.lru_cache(maxsize=2)
def _compute(model: _Model, priors: bool) -> Any:
    """Energies and forces of a batch, compiled once for all members of an ensemble."""
    potential = model_of(model.result)
    if not priors:
        potential = potential.without_priors()
    return jax.jit(potential.energy_and_forces)
