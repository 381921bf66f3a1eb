"""The full check of a converted set: every bit of its arrays, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ensq.data import index, stored
from ensq.data.index import Index
from ensq.data.loading import NO_LABELS
from ensq.data.places import together
from ensq.data.stored import Stored, spans
from ensq.data.structs import Array
from ensq.errors import DataError


def examine(path: Path, say: Callable[[str, int, int], None]) -> Index:
    """Read a converted set in full, and remember that it is whole.

    Raises MismatchError if an array is not what was converted, DataError if one can't be read or
    holds what ``convert`` would have refused: a set may come from anybody.
    """
    found = index.read(path)
    say("comparing the arrays with the index", 0, 0)
    index.check_arrays(path, found)
    whole = stored.load(path, found.units, NO_LABELS, "eV")
    every = np.arange(found.frames)
    for span in spans(found.beads, found.frames):
        _check(path, whole, every[span])
        say("looking at the frames", span.stop, found.frames)
    index.write_stamps(path, found)
    return found


def _check(path: Path, whole: Stored, frames: Array) -> None:
    part = whole.take(frames)
    for key, values in (("R", part.R), ("F", part.F), ("U", part.U), ("cell", part.cell)):
        if values is None:
            continue
        bad = ~np.isfinite(values.reshape(len(frames), -1)).all(axis=1)
        if bad.any():
            raise DataError(
                f"{path / key}.npy: frame {frames[np.argmax(bad)]} holds NaN or infinity: the set "
                "was not made by `ensq data convert`; convert the data again"
            )
    empty = ~part.mask.any(axis=1)
    if empty.any():
        raise DataError(f"{path}/mask.npy: frame {frames[np.argmax(empty)]} has no real bead")
    if same := together(part.R, part.mask, first=int(frames[0])):
        raise DataError(f"{path}/R.npy: {same}")
