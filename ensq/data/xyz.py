"""Reading extended XYZ files: ensq finds the frames, ASE reads each."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from ensq.config.structs import GammasConfig, KeysConfig
from ensq.data.npz import listed, without_absent
from ensq.data.padding import refuse_much_padding
from ensq.data.structs import MAX_NAME, Array, Raw, short
from ensq.errors import DataError

SUFFIXES = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")
# Names of labels that are recognised in any mixture of cases.
FORCES = ("forces", "force", "ref_forces", "ref_force", "dft_forces", "dft_force")
ENERGIES = ("energy", "ref_energy", "dft_energy")
LAST_RESORT = "free_energy"
# More kinds of `config_type` than this are labels of frames, not molecules.
MAX_CONFIG_TYPES = 64
_MAX_DIGITS = 9  # of the number of atoms
_MAX_COLUMNS = 200  # numbers for each atom; ASE makes a field for each that is announced
# Text of numbers packs to a third or a quarter; a file may unpack to this at least.
_MOST_TIMES, _ALWAYS_ALLOWED = 16, 1024 * 1024
_LARGEST = 2**53  # of whole numbers
_LONGEST_COMMENT, _LONGEST_JSON = 1_000_000, 10_000  # characters


class Frame(NamedTuple):
    """One frame of n atoms as ASE reads it."""

    numbers: Array  # [n]
    positions: Array  # [n,3]
    cell: Array  # [3,3]
    pbc: Array  # [3]
    per_atom: Mapping[str, Array]  # all other columns
    per_frame: Mapping[str, Any]  # energy and what else stands on the comment line


def is_xyz(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def read(
    path: Path,
    keys: KeysConfig,
    gammas: GammasConfig,
    *,
    labels: bool = True,
    asked_for: Collection[str] = (),
) -> Raw:
    """All frames, padded to the largest.

    Labels that only some frames have are an error if their weight in the loss is not 0, and are
    left out otherwise. Those that ``keys`` name must be there, or where ``labels`` is False those
    ``asked_for`` (of F, U).
    """
    with closing(_blocks(path)) as blocks:
        frames = [_parse(path, place, block) for place, block in enumerate(blocks)]
    if not frames:
        raise DataError(f"{path}: holds no frame")
    if not labels:  # a label must be in all frames to count
        keys = without_absent(
            keys,
            set.intersection(*({*frame.per_atom, *frame.per_frame} for frame in frames)),
            asked_for,
        )
    sizes = np.array([len(frame.numbers) for frame in frames])
    beads = int(sizes.max())
    refuse_much_padding(path, sizes)
    if beads > 1:
        refuse_single_atoms(path, sizes)
    arrays = {
        "R": _padded([frame.positions for frame in frames], beads),
        "Z": _padded([frame.numbers for frame in frames], beads),
        "mask": np.arange(beads) < sizes[:, None],
        "cell": np.stack([frame.cell for frame in frames]),
        "pbc": np.stack([frame.pbc for frame in frames]),
    }
    called = {"R": "positions", "Z": "species", "cell": "Lattice"}
    columns = [frame.per_atom for frame in frames]
    if keys.R is not None and keys.R not in ("pos", "positions"):
        arrays["R"] = _padded(_column(path, columns, "R", keys.R, 3), beads)
        called["R"] = keys.R
    if keys.species is not None and keys.species not in ("species", "symbols"):
        chosen = _column(path, columns, "species", keys.species, None)
        arrays["species"], called["species"] = _padded(chosen, beads), keys.species
    name = keys.F or _label(path, columns, FORCES, None, "F")
    if name and _everywhere(path, columns, name, keys.F, "F", gammas.F > 0):
        arrays["F"] = _padded(_column(path, columns, "F", name, 3), beads)
        called["F"] = name
    lines = [frame.per_frame for frame in frames]
    name = keys.U or _label(path, lines, ENERGIES, LAST_RESORT, "U")
    if name and _everywhere(path, lines, name, keys.U, "U", gammas.U > 0):
        arrays["U"], called["U"] = _numbers(path, lines, name, float), name
    arrays.update(_groups(path, lines))
    return Raw(path, arrays, called, tuple(dict.fromkeys([*columns[0], *lines[0]])))


def refuse_single_atoms(path: Path, sizes: Array) -> None:
    """Raise DataError if any frame is one atom. To be called if others are molecules."""
    single = np.flatnonzero(sizes == 1)
    if single.size:
        raise DataError(
            f"{path}: frame {single[0]} is a single atom among molecules ({single.size} such): "
            "remove isolated atoms from the file; ensq fits reference energies itself"
        )


# -- frames ------------------------------------------------------------------------------------


def _blocks(path: Path) -> Generator[str, None, None]:
    """The text of each frame. Blank lines between frames are skipped, where ASE would stop."""
    try:
        with _open(path) as file:
            place = 0
            while line := _next_line(file):
                count = line.strip()
                atoms = int(count) if count.isdecimal() and len(count) <= _MAX_DIGITS else 0
                if atoms < 1:
                    raise DataError(
                        f"{path}: frame {place}: the number of its atoms should stand here, not "
                        f"{count[:40]!r}"
                    )
                rest = list(islice(file, atoms + 1))
                if len(rest) <= atoms:
                    raise DataError(
                        f"{path}: frame {place}: the file ends after {max(0, len(rest) - 1)} of "
                        f"{atoms} atoms"
                    )
                yield line + "".join(rest)
                place += 1
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path}: not a readable XYZ file: {text}") from error


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        _refuse_bomb(path)
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _refuse_bomb(path: Path) -> None:
    """Raise DataError if a gzip file unpacks out of all proportion to its size."""
    room = max(_ALWAYS_ALLOWED, _MOST_TIMES * path.stat().st_size)
    with gzip.open(path, "rb") as file:
        while block := file.read(_ALWAYS_ALLOWED):
            room -= len(block)
            if room < 0:
                raise DataError(
                    f"{path}: unpacks to over {_MOST_TIMES} times its size, as only files made to "
                    "fill the memory do; if it is a real one, unpack it (gunzip)"
                )


def _next_line(file: TextIO) -> str:
    line = file.readline()
    while line and not line.strip():
        line = file.readline()
    return line


def _parse(path: Path, place: int, block: str) -> Frame:
    from ase.io.extxyz import read_xyz  # half a second: only for who has such files

    try:
        (atoms,) = read_xyz(io.StringIO(block), index=0, properties_parser=_comment)
        per_atom = {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}
        per_frame = dict(atoms.info)
        for key, value in (atoms.calc.results if atoms.calc else {}).items():
            (per_frame if np.ndim(value) == 0 else per_atom)[key] = value
        return Frame(
            atoms.numbers.copy(),
            atoms.positions.copy(),
            atoms.cell.array.copy(),
            atoms.pbc.copy(),
            per_atom,
            per_frame,
        )
    except Exception as error:  # ASE raises whatever its parts raise
        unknown = isinstance(error, KeyError) and error.args and isinstance(error.args[0], str)
        text = (
            f"{short(_as_written(block, error.args[0]))!r} is no chemical element; for beads, give "
            "their names in a column of another name than species (Properties=bead:S:1:…) and set "
            "data.keys.species to it, or use NPZ"
            if unknown
            else short(" ".join(str(error).split()), 300) or _WORDS.get(type(error), "damaged")
        )
        raise DataError(f"{path}: frame {place}: not readable as extended XYZ: {text}") from error


_WORDS = {MemoryError: "too large", RecursionError: "brackets nested too deeply"}


def _comment(line: str) -> dict[str, Any]:
    """The comment line by ASE's own parser. Raises ValueError for what would fill the memory.

    ASE makes a field for each column that ``Properties`` announces, and an array of texts as wide
    as the longest from JSON.
    """
    from ase.io.extxyz import key_val_str_to_dict

    if len(line) > (_LONGEST_JSON if "_JSON" in line else _LONGEST_COMMENT):
        raise ValueError(f"the comment line has {len(line)} characters")
    found: dict[str, Any] = key_val_str_to_dict(line)  # type: ignore[no-untyped-call]
    counts = str(found.get("Properties", "")).split(":")[2::3]
    columns = [int(count) if len(count) <= _MAX_DIGITS else _MAX_COLUMNS + 1 for count in counts]
    if len(columns) > _MAX_COLUMNS or sum(columns) > _MAX_COLUMNS or min(columns, default=1) < 1:
        raise ValueError(f"Properties must announce 1 to {_MAX_COLUMNS} numbers for each atom")
    return found


def _as_written(block: str, symbol: str) -> str:
    """A symbol as it stands in the file: ASE changes the case of letters."""
    words = (word for line in block.splitlines()[2:] for word in line.split())
    return next((word for word in words if word.capitalize() == symbol), symbol)


# -- labels ------------------------------------------------------------------------------------

Named = Sequence[Mapping[str, Any]]  # one mapping for each frame


def _label(
    path: Path, frames: Named, known: tuple[str, ...], last: str | None, key: str
) -> str | None:
    """The one well-known name that occurs in any frame."""
    present = {name: None for frame in frames for name in frame}
    found = [name for name in present if name.lower() in known]
    if len(found) > 1:
        raise DataError(
            f"{path}: {' and '.join(found)} could each be {key}: say which in data.keys.{key}"
        )
    return found[0] if found else last if last in present else None


def _everywhere(
    path: Path, frames: Named, name: str, chosen: str | None, key: str, needed: bool
) -> bool:
    """Whether all frames have the label; an error if one has not and it matters."""
    missing = next((place for place, frame in enumerate(frames) if name not in frame), None)
    if missing is None:
        return True
    if chosen is None and not needed:
        return False
    where = f"data.keys.{key} names it" if chosen else "other frames have it"
    advice = f", or name another label in data.keys.{key}" if key in ("F", "U") else ""
    raise DataError(
        f"{path}: frame {missing} has no {name} ({where}); it has {listed(frames[missing])}: "
        f"complete or remove such frames{advice}"
    )


def _column(path: Path, frames: Named, key: str, name: str, width: int | None) -> list[Array]:
    """A per-atom array of every frame: [n,3] numbers, or [n] of any type for ``width`` None."""
    values = []
    for place, frame in enumerate(frames):
        if name not in frame:
            raise DataError(
                f"{path}: frame {place} has no {name}, which data.keys.{key} names; it has "
                f"{listed(frame)}"
            )
        value = np.asarray(frame[name])
        if value.dtype.kind == "O":  # ASE's text
            value = _texts(path, name, value.ravel().tolist()).reshape(value.shape)
        fits = value.ndim == 1 if width is None else value.shape[1:] == (width,)
        if not fits or (width is not None and value.dtype.kind not in "fiu"):
            wanted = "one value" if width is None else f"{width} numbers"
            raise DataError(f"{path}: frame {place}: {name} must have {wanted} for each atom")
        values.append(value if width is None else value.astype(np.float64))
    return values


def _texts(path: Path, name: str, values: Sequence[Any]) -> Array:
    """Text as an array, which is as wide as the longest everywhere."""
    texts = [str(value) for value in values]
    longest = max(texts, key=len)
    if len(longest) > MAX_NAME:
        raise DataError(
            f"{path}: {name} holds {short(longest)!r}, a name of over {MAX_NAME} characters"
        )
    return np.array(texts)


def _numbers(path: Path, frames: Named, name: str, kind: type) -> Array:
    """One number [T] of each frame's comment line."""
    values: list[Any] = [frame[name] for frame in frames]
    allowed: Any = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    for place, value in enumerate(values):
        if isinstance(value, bool | np.bool_) or not isinstance(value, allowed):
            raise DataError(
                f"{path}: frame {place}: {name} is {short(str(value))!r}; it must be one "
                + ("integer" if kind is int else "number")
            )
        most = _LARGEST if kind is int else sys.float_info.max
        if most < abs(value) < np.inf:  # infinities are spoken of with the other energies
            raise DataError(f"{path}: frame {place}: {name} is {short(str(value))}: too large")
    return np.array(values, kind)


def _groups(path: Path, lines: Named) -> dict[str, Array]:
    """Trajectory and protein of each frame, if the comment lines tell them."""
    groups: dict[str, Array] = {}
    for key in ("replica", "protein"):
        if any(key in line for line in lines):
            _everywhere(path, lines, key, None, key, needed=True)
            groups[key] = (
                _numbers(path, lines, key, int)
                if key == "replica"
                else _texts(path, key, [line[key] for line in lines])
            )
    if "protein" not in groups:
        kinds = [str(line.get("config_type", "Default")) for line in lines]
        if 1 < len(set(kinds)) <= MAX_CONFIG_TYPES:
            groups["protein"] = _texts(path, "config_type", kinds)
    return groups


def _padded(values: Sequence[Array], beads: int) -> Array:
    """[T, beads, ...] from arrays [n, ...], with zeros (or empty text) behind."""
    first = np.result_type(*{value.dtype for value in values})
    out = np.zeros((len(values), beads, *values[0].shape[1:]), first)
    for place, value in enumerate(values):
        out[place, : len(value)] = value
    return out
