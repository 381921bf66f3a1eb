"""Arrays of an NPZ file from anybody: plain numbers and text, never unpickled, bounded in memory.

NumPy's own reader believes what a file says of itself: the size that an array is allocated with,
how far a member unpacks. Here every size is held against the file before it is used.
"""

from __future__ import annotations

import ast
import math
import struct
import warnings
import zipfile
import zlib
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Positions and forces hardly shrink, and padding to the largest molecule makes them ten times as
# large; zeros alone shrink a thousandfold. A small file may unpack to this at least.
_MOST_TIMES = 64
_ALWAYS_ALLOWED = 64 * 1024 * 1024
_LONGEST_HEADER = 10_000  # bytes, as in NumPy
_MAX_AXES = 32
_BLOCK = 1024 * 1024
# What zipfile and zlib raise for a damaged archive; UnicodeDecodeError is a ValueError.
_DAMAGED = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, struct.error, IndexError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Unreadable(Exception):
    """Why a file or an array in it is not read; the text doesn't name the file."""


class Pickled(Unreadable):
    """An array of Python objects: reading it could run anything."""


class Header(NamedTuple):
    """What a file says of an array before its numbers."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_columns: bool
    length: int  # of the header, in bytes


class Stream:
    """The rows of an array of an open file, one block after another."""

    def __init__(self, name: str, member: IO[bytes], header: Header) -> None:
        self._name, self._member, self._header = name, member, header
        self._left = header.shape[0]

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._member.close()

    def rows(self, count: int) -> Array:
        """The next ``count`` rows, fewer where the array ends. Raises Unreadable."""
        count = min(count, self._left)
        dtype, shape = self._header.dtype, (count, *self._header.shape[1:])
        content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
        try:
            _fill(self._name, content, self._member)
            self._left -= count
            if not self._left:
                _read_on(self._member)
        except _DAMAGED as error:
            raise Unreadable(f"{self._name}: {_words(error)}") from error
        if dtype.kind == "U":
            _check_text(self._name, content.view(np.uint32), dtype)
        return content.view(dtype).reshape(shape)


class Npz:
    """The arrays of an open file, each read when it is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        """Raises Unreadable."""
        try:
            self._room = max(_ALWAYS_ALLOWED, _MOST_TIMES * file.seek(0, 2))
            self._archive = zipfile.ZipFile(file)
        except _DAMAGED as error:
            raise Unreadable(_words(error)) from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self._members:
                raise Unreadable(f"it holds {name[:60]!r} twice")
            self._members[name] = info

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def read(self, name: str) -> Array:
        """One array. Raises Unreadable, KeyError for a name that is not there."""
        info = self._opened(name)
        try:
            with self._archive.open(info) as member:
                return _array(name, member, info.file_size)
        except _DAMAGED as error:
            raise Unreadable(f"{name}: {_words(error)}") from error

    def header(self, name: str) -> Header:
        """Type and shape of an array. Raises as ``read`` does."""
        try:
            with self._archive.open(self._packed_plainly(name)) as member:
                header = read_header(name, member)
        except _DAMAGED as error:
            raise Unreadable(f"{name}: {_words(error)}") from error
        _check_length(name, header, self._members[name].file_size)
        return header

    def stream(self, name: str) -> Stream:
        """An array that is stored by rows, to be read in blocks of them. Raises as ``read`` does.

        Several may be read at a time.
        """
        info = self._opened(name)
        try:
            member = self._archive.open(info)
            header = read_header(name, member)
        except _DAMAGED as error:
            raise Unreadable(f"{name}: {_words(error)}") from error
        if header.by_columns or not header.shape:
            raise ValueError(f"{name} has no rows to be read one after another")
        _check_length(name, header, info.file_size)
        return Stream(name, member, header)

    def _packed_plainly(self, name: str) -> zipfile.ZipInfo:
        """A member, by a method that NumPy uses: others come from elsewhere, and fail otherwise."""
        info = self._members[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable(
                f"{name} is packed by a method that numpy.savez_compressed doesn't use (number "
                f"{info.compress_type})"
            )
        return info

    def _opened(self, name: str) -> zipfile.ZipInfo:
        """A member that may be unpacked."""
        info = self._packed_plainly(name)
        self._room -= info.file_size
        if self._room < 0:
            raise Unreadable(
                f"with {name} it would unpack to over {_MOST_TIMES} times its size, as only files "
                "made to fill the memory do; if it is a real one, write it with numpy.savez, which "
                "doesn't compress"
            )
        return info


def _array(name: str, member: IO[bytes], size: int) -> Array:
    """The array of a member that is said to have ``size`` bytes."""
    header = read_header(name, member)
    dtype, shape, by_columns, _ = header
    content = np.empty(_check_length(name, header, size), np.uint8)
    _fill(name, content, member)
    _read_on(member)
    values = content.view(dtype).reshape(shape, order="F" if by_columns else "C")
    if dtype.kind == "U":
        _check_text(name, content.view(np.uint32), dtype)
    return values


def _check_length(name: str, header: Header, size: int) -> int:
    """The bytes of an array, which must be in its member of ``size`` bytes."""
    wanted = math.prod(header.shape) * header.dtype.itemsize
    there = size - header.length
    if wanted > there:
        raise Unreadable(
            f"{name} should have shape {_shown(header.shape)} and dtype {header.dtype}, which "
            f"takes {wanted:.3g} bytes, and {there} are there"
        )
    return wanted


def _read_on(member: IO[bytes]) -> None:
    while member.read(_BLOCK):  # the checksum is looked at when the end is reached
        pass


def _fill(name: str, content: NDArray[np.uint8], member: IO[bytes]) -> None:
    at = 0
    while at < len(content):
        block = member.read(min(_BLOCK, len(content) - at))
        if not block:
            raise Unreadable(f"{name} ends after {at} of {len(content)} bytes")
        content[at : at + len(block)] = np.frombuffer(block, np.uint8)
        at += len(block)


def read_header(name: str, member: IO[bytes]) -> Header:
    start = member.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise Unreadable(f"{name} is no array")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(member.read(width), "little")
    if length > _LONGEST_HEADER:
        raise Unreadable(f"{name} has a header of {length} bytes, which no plain array needs")
    fields = _fields(name, member.read(length))
    shape, by_columns = fields["shape"], fields["fortran_order"]
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_AXES
        or not all(type(n) is int and n >= 0 for n in shape)
        or not isinstance(by_columns, bool)
    ):
        raise Unreadable(f"{name} has a header that is no array's")
    return Header(_dtype(name, fields["descr"]), shape, by_columns, 8 + width + length)


