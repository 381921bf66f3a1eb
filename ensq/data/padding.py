"""Frames of different sizes in one array: how much of it may be padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ensq.data.structs import Array
from ensq.errors import DataError

_ALWAYS_ALLOWED = 2_000_000  # places of beads: 24 bytes of positions and of forces each
_MOST_TIMES = 32


def refuse_much_padding(path: Path, sizes: Array) -> None:
    """Raise DataError if frames of these sizes [T], padded to the largest, would be nearly empty.

    One huge frame among many small ones takes memory by their product: a file of a megabyte could
    ask for a hundred gigabytes.
    """
    largest, real = int(sizes.max()), int(sizes.sum())
    places = largest * len(sizes)
    if places > max(_ALWAYS_ALLOWED, _MOST_TIMES * real):
        frame = int(np.argmax(sizes))
        raise DataError(
            f"{path}: frame {frame} has {largest} beads, the others {real / len(sizes):.0f} on "
            f"average, and all are padded to the largest: {places:.2g} places for {real} beads; "
            "train on the large frames apart"
        )
