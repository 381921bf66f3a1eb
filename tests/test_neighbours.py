"""The padded neighbour layout against a plain double loop."""

from __future__ import annotations

import numpy as np
import pytest

from ensq.train import neighbours
from ensq.train.neighbours import build_neighbours


def random_frames(frames: int = 7, beads: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Frames of different sizes whose padded beads lie at the origin, inside the molecule."""
    rng = np.random.default_rng(3)
    positions = rng.normal(size=(frames, beads, 3)).astype(np.float32)
    mask = np.arange(beads) < rng.integers(2, beads + 1, size=(frames, 1))
    positions[~mask] = 0.0
    return positions, mask.astype(np.float32)


def expected_pairs(positions: np.ndarray, mask: np.ndarray, cutoff: float) -> set[tuple[int, int]]:
    n = len(mask)
    far = np.linalg.norm(positions[:, None].astype(float) - positions[None], axis=-1)
    return {
        (i, j)
        for i in range(n)
        for j in range(n)
        if i != j and mask[i] and mask[j] and far[i, j] < cutoff
    }


def test_rows_hold_exactly_the_pairs_within_the_cutoff():
    positions, mask = random_frames()
    found = build_neighbours(positions, mask, 1.5)
    for t in range(len(positions)):
        pairs = [(i, int(found.index[t, i, m])) for i, m in np.argwhere(found.mask[t]).tolist()]
        assert len(pairs) == len(set(pairs))
        assert set(pairs) == expected_pairs(positions[t], mask[t], 1.5)


def test_padded_beads_have_no_neighbours_and_are_nobodys_neighbour():
    positions, mask = random_frames()
    found = build_neighbours(positions, mask, 1.5)
    assert not found.mask[mask == 0].any()
    t = np.arange(len(positions))[:, None, None]
    assert (mask[t, found.index][found.mask] == 1).all()
    # without the mask the beads at the origin would be neighbours
    assert build_neighbours(positions, np.ones_like(mask), 1.5).mask[mask == 0].any()


def test_the_width_is_the_largest_count_of_all_frames():
    positions, mask = random_frames()
    # the crowded frame comes last: frame 0 must not decide
    positions[0] *= 100.0
    found = build_neighbours(positions, mask, 1.5)
    counts = found.mask.sum(-1)
    assert counts[0].max() < counts.max() == found.index.shape[2]


def test_the_reverse_of_an_edge_leads_back():
    positions, mask = random_frames()
    found = build_neighbours(positions, mask, 1.5)
    width = found.index.shape[2]
    for t, i, m in np.argwhere(found.mask).tolist():
        j, back = divmod(int(found.reverse[t, i, m]), width)
        assert found.mask[t, j, back]
        assert found.index[t, i, m] == j
        assert found.index[t, j, back] == i
        assert found.reverse[t, j, back] == i * width + m


def test_empty_places_hold_valid_indices():
    positions, mask = random_frames()
    found = build_neighbours(positions, mask, 0.7)
    beads, width = found.index.shape[1:]
    assert not found.mask.all()
    assert found.index.min() >= 0 and found.index.max() < beads
    assert found.reverse.min() >= 0 and found.reverse.max() < beads * width


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    positions, mask = random_frames()
    whole = build_neighbours(positions, mask, 1.5)
    monkeypatch.setattr(neighbours, "PAIRS_PER_CHUNK", 200)
    for one, two in zip(whole, build_neighbours(positions, mask, 1.5), strict=True):
        np.testing.assert_array_equal(one, two)
    assert whole.offset is None


def test_beads_without_any_neighbour_leave_one_empty_place():
    positions = np.arange(2.0)[None, :, None] * 50 * np.ones(3)
    found = build_neighbours(positions, np.ones((1, 2)), 1.0)
    assert found.index.shape == (1, 2, 1)
    assert not found.mask.any()
    assert found.average == 1.0


def test_the_average_counts_real_beads_only():
    positions = np.array([[[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 0]]], float)
    found = build_neighbours(positions, np.array([[1, 1, 1, 0]]), 1.5)
    assert found.average == pytest.approx(4 / 3)


def test_wrong_shapes_and_cutoffs_are_refused():
    positions, mask = random_frames()
    with pytest.raises(ValueError, match=r"\[frames, beads, 3\]"):
        build_neighbours(positions, mask[:, 1:], 1.0)
    with pytest.raises(ValueError, match="cutoff must be positive"):
        build_neighbours(positions, mask, 0.0)
    with pytest.raises(ValueError, match=r"cell must be \[7, 3, 3\], not \(3, 3\)"):
        build_neighbours(positions, mask, 1.0, np.eye(3))
    for flat in ([[1, 0, 0], [0, 1, 0], [1, 1, 0]], [[1, 0, 0], [2, 0, 0], [0, 0, 0]]):
        with pytest.raises(ValueError, match="a cell has no volume"):
            build_neighbours(positions, mask, 1.0, np.tile(np.array(flat, float), (7, 1, 1)))