def _fields(name: str, text: bytes) -> dict[str, Any]:
    """The three fields of a header, which is a Python dictionary of constants."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about what stands in there
            fields = ast.literal_eval(text.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise Unreadable(f"{name} has a header that is no array's") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise Unreadable(f"{name} has a header that is no array's")
    return fields


def _dtype(name: str, descr: Any) -> np.dtype[Any]:
    """The type of an array of numbers or text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old names of types
            dtype = np.dtype(descr) if isinstance(descr, str) else None
    except (TypeError, ValueError, SyntaxError, RecursionError) as error:
        raise Unreadable(f"{name} has the unknown dtype {descr[:60]!r}") from error
    if dtype is not None and dtype.hasobject:
        raise Pickled(f"{name} holds pickled objects, which are never read")
    if dtype is None or dtype.fields or dtype.subdtype or dtype.kind == "V" or not dtype.itemsize:
        raise Unreadable(
            f"{name} holds neither plain numbers nor text (its dtype is {descr!r:.60})"
        )
    return dtype


def _check_text(name: str, codes: NDArray[np.uint32], dtype: np.dtype[Any]) -> None:
    """Raise Unreadable for what is no character: Python can't hold it, or can't write it."""
    codes = codes if dtype.isnative else codes.byteswap()
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise Unreadable(f"{name} holds text with characters that do not exist")


def _shown(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 80 else text[:79] + "…"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
