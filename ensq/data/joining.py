"""One data set from several files: padding, and what names and numbers of theirs mean together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ensq.data.padding import refuse_much_padding
from ensq.data.structs import ELEMENTS, Array, Data, Part
from ensq.errors import DataError

Composition = tuple[tuple[int, int], ...]  # species and how many beads of it, by species


def join(path: Path, parts: Sequence[Part]) -> Data:
    """The frames of several files in their order, padded to the largest number of beads."""
    for key in ("F", "U"):
        missing = [part.path.name for part in parts if getattr(part.data, key) is None]
        refuse_missing(path, key, missing, len(parts))
    names, species = species_of_all(path, parts)
    data = [part.data for part in parts]
    refuse_much_padding(path, np.concatenate([one.mask.sum(axis=1) for one in data]))
    forces = [one.F for one in data if one.F is not None]
    energies = [one.U for one in data if one.U is not None]
    proteins, protein_names = proteins_of_all(
        parts, lambda: [_composition(one.mask, s) for one, s in zip(data, species, strict=True)]
    )
    return Data(
        R=_stacked([one.R for one in data]),
        F=_stacked(forces) if forces else None,
        U=np.concatenate(energies) if energies else None,
        species=_stacked(species),
        mask=_stacked([one.mask for one in data]),
        replica=replicas_of_all(data),
        species_names=names,
        elements=data[0].elements,
        cell=_cells(data),
        protein=proteins,
        protein_names=protein_names,
    )


def refuse_missing(path: Path, key: str, missing: Sequence[str], files: int) -> None:
    """Raise DataError if some of the files lack an array, and not all."""
    if 0 < len(missing) < files:
        raise DataError(f"{path}: some of its files have {key} and some have not ({missing[0]})")


def species_of_all(path: Path, parts: Sequence[Part]) -> tuple[tuple[str, ...], list[Array]]:
    """All names, and the species of each file as indices into them."""
    for flags, what in (
        ([part.data.elements for part in parts], "have chemical elements as species"),
        ([part.named for part in parts], "name their species"),
    ):
        if len(set(flags)) > 1:
            other = parts[flags.index(False)].path.name
            raise DataError(
                f"{path}: some of its files {what} and some do not ({other}); store the same kind "
                "of species, with species_names, in all"
            )
    lists = [part.data.species_names for part in parts]
    indices = [part.data.species for part in parts]
    if not parts[0].named:
        return _numbered(lists), indices
    if len(set(lists)) == 1:
        return lists[0], indices
    names = list(dict.fromkeys(name for one in lists for name in one))
    if parts[0].data.elements:
        names.sort(key=ELEMENTS.index)
    place = {name: number for number, name in enumerate(names)}
    species = []
    for part in parts:
        table = np.array([place[name] for name in part.data.species_names], np.int32)
        species.append(np.where(part.data.mask, table[part.data.species], np.int32(0)))
    return tuple(names), species


def _numbered(lists: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Names of numbers, which mean the same in all files; a residue's, where all files agree."""
    names = []
    for number in range(max(map(len, lists))):
        given = {one[number] for one in lists if number < len(one)} - {str(number)}
        names.append(given.pop() if len(given) == 1 else str(number))
    return tuple(names) if len(set(names)) == len(names) else tuple(map(str, range(len(names))))


def replicas_of_all(data: Sequence[Data]) -> Array:
    """Trajectories of different files stay apart; one without ``replica`` is one trajectory.

    Numbers that are unique over all files stay as they are. Otherwise those of file i (from 0)
    are raised by i times (1 + the largest number).
    """
    if all(one.replica is None for one in data):
        return np.repeat(np.arange(len(data)), [one.n_frames for one in data])
    numbers = [
        np.zeros(one.n_frames, np.int64) if one.replica is None else one.replica.astype(np.int64)
        for one in data
    ]
    distinct = [set(np.unique(values).tolist()) for values in numbers]
    if len(set.union(*distinct)) < sum(map(len, distinct)):
        # With a negative number the step must reach over the whole range to keep files apart.
        every = np.concatenate(numbers)
        step = 1 + int(every.max()) - min(0, int(every.min()))
        numbers = [values + place * step for place, values in enumerate(numbers)]
    return np.concatenate(numbers)


def proteins_of_all(
    parts: Sequence[Part], compositions: Callable[[], Sequence[Composition | None]]
) -> tuple[Array | None, tuple[str, ...]]:
    """Proteins by name. A file that names none is a protein of its own, called like the file, if
    other files name theirs, or if each file holds one molecule and these differ.

    ``compositions`` tells the molecule of each file, None for a file of several.
    """
    if all(part.data.protein is None for part in parts):
        found = compositions()
        if None in found or len(set(found)) == 1:
            return None, ()
    names: dict[str, int] = {}
    index = []
    for part in parts:
        data = part.data
        own = data.protein_names or (part.path.name.split(".")[0],)
        table = np.array([names.setdefault(name, len(names)) for name in own], np.int32)
        given = np.zeros(data.n_frames, np.int32) if data.protein is None else data.protein
        index.append(table[given])
    return np.concatenate(index), tuple(names)


def _composition(mask: Array, species: Array) -> Composition | None:
    """How many beads of which species all frames have; None if frames differ."""
    counts = {}
    for number in np.unique(species[mask]).tolist():
        beads = ((species == number) & mask).sum(axis=1)
        if (beads != beads[0]).any():
            return None
        counts[number] = int(beads[0])
    return tuple(sorted(counts.items()))


def _cells(data: Sequence[Data]) -> Array | None:
    if all(one.cell is None for one in data):
        return None
    return np.concatenate(
        [np.zeros((one.n_frames, 3, 3)) if one.cell is None else one.cell for one in data]
    )


def _stacked(values: Sequence[Array]) -> Array:
    """[T,N,...] of all files; N is the largest number of beads."""
    beads = max(one.shape[1] for one in values)
    padded = []
    for one in values:
        widths = [(0, 0)] * one.ndim
        widths[1] = (0, beads - one.shape[1])
        padded.append(np.pad(one, widths))
    return np.concatenate(padded)
