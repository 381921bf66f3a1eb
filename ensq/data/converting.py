"""Converted sets are made here: files in, a folder of arrays out, some frames at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensq.config.structs import KeysConfig, UnitsConfig
from ensq.data import checks, index, xyz
from ensq.data.index import Entry, Index
from ensq.data.loading import NO_LABELS, data_files
from ensq.data.scanning import Joined, Scanned, join, scan
from ensq.data.streaming import FRAMES, Streamed, open_npz, open_spooled
from ensq.data.structs import Array, Raw
from ensq.errors import DiskError, UsageError
from ensq.rundir import disk_errors, flush_folder, make_folder
from ensq.units import LENGTH, convert

Say = Callable[[str, int, int], None]  # what is done, frames done, frames in all
Open = Callable[[], Any]  # a context that gives a file as Streamed


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What ``convert_set`` made."""

    path: Path
    index: Index
    digest: str


def convert_set(
    source: Path,
    dest: Path,
    *,
    units: UnitsConfig,
    keys: KeysConfig,
    say: Say = lambda text, done, total: None,
) -> Converted:
    """Write a data file or folder as a converted set.

    Memory is bounded by a piece of some 50 MB, a few numbers for each frame, and, of XYZ files,
    by one file. Nothing is left at ``dest`` unless all was read and found to be right.

    Args:
        source: What ``data.path`` might name, but no converted set.
        dest: A folder that is not there yet.
        units: Of the files; numbers are stored as they are, and the units with them.
        keys: Names of arrays that are not the usual ones.
        say: Told how it goes.

    Raises:
        DataError: Naming file, array, frame and bead.
        UsageError: ``dest`` is there already, or ``source`` is a converted set.
        DiskError: There is no room, or the disk is to blame otherwise.
    """
    if index.is_converted(source):
        raise UsageError(f"{source}: is a converted set already; data.path may name it as it is")
    if dest.exists() or dest.is_symlink():
        raise UsageError(f"{dest}: is there already; choose another name, or remove it first")
    files = data_files(source)
    make_folder(dest.absolute().parent)
    with _beside(dest) as folder:
        opened = [_opener(file, keys, folder, number, say) for number, file in enumerate(files)]
        scanned = []
        for file, open_file in zip(files, opened, strict=True):
            say(f"looking through {file.name}", 0, 0)
            with open_file() as streamed:
                scanned.append(scan(streamed))
        joined = join(scanned)
        total, done = sum(one.frames for one in scanned), 0
        with _Writers(folder, scanned, joined) as writers:
            _refuse_full(dest, writers.size)
            for open_file, one, table in zip(opened, scanned, joined.tables, strict=True):
                with open_file() as streamed:
                    for piece in _pieces(streamed, one, table, units):
                        writers.write(piece)
                        done += len(piece["R"])
                        say("converting", done, total)
            arrays = writers.finish()
        for spool in folder.glob("*.npz"):
            spool.unlink()
        made = Index(
            frames=total,
            beads=writers.beads,
            units=units,
            elements=scanned[0].part.data.elements,
            species_names=joined.species_names,
            protein_names=joined.protein_names,
            arrays=arrays,
        )
        text = index.dumps(made)
        with disk_errors(folder), (folder / index.NAME).open("wb") as out:
            out.write(text)
            os.fsync(out.fileno())
        index.write_stamps(folder, made)
    return Converted(path=dest, index=made, digest=hashlib.sha256(text).hexdigest())


