"""The padded neighbour layout: for each bead a row of its neighbours, built once on the host.

Beads of a data set never move, so no training step searches for neighbours. A row per bead makes
every sum over neighbours a plain sum over an axis, and the map to each edge's reverse makes the
derivative of a gather a gather again: no step needs a scatter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PAIRS_PER_CHUNK = 1 << 22  # bead pairs looked at together: bounds the memory to some 100 MB


class Neighbours(NamedTuple):
    """Directed edges of T frames, at most M from each bead (M is the largest count of all frames).

    ``index`` [T, N, M] int32: the neighbour's bead; ``reverse`` [T, N, M] int32: where the edge
    back stands, as ``j * M + m'``; ``mask`` [T, N, M] bool: whether the place holds an edge.
    An empty place points to its own bead and to itself, so that every index is a valid one.
    """

    index: npt.NDArray[np.int32]  # type: ignore[assignment]  # not tuple.index
    reverse: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]

    @property
    def average(self) -> float:
        """Neighbours per bead, over the beads that have any (1 where there is no edge at all)."""
        counts = self.mask.sum(axis=-1)
        beads = int(np.count_nonzero(counts))
        return float(counts.sum()) / beads if beads else 1.0


def build_neighbours(
    positions: npt.NDArray[np.floating], mask: npt.NDArray[np.generic], cutoff: float
) -> Neighbours:
    """All pairs of real beads nearer than ``cutoff``, with open boundaries.

    ``positions`` [T, N, 3] and ``cutoff`` in one unit of length; ``mask`` [T, N], 0 on padding.
    Raises ValueError if the shapes do not fit or the cutoff is not positive.
    """
    if positions.ndim != 3 or positions.shape[2] != 3 or mask.shape != positions.shape[:2]:
        raise ValueError(
            "positions must be [frames, beads, 3] and mask [frames, beads]; "
            f"got {positions.shape} and {mask.shape}"
        )
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive, not {cutoff}")
    frames, beads = mask.shape
    step = max(1, PAIRS_PER_CHUNK // max(1, beads * beads))
    chunks = [slice(start, start + step) for start in range(0, frames, step)]
    real = mask.astype(bool)
    width = max(
        (int(_adjacency(positions[c], real[c], cutoff).sum(-1).max(initial=0)) for c in chunks),
        default=0,
    )
    width = max(width, 1)  # an axis of no length would make sums over it a special case
    out = Neighbours(
        np.empty((frames, beads, width), np.int32),
        np.empty((frames, beads, width), np.int32),
        np.empty((frames, beads, width), bool),
    )
    for c in chunks:
        out.index[c], out.reverse[c], out.mask[c] = _rows(
            _adjacency(positions[c], real[c], cutoff), width
        )
    return out


def _adjacency(
    positions: npt.NDArray[np.floating], real: npt.NDArray[np.bool_], cutoff: float
) -> npt.NDArray[np.bool_]:
    """Which pairs [t, N, N] are edges. Squared distances one axis at a time: less memory."""
    squared = np.zeros((*real.shape, real.shape[1]))
    for axis in range(3):
        x = positions[..., axis].astype(np.float64)
        squared += np.square(x[:, :, None] - x[:, None, :])
    adjacent = (squared < cutoff * cutoff) & real[:, :, None] & real[:, None, :]
    diagonal = np.arange(real.shape[1])
    adjacent[:, diagonal, diagonal] = False
    return adjacent


def _rows(
    adjacent: npt.NDArray[np.bool_], width: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Rows of ``width`` places from an adjacency [t, N, N], in the order of bead indices."""
    frames, beads, _ = adjacent.shape
    # slot[t, i, j]: the place of j in the row of i, where they are neighbours
    slot = np.cumsum(adjacent, axis=-1, dtype=np.int32) - 1
    own = np.arange(beads, dtype=np.int32)[:, None]
    index = np.broadcast_to(own, (frames, beads, width)).copy()
    reverse = np.broadcast_to(
        own * width + np.arange(width, dtype=np.int32), (frames, beads, width)
    ).copy()
    t, i, j = np.nonzero(adjacent)
    m = slot[t, i, j]
    index[t, i, m] = j
    reverse[t, i, m] = j * width + slot[t, j, i]
    mask = np.arange(width) < adjacent.sum(axis=-1)[..., None]
    return index, reverse, mask
