"""The padded neighbour layout: for each bead a row of its neighbours, built once on the host.

Beads of a data set never move, so no training step searches for neighbours. A row per bead makes
every sum over neighbours a plain sum over an axis, and the map to each edge's reverse makes the
derivative of a gather a gather again: no step needs a scatter.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PAIRS_PER_CHUNK = 1 << 22  # bead pairs looked at together: bounds the memory to some 100 MB


class Neighbours(NamedTuple):
    """Directed edges of T frames, at most M from each bead (M is the largest count of all frames).

    ``index`` [T, N, M] int32: the neighbour's bead; ``reverse`` [T, N, M] int32: where the edge
    back stands, as ``j * M + m'``; ``mask`` [T, N, M] bool: whether the place holds an edge.
    An empty place points to its own bead and to itself, so that every index is a valid one.
    ``offset`` [T, N, M, 3] float64, if any boundary is periodic: how far the neighbour's image is
    from the neighbour, so that the edge is ``R[neighbour] + offset - R[bead]``; 0 where empty. A
    pair may then have several edges, and a bead may be its own neighbour.
    """

    index: npt.NDArray[np.int32]  # type: ignore[assignment]  # not tuple.index
    reverse: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    offset: npt.NDArray[np.float64] | None = None

    @property
    def average(self) -> float:
        """Neighbours per bead, over the beads that have any (1 where there is no edge at all)."""
        counts = self.mask.sum(axis=-1)
        beads = int(np.count_nonzero(counts))
        return float(counts.sum()) / beads if beads else 1.0


def build_neighbours(
    positions: npt.NDArray[np.floating],
    mask: npt.NDArray[np.generic],
    cutoff: float,
    cell: npt.NDArray[np.floating] | None = None,
    *,
    width: int | None = None,
    periodic: bool | None = None,
) -> Neighbours:
    """All pairs of real beads nearer than ``cutoff``, periodic images included.

    ``positions`` [T, N, 3], which need not be wrapped into the cell, ``cell`` and ``cutoff`` in
    one unit of length; ``mask`` [T, N], 0 on padding. ``cell`` [T, 3, 3]: rows are lattice
    vectors, a zero row is an open direction; None: all are open. ``width`` (M) and ``periodic``
    (whether there is an ``offset``) are those of the larger set that these frames are of; None:
    as these frames need them.
    Raises ValueError if the shapes do not fit, the cutoff is not positive or a cell has no volume.
    """
    _check(positions, mask, cutoff, cell)
    real = mask.astype(bool)
    if is_periodic(cell) if periodic is None else periodic:
        return _periodic(positions, real, cutoff, _cells(cell, len(real)), width)
    frames, beads = mask.shape
    chunks = _chunks(frames, beads)
    if width is None:
        width = max((int(c.max(initial=0)) for c in _counts(positions, real, cutoff)), default=0)
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


def count_neighbours(
    positions: npt.NDArray[np.floating],
    mask: npt.NDArray[np.generic],
    cutoff: float,
    cell: npt.NDArray[np.floating] | None,
    *,
    periodic: bool,
) -> npt.NDArray[np.integer]:
    """[T, N] edges of each bead: the row sums of ``build_neighbours(…).mask``, without a layout."""
    _check(positions, mask, cutoff, cell)
    real = mask.astype(bool)
    if not periodic:
        return np.concatenate(list(_counts(positions, real, cutoff)))
    edges = _all_edges(positions, real, cutoff, _cells(cell, len(real)))
    beads = mask.shape[1]
    return np.concatenate(
        [
            np.bincount(found.bead, minlength=beads * (c.stop - c.start)).reshape(-1, beads)
            for c, found in edges
        ]
    )


def is_periodic(cell: npt.NDArray[np.floating] | None) -> bool:
    """Whether some direction of some of these frames is periodic."""
    return cell is not None and bool(np.any(cell))


def _check(
    positions: npt.NDArray[np.floating],
    mask: npt.NDArray[np.generic],
    cutoff: float,
    cell: npt.NDArray[np.floating] | None,
) -> None:
    if positions.ndim != 3 or positions.shape[2] != 3 or mask.shape != positions.shape[:2]:
        raise ValueError(
            "positions must be [frames, beads, 3] and mask [frames, beads]; "
            f"got {positions.shape} and {mask.shape}"
        )
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive, not {cutoff}")
    if cell is not None and cell.shape != (len(positions), 3, 3):
        raise ValueError(f"cell must be [{len(positions)}, 3, 3], not {cell.shape}")


def _chunks(frames: int, beads: int, pairs: int = 1) -> list[slice]:
    """Pieces of frames that fit into memory with ``pairs`` numbers for each pair of beads."""
    step = max(1, PAIRS_PER_CHUNK // pairs // max(1, beads * beads))
    return [slice(start, min(start + step, frames)) for start in range(0, frames, step)]


def _counts(
    positions: npt.NDArray[np.floating], real: npt.NDArray[np.bool_], cutoff: float
) -> Iterator[npt.NDArray[np.integer]]:
    """[t, N] neighbours of the beads of some frames at a time."""
    for c in _chunks(real.shape[0], real.shape[1]):
        yield _adjacency(positions[c], real[c], cutoff).sum(-1)


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


# -- periodic boundaries -----------------------------------------------------------------------


class _Edges(NamedTuple):
    """Edges [E] of a chunk, ordered by bead, neighbour and image."""

    bead: npt.NDArray[np.int64]  # t * N + i, frames counted in the chunk
    neighbour: npt.NDArray[np.int32]
    image: npt.NDArray[np.int32]  # [E, 3] lattice vectors to the neighbour's image
    slot: npt.NDArray[np.int32]  # the place in the bead's row
    back: npt.NDArray[np.int32]  # the reverse edge's place in the neighbour's row


def _periodic(
    positions: npt.NDArray[np.floating],
    real: npt.NDArray[np.bool_],
    cutoff: float,
    cell: npt.NDArray[np.float64],
    width: int | None,
) -> Neighbours:
    frames, beads = real.shape
    found = list(_all_edges(positions, real, cutoff, cell))
    if width is None:
        width = max((int(edges.slot.max(initial=-1)) + 1 for _, edges in found), default=0)
        width = max(width, 1)
    own = np.arange(beads, dtype=np.int32)[:, None]
    places = np.arange(beads * width, dtype=np.int32).reshape(beads, width)
    index = np.broadcast_to(own, (frames, beads, width)).copy()
    reverse = np.broadcast_to(places, (frames, beads, width)).copy()
    mask = np.zeros((frames, beads, width), bool)
    offset = np.zeros((frames, beads, width, 3))
    for c, edges in found:
        t, i = np.divmod(edges.bead, beads)
        index[c][t, i, edges.slot] = edges.neighbour
        reverse[c][t, i, edges.slot] = edges.neighbour * np.int32(width) + edges.back
        mask[c][t, i, edges.slot] = True
        offset[c][t, i, edges.slot] = np.einsum("ek,ekx->ex", edges.image, cell[c][t])
    return Neighbours(index, reverse, mask, offset)


def _cells(cell: npt.NDArray[np.floating] | None, frames: int) -> npt.NDArray[np.float64]:
    return np.zeros((frames, 3, 3)) if cell is None else cell.astype(np.float64)


def _all_edges(
    positions: npt.NDArray[np.floating],
    real: npt.NDArray[np.bool_],
    cutoff: float,
    cell: npt.NDArray[np.float64],
) -> Iterator[tuple[slice, _Edges]]:
    """The edges of some frames at a time: six numbers for each pair are held, not one."""
    for c in _chunks(real.shape[0], real.shape[1], pairs=8):
        yield c, _edges(positions[c].astype(np.float64), real[c], cutoff, cell[c])


def _edges(
    x: npt.NDArray[np.float64],
    real: npt.NDArray[np.bool_],
    cutoff: float,
    cell: npt.NDArray[np.float64],
) -> _Edges:
    """All edges of some frames.

    Every expression changes nothing but its sign when i and j change places, so that an edge and
    its reverse are found or missed together, to the last bit.
    """
    inverse, most = _images(cutoff, cell)
    fractional = x @ inverse
    # The image whose fractional coordinates differ by at most 1/2; rint is an odd function.
    nearest = [-np.rint(_differences(fractional[..., k])) for k in range(3)]
    vector = [_differences(x[..., axis]) for axis in range(3)]
    for axis, k in product(range(3), range(3)):
        vector[axis] += nearest[k] * cell[:, k, axis, None, None]
    both = real[:, :, None] & real[:, None, :]
    steps = list(product(*(range(-m, m + 1) for m in most.max(axis=0))))
    keys = []
    for count, step in enumerate(steps):
        shift = np.einsum("k,tkx->tx", np.array(step, float), cell)
        squared = sum(np.square(vector[axis] + shift[:, axis, None, None]) for axis in range(3))
        # No further than each frame needs, and never along its open directions.
        wanted = (np.abs(step) <= most).all(axis=-1)
        near = both & (squared < cutoff * cutoff) & wanted[:, None, None]
        if not any(step):
            diagonal = np.arange(real.shape[1])
            near[:, diagonal, diagonal] = False
        keys.append(np.flatnonzero(near) * len(steps) + count)
    key = np.concatenate(keys)
    place, number = np.divmod(np.sort(key, kind="stable"), len(steps))
    image = np.stack([one.reshape(-1)[place] for one in nearest], axis=-1)
    image += np.array(steps)[number]
    return _numbered(place, number, image.astype(np.int32), real.shape[1], len(steps))


def _images(
    cutoff: float, cell: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Inverse cells [t, 3, 3], and how many images each way [t, 3] are enough.

    A vector shorter than the cutoff crosses less than cutoff / height cells along each direction,
    its height being the distance of the lattice planes; half a cell is the pair's own share.
    """
    periodic = cell.any(axis=-1)
    inverse = np.linalg.pinv(cell)
    if not np.allclose(cell @ inverse, np.eye(3) * periodic[:, None, :], atol=1e-6):
        raise ValueError("a cell has no volume: its lattice vectors lie in a plane or on a line")
    crossed = cutoff * np.linalg.norm(inverse, axis=1)  # 0 in open directions
    most = np.ceil(crossed + 0.5 + 1e-9).astype(np.intp) - 1
    return inverse, np.where(periodic, most, 0)


