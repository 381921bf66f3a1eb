"""Arrays in files of their own, of which single rows are read when they are asked for."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np

from ensq import npzfile
from ensq.data.structs import Array
from ensq.errors import DataError
from ensq.units import convert


class Rows:
    """The rows of a ``.npy`` file, one for each frame.

    The file is read, not mapped into memory: mapped pages would count as memory of the process
    for as long as it likes, and a disk that goes away would kill it instead of raising an error.
    Several threads may read at a time.
    """

    def __init__(self, path: Path, *, factor: float = 1.0) -> None:
        """``factor``: what all numbers are multiplied by. Raises DataError."""
        self.path, self._factor = path, factor
        try:
            with path.open("rb") as file:
                header = npzfile.read_header(path.name, file)
                size = file.seek(0, os.SEEK_END)
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, npzfile.Unreadable) as error:
            text = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{path}: can't be read: {text}") from error
        weakref.finalize(self, os.close, self._file)
        self.shape, self.dtype, self._start = header.shape, header.dtype, header.length
        self._bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        if header.by_columns or not self.shape or size != self._start + len(self) * self._bytes:
            raise DataError(
                f"{path}: not the array that its header promises: shape {self.shape}, dtype "
                f"{self.dtype}, and the file has {size} bytes; restore it, or convert again"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, frames: Array) -> Array:
        """The rows of these indices [n], in this order. Raises DataError where they can't be read.

        Neighbours in the file that follow each other are read together.
        """
        frames = np.asarray(frames)
        if frames.size and not (frames.min() >= 0 and frames.max() < len(self)):
            raise IndexError(f"{self.path} has {len(self)} rows")
        out = np.empty((len(frames), *self.shape[1:]), self.dtype)
        if not frames.size:
            return out
        starts = np.flatnonzero(np.diff(frames, prepend=-2) != 1)
        stops = np.append(starts[1:], len(frames))
        room = out.reshape(-1).view(np.uint8).data
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            self._read(room[start * self._bytes : stop * self._bytes], int(frames[start]))
        return convert(out, self._factor)

    def _read(self, room: memoryview, row: int) -> None:
        at = self._start + row * self._bytes
        while room:
            try:
                count = os.preadv(self._file, [room], at)
            except OSError as error:
                raise DataError(f"{self.path}: can't be read: {error.strerror}") from error
            if not count:
                raise DataError(f"{self.path}: the file has become shorter; restore it")
            room, at = room[count:], at + count
