"""Frames of a script's own as a model takes them: from arrays, or from ``ase.Atoms``.

ASE is not imported here: what is read of its objects are plain arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.data import ELEMENTS, Data
from ensq.data.places import together
from ensq.errors import DataError

Array = NDArray[Any]
# Arrays of ase.Atoms that name beads which are no elements, in the order in which they count.
BEADS = ("bead", "beads", "resname", "residuenames")


def from_arrays(
    R: Any,
    species: Any,
    *,
    names: tuple[str, ...],
    mask: Any = None,
    cell: Any = None,
) -> Data:
    """Frames from arrays, in Angstrom.

    Args:
        R: [T,N,3] positions, or [N,3] of one frame.
        species: [T,N] or [N]: names, or the model's numbers.
        names: The model's species.
        mask: [T,N] or [N], true for real beads; None: all are.
        cell: [T,3,3] or [3,3], rows are lattice vectors, zero rows open directions; None: all open.

    Raises DataError for shapes that don't fit, numbers that are not finite, beads in one place,
    and unknown species.
    """
    positions = np.asarray(R, np.float64)
    positions = positions[None] if positions.ndim == 2 else positions
    if positions.ndim != 3 or positions.shape[2] != 3 or 0 in positions.shape:
        raise DataError(f"positions have the shape {np.shape(R)}; they must be [T,N,3] or [N,3]")
    shape = positions.shape[:2]
    real = np.ones(shape, bool) if mask is None else _spread("mask", np.asarray(mask, bool), shape)
    if not real.any(axis=1).all():
        raise DataError(f"frame {int(np.argmin(real.any(axis=1)))} has no real bead")
    kinds = _numbers(_spread("species", np.asarray(species), shape), real, names)
    bad = real & ~np.isfinite(positions).all(axis=2)
    if bad.any():
        frame, bead = np.argwhere(bad)[0]
        raise DataError(f"frame {frame}, bead {bead}: its position is NaN or infinite")
    positions = np.where(real[..., None], positions, 0.0)
    if same := together(positions, real):
        raise DataError(str(same))
    return Data(
        R=positions,
        F=None,
        U=None,
        species=kinds,
        mask=real,
        replica=None,
        species_names=names,
        cell=None if cell is None else _cells(np.asarray(cell, np.float64), shape[0]),
    )


def from_atoms(
    frames: Sequence[Any],
    *,
    names: tuple[str, ...],
    elements: bool,
    species: str | Sequence[Any] | None = None,
) -> Data:
    """Frames from ``ase.Atoms``, which may differ in size.

    Args:
        frames: With positions, and a cell where they are periodic.
        names: The model's species.
        elements: Whether these are chemical elements.
        species: See ``names_of``.

    Raises DataError as ``from_arrays`` does.
    """
    if not frames:
        raise DataError("no frames were given")
    beads = max(len(atoms) for atoms in frames)
    R, mask = np.zeros((len(frames), beads, 3)), np.zeros((len(frames), beads), bool)
    kinds = np.full(mask.shape, names[0], object)
    cell = np.zeros((len(frames), 3, 3))
    for place, atoms in enumerate(frames):
        R[place, : len(atoms)], mask[place, : len(atoms)] = atoms.positions, True
        kinds[place, : len(atoms)] = names_of(atoms, elements, species)
        cell[place] = cell_of(atoms)
    return from_arrays(
        R, kinds.astype(str), names=names, mask=mask, cell=cell if cell.any() else None
    )


def names_of(
    atoms: Any, elements: bool, species: str | Sequence[Any] | None = None
) -> NDArray[np.str_]:
    """[n] the kind of each bead of ``ase.Atoms``.

    They are the symbols where the model's species are elements. Else they are the array of atoms
    that ``species`` names, or its own values, one for each bead; None: the first of ``BEADS`` that
    the atoms have.

    Raises DataError if there are none.
    """
    found = species_array(atoms, elements, species)
    if elements and species is None:
        return np.array([ELEMENTS[number] for number in found], str)
    return np.char.strip(found.astype(str))


def species_array(
    atoms: Any, elements: bool, species: str | Sequence[Any] | None = None
) -> NDArray[Any]:
    """[n] what ``names_of`` makes names of: atomic numbers, or names of beads."""
    if species is not None and not isinstance(species, str):
        found = np.asarray(species)
    elif isinstance(species, str):
        if species not in atoms.arrays:
            raise DataError(
                f"the atoms have no array {species!r}; they have {', '.join(atoms.arrays)}"
            )
        found = atoms.arrays[species]
    elif elements:
        return np.asarray(atoms.numbers)
    else:
        found = next((atoms.arrays[name] for name in BEADS if name in atoms.arrays), np.array(""))
    if found.shape != (len(atoms),):
        raise DataError(
            "the model's species are no chemical elements: name the kind of each bead, as in "
            'atoms.set_array("bead", np.array(["GLY", …]))'
            + (f"; what was given has the shape {found.shape}" if found.ndim else "")
        )
    return np.asarray(found)


def cell_of(atoms: Any) -> Array:
    """[3,3] the cell of ``ase.Atoms``, with zero rows where it is not periodic."""
    cell = np.asarray(atoms.cell.array, np.float64)
    periodic = np.asarray(atoms.pbc, bool)
    empty = periodic & ~cell.any(axis=1)
    if empty.any():
        raise DataError(
            f"the atoms are periodic along vector {int(np.argmax(empty))}, which is zero: give "
            "the cell a length there, or set pbc false"
        )
    return np.where(periodic[:, None], cell, 0.0)


def _spread(what: str, values: Array, shape: tuple[int, ...]) -> Array:
    """[T,N] from [T,N] or [N]."""
    if values.shape not in (shape, shape[1:]):
        raise DataError(f"{what} has the shape {values.shape}; it must be {shape} or {shape[1:]}")
    return np.broadcast_to(values, shape)


def _numbers(values: Array, real: Array, names: tuple[str, ...]) -> NDArray[np.int32]:
    """[T,N] the model's numbers, 0 on padding."""
    if values.dtype.kind in "iu":
        wrong = real & ((values < 0) | (values >= len(names)))
        known = np.where(real & ~wrong, values, 0)
    else:
        place = {name: number for number, name in enumerate(names)}
        different, inverse = np.unique(values.astype(str), return_inverse=True)
        table = np.array([place.get(str(name), -1) for name in different])
        known = table[inverse].reshape(values.shape)
        wrong = real & (known < 0)
    if wrong.any():
        frame, bead = np.argwhere(wrong)[0]
        raise DataError(
            f"frame {frame}, bead {bead} is of the species {values[frame, bead]}, which the model "
            f"was not trained on; it knows {', '.join(names)}"
        )
    return np.asarray(np.where(real, known, 0), np.int32)


def _cells(cell: Array, frames: int) -> Array | None:
    if cell.shape not in ((3, 3), (frames, 3, 3)) or not np.isfinite(cell).all():
        raise DataError(f"the cell must be finite, [3,3] or [{frames},3,3]; it is {cell.shape}")
    return np.broadcast_to(cell, (frames, 3, 3)) if cell.any() else None
