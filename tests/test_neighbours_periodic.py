"""Neighbours across periodic boundaries: against a plain search over images and against ASE."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from ase.geometry.cell import complete_cell
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from ensq.train import neighbours
from ensq.train.neighbours import Neighbours, build_neighbours

OPEN = [(), (2,), (0, 1), (1,), (0, 2)]


def random_cells(frames: int, seed: int, length: float = 3.0) -> np.ndarray:
    """Triclinic cells, some strongly skewed, none flat; open directions in some frames."""
    rng = np.random.default_rng(seed)
    cells = []
    while len(cells) < frames:
        cell = rng.uniform(-1, 1, size=(3, 3)) * length
        volume = abs(np.linalg.det(cell)) / np.prod(np.linalg.norm(cell, axis=1))
        if volume > 0.15 and np.linalg.norm(cell, axis=1).min() > 0.3 * length:
            cell[list(OPEN[len(cells) % len(OPEN)])] = 0
            cells.append(cell)
    return np.array(cells)


def random_frames(
    frames: int = 10, beads: int = 5, seed: int = 0, spread: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """Beads far outside the cell, padding at the origin."""
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(frames, beads, 3)) * spread
    mask = np.arange(beads) < rng.integers(1, beads + 1, size=(frames, 1))
    mask[-1] = True
    positions[~mask] = 0.0
    return positions, mask


def edges(found: Neighbours, frame: int) -> Counter[tuple[int, int, tuple[float, ...]]]:
    """Edges of a frame as bead, neighbour and rounded offset."""
    assert found.offset is not None
    return Counter(
        (i, int(found.index[frame, i, m]), tuple(np.round(found.offset[frame, i, m], 6) + 0.0))
        for i, m in np.argwhere(found.mask[frame]).tolist()
    )


def plain_search(
    x: np.ndarray, mask: np.ndarray, cell: np.ndarray, cutoff: float
) -> Counter[tuple[int, int, tuple[float, ...]]]:
    """Every image up to a distance beyond doubt, one by one."""
    periodic = cell.any(axis=1)
    height = 1 / np.linalg.norm(np.linalg.pinv(cell), axis=0)[periodic].max()
    far = np.abs(x[mask][:, None] - x[mask]).max() * 2 + cutoff
    reach = int(np.ceil(far / height)) + 1
    every = product(*(range(-reach, reach + 1) if p else (0,) for p in periodic))
    shifts = np.array(list(every), float) @ cell
    out: Counter[tuple[int, int, tuple[float, ...]]] = Counter()
    for i, j in product(np.flatnonzero(mask).tolist(), repeat=2):
        distance = np.linalg.norm(x[j] + shifts - x[i], axis=1)
        near = shifts[(distance < cutoff) & ((i != j) | shifts.any(axis=1))]
        out.update((i, j, tuple(np.round(shift, 6) + 0.0)) for shift in near)
    return out


@pytest.mark.parametrize("cutoff", [1.0, 1.5, 4.0])
def test_edges_are_those_of_a_plain_search_over_images(cutoff: float) -> None:
    cells = random_cells(10, seed=1)
    positions, mask = random_frames(spread=2.0)
    found = build_neighbours(positions, mask, cutoff, cells)
    total = 0
    for t, cell in enumerate(cells):
        expected = plain_search(positions[t], mask[t], cell, cutoff)
        assert edges(found, t) == expected
        assert max(expected.values(), default=1) == 1
        total += expected.total()
    if cutoff == 4.0:  # larger than the cells: several images of one pair, and of a bead itself
        assert found.mask.sum(-1).max() > 50
        pairs = Counter((i, j) for i, j, _ in edges(found, 0))
        assert max(pairs.values()) > 5
        assert pairs[0, 0] > 1
    assert total == found.mask.sum() > 0


@pytest.mark.parametrize("seed", range(3))
def test_edges_are_those_of_ase(seed: int) -> None:
    cells = random_cells(15, seed, length=5.0)
    positions, mask = random_frames(15, 8, seed, spread=20.0)
    found = build_neighbours(positions, mask, 3.5, cells)
    for t, cell in enumerate(cells):
        i, j, shift = primitive_neighbor_list(
            "ijS",
            cell.any(axis=1),
            # ASE wants vectors of open directions, too
            np.where(cell.any(axis=1)[:, None], cell, complete_cell(cell) * 1000),
            positions[t][mask[t]],
            3.5,
            self_interaction=False,
        )
        offsets = np.round(shift @ cell, 6) + 0.0
        expected = Counter(zip(i.tolist(), j.tolist(), map(tuple, offsets), strict=True))
        assert edges(found, t) == expected


def test_the_reverse_of_an_edge_leads_back_to_the_opposite_image() -> None:
    cells = random_cells(10, seed=2)
    positions, mask = random_frames()
    found = build_neighbours(positions.astype(np.float32), mask, 3.0, cells)
    assert found.offset is not None
    width = found.index.shape[2]
    backs = set()
    for t, i, m in np.argwhere(found.mask).tolist():
        j, back = divmod(int(found.reverse[t, i, m]), width)
        assert found.mask[t, j, back]
        assert found.index[t, i, m] == j and found.index[t, j, back] == i
        assert found.reverse[t, j, back] == i * width + m
        np.testing.assert_array_equal(found.offset[t, i, m], -found.offset[t, j, back])
        backs.add((t, j, back))
    assert len(backs) == found.mask.sum()
    assert (found.mask & (found.index == np.arange(5)[:, None])).any()  # beads with themselves


def test_offsets_make_vectors_shorter_than_the_cutoff() -> None:
    cells = random_cells(10, seed=3)
    positions, mask = random_frames()
    found = build_neighbours(positions, mask, 2.0, cells)
    assert found.offset is not None and found.offset.dtype == np.float64
    t = np.arange(10)[:, None, None]
    vectors = positions[t, found.index] - positions[:, :, None] + found.offset
    length = np.linalg.norm(vectors, axis=-1)
    assert (length[found.mask] < 2.0).all()
    # without the offsets they are not
    length = np.linalg.norm(vectors - found.offset, axis=-1)
    assert (length[found.mask] > 2.0).any()


def test_empty_places_are_valid_and_without_offset() -> None:
    cells = random_cells(10, seed=4)
    positions, mask = random_frames()
    found = build_neighbours(positions, mask, 2.0, cells)
    assert found.offset is not None
    width = found.index.shape[2]
    empty = ~found.mask
    own = np.broadcast_to(np.arange(5)[:, None], empty.shape)
    assert empty.any()
    np.testing.assert_array_equal(found.index[empty], own[empty])
    places = np.broadcast_to(np.arange(5 * width).reshape(5, width), empty.shape)
    np.testing.assert_array_equal(found.reverse[empty], places[empty])
    assert not found.offset[empty].any()
    assert not found.mask[~mask].any()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = random_cells(10, seed=5)
    positions, mask = random_frames()
    whole = build_neighbours(positions, mask, 2.5, cells)
    monkeypatch.setattr(neighbours, "PAIRS_PER_CHUNK", 200)
    for one, two in zip(whole, build_neighbours(positions, mask, 2.5, cells), strict=True):
        np.testing.assert_array_equal(one, two)


def test_without_a_periodic_direction_there_is_no_offset() -> None:
    positions, mask = random_frames(spread=1.0)
    without = build_neighbours(positions, mask, 2.0)
    zero = build_neighbours(positions, mask, 2.0, np.zeros((10, 3, 3)))
    assert without.offset is zero.offset is None
    # and in a box that is large enough, the same edges have offset 0
    box = np.tile(np.eye(3) * 100, (10, 1, 1))
    box[3:6] = 0
    large = build_neighbours(positions, mask, 2.0, box)
    assert large.offset is not None and not large.offset.any()
    for key in ("index", "reverse", "mask"):
        np.testing.assert_array_equal(getattr(without, key), getattr(zero, key))
        np.testing.assert_array_equal(getattr(without, key), getattr(large, key))


def test_nothing_within_the_cutoff_leaves_one_empty_place() -> None:
    found = build_neighbours(np.zeros((1, 1, 3)), np.ones((1, 1)), 1.0, np.eye(3)[None] * 5)
    assert found.index.shape == (1, 1, 1)
    assert not found.mask.any()
    assert found.offset is not None and found.offset.shape == (1, 1, 1, 3)


def test_a_perfect_crystal_has_the_shells_of_the_textbook() -> None:
    """Half a cell apart in exact numbers: the nearest image is not unique there."""
    for repeat in (1, 2, 3):
        grid = np.array(list(product(range(repeat), repeat=3)), float)
        basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
        positions = (grid[:, None] + basis).reshape(1, -1, 3)
        cell = np.eye(3)[None] * repeat
        mask = np.ones(positions.shape[:2])
        for cutoff, count in ((0.72, 12), (1.01, 18), (1.23, 42)):
            found = build_neighbours(positions, mask, cutoff, cell)
            assert found.mask.sum(-1).tolist() == [[count] * mask.size]


# -- symmetries --------------------------------------------------------------------------------


def lengths(found: Neighbours, positions: np.ndarray) -> np.ndarray:
    """Sorted edge vectors of one frame, as a long list of numbers."""
    assert found.offset is not None
    vectors = positions[0][found.index[0]] - positions[0][:, None] + found.offset[0]
    return np.sort(np.linalg.norm(vectors[found.mask[0]], axis=-1))


seeds = st.integers(0, 2**32 - 1)
images = st.lists(st.integers(-40, 40), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, bead=st.integers(0, 3), image=images, cutoff=st.floats(0.5, 4.0))
def test_a_bead_moved_by_lattice_vectors_keeps_its_edges(
    seed: int, bead: int, image: list[int], cutoff: float
) -> None:
    cell = random_cells(1, seed)
    positions = np.random.default_rng(seed).normal(size=(1, 4, 3)) * 3
    moved = positions.copy()
    moved[0, bead] += np.array(image) @ cell[0]
    mask = np.ones((1, 4))
    one = lengths(build_neighbours(positions, mask, cutoff, cell), positions)
    two = lengths(build_neighbours(moved, mask, cutoff, cell), moved)
    assert len(one) == len(two)
    np.testing.assert_allclose(one, two, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, axis=st.integers(0, 2), cutoff=st.floats(0.5, 5.0))
def test_a_doubled_cell_has_twice_the_energy(seed: int, axis: int, cutoff: float) -> None:
    cell = random_cells(1, seed)
    positions = np.random.default_rng(seed).normal(size=(1, 3, 3)) * 3
    twice = cell.copy()
    twice[0, axis] *= 2
    copies = np.concatenate([positions, positions + cell[:, axis]], axis=1)
    small = lengths(build_neighbours(positions, np.ones((1, 3)), cutoff, cell), positions)
    large = lengths(build_neighbours(copies, np.ones((1, 6)), cutoff, twice), copies)
    assert len(large) == 2 * len(small)
    energy = np.sum((small - cutoff) ** 2)
    assert np.sum((large - cutoff) ** 2) == pytest.approx(2 * energy, rel=1e-9, abs=1e-9)


def test_another_basis_of_the_same_lattice_gives_the_same_edges() -> None:
    """A strongly skewed basis needs images that a minimum-image rule would miss."""
    cell = np.diag([2.0, 2.5, 3.0])[None]
    skewed = np.array([[1, 0, 0], [3, 1, 0], [-4, 2, 1.0]]) @ cell
    positions, mask = random_frames(1, 6, seed=9)
    one = lengths(build_neighbours(positions, mask, 2.4, cell), positions)
    two = lengths(build_neighbours(positions, mask, 2.4, skewed), positions)
    np.testing.assert_allclose(one, two, atol=1e-9)
    assert len(one) > 50
