"""One frame whose beads move, as in dynamics: neighbours with room to spare, compiled once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.train.models import Frames
from ensq.train.neighbours import build_neighbours, count_neighbours, is_periodic
from ensq.train.predicting import Predictor, check_open_cell, near_origin

ROOM = 1.25  # places for neighbours, of those that are needed
STEP = 4  # places are a multiple of this


class Moving:
    """Energies and forces of all members for beads of fixed species.

    The list of neighbours reaches ``skin`` further than the model and is made again when a bead has
    moved by half of that, or the cell has changed: no pair within the cut-off is ever missed. Its
    width has room to spare, so that the program stays the same; only where that is not enough is it
    compiled again. Lengths in Angstrom.
    """

    def __init__(self, predictor: Predictor, species: NDArray[Any], skin: float) -> None:
        """``species`` [N]: the model's numbers."""
        self.predictor, self.skin = predictor, skin
        self.species = np.asarray(species, np.int32)[None]
        self.lists = 0  # how many were made
        self._mask = np.ones(self.species.shape, bool)
        self._width = 0
        self._made_for: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._shift: NDArray[Any] = np.zeros(3)
        self._frames: Frames | None = None
        self._constant = predictor.constant_of(self.species, self._mask)[0]

    def __call__(
        self, positions: NDArray[Any], cell: NDArray[Any], *, virial: bool = False
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """Energies [M], forces [M,N,3] and virials [M,3,3], in the run's unit, in float64.

        ``positions`` [N,3]; ``cell`` [3,3] with zero rows for open directions.
        Raises DataError for a periodic cell if the model has priors.
        """
        if self._stale(positions, cell):
            self._renew(positions, cell)
        assert self._frames is not None
        moved = (positions - self._shift)[None]
        with self.predictor.precision():
            frames = self._frames._replace(R=self.predictor.asarray(moved))
        energies, forces, virials = self.predictor.run(frames, virial=virial)
        return (
            energies[:, 0] + self._constant,
            forces[:, 0],
            None if virials is None else virials[:, 0],
        )

    def _stale(self, positions: NDArray[Any], cell: NDArray[Any]) -> bool:
        if self._made_for is None or not np.array_equal(cell, self._made_for[1]):
            return True
        moved = np.square(positions - self._made_for[0]).sum(axis=-1).max()
        return not moved < (0.5 * self.skin) ** 2  # NaN is stale

    def _renew(self, positions: NDArray[Any], cell: NDArray[Any]) -> None:
        cells = cell[None]
        if self.predictor.model.priors is not None:
            check_open_cell(cells, 0)
        near = near_origin(positions[None], self._mask, cells)
        reach, periodic = self.predictor.model.cutoff + self.skin, is_periodic(cells)
        counts = count_neighbours(near, self._mask, reach, cells, periodic=periodic)
        need = int(counts.max(initial=0))
        if need > self._width or self._width == 0:
            self._width = _with_room(need, None if periodic else positions.shape[0] - 1)
        neighbours = build_neighbours(
            near, self._mask, reach, cells, width=self._width, periodic=periodic
        )
        self._frames = self.predictor.laid_out(near, self.species, self._mask, neighbours)
        self._shift = positions - near[0]
        self._made_for = positions.copy(), cell.copy()
        self.lists += 1


def _with_room(need: int, most: int | None) -> int:
    """Places for so many neighbours; ``most``: that there can ever be."""
    room = -(-int(ROOM * need + 1) // STEP) * STEP
    return max(1, room if most is None else min(room, most))
