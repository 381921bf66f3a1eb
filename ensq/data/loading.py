"""The files of a data path, their digest, and their frames."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ensq.config.structs import DataConfig, GammasConfig
from ensq.data import checks, index, npz, stored, xyz
from ensq.data.joining import join
from ensq.data.stored import Source
from ensq.data.structs import Part
from ensq.errors import DataError
from ensq.rundir import sha256, sha256_file
from ensq.units import EnergyUnit

_NPZ = ".npz"


class NoLabels(GammasConfig, frozen=True):
    """Nothing is trained: both weights may be 0."""

    def __post_init__(self) -> None:
        pass


NO_LABELS = NoLabels(F=0.0, U=0.0)


def data_files(path: Path) -> list[Path]:
    """The files of a data path in the order of their names; it may be a folder of them."""
    try:
        if index.is_converted(path):
            return [path / index.NAME]
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{path}: no such data file (data.path)")
            _check_file(path)
            return [path]
        files = sorted(
            file for file in path.iterdir() if file.suffix.lower() == _NPZ or xyz.is_xyz(file)
        )
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        text = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: can't be read: {text}") from error
    if not files:
        raise DataError(f"{path}: the folder holds no .npz, .extxyz or .xyz file")
    stems: dict[str, str] = {}
    for file in files:
        _check_file(file)
        if not file.name.isprintable():  # it becomes the name of a protein
            raise DataError(f"{path}: the name {file.name!a} can't be shown: rename the file")
        other = stems.setdefault(file.name.split(".")[0], file.name)
        if other != file.name and Path(other).suffix != file.suffix:
            raise DataError(
                f"{path}: {other} and {file.name} look like one set in two formats, which would "
                "count twice: move one of them away, or rename it"
            )
    return files


def _check_file(path: Path) -> None:
    """Raise DataError for a device or a pipe, which may have no end, or never begin."""
    if not path.is_file():
        raise DataError(f"{path}: no file with data in it: a broken link, a folder or a device")


def digest(path: Path) -> str:
    """SHA-256 of the data file, of the names and digests of a folder's files, or of the index of
    a converted set, which holds those of its arrays.

    Raises DataError; MismatchError for a converted set whose arrays have changed.
    """
    if index.is_converted(path):
        return index.digest(path)
    files = data_files(path)
    try:
        if files == [path]:
            return sha256_file(path)
        return sha256("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode())
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def load(
    path: Path,
    config: DataConfig,
    gammas: GammasConfig | None,
    unit: EnergyUnit,
    asked_for: Collection[str] = (),
) -> Source:
    """Load and check a data set, or open a converted one.

    Args:
        path: An NPZ or extended XYZ file, a folder of them, whose frames are joined and padded to
            one size, or a converted set, whose frames are read when they are taken.
        config: Declares the units of the files, and names of arrays that are not the usual ones.
        gammas: Weights of the loss; labels with a weight must be there. None: no label must, not
            even one that ``config`` names, and one that some files have and some have not is left
            out.
        asked_for: Labels (F, U) whose names in ``config`` must be there without a weight, too.
        unit: The run's unit of energy. Lengths become Angstrom, energies this, forces this per
            Angstrom; R and F keep the type of the file.

    Raises:
        DataError: Naming file, key, frame and bead.
    """
    weights = NO_LABELS if gammas is None else gammas
    if index.is_converted(path):
        return stored.load(path, config.units, weights, unit)
    labels = gammas is not None
    parts = [_part(file, config, weights, unit, labels, asked_for) for file in data_files(path)]
    if gammas is None:
        if any(part.data.F is None for part in parts):
            parts = [part._replace(data=replace(part.data, F=None)) for part in parts]
        if any(part.data.U is None for part in parts):
            parts = [part._replace(data=replace(part.data, U=None)) for part in parts]
    if len(parts) == 1:
        return parts[0].data
    if any(part.data.R.shape[1] > 1 for part in parts):
        for part in parts:
            if xyz.is_xyz(part.path):
                xyz.refuse_single_atoms(part.path, part.data.mask.sum(axis=1))
    return join(path, parts)


def _part(
    path: Path,
    config: DataConfig,
    gammas: GammasConfig,
    unit: EnergyUnit,
    labels: bool,
    asked_for: Collection[str],
) -> Part:
    if xyz.is_xyz(path):
        raw = xyz.read(path, config.keys, gammas, labels=labels, asked_for=asked_for)
    else:
        raw = npz.read(path, config.keys, labels=labels, asked_for=asked_for)
    return checks.part(raw, gammas, config.units, unit)
