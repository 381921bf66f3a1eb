"""Training data: reading NPZ and extended XYZ files and converted sets, checks that name the place,
and the split."""

from ensq.data.cells import check_open
from ensq.data.facts import Facts, facts, no_neighbours
from ensq.data.index import is_converted, units_of
from ensq.data.loading import data_files, digest, load
from ensq.data.splitting import MIN_VALIDATION_FRAMES, Split, split
from ensq.data.stored import Source, Stored, spans
from ensq.data.structs import ELEMENTS, Data

__all__ = [
    "ELEMENTS",
    "MIN_VALIDATION_FRAMES",
    "Data",
    "Facts",
    "Source",
    "Split",
    "Stored",
    "check_open",
    "data_files",
    "digest",
    "facts",
    "is_converted",
    "load",
    "no_neighbours",
    "spans",
    "split",
    "units_of",
]