@contextmanager
def _beside(dest: Path) -> Iterator[Path]:
    """A folder that becomes ``dest`` if all goes well, and is removed otherwise."""
    parent = dest.absolute().parent
    with disk_errors(dest):
        folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".tmp", dir=parent))
    try:
        yield folder
        with disk_errors(dest):
            mask = os.umask(0o077)
            os.umask(mask)
            folder.chmod(0o777 & ~mask)  # it was made for this user alone
            flush_folder(folder)
            folder.rename(dest)
            flush_folder(parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _opener(file: Path, keys: KeysConfig, folder: Path, number: int, say: Say) -> Open:
    """How to open a file in pieces; XYZ files are read whole, once, and kept as arrays."""
    if not xyz.is_xyz(file):
        return partial(open_npz, file, keys)
    say(f"reading {file.name}", 0, 0)
    raw = xyz.read(file, keys, NO_LABELS)
    spool = folder / f"{number}.npz"
    with disk_errors(spool), spool.open("wb") as out:
        np.savez(out, **raw.arrays)
    return partial(open_spooled, Raw(raw.path, {}, raw.called, raw.holds), spool)


def _refuse_full(dest: Path, size: int) -> None:
    free = shutil.disk_usage(dest.absolute().parent).free
    if size > free:
        raise DiskError(
            f"{dest}: the converted set takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free there: free space, or convert to another file system"
        )


def _pieces(
    file: Streamed, scanned: Scanned, table: Array, units: UnitsConfig
) -> Iterator[dict[str, Array]]:
    """The arrays of some frames at a time, checked, in the units of the file."""
    wanted = set(checks.looked_at(scanned.frames).tolist())
    seen: list[Array] = []
    for raw in file.pieces(FRAMES):
        found = checks.values_of(raw, NO_LABELS, units)
        for frame in range(raw.first, raw.first + len(found.R)):
            if frame in wanted:
                real = found.R[frame - raw.first][found.mask[frame - raw.first]]
                seen.append(convert(real, LENGTH[units.length]))
        codes = (
            scanned.kinds.codes(raw, found.mask)
            if scanned.row is None
            else np.broadcast_to(scanned.row, found.mask.shape)
        )
        species = np.where(found.mask, table[codes], np.int32(0))
        piece = {"R": found.R, "species": species, "mask": found.mask}
        for key, values in (("F", found.F), ("U", found.U), ("cell", found.cell)):
            if values is not None:
                piece[key] = values
        yield piece
    checks.check_spacing(file.raw, seen, units.length)


class _Writers:
    """The array files of a set that is being made."""

    def __init__(self, folder: Path, files: list[Scanned], joined: Joined) -> None:
        self.folder, self.beads = folder, max(one.beads for one in files)
        T, N = sum(one.frames for one in files), self.beads
        rows = [
            None if one.row is None or one.beads < N else table[one.row]
            for one, table in zip(files, joined.tables, strict=True)
        ]
        first = rows[0]
        shared = first is not None and all(
            row is not None and np.array_equal(row, first) for row in rows
        )
        shapes: dict[str, tuple[int, ...]] = {"R": (T, N, 3)}
        if "F" in files[0].holds:
            shapes["F"] = (T, N, 3)
        if "U" in files[0].holds:
            shapes["U"] = (T,)
        shapes["species"] = (N,) if shared else (T, N)
        if not shared:
            shapes["mask"] = (T, N)
        if any("cell" in one.holds for one in files):
            shapes["cell"] = (T, 3, 3)
        whole = {"replica": joined.replica, "protein": joined.protein}
        if shared and first is not None:
            whole["species"] = first
        shapes |= {key: values.shape for key, values in whole.items() if values is not None}
        self._periodic = False
        self._arrays = {
            key: _Array(folder / f"{key}.npy", _dtype(key, files), shape)
            for key, shape in shapes.items()
        }
        for key, values in whole.items():
            if values is not None:
                self._arrays[key].write(values)
        self._pieces = [key for key in shapes if key not in whole or whole[key] is None]

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *error: object) -> None:
        for one in self._arrays.values():
            one.close()

    @property
    def size(self) -> int:
        return sum(one.size for one in self._arrays.values())

    def write(self, piece: dict[str, Array]) -> None:
        frames = len(piece["R"])
        for key in self._pieces:
            values = piece.get(key)
            if values is None:  # a file without cells among others
                values = np.zeros((frames, 3, 3))
            elif values.ndim > 1 and key != "cell":
                widths = [(0, 0), (0, self.beads - values.shape[1]), (0, 0)]
                values = np.pad(values, widths[: values.ndim])
            self._periodic = self._periodic or (key == "cell" and bool(values.any()))
            self._arrays[key].write(values)

    def finish(self) -> dict[str, Entry]:
        """Flush all files to the disk; what they hold."""
        if "cell" in self._arrays and not self._periodic:
            self._arrays.pop("cell").discard()
        return {key: one.finish() for key, one in self._arrays.items()}


def _dtype(key: str, files: list[Scanned]) -> np.dtype[Any]:
    """R and F are as in the files, the wider type where these differ."""
    found = [one.dtypes[key] for one in files if key in one.dtypes]
    return index.npy_dtype(key, np.result_type(*found) if found else np.dtype(np.float64))


class _Array:
    """An array file that is written from its first row to its last."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._path, self._dtype, self._shape = path, dtype, shape
        self._digest = hashlib.sha256()
        self.size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._left = self.size
        with disk_errors(path):
            self._file = path.open("wb")
            np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
                _Both(self._file.write, self._digest.update),
                {"descr": dtype.str, "fortran_order": False, "shape": shape},
            )

    def write(self, values: Array) -> None:
        content = np.ascontiguousarray(values, self._dtype).reshape(-1).view(np.uint8).data
        with disk_errors(self._path):
            self._file.write(content)
        self._digest.update(content)
        self._left -= len(content)

    def finish(self) -> Entry:
        assert not self._left, f"{self._path.name} is {self._left} bytes short"
        with disk_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
        return Entry(self._shape, self._dtype.str, self._digest.hexdigest(), size)

    def close(self) -> None:
        with suppress(OSError):  # of what is thrown away; the rest is on the disk already
            self._file.close()

    def discard(self) -> None:
        self.close()
        self._path.unlink()


class _Both:
    """A file for NumPy, which writes a header to it: the text goes to a digest, too."""

    def __init__(self, *write: Callable[[bytes], Any]) -> None:
        self._write = write

    def write(self, content: bytes) -> None:
        for write in self._write:
            write(content)
