"""The species of a file that is read in pieces: what decides is known when all were seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ensq.data.species import Species, per_bead, species_of
from ensq.data.structs import Array, Raw

KEYS = ("species", "Z", "resname")
_MOST_MOLECULES = 1000  # different ones in a file, after which they are no longer told apart


class Kinds:
    """The different beads of a file, a kind for each combination of what it says of a bead.

    ``species_of`` looks at the kinds as if they were the beads of one frame: whatever it decides by
    all beads of a file, it decides by these.
    """

    def __init__(self) -> None:
        self._place: dict[tuple[object, ...], int] = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._molecules: set[tuple[tuple[int, int], ...]] = set()

    def codes(self, raw: Raw, mask: Array) -> Array:
        """[t,N] the kind of each bead of some frames; 0 on padding."""
        keys = [key for key in KEYS if key in raw.arrays]
        columns, number = [], np.zeros(int(mask.sum()), np.int64)
        for key in keys:
            values = per_bead(raw, key, *mask.shape)[mask]
            present, place = np.unique(values, return_inverse=True)
            self._dtypes[key] = np.promote_types(self._dtypes.get(key, values.dtype), values.dtype)
            columns.append(present)
            number = number * len(present) + place
        found, place = np.unique(number, return_inverse=True)
        table = np.zeros(len(found), np.int32)
        for row, code in enumerate(found.tolist()):
            kind: list[object] = []
            for present in reversed(columns):
                code, at = divmod(code, len(present))
                kind.append(present[at].item())
            table[row] = self._place.setdefault(tuple(reversed(kind)), len(self._place))
        out = np.zeros(mask.shape, np.int32)
        out[mask] = table[place]
        return out

    def note_molecules(self, codes: Array, mask: Array) -> None:
        """Remember which molecules these frames [t,N] are."""
        if len(self._molecules) > _MOST_MOLECULES:
            return
        frames, width = len(codes), len(self._place)
        number = np.arange(frames)[:, None] * width + codes
        counts = np.bincount(number[mask], minlength=frames * width).reshape(frames, width)
        for row in np.unique(counts, axis=0):
            self._molecules.add(tuple((int(k), int(row[k])) for k in np.flatnonzero(row)))

    def species(self, raw: Raw) -> Species:
        """The species of the file: ``values`` [1,K] of each kind. ``raw``: names, and no beads."""
        keys = list(self._dtypes)
        columns = list(zip(*self._place, strict=True)) if keys else []
        beads = {
            key: np.array(column, self._dtypes[key])
            for key, column in zip(keys, columns, strict=True)
        }
        named = {key: raw.arrays[key] for key in ("names",) if key in raw.arrays}
        return species_of(replace(raw, arrays={**beads, **named}), np.ones((1, len(self)), bool))

    def composition(self, table: Array) -> tuple[tuple[int, int], ...] | None:
        """How many beads of which species all frames have; None if they differ.

        ``table`` [K]: the species of each kind.
        """
        found = set()
        for molecule in self._molecules:
            counts: dict[int, int] = {}
            for kind, beads in molecule:
                counts[int(table[kind])] = counts.get(int(table[kind]), 0) + beads
            found.add(tuple(sorted(counts.items())))
        too_many = len(self._molecules) > _MOST_MOLECULES
        return None if too_many or len(found) != 1 else found.pop()

    def __len__(self) -> int:
        return max(1, len(self._place))
