"""The array files of a converted set, written from their first frame to their last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ensq.data import index
from ensq.data.index import Entry
from ensq.data.scanning import Joined, Scanned
from ensq.data.structs import Array
from ensq.rundir import disk_errors


class Writers:
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

    def __enter__(self) -> Writers:
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
