"""Periodic cells: rows are lattice vectors, a zero row is an open direction."""

from __future__ import annotations

import numpy as np

from ensq.data.stored import Source, spans
from ensq.data.structs import Array, Raw
from ensq.errors import DataError
from ensq.units import convert

# Lattice planes nearer than this (Angstrom) are of no crystal: a flat cell, or a wrong unit.
MIN_HEIGHT = 0.5
_LARGEST = 1e8  # an edge in any unit; beyond it lie damaged files


def cell_of(raw: Raw, T: int, length: float, unit: str) -> Array | None:
    """The cells [T,3,3] in the file's unit; None if every direction of every frame is open.

    Args:
        raw: ``cell`` may be [] (edge of a cube), [3] or [T,3] (edges of a rectangular box),
            [3,3] or [T,3,3]; ``pbc`` [] or [3] or [T,3]. Without ``pbc``,
            directions with a lattice vector are periodic.
        T: Number of frames.
        length: Factor to Angstrom, in which flat cells are told.
        unit: The declared unit of length, for messages.
    """
    periodic = _pbc(raw, T)
    if "cell" not in raw.arrays:
        if periodic is not None and periodic.any():
            frame = raw.first + int(np.argmax(periodic.any(axis=1)))
            raise DataError(
                f"{raw.path}: {raw.name('pbc')}: frame {frame} is periodic, but the file has no "
                "cell: add one, or set pbc to false"
            )
        return None
    cell = _matrices(raw, T)
    _check_finite(raw, cell)
    empty = ~cell.any(axis=2)
    if periodic is None:
        periodic = ~empty
    missing = np.argwhere(periodic & empty)
    if missing.size:
        frame, axis = missing[0]
        raise DataError(
            f"{raw.path}: {raw.name('cell')}: frame {raw.first + frame} is periodic along lattice "
            f"vector {axis}, which is zero or absent: give it a length, or set pbc to false there"
        )
    cell = np.where(periodic[:, :, None], cell, 0.0)
    if not cell.any():
        return None
    _check_heights(raw, convert(cell, length), unit)
    return cell


def heights(cell: Array) -> Array:
    """Distances [T,3] between the lattice planes of each periodic direction; inf where open.

    The columns of the pseudo-inverse are the reciprocal vectors within the periodic directions.
    A cell without volume gives 0.
    """
    periodic = cell.any(axis=2)
    with np.errstate(over="ignore", invalid="ignore"):  # of edges near 0, which end up as flat
        inverse = np.linalg.pinv(cell)
        length = np.linalg.norm(inverse, axis=1)
        product = cell @ inverse
    out = np.where(length > 0, 1 / np.where(length > 0, length, 1), np.inf)
    flat = ~np.isclose(product, np.eye(3) * periodic[:, None, :], atol=1e-6).all(axis=(1, 2))
    out[flat] = 0.0
    return np.where(periodic, out, np.inf)


def check_open(data: Source, source: str) -> None:
    """Raise DataError if any frame is periodic: priors run along an open chain."""
    if data.cell is None:
        return
    every = np.arange(data.n_frames)
    periodic = [data.cell[every[span]].any(axis=(1, 2)) for span in spans(3, len(every))]
    frame = int(np.argmax(np.concatenate(periodic)))
    raise DataError(
        f"{source}: model.use_priors needs open boundaries, but frame {frame} has a periodic "
        "cell: set model.use_priors: false, or store whole molecules without a cell"
    )


def check_shapes(raw: Raw, T: int) -> None:
    """Raise DataError if the shapes or types of ``cell`` or ``pbc`` are none of T frames."""
    if "cell" in raw.arrays:
        _check_cell(raw, T)
    if "pbc" in raw.arrays:
        _check_pbc(raw, T)


def _check_cell(raw: Raw, T: int) -> None:
    values = raw.arrays["cell"]
    shapes = ((), (1,), (3,), (3, 3), (T, 3), (T, 3, 3))
    if values.dtype.kind not in "fiu" or values.shape not in shapes:
        raise DataError(
            f"{raw.path}: {raw.name('cell')} has shape {values.shape} and dtype {values.dtype}; it "
            f"must be one number (edge of a cube), [3] or [{T},3] (edges of a rectangular box), "
            f"[3,3] or [{T},3,3] (rows are lattice vectors)"
        )


def _matrices(raw: Raw, T: int) -> Array:
    _check_cell(raw, T)
    values = raw.arrays["cell"].astype(np.float64)
    if values.size == 1:
        values = np.broadcast_to(values.reshape(1), (3,))
    if values.shape[-2:] != (3, 3):  # [3,3] is one matrix, even for three frames
        values = of_edges(values)
    return np.broadcast_to(values, (T, 3, 3))


def of_edges(values: Array) -> Array:
    """[...,3,3] from the edges [...,3] of rectangular boxes."""
    with np.errstate(invalid="ignore"):  # an infinity times zero; it is refused later
        return np.asarray(values[..., :, None] * np.eye(3))


def _pbc(raw: Raw, T: int) -> Array | None:
    if "pbc" not in raw.arrays:
        return None
    _check_pbc(raw, T)
    return np.broadcast_to(raw.arrays["pbc"].astype(bool), (T, 3))


def _check_pbc(raw: Raw, T: int) -> None:
    values = raw.arrays["pbc"]
    fits = values.shape in ((), (3,), (T, 3)) and values.dtype.kind in "biuf"
    if not fits or not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{raw.path}: {raw.name('pbc')} has shape {values.shape} and dtype {values.dtype}; it "
            f"must be true or false, [3] or [{T},3]"
        )


def _check_finite(raw: Raw, cell: Array) -> None:
    bad = np.argwhere(~(np.abs(cell) <= _LARGEST))
    if bad.size:
        frame, axis, _ = bad[0]
        raise DataError(
            f"{raw.path}: {raw.name('cell')}: frame {raw.first + frame}, lattice vector {axis} "
            f"holds NaN, infinity or a number over {_LARGEST:g} ({len(bad)} such values)"
        )


def _check_heights(raw: Raw, cell: Array, unit: str) -> None:
    height = heights(cell)
    flat = np.argwhere(height < MIN_HEIGHT)
    if flat.size:
        frame, axis = flat[0]
        raise DataError(
            f"{raw.path}: {raw.name('cell')}: frame {raw.first + frame}: its volume is zero, or "
            f"its lattice planes along vector {axis} lie {height[frame, axis]:.3g} Angstrom apart, "
            f"less than {MIN_HEIGHT}: correct the cell, or data.units.length (now {unit})"
        )
