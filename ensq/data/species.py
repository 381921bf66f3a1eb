"""The species of beads: indices into names, from numbers, atomic numbers or residue names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ensq.data.structs import ELEMENTS, Array, Raw, names_in, short
from ensq.errors import DataError

MAX_UNNAMED = 1000  # a larger number is no kind of bead


class Species(NamedTuple):
    values: Array  # [T,N] int32, index into names; 0 on padding
    names: tuple[str, ...]
    elements: bool
    named: bool  # the file itself names its species


def per_bead(raw: Raw, key: str, T: int, N: int) -> Array:
    """[T,N] from [T,N] or [N]."""
    values = raw.arrays[key]
    if values.shape not in ((T, N), (N,)):
        raise DataError(
            f"{raw.path}: {raw.name(key)} has shape {values.shape}; it must be [{T},{N}] or [{N}]"
        )
    return np.broadcast_to(values, (T, N))


def species_of(raw: Raw, mask: Array) -> Species:
    """Species of every frame, the first of species, Z and resname that the file has.

    Coarse-grained files may give every bead one atomic number; then residues tell them apart.
    """
    if "species" not in raw.arrays and _residues_tell_more(raw, mask):
        return _of_text(raw, "resname", mask)
    for key in ("species", "Z"):
        if key not in raw.arrays:
            continue
        values = per_bead(raw, key, *mask.shape)
        if key == "species" and values.dtype.kind in "US":
            return _of_text(raw, key, mask)
        if values.dtype.kind not in "iu":
            raise DataError(
                f"{raw.path}: {raw.name(key)} has dtype {values.dtype}; it must be an integer type"
                + (", as .astype(int) makes it" if _whole(values, mask) else "")
            )
        values = np.where(mask, values, 0).astype(np.int64)
        return _of_elements(raw, values, mask) if key == "Z" else _of_numbers(raw, values, mask)
    if _residues(raw, mask) is not None:
        return _of_text(raw, "resname", mask)
    raise DataError(
        f"{raw.path}: key species is missing (Z, atomic numbers, would do as well, or resname, "
        "text for each bead); data.keys.species may name another"
    )


def _of_numbers(raw: Raw, values: Array, mask: Array) -> Species:
    names = _names(raw) or []
    limit = len(names) if names else MAX_UNNAMED
    wrong = np.argwhere((values < 0) | (values >= limit))
    if wrong.size:
        frame, bead = wrong[0]
        raise DataError(
            f"{raw.path}: {raw.name('species')}: frame {raw.first + frame}, bead {bead} has "
            f"{values[frame, bead]}; species go from 0 to {limit - 1}"
            + (" (the names in the file)" if names else "")
        )
    named = bool(names)
    if not named:
        names = _names_by_residue(raw, values, mask)
    # aa_names are of amino acids, whose one-letter codes look like elements.
    elements = raw.name("names") == "species_names" and set(names) <= set(ELEMENTS[1:])
    return Species(values.astype(np.int32), tuple(names), named and elements, named)


def _of_elements(raw: Raw, Z: Array, mask: Array) -> Species:
    wrong = np.argwhere(mask & ((Z < 1) | (len(ELEMENTS) <= Z)))
    if wrong.size:
        frame, bead = wrong[0]
        number = Z[frame, bead]
        raise DataError(
            f"{raw.path}: {raw.name('Z')}: frame {raw.first + frame}, bead {bead} has {number}, no "
            "atomic number" + (" (padding needs a mask)" if number == 0 and mask.all() else "")
        )
    present = np.unique(Z[mask])
    index = np.where(mask, np.searchsorted(present, Z), 0)
    return Species(index.astype(np.int32), tuple(ELEMENTS[n] for n in present), True, True)


def _of_text(raw: Raw, key: str, mask: Array) -> Species:
    """Text for each bead; the names are the file's, or the different texts in sorted order."""
    values = _as_text(raw, key, mask)
    present, index = np.unique(values[mask], return_inverse=True)
    different = names_in(raw, key, present)
    given = _names(raw)
    names = different if given is None else given
    place = {name: number for number, name in enumerate(names)}
    unknown = [name for name in different if name not in place]
    if unknown:
        raise DataError(
            f"{raw.path}: {raw.name(key)} has {short(unknown[0])!r}, which is not among "
            f"{raw.name('names')}"
        )
    species = np.zeros(mask.shape, np.int32)
    species[mask] = np.array([place[name] for name in different], np.int32)[index]
    return Species(species, tuple(names), False, True)


def _names(raw: Raw) -> list[str] | None:
    """The names of species that the file has."""
    return names_in(raw, "names", raw.arrays["names"]) if "names" in raw.arrays else None


def _names_by_residue(raw: Raw, values: Array, mask: Array) -> list[str]:
    """Names of numbered species: their residues' where these are one to one, else the numbers."""
    names = [str(number) for number in range(int(values.max()) + 1)]
    residues = _residues(raw, mask)
    if residues is None:
        return names
    names_in(raw, "resname", np.unique(residues[mask]))
    pairs = set(zip(values[mask].tolist(), residues[mask].tolist(), strict=True))
    numbers, residue_names = {n for n, _ in pairs}, {name for _, name in pairs}
    if len(pairs) == len(numbers) == len(residue_names):
        for number, name in pairs:
            names[number] = name
    return names


def _residues(raw: Raw, mask: Array) -> Array | None:
    """Residue names [T,N], if the file has one for each bead."""
    given = raw.arrays.get("resname")
    shapes = (mask.shape, mask.shape[1:])
    if given is None or given.dtype.kind not in "US" or given.shape not in shapes:
        return None
    return _as_text(raw, "resname", mask)


def _residues_tell_more(raw: Raw, mask: Array) -> bool:
    """Whether all beads have one atomic number, and not all the same residue."""
    if "Z" not in raw.arrays:
        return False
    residues = _residues(raw, mask)
    if residues is None or raw.arrays["Z"].shape not in (mask.shape, mask.shape[1:]):
        return False
    Z = per_bead(raw, "Z", *mask.shape)[mask]
    return bool((Z[0] == Z).all()) and len(np.unique(residues[mask])) > 1


def _whole(values: Array, mask: Array) -> bool:
    with np.errstate(invalid="ignore"):  # infinities
        return values.dtype.kind == "f" and bool((values[mask] % 1 == 0).all())


def _as_text(raw: Raw, key: str, mask: Array) -> Array:
    values = per_bead(raw, key, *mask.shape)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return values
