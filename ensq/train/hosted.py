"""Frames that stay on the host, and become arrays for the device some at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq import data
from ensq.config import RunConfig
from ensq.train.labelled import Labelled, label
from ensq.train.neighbours import build_neighbours
from ensq.train.survey import Survey


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The frames of one group; their layout has one width, as if it were made at once."""

    source: data.Source
    frames: NDArray[Any]  # [n] their numbers in the source
    beads: int  # N of the group
    width: int  # M of its layout
    periodic: bool
    cutoff: float
    shift: NDArray[Any] | None  # reference energies
    dtype: Any

    @property
    def n_frames(self) -> int:
        return len(self.frames)

    @property
    def frame_bytes(self) -> int:
        """What a frame takes on the device."""
        size, edges = np.dtype(self.dtype).itemsize, self.beads * self.width
        offset = 3 * size if self.periodic else 0
        return self.beads * (7 * size + 4) + size + edges * (8 + size + offset)

    def read(self, places: NDArray[Any], *, room: int = 0) -> Labelled:
        """The frames at these places of the group, as arrays of the host.

        ``room``: rows that the arrays have in all; those behind the frames hold zeros.
        """
        part = self.source.take(self.frames[places]).cut(self.beads)
        layout = build_neighbours(
            part.R, part.mask, self.cutoff, part.cell, width=self.width, periodic=self.periodic
        )
        found = label(part, layout, self.shift, self.dtype, np.asarray)
        missing = room - len(places)
        if missing <= 0:
            return found
        frames = found.frames._replace(
            **{name: _padded(values, missing) for name, values in found.frames._asdict().items()}
        )
        return Labelled(frames, _padded(found.F, missing), _padded(found.U, missing))


def _padded(values: Any, missing: int) -> Any:
    if values is None:
        return None
    return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """All groups of a data set that is fed to the device."""

    training: tuple[Kept, ...]
    validation: tuple[Kept, ...]
    real: tuple[float, ...]  # real beads of the training frames of each group


def keep(source: data.Source, split: data.Split, config: RunConfig, found: Survey) -> Hosted:
    """The groups of a survey."""
    sides = []
    for side, (frames, group) in enumerate(
        ((split.training, found.group), (split.validation, found.more))
    ):
        sides.append(
            tuple(
                Kept(
                    source=source,
                    frames=frames[group == number],
                    beads=int(bound),
                    width=int(found.width[side, number]),
                    periodic=bool(found.periodic[side, number]),
                    cutoff=config.model.cutoff,
                    shift=found.shift if len(found.shift) else None,
                    dtype=np.dtype(config.training.dtype),
                )
                for number, bound in enumerate(found.bounds)
            )
        )
    return Hosted(training=sides[0], validation=sides[1], real=tuple(float(n) for n in found.real))
