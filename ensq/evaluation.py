"""What `ensq evaluate` found, and its files: a JSON with all figures, an NPZ with the curves.

docs/evaluation.md has the keys of both.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ensq.calibration.results import CalibrationReport, PerBead, Quantity
from ensq.errors import DataError
from ensq.npzfile import Npz, Unreadable
from ensq.rundir import write_atomic

Array = NDArray[Any]

FORMAT = "ensq evaluation 1"
PREFIX = "evaluation-"
VALIDATION = "validation"  # in the place of a file's name, for the run's own validation frames


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The frames that an ensemble was evaluated on."""

    path: str  # as it was given
    digest: str
    frames: int
    which: str  # in words
    validation: bool  # whether they are the run's own validation frames


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How intervals were found: block bootstrap over trajectories."""

    level: float
    blocks: int
    shortest: int  # frames
    longest: int
    trajectories: int
    draws: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors and spread of an ensemble on some frames; every figure with its interval."""

    format: str
    ensemble: str
    seeds: tuple[int, ...]
    members: tuple[str, ...]  # SHA-256 of their files
    data: Evaluated
    energy_unit: str
    length_unit: str
    ddof: int
    resampling: Blocks
    notes: tuple[str, ...]
    forces: Quantity | None  # None: no labels
    energy: Quantity | None  # None: no labels, or not trained; ``notes`` say which
    energy_per_bead: PerBead | None
    calibration: CalibrationReport | None  # None: no factors were asked for


@dataclass(frozen=True)
class Report:
    """An evaluation with its arrays, whose names and shapes docs/evaluation.md has."""

    evaluation: Evaluation
    arrays: dict[str, Array] = field(default_factory=dict)


def file_of(folder: Path, data: Evaluated) -> Path:
    """The JSON file for an evaluation on these data.

    It is named after the data; another set with the same name gets the beginning of its digest.
    """
    stem = VALIDATION if data.validation else Path(data.path).name.split(".")[0] or "data"
    path = folder / f"{PREFIX}{stem}.json"
    try:
        other = read(path).evaluation.data
    except DataError:
        return path
    if (other.digest, other.validation) == (data.digest, data.validation):
        return path
    return folder / f"{PREFIX}{stem}-{data.digest[:8]}.json"


def write(folder: Path, report: Report) -> tuple[Path, Path]:
    """Write both files; returns their paths. The same evaluation gives the same bytes."""
    path = file_of(folder, report.evaluation.data)
    arrays = path.with_suffix(".npz")
    stream = io.BytesIO()
    digest = np.array(report.evaluation.data.digest)
    np.savez(stream, data_digest=digest, **report.arrays)
    write_atomic(arrays, stream.getvalue())
    write_atomic(path, as_json(report.evaluation).encode())
    return path, arrays


def as_json(evaluation: Evaluation) -> str:
    """The content of the JSON file. Raises ValueError if a number is not finite."""
    plain = msgspec.to_builtins(evaluation)
    return json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read(path: Path) -> Report:
    """An evaluation from its JSON file, with the arrays of the NPZ beside it, if that is there.

    Raises DataError if it is none, or the two are of different data.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Evaluation)
    except (OSError, ValueError) as error:  # msgspec's are ValueErrors
        raise DataError(f"{path}: no evaluation of `ensq evaluate`: {error}") from error
    if found.format != FORMAT:
        raise DataError(f"{path}: is in the format {found.format!r}, not {FORMAT!r}")
    arrays = path.with_suffix(".npz")
    if not arrays.exists():
        return Report(found)
    content = _arrays(arrays)
    if str(content.pop("data_digest", "")) != found.data.digest:
        raise DataError(f"{arrays}: is not of the data of {path.name}; run `ensq evaluate` again")
    return Report(found, content)


def _arrays(path: Path) -> dict[str, Array]:
    """All arrays of a file, which may be anybody's. Raises DataError."""
    try:
        with path.open("rb") as file, Npz(file) as content:
            return {name: content.read(name) for name in content.names}
    except (OSError, Unreadable) as error:
        raise DataError(f"{path}: can't be read: {error}") from error


def of_folder(folder: Path) -> list[Path]:
    """The JSON files of all evaluations in an analysis folder, validation first."""
    found = sorted(folder.glob(f"{PREFIX}*.json"))
    return sorted(found, key=lambda path: path.stem != PREFIX + VALIDATION)
