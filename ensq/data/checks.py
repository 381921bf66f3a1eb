"""From the arrays of one file to checked frames; errors name file, key, frame and bead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ensq.config.structs import GammasConfig, UnitsConfig
from ensq.data.cells import cell_of
from ensq.data.npz import listed
from ensq.data.places import TOGETHER, together
from ensq.data.species import per_bead, species_of
from ensq.data.structs import Array, Data, Part, Raw, names_in, short
from ensq.errors import DataError
from ensq.units import LENGTH, EnergyUnit, conversion, convert

# No two atoms are bound at less than 0.7 Angstrom; beads in nm are 0.1 to 0.5 apart.
MIN_SPACING = 0.5
_FRAMES_LOOKED_AT, _BEADS_LOOKED_AT = 32, 200  # for the typical distance of neighbours
_DISTANCES = 500_000  # at a time, and in all for each frame of those: fewer beads of large frames
# Far beyond any position (Angstrom, nm, Bohr), force and energy: larger numbers are damage, and
# their squares would overflow.
_LARGEST = {"R": 1e8, "F": 1e15, "U": 1e15}


class Values(NamedTuple):
    """Checked numbers of some frames in the units of their file, zero on padding."""

    R: Array  # [T,N,3]
    F: Array | None  # [T,N,3]
    U: Array | None  # [T]
    mask: Array  # [T,N] bool
    cell: Array | None  # [T,3,3]


def part(raw: Raw, gammas: GammasConfig, units: UnitsConfig, unit: EnergyUnit) -> Part:
    """Check the arrays of a file and convert them to Angstrom and ``unit``."""
    found = values_of(raw, gammas, units)
    T = len(found.mask)
    factors = conversion(units.energy, units.length, unit)
    species = species_of(raw, found.mask)
    protein, protein_names = protein_of(raw, T)
    data = Data(
        R=convert(found.R, factors.length),
        F=None if found.F is None else convert(found.F, factors.force),
        U=None if found.U is None else convert(found.U, factors.energy),
        species=species.values,
        mask=found.mask,
        replica=replica_of(raw, T),
        species_names=species.names,
        elements=species.elements,
        cell=None if found.cell is None else convert(found.cell, factors.length),
        protein=protein,
        protein_names=protein_names,
    )
    chosen = looked_at(T)
    check_spacing(raw, [data.R[frame][data.mask[frame]] for frame in chosen], units.length)
    return Part(raw.path, data, species.named)


def values_of(raw: Raw, gammas: GammasConfig, units: UnitsConfig) -> Values:
    """Check all of some frames but their species, proteins and trajectories."""
    R = floats_of(raw, "R", 3)
    T, N = R.shape[:2]
    check_shape(raw, R.shape)
    mask = mask_of(raw, T, N)
    F = floats_of(raw, "F", 3) if gammas.F or "F" in raw.arrays else None
    if F is not None:
        check_shape(raw, R.shape, F.shape)
    U = energies_of(raw, T, gammas.U > 0)
    R = _zeroed(raw, "R", R, mask)
    nearer = TOGETHER / LENGTH[units.length]
    if same := together(R, mask, nearer=nearer, first=raw.first):
        raise DataError(f"{raw.path}: {raw.name('R')}: {same}")
    return Values(
        R=R,
        F=None if F is None else _zeroed(raw, "F", F, mask),
        U=U,
        mask=mask,
        cell=cell_of(raw, T, LENGTH[units.length], units.length),
    )


def check_shape(raw: Raw, R: tuple[int, ...], F: tuple[int, ...] | None = None) -> None:
    """Raise DataError if positions and forces of these shapes are not of frames of beads."""
    if R[:1] == (0,):
        raise DataError(f"{raw.path}: holds no frame: {raw.name('R')} has shape {R}")
    if R[2:] != (3,) or 0 in R:
        raise DataError(f"{raw.path}: {raw.name('R')} has shape {R}; it must be [frames, beads, 3]")
    if F is not None and F != R:
        raise DataError(
            f"{raw.path}: {raw.name('F')} has shape {F}, {raw.name('R')} has {R}; they must be "
            "equal"
        )


def floats_of(raw: Raw, key: str, ndim: int) -> Array:
    if key not in raw.arrays:
        raise DataError(
            f"{raw.path}: key {key} is missing; the file has {listed(raw.holds)} "
            f"(data.keys.{key} may name another)"
        )
    values = raw.arrays[key]
    if values.dtype.kind != "f" or values.dtype.itemsize not in (4, 8):
        raise DataError(
            f"{raw.path}: {raw.name(key)} has dtype {values.dtype}; it must be float32 or float64"
        )
    if values.ndim != ndim:
        raise DataError(
            f"{raw.path}: {raw.name(key)} has shape {values.shape}; it must have {ndim} axes"
        )
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def mask_of(raw: Raw, T: int, N: int) -> Array:
    if "mask" not in raw.arrays:
        return np.ones((T, N), bool)
    values = per_bead(raw, "mask", T, N)
    if values.dtype.kind not in "fiub" or not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{raw.path}: mask must hold 1 for real beads and 0 for padding, nothing else"
        )
    mask = np.asarray(values != 0)
    empty = np.flatnonzero(~mask.any(axis=1))
    if empty.size:
        raise DataError(
            f"{raw.path}: mask: frame {raw.first + empty[0]} has no real bead ({empty.size} such)"
        )
    return mask


def energies_of(raw: Raw, T: int, needed: bool) -> Array | None:
    if "U" not in raw.arrays:
        if needed:
            raise DataError(
                f"{raw.path}: key U (or E) is missing; training.gammas.U asks for energies; the "
                f"file has {listed(raw.holds)} (data.keys.U may name another)"
            )
        return None
    values, name = raw.arrays["U"], raw.name("U")
    if values.dtype.kind != "f" or values.shape not in ((T,), (T, 1)):
        raise DataError(
            f"{raw.path}: {name} has shape {values.shape} and dtype {values.dtype}; it must be "
            f"floating-point [{T}]"
        )
    with np.errstate(over="ignore"):  # of more than 64 bits
        values = values.reshape(T).astype(np.float64)
    _check_finite(raw, "U", values)
    return values


def replica_of(raw: Raw, T: int) -> Array | None:
    if "replica" not in raw.arrays:
        return None
    values = raw.arrays["replica"]
    if values.shape != (T,) or values.dtype.kind not in "iu":
        raise DataError(
            f"{raw.path}: replica has shape {values.shape} and dtype {values.dtype}; it must be "
            f"one integer per frame, [{T}]"
        )
    # Trajectories of several files are numbered on; above this a float doesn't know its neighbour.
    wrong = np.flatnonzero((values > 2**53) | (values < -(2**53)))
    if wrong.size:
        raise DataError(f"{raw.path}: replica: frame {wrong[0]} has {values[wrong[0]]}: too large")
    return values


def protein_of(raw: Raw, T: int) -> tuple[Array | None, tuple[str, ...]]:
    """The protein of each frame [T] as an index into names; a single value is of all frames."""
    if "protein" not in raw.arrays:
        return None, ()
    values = raw.arrays["protein"]
    if values.shape not in ((), (T,)) or values.dtype.kind not in "iuUS":
        raise DataError(
            f"{raw.path}: protein has shape {values.shape} and dtype {values.dtype}; it must be "
            f"one integer or name per frame, [{T}]"
        )
    given = raw.arrays.get("protein_names")
    names = [] if given is None else names_in(raw, "protein_names", given)
    values = np.broadcast_to(values, (T,))
    if names and values.dtype.kind in "iu":
        wrong = np.flatnonzero((values < 0) | (values >= len(names)))
        if wrong.size:
            raise DataError(
                f"{raw.path}: protein: frame {wrong[0]} has {values[wrong[0]]}; the file names "
                f"proteins 0 to {len(names) - 1}"
            )
        return values.astype(np.int32), tuple(names)
    present, index = np.unique(values, return_inverse=True)
    found = names_in(raw, "protein", present)
    if not names:
        return index.astype(np.int32), tuple(found)
    places = {name: number for number, name in reversed(list(enumerate(names)))}  # the first counts
    unknown = [name for name in found if name not in places]
    if unknown:
        raise DataError(f"{raw.path}: protein has {short(unknown[0])!r}, not among protein_names")
    place = np.array([places[name] for name in found], np.int32)
    return place[index], tuple(names)


def _zeroed(raw: Raw, key: str, values: Array, mask: Array) -> Array:
    """The values with zeros on padding, finite everywhere."""
    values = np.where(mask[:, :, None], values, np.zeros((), values.dtype))
    _check_finite(raw, key, values)
    return values


def _check_finite(raw: Raw, key: str, values: Array) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        frame = raw.first + bad[0][0]
        where = f"frame {frame}" + (f", bead {bad[0][1]}" if values.ndim > 1 else "")
        raise DataError(
            f"{raw.path}: {raw.name(key)}: {where} holds NaN or infinity ({len(bad)} such values)"
        )
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST[key]:
        raise DataError(
            f"{raw.path}: {raw.name(key)} goes up to {largest:.3g}, over {_LARGEST[key]:g}: "
            "damaged, or no such quantity"
        )


def looked_at(T: int) -> Array:
    """The frames of a file of T whose distances ``check_spacing`` wants to see."""
    return np.asarray(np.unique(np.linspace(0, T - 1, _FRAMES_LOOKED_AT).astype(int)))


def check_spacing(raw: Raw, frames: Sequence[Array], unit: str) -> None:
    """Refuse positions in a wrong unit, as far as the typical distance of neighbours tells.

    ``frames``: [n,3] positions of real beads in Angstrom, of each frame. Periodic images are not
    looked at: they could only make distances smaller.
    """
    nearest = []
    for positions in frames:
        x = positions.astype(np.float64)
        if len(x) < 2:
            continue
        beads = max(1, min(_BEADS_LOOKED_AT, _DISTANCES // len(x)))
        centres = np.arange(0, len(x), -(-len(x) // beads))
        distance = np.linalg.norm(x[centres, None] - x[None], axis=-1)
        distance[np.arange(len(centres)), centres] = np.inf
        nearest.append(distance.min(axis=1))
    if not nearest:
        return
    typical = float(np.median(np.concatenate(nearest)))
    if typical < MIN_SPACING:
        advice = (
            "are the positions in nm? set data.units.length: nm"
            if unit == "Angstrom"
            else f"correct data.units.length (now {unit})"
        )
        raise DataError(
            f"{raw.path}: {raw.name('R')}: beads lie {typical:.2g} Angstrom from their nearest "
            f"neighbours (median), nearer than any two atoms do: {advice}"
        )
