"""What a file holds, before its positions and forces are read: species, sizes, proteins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensq.data import checks, joining
from ensq.data.kinds import KEYS, Kinds
from ensq.data.padding import refuse_much_padding
from ensq.data.species import Species, species_of
from ensq.data.streaming import Streamed
from ensq.data.structs import Array, Data, Part, Raw
from ensq.data.xyz import is_xyz, refuse_single_atoms
from ensq.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """One file. Memory goes with the number of its frames, not with that of its beads."""

    sizes: Array  # [T] real beads
    beads: int
    kinds: Kinds
    row: Array | None  # [N] kinds of the beads, where all frames have the same and no padding
    table: Array  # [K] the species of each kind
    part: Part  # names, trajectories and proteins; its species are [1,S], all there are
    dtypes: dict[str, np.dtype[np.generic]]  # of R and F, as far as they are there
    holds: frozenset[str]  # R, F, U, cell, as far as they are there

    @property
    def frames(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What several files are together."""

    species_names: tuple[str, ...]
    tables: list[Array]  # of each file: [K] the common species of each kind
    replica: Array | None
    protein: Array | None
    protein_names: tuple[str, ...]


def scan(file: Streamed) -> Scanned:
    """Look through a file. Raises DataError."""
    kinds, sizes = Kinds(), np.zeros(file.frames, np.int32)
    row: Array | None = None
    same = True
    for raw in file.pieces(("mask", *KEYS)):
        shared = file.shared(("mask", *KEYS))
        count = 1 if shared else min(len(sizes) - raw.first, _length(raw, file))
        mask = checks.mask_of(raw, count, file.beads)
        codes = kinds.codes(_checked(raw, mask), mask)
        kinds.note_molecules(codes, mask)
        row = codes[0] if row is None else row
        same = same and bool(mask.all()) and bool((codes == row).all())
        if shared:
            sizes[:] = mask.sum()
            break
        sizes[raw.first : raw.first + count] = mask.sum(axis=1)
    try:
        species = kinds.species(file.whole)
    except DataError:
        _find_wrong_species(file)
        raise
    dtypes = {key: dtype for key in ("R", "F") if (dtype := file.dtype(key)) is not None}
    return Scanned(
        sizes=sizes,
        beads=file.beads,
        kinds=kinds,
        row=row if same else None,
        table=species.values[0],
        part=_part(file, species),
        dtypes=dtypes,
        holds=frozenset(key for key in ("R", "F", "U", "cell") if file.dtype(key) is not None),
    )


def _part(file: Streamed, species: Species) -> Part:
    """What the joining of files looks at, without the arrays that are large."""
    protein, protein_names = checks.protein_of(file.whole, file.frames)
    data = Data(
        R=np.broadcast_to(np.float32(0), (file.frames, 1, 3)),
        F=None,
        U=None,
        species=np.arange(len(species.names), dtype=np.int32)[None],
        mask=np.ones((1, len(species.names)), bool),
        replica=checks.replica_of(file.whole, file.frames),
        species_names=species.names,
        elements=species.elements,
        protein=protein,
        protein_names=protein_names,
    )
    return Part(file.path, data, species.named)


def _length(raw: Raw, file: Streamed) -> int:
    """Frames of a piece, which holds an array for each of them."""
    return next(
        len(values)
        for key, values in raw.arrays.items()
        if key in ("mask", *KEYS) and not file.shared((key,))
    )


def _checked(raw: Raw, mask: Array) -> Raw:
    """The same, if its species are of types that can be any."""
    for key in ("species", "Z"):
        if key in raw.arrays and raw.arrays[key].dtype.kind not in "iuUS":
            species_of(raw, mask)
    return raw


def _find_wrong_species(file: Streamed) -> None:
    """Raise the DataError that names frame and bead, of species that are known to be wrong."""
    for raw in file.pieces(("mask", *KEYS)):
        shared = file.shared(("mask", *KEYS))
        mask = checks.mask_of(raw, 1 if shared else _length(raw, file), file.beads)
        species_of(_with_names(raw, file), mask)


def _with_names(raw: Raw, file: Streamed) -> Raw:
    named = {key: file.whole.arrays[key] for key in ("names",) if key in file.whole.arrays}
    return Raw(raw.path, {**raw.arrays, **named}, raw.called, raw.holds, raw.first)


def join(files: list[Scanned]) -> Joined:
    """As ``joining.join`` does with frames in memory. Raises DataError."""
    parts = [file.part for file in files]
    if len(files) == 1:
        data = parts[0].data
        return Joined(
            species_names=data.species_names,
            tables=[files[0].table],
            replica=data.replica,
            protein=data.protein,
            protein_names=data.protein_names,
        )
    path = parts[0].path.parent
    for key in ("F", "U"):
        missing = [one.part.path.name for one in files if key not in one.holds]
        joining.refuse_missing(path, key, missing, len(files))
    if any(one.beads > 1 for one in files):
        for one in files:
            if is_xyz(one.part.path):
                refuse_single_atoms(one.part.path, one.sizes)
    refuse_much_padding(path, np.concatenate([one.sizes for one in files]))
    names, species = joining.species_of_all(path, parts)
    tables = [values[0][one.table] for one, values in zip(files, species, strict=True)]
    proteins, protein_names = joining.proteins_of_all(
        parts,
        lambda: [one.kinds.composition(table) for one, table in zip(files, tables, strict=True)],
    )
    return Joined(
        species_names=names,
        tables=tables,
        replica=joining.replicas_of_all([part.data for part in parts]),
        protein=proteins,
        protein_names=protein_names,
    )
