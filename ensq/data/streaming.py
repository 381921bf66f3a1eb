"""NPZ files in pieces: some frames at a time, however large the file is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ensq import npzfile
from ensq.config.structs import KeysConfig
from ensq.data import cells, checks, npz
from ensq.data.species import per_bead
from ensq.data.stored import spans
from ensq.data.structs import Array, Raw
from ensq.errors import DataError

FRAMES = ("R", "F", "U", "mask", "species", "Z", "resname", "cell", "pbc")  # read in pieces
_ONE_ROW = {"mask": 1, "species": 1, "Z": 1, "resname": 1, "pbc": 1}  # axes, where frames share it


class Streamed:
    """An NPZ file, open; its frames are read in pieces, as often as they are asked for."""

    def __init__(
        self,
        path: Path,
        archive: npzfile.Npz,
        members: Mapping[str, str],
        called: Mapping[str, str],
        holds: tuple[str, ...],
    ) -> None:
        """``members``: what the file calls ensq's arrays; ``called``: what messages call them.

        Raises DataError where shapes or types are not those of frames.
        """
        self._archive = archive
        self._members: dict[str, str] = {}
        self._headers: dict[str, npzfile.Header] = {}
        spare = npz.spare_of(members)
        for key, name in members.items():
            header = npz.asked(path, partial(archive.header, name), key in spare)
            if header is not None:
                self._members[key], self._headers[key] = name, header
        self.raw = Raw(path, {}, called, holds)
        self.frames, self.beads = self._check()
        small = [key for key in self._members if key not in FRAMES]
        self.whole = replace(
            self.raw, arrays={key: archive.read(self._members[key]) for key in small}
        )

    @property
    def path(self) -> Path:
        """The file, as messages name it."""
        return self.raw.path

    def dtype(self, key: str) -> np.dtype[np.generic] | None:
        """The type of an array; None if the file has none."""
        return self._headers[key].dtype if key in self._headers else None

    def shared(self, keys: Sequence[str]) -> bool:
        """Whether all frames share these arrays, or the file has none of them."""
        return not any(self._per_frame(key) for key in keys if key in self._members)

    def pieces(self, keys: Sequence[str]) -> Iterator[Raw]:
        """All frames with these arrays, some at a time. Raises DataError."""
        held = [key for key in keys if key in self._members]
        streamed = [
            key for key in held if self._per_frame(key) and not self._headers[key].by_columns
        ]
        with unreadable(self.path), ExitStack() as opened:
            streams = {
                key: opened.enter_context(self._archive.stream(self._members[key]))
                for key in streamed
            }
            rest = {
                key: self._archive.read(self._members[key]) for key in held if key not in streams
            }
            for span in spans(self.beads, self.frames):
                arrays = {
                    key: stream.rows(span.stop - span.start) for key, stream in streams.items()
                }
                for key, values in rest.items():
                    arrays[key] = values[span] if self._per_frame(key) else values
                cell = arrays.get("cell")
                if cell is not None and self._per_frame("cell") and cell.ndim == 2:
                    # edges of boxes: those of three frames would look like one cell
                    arrays["cell"] = cells.of_edges(cell.astype(np.float64))
                yield replace(self.raw, arrays=arrays, first=span.start)

    def _per_frame(self, key: str) -> bool:
        shape = self._headers[key].shape
        if key == "cell":
            return shape[:1] == (self.frames,) and shape not in ((3, 3), (3,), (1,))
        return len(shape) > _ONE_ROW.get(key, 0)

    def _check(self) -> tuple[int, int]:
        """Frames and beads, by the headers alone."""
        arrays = {key: _phantom(self._members[key], h) for key, h in self._headers.items()}
        raw = replace(self.raw, arrays=arrays)
        R = checks.floats_of(raw, "R", 3)
        checks.check_shape(raw, R.shape)
        T, N = R.shape[:2]
        if "F" in arrays:
            checks.check_shape(raw, R.shape, checks.floats_of(raw, "F", 3).shape)
        if "U" in arrays:
            checks.energies_of(raw, T, needed=False)
        for key in {"mask", "species", "Z"} & set(arrays):
            per_bead(raw, key, T, N)
        if "resname" in arrays and arrays["resname"].shape not in ((T, N), (N,)):
            del self._members["resname"]  # as the species say that could be named by it
        cells.check_shapes(raw, T)
        return T, N


def _phantom(name: str, header: npzfile.Header) -> Array:
    """An array of this type and shape that takes no memory. Raises Unreadable."""
    try:
        return np.broadcast_to(np.zeros((), header.dtype.newbyteorder("=")), header.shape)
    except ValueError as error:  # without numbers, and with more axes' lengths than fit
        raise npzfile.Unreadable(f"{name} has the shape {header.shape!s:.60}") from error


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Inside, what NPZ files raise becomes a DataError that names the file."""
    try:
        yield
    except (OSError, npzfile.Unreadable) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: not a readable NPZ file: {text}") from error


@contextmanager
def open_npz(path: Path, keys: KeysConfig) -> Iterator[Streamed]:
    """An NPZ file as it is. Raises DataError."""
    with ExitStack() as opened:
        with unreadable(path):
            file = opened.enter_context(path.open("rb"))
            npz.check_kind(path, file.read(8))
            archive = opened.enter_context(npzfile.Npz(file))
            members = npz.called_in(path, archive.names, keys)
            streamed = Streamed(path, archive, members, members, archive.names)
        yield streamed


@contextmanager
def open_spooled(raw: Raw, spool: Path) -> Iterator[Streamed]:
    """A file of another format, whose arrays were written to an NPZ file under ensq's names."""
    with ExitStack() as opened:
        with unreadable(raw.path):
            archive = opened.enter_context(npzfile.Npz(opened.enter_context(spool.open("rb"))))
            members = {name: name for name in archive.names}
            streamed = Streamed(raw.path, archive, members, raw.called, raw.holds)
        yield streamed
