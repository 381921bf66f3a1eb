"""Periodic cells of data files, and positions in a wrong unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_tools import FORCES, T, arrays, error_of, load, save

from ensq.data import check_open
from ensq.data.cells import heights
from ensq.errors import DataError

EDGES = np.array([20.0, 30.0, 40.0])
SKEWED = np.array([[20.0, 0, 0], [5, 30, 0], [-3, 4, 40]])


def cell_with(path: Path, **values: Any) -> Any:
    return load(save(path / "d.npz", {**arrays(), **values})).cell


@pytest.mark.parametrize("key", ["cell", "lattice", "box"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (EDGES, np.diag(EDGES)),
        (np.tile(EDGES, (T, 1)), np.diag(EDGES)),
        (SKEWED, SKEWED),
        (np.tile(SKEWED, (T, 1, 1)), SKEWED),
        (EDGES.astype(int), np.diag(EDGES)),
        (np.array(20.0), 20.0 * np.eye(3)),
        (np.array([20]), 20.0 * np.eye(3)),
    ],
    ids=["edges", "edges of frames", "matrix", "matrices", "integers", "cube", "cube [1]"],
)
def test_a_cell_may_be_edges_or_a_matrix_for_all_frames_or_each(
    tmp_path: Path, key: str, value: Any, expected: Any
) -> None:
    found = cell_with(tmp_path, **{key: value})
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.tile(expected, (T, 1, 1)))


def test_directions_without_a_lattice_vector_are_open(tmp_path: Path) -> None:
    assert cell_with(tmp_path) is None
    assert cell_with(tmp_path, cell=np.zeros((3, 3))) is None
    assert cell_with(tmp_path, cell=EDGES, pbc=np.zeros(3, bool)) is None
    assert cell_with(tmp_path, pbc=np.zeros(3, bool)) is None
    slab = SKEWED * [[1], [1], [0]]
    np.testing.assert_array_equal(cell_with(tmp_path, cell=slab)[5], slab)
    found = cell_with(tmp_path, cell=SKEWED, pbc=np.array([True, True, False]))
    np.testing.assert_array_equal(found[5], slab)
    np.testing.assert_array_equal(cell_with(tmp_path, cell=SKEWED, pbc=np.array(1))[5], SKEWED)


def test_frames_may_differ_and_are_taken_with_their_cells(tmp_path: Path) -> None:
    cells = np.tile(SKEWED, (T, 1, 1))
    cells[4] *= 2
    cells[5] = 0
    loaded = load(save(tmp_path / "d.npz", {**arrays(), "cell": cells}))
    taken = loaded.take(np.array([5, 4])).cell
    assert taken is not None
    np.testing.assert_array_equal(taken, cells[[5, 4]])


def test_files_of_a_folder_may_be_open_and_periodic(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", arrays())
    save(tmp_path / "b.npz", {**arrays(), "cell": SKEWED})
    found = load(tmp_path).cell
    assert found is not None
    assert not found[:T].any()
    np.testing.assert_array_equal(found[T:], np.tile(SKEWED, (T, 1, 1)))


def spoiled(frame: int, row: int, value: Any) -> Any:
    cells = np.tile(SKEWED, (T, 1, 1))
    cells[frame, row] = value
    return cells


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"cell": np.ones((3, 2))}, "cell has shape (3, 2) and dtype float64; it must be"),
    "too few": ({"cell": np.ones((5, 3, 3))}, "cell has shape (5, 3, 3)"),
    "text": ({"cell": np.array(["a", "b", "c"])}, "cell has shape (3,) and dtype <U1"),
    "NaN": ({"cell": spoiled(4, 1, [1, np.nan, 1])}, "cell: frame 4, lattice vector 1 holds NaN"),
    "flat": ({"cell": spoiled(3, 1, [40, 0, 0])}, "cell: frame 3: its volume is zero, or its"),
    "in nm": ({"box": EDGES / 100}, "box: frame 0: its volume is zero, or its lattice planes"),
    "nearly flat": (
        {"cell": spoiled(7, 2, [20, 1, 0.1])},
        "cell: frame 7: its volume is zero, or its lattice planes along vector 0 lie 0.101",
    ),
    "zero but periodic": (
        {"cell": spoiled(6, 2, 0), "pbc": np.ones((T, 3), bool)},
        "cell: frame 6 is periodic along lattice vector 2, which is zero or absent",
    ),
    "pbc alone": ({"pbc": np.ones(3, bool)}, "pbc: frame 0 is periodic, but the file has no cell"),
    "pbc of 2": ({"cell": SKEWED, "pbc": np.full(3, 2)}, "pbc has shape (3,) and dtype int64"),
    "pbc of text": ({"cell": SKEWED, "pbc": np.array("T")}, "pbc has shape () and dtype <U1"),
}


@pytest.mark.parametrize(("values", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_cell_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert message in error_of(save(tmp_path / "d.npz", {**arrays(), **values}))


def test_heights_are_volume_over_area() -> None:
    a, b, c = SKEWED
    volume = abs(np.linalg.det(SKEWED))
    areas = [np.linalg.norm(np.cross(*pair)) for pair in ((b, c), (c, a), (a, b))]
    np.testing.assert_allclose(heights(SKEWED[None])[0], volume / np.array(areas))
    slab = heights((SKEWED * [[1], [1], [0]])[None])[0]
    area = np.linalg.norm(np.cross(a, b))
    expected = [area / np.linalg.norm(b), area / np.linalg.norm(a), np.inf]
    np.testing.assert_allclose(slab, expected)
    # a flat cell has no height, in three directions as in two
    assert (heights(np.array([[a, b, a + b]])) == 0).all()
    assert heights(np.array([[a, 2 * a, 0 * a]]))[0].tolist() == [0, 0, np.inf]


def test_priors_are_refused_in_a_periodic_cell(tmp_path: Path) -> None:
    cells = np.tile(SKEWED, (T, 1, 1))
    cells[:3] = 0
    periodic = load(save(tmp_path / "d.npz", {**arrays(), "cell": cells}))
    with pytest.raises(DataError, match=r"d\.npz: model\.use_priors needs open .* frame 3 has"):
        check_open(periodic, "d.npz")
    check_open(load(save(tmp_path / "d.npz", arrays())), "d.npz")


# -- units that look wrong ---------------------------------------------------------------------


def chain(spacing: float) -> dict[str, Any]:
    raw = arrays()
    steps = np.random.default_rng(0).normal(size=raw["R"].shape)
    steps *= spacing / np.linalg.norm(steps, axis=-1, keepdims=True)
    return {**raw, "R": np.cumsum(steps, axis=1)}


@pytest.mark.parametrize("spacing", [0.11, 0.15, 0.38])
def test_positions_in_nm_are_noticed(tmp_path: Path, spacing: float) -> None:
    path = save(tmp_path / "d.npz", chain(spacing))
    error = error_of(path)
    assert error.startswith("R: beads lie 0.")
    assert error.endswith("are the positions in nm? set data.units.length: nm")
    assert load(path, units={"length": "nm"}).n_frames == T
    save(path, chain(spacing / 10))
    assert "correct data.units.length (now nm)" in error_of(path, units={"length": "nm"})


@pytest.mark.parametrize("spacing", [0.75, 1.0, 3.8, 50.0])
def test_positions_in_angstrom_pass(tmp_path: Path, spacing: float) -> None:
    assert load(save(tmp_path / "d.npz", chain(spacing))).n_frames == T


def test_single_beads_and_large_frames_are_looked_at_without_harm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = {"R": rng.uniform(0, 60, size=(2, 3000, 3)), "species": np.zeros(3000, int)}
    raw["F"] = raw["R"]
    path = tmp_path / "d.npz"
    np.savez(path, **raw)
    assert load(path, gammas=FORCES).R.shape == (2, 3000, 3)
    np.savez(path, **{**raw, "R": raw["R"] / 40})
    assert "are the positions in nm?" in error_of(path, FORCES)
    np.savez(path, R=raw["R"][:, :1], F=raw["R"][:, :1], species=np.zeros(1, int))
    assert load(path, gammas=FORCES).n_frames == 2
