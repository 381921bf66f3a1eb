"""Sealed safetensors files with ensq's metadata: made here, and taken apart without any trust.

A file may come from anybody. Whatever its bytes are, the readers raise CheckpointError and nothing
else, in memory that its length bounds, and every field is of the type that it should be.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from ensq import seal
from ensq.errors import CheckpointError

FORMAT = 3
READABLE = (2, 3)  # format 2 had no seal
MAX_HEADER = 16 * 2**20  # bytes; parsed JSON takes some twenty times as much
MAX_COUNT = 2**53  # of epochs, steps, seeds


def to_bytes(tensors: dict[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """The file's bytes; the same tensors and metadata give the same ones."""
    text = json.dumps({"format": FORMAT, **meta}, sort_keys=True, allow_nan=False)
    # The seal comes first, before any text of a user's that might hold the mark.
    text = f'{{"{seal.KEY}": "{seal.PLACEHOLDER}", {text[1:]}'
    return seal.seal(bytes(safetensors.numpy.save(tensors, {"ensq": text})))


def metadata(data: bytes, kind: str) -> dict[str, Any]:
    """The JSON that ensq put into a safetensors header."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        if length > min(MAX_HEADER, len(data) - 8):
            raise ValueError("the header is too long")
        header = _json(data[8 : 8 + length])
        meta = _json(header["__metadata__"]["ensq"])
        version, found = whole(meta, "format"), text(meta, "kind")
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not a {kind} of ensq") from error
    if version not in READABLE or found != kind:
        raise CheckpointError(
            f"a {found[:20]} of format {version}, not a {kind} of format {FORMAT}"
        )
    return meta


def tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """All tensors by their names."""
    try:
        # Sorted, since the library's own order changes from call to call.
        return dict(sorted(safetensors.numpy.load(data).items()))
    # A type or a shape that NumPy has not, and the library does not refuse.
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        # The library's messages hold names out of the file, of any length.
        why = str(error)[:200]
        raise CheckpointError(f"not a readable safetensors file: {why}") from error


@contextmanager
def holding(what: str) -> Iterator[None]:
    """Inside, what a stranger's fields can do to a reader becomes a CheckpointError."""
    try:
        yield
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"a {what} does not hold what it should: {why[:300]}") from error


# -- fields ------------------------------------------------------------------------------------


def whole(meta: Mapping[str, Any], key: str, most: int = MAX_COUNT) -> int:
    """An integer from 0 to ``most``."""
    value = meta[key]
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{key} is {_short(value)}, not an integer from 0 to {most}")
    return value


def text(meta: Mapping[str, Any], key: str) -> str:
    value = meta[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {_short(value)}, not a text")
    return value


def texts(meta: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = meta[key]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} is {_short(values)}, not a list of texts")
    return tuple(values)


def table(meta: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = meta[key]
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {_short(value)}, not a table")
    return value


def number(value: Any, name: str) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name} is {_short(value)}, not a finite number")
    return float(value)


def exact(meta: Mapping[str, Any], key: str, *, finite: bool = True) -> float:
    """A number that was written as hexadecimal, since JSON has no infinity and rounds."""
    value = float.fromhex(text(meta, key))
    if math.isnan(value) or (finite and math.isinf(value)):
        raise ValueError(f"{key} is {value}")
    return value


def array(
    found: Mapping[str, NDArray[Any]], key: str, shape: tuple[int | None, ...], kinds: str = "f"
) -> NDArray[Any]:
    """A tensor whose type is of these kinds; None in ``shape`` stands for any length."""
    value = found[key]
    fits = len(value.shape) == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, value.shape, strict=True)
    )
    if not fits or value.dtype.kind not in kinds:
        raise ValueError(f"{key} is {value.dtype}{value.shape}, not {kinds} of the shape {shape}")
    return value


def history(found: Mapping[str, NDArray[Any]], columns: int, epochs: int | None) -> NDArray[Any]:
    """[E, columns] of losses; only the errors in columns 2 and 3 may be missing (NaN)."""
    rows = array(found, "history", (epochs, columns))
    errors = rows[:, 2:4]
    if not np.isfinite(np.delete(rows, (2, 3), axis=1)).all() or np.isinf(errors).any():
        raise ValueError("the history holds what is no loss")
    return rows


def _short(value: Any) -> str:
    """A stranger's value for an error, without following what is in it."""
    if isinstance(value, str):
        return repr(value[:40])
    return repr(value) if isinstance(value, float | bool | None) else type(value).__name__


def _json(source: Any) -> dict[str, Any]:
    if not isinstance(source, str | bytes):
        raise ValueError("no text")
    found = json.loads(source, parse_constant=_refuse)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
