"""The index of a converted set: what arrays it has, and whether they still are what they were.

ensq-data.json     shapes, types and SHA-256 of the arrays, units, names; its SHA-256 is the set's
stamps.json        sizes and times of the files when they were last read in full; may be lost
R.npy, F.npy, …    an array each
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensq.config.structs import UnitsConfig
from ensq.data.structs import MAX_NAME, MAX_NAMES
from ensq.errors import DataError, DiskError, MismatchError
from ensq.rundir import sha256, sha256_file, write_atomic
from ensq.units import ENERGY, LENGTH

NAME, STAMPS = "ensq-data.json", "stamps.json"
FORMAT, VERSION = "ensq-data", 1
_LARGEST = 64 * 1024 * 1024  # bytes of an index: names are short and few
# The types of the arrays and their shapes, in which T are the frames and N the beads.
KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "R": (("<f4", "<f8"), ("TN3",)),
    "F": (("<f4", "<f8"), ("TN3",)),
    "U": (("<f8",), ("T",)),
    "species": (("<i4",), ("N", "TN")),
    "mask": (("|b1",), ("TN",)),
    "replica": (("<i8",), ("T",)),
    "cell": (("<f8",), ("T33",)),
    "protein": (("<i4",), ("T",)),
}
Say = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """One array file."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str  # of the whole file
    size: int  # of it, in bytes


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a converted set says of itself."""

    frames: int
    beads: int
    units: UnitsConfig
    elements: bool
    species_names: tuple[str, ...]
    protein_names: tuple[str, ...]
    arrays: Mapping[str, Entry]

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(entry.size for entry in self.arrays.values())


def is_converted(path: Path) -> bool:
    """Whether a data path is a converted set."""
    try:
        return (path / NAME).is_file()
    except OSError:  # a name too long
        return False


def units_of(path: Path) -> UnitsConfig:
    """The units that a converted set is in. Raises DataError."""
    return read(path).units


def dumps(index: Index) -> bytes:
    """The index as text; the same set has the same, whenever and wherever it was made."""
    plain = {
        "format": FORMAT,
        "version": VERSION,
        "frames": index.frames,
        "beads": index.beads,
        "units": {"energy": index.units.energy, "length": index.units.length},
        "elements": index.elements,
        "species_names": index.species_names,
        "protein_names": index.protein_names,
        "arrays": {key: asdict(entry) for key, entry in index.arrays.items()},
    }
    return (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode()


def write(path: Path, index: Index) -> str:
    """Write the index of a set that is complete. Returns its SHA-256."""
    digest = write_atomic(path / NAME, dumps(index))
    write_stamps(path, index)
    return digest


def read(path: Path) -> Index:
    """The index of a converted set. Raises DataError."""
    file = path / NAME
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        return _from_plain(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(
            f"{file}: not a readable index of a converted set: {text}; restore it, or convert again"
        ) from error


def _from_plain(plain: Any) -> Index:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is no index."""
    if plain["format"] != FORMAT or plain["version"] != VERSION:
        raise ValueError(f"its format is not {FORMAT}, version {VERSION}, which this ensq reads")
    units = plain["units"]
    if units["energy"] not in ENERGY or units["length"] not in LENGTH:
        raise ValueError("its units are not known")
    T, N = _count(plain["frames"]), _count(plain["beads"])
    return Index(
        frames=T,
        beads=N,
        units=UnitsConfig(energy=units["energy"], length=units["length"]),
        elements=bool(plain["elements"]),
        species_names=_names(plain["species_names"]),
        protein_names=_names(plain["protein_names"]),
        arrays=_entries(plain["arrays"], T, N),
    )


def _entries(plain: Any, T: int, N: int) -> dict[str, Entry]:
    entries = {}
    for key, value in plain.items():
        entry = Entry(tuple(map(_count, value["shape"])), **_without(value, "shape"))
        dtypes, shapes = KINDS[key]
        allowed = [tuple({"T": T, "N": N, "3": 3}[axis] for axis in shape) for shape in shapes]
        if entry.dtype not in dtypes or entry.shape not in allowed or len(entry.sha256) != 64:
            raise ValueError(f"{key} has shape {entry.shape} and dtype {entry.dtype}")
        entries[key] = entry
    if not {"R", "species"} <= set(entries):
        raise ValueError("R and species must be there")
    return entries


def _without(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name != key}


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**48:
        raise ValueError("a number of frames or beads is wrong")
    return value


def _names(values: Any) -> tuple[str, ...]:
    names = tuple(values)
    if len(names) > MAX_NAMES or not all(
        isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable() for name in names
    ):
        raise ValueError("its names can't be shown")
    return names


# -- whether the arrays are the ones -------------------------------------------------------------


def digest(path: Path) -> str:
    """SHA-256 of the index, which holds those of the arrays.

    Arrays whose size and time are those of their last full check are not read. Others, as of a
    set that has been copied, are read in full, once where the folder can be written.

    Raises MismatchError if an array has changed, DataError if one can't be read.
    """
    found, text = read(path), (path / NAME).read_bytes()
    own = sha256(text)
    if _stamps(path) != _stamps_now(path, found, own):
        check_arrays(path, found)
        write_stamps(path, found)
    return own


def check_arrays(path: Path, found: Index, say: Say = lambda done, total: None) -> None:
    """Read every array and hold it against the index; ``say`` is told bytes. Raises as above."""
    done = 0
    for key, entry in found.arrays.items():
        file = path / f"{key}.npy"
        try:
            size = file.stat().st_size
            changed = f"it has {size} bytes, not {entry.size}" if size != entry.size else None
            if changed is None and (now := sha256_file(file)) != entry.sha256:
                changed = f"SHA-256 {now[:12]}…, recorded {entry.sha256[:12]}…"
        except OSError as error:
            raise DataError(f"{file}: can't be read: {error.strerror}") from error
        if changed is not None:
            raise MismatchError(
                f"{file}: the array has changed since the set was made ({changed}): restore the "
                "file, or convert the data again"
            )
        done += entry.size
        say(done, found.size)


def write_stamps(path: Path, found: Index) -> None:
    """Remember that the arrays, as they lie there now, are those of the index."""
    own = sha256((path / NAME).read_bytes())
    with suppress(OSError, DiskError):  # a folder that can't be written is read in full every time
        write_atomic(path / STAMPS, (json.dumps(_stamps_now(path, found, own)) + "\n").encode())


def _stamps(path: Path) -> Any:
    try:
        return json.loads((path / STAMPS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _stamps_now(path: Path, found: Index, own: str) -> dict[str, Any]:
    stamps: dict[str, Any] = {"index": own}
    for key in found.arrays:
        file = path / f"{key}.npy"
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file}: can't be read: {error.strerror}") from error
        stamps[key] = [status.st_size, status.st_mtime_ns]
    return stamps


def npy_dtype(key: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which an array is stored."""
    dtypes, _ = KINDS[key]
    little = dtype.newbyteorder("<")
    return little if little.str in dtypes else np.dtype(dtypes[-1])