def _differences(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[t, N, N] of values [t, N]: the second bead's less the first's."""
    return values[:, None, :] - values[:, :, None]


def _numbered(
    place: npt.NDArray[np.int64],
    number: npt.NDArray[np.int64],
    image: npt.NDArray[np.int32],
    beads: int,
    steps: int,
) -> _Edges:
    """Edges with their places in the rows and those of their reverses.

    ``place`` [E] is ``(t * N + i) * N + j`` and ``number`` [E] the step from the nearest image, of
    ``steps``; both in ascending order. The reverse has the opposite step, which counts from the
    other end.
    """
    bead, j = np.divmod(place, beads)
    slot = np.arange(len(bead)) - np.searchsorted(bead, bead)
    frame, i = np.divmod(bead, beads)
    opposite = ((frame * beads + j) * beads + i) * steps + (steps - 1 - number)
    # The k-th of the edges that are sorted by their reverses is the reverse of the k-th edge.
    partner = np.empty(len(place), np.int64)
    partner[np.argsort(opposite, kind="stable")] = np.arange(len(place))
    if not np.array_equal(opposite, (place * steps + number)[partner]):
        raise AssertionError("an edge has no reverse edge")
    back = slot[partner]
    return _Edges(bead, j.astype(np.int32), image, slot.astype(np.int32), back.astype(np.int32))
