"""What is passed around: the arrays of one file as read, and checked frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq.errors import DataError

Array = NDArray[Any]

ELEMENTS = (  # noqa: SIM905 (118 quoted symbols would be no easier to read)
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As "
    "Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd "
    "Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am "
    "Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
).split()


@dataclass(frozen=True, kw_only=True)
class Data:
    """Frames on the host, in Angstrom and the run's unit of energy.

    Padded beads have mask 0 and R = F = species = 0.
    """

    R: Array  # [T,N,3] float
    F: Array | None  # [T,N,3] float
    U: Array | None  # [T] float64
    species: Array  # [T,N] int32
    mask: Array  # [T,N] bool
    replica: Array | None  # [T] int
    species_names: tuple[str, ...]
    elements: bool = False  # the species are chemical elements, species_names their symbols
    # [T,3,3] float64: rows are lattice vectors, a zero row an open direction; None: all open.
    cell: Array | None = None
    protein: Array | None = None  # [T] int32, index into protein_names
    protein_names: tuple[str, ...] = ()

    @property
    def n_frames(self) -> int:
        return int(self.R.shape[0])

    @property
    def n_beads(self) -> int:
        """Places of a frame, padding included."""
        return int(self.R.shape[1])

    def force_rms(self) -> float | None:
        """Root mean square of the forces per real component; None without forces."""
        if self.F is None:
            return None
        values = self.F[self.mask].astype(np.float64)
        return float(np.sqrt(np.mean(values**2)))

    def take(self, frames: Array) -> Data:
        """The same data with the frames of these indices, in this order."""
        return replace(
            self,
            R=self.R[frames],
            F=_rows(self.F, frames),
            U=_rows(self.U, frames),
            species=self.species[frames],
            mask=self.mask[frames],
            replica=_rows(self.replica, frames),
            cell=_rows(self.cell, frames),
            protein=_rows(self.protein, frames),
        )

    def cut(self, beads: int) -> Data:
        """The same frames with so many places each; what is left out must be padding."""
        return replace(
            self,
            R=self.R[:, :beads],
            F=None if self.F is None else self.F[:, :beads],
            species=self.species[:, :beads],
            mask=self.mask[:, :beads],
        )


def _rows(values: Array | None, frames: Array) -> Array | None:
    return None if values is None else values[frames]


@dataclass(frozen=True)
class Raw:
    """The arrays of one file, or of some of its frames, under ensq's names, unchecked.

    ``arrays`` may have: R, F, U, species, Z, names, resname, mask, replica, cell, pbc, protein,
    protein_names. ``called`` says what the file calls them, ``holds`` what else is in it.
    """

    path: Path
    arrays: Mapping[str, Array]
    called: Mapping[str, str]
    holds: tuple[str, ...]
    first: int = 0  # the number of the first of these frames in the file

    def name(self, key: str) -> str:
        """What the file calls an array: errors speak the user's language."""
        return self.called.get(key, key)


class Part(NamedTuple):
    """The frames of one file of a data set."""

    path: Path
    data: Data
    named: bool  # the file itself names its species


# Names become keys of results and labels of tables: more or longer ones are no names.
MAX_NAMES = 100_000
MAX_NAME = 200


def names_in(raw: Raw, key: str, values: Array) -> list[str]:
    """Names of an array of one axis (or none), which may be numbers, or text stored as bytes.

    Raises DataError for what could not be shown as it is: control characters would reach terminals
    and files wherever the name is written.
    """
    flat = np.atleast_1d(values)
    called = raw.name(key)
    if flat.ndim > 1 or flat.size > MAX_NAMES or flat.dtype.kind not in "iuUS":
        raise DataError(
            f"{raw.path}: {called} has shape {values.shape} and dtype {values.dtype}; it must be a "
            f"list of at most {MAX_NAMES} names"
        )
    names = [
        v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in flat.tolist()
    ]
    for place, name in enumerate(names):
        if len(name) > MAX_NAME or not name.isprintable():
            raise DataError(
                f"{raw.path}: {called}: the name {short(ascii(name))} (number {place}) is longer "
                f"than {MAX_NAME} characters or holds some that can't be shown: rename it"
            )
    return names


def short(name: str, length: int = 60) -> str:
    """A name for a message."""
    return name if len(name) <= length else name[: length - 1] + "…"
