"""Converted sets are made here: files in, a folder of arrays out, some frames at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensq.config.structs import KeysConfig, UnitsConfig
from ensq.data import checks, index, xyz
from ensq.data.index import Index
from ensq.data.loading import NO_LABELS, data_files
from ensq.data.scanning import Joined, Scanned, join, scan
from ensq.data.streaming import FRAMES, Streamed, open_npz, open_spooled
from ensq.data.structs import Array, Raw
from ensq.data.writing import Writers
from ensq.errors import DiskError, UsageError
from ensq.rundir import disk_errors, flush_folder, make_folder
from ensq.units import LENGTH, convert

Say = Callable[[str, int, int], None]  # what is done, frames done, frames in all
Open = Callable[[], Any]  # a context that gives a file as Streamed


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What ``convert_set`` made."""

    path: Path
    index: Index
    digest: str


def convert_set(
    source: Path,
    dest: Path,
    *,
    units: UnitsConfig,
    keys: KeysConfig,
    say: Say = lambda text, done, total: None,
) -> Converted:
    """Write a data file or folder as a converted set.

    Memory is bounded by a piece of some 50 MB, a few numbers for each frame, and, of XYZ files,
    by one file. Nothing is left at ``dest`` unless all was read and found to be right.

    Args:
        source: What ``data.path`` might name, but no converted set.
        dest: A folder that is not there yet.
        units: Of the files; numbers are stored as they are, and the units with them.
        keys: Names of arrays that are not the usual ones.
        say: Told how it goes.

    Raises:
        DataError: Naming file, array, frame and bead.
        UsageError: ``dest`` is there already, or ``source`` is a converted set.
        DiskError: There is no room, or the disk is to blame otherwise.
    """
    if index.is_converted(source):
        raise UsageError(f"{source}: is a converted set already; data.path may name it as it is")
    if dest.exists() or dest.is_symlink():
        raise UsageError(f"{dest}: is there already; choose another name, or remove it first")
    files = data_files(source)
    make_folder(dest.absolute().parent)
    with _beside(dest) as folder:
        opened = [_opener(file, keys, folder, number, say) for number, file in enumerate(files)]
        scanned = []
        for file, open_file in zip(files, opened, strict=True):
            say(f"looking through {file.name}", 0, 0)
            with open_file() as streamed:
                scanned.append(scan(streamed))
        joined = join(scanned)
        with Writers(folder, scanned, joined) as writers:
            _refuse_full(dest, writers.size)
            _write(opened, scanned, joined, writers, units, say)
            arrays = writers.finish()
        for spool in folder.glob("*.npz"):
            spool.unlink()
        made = Index(
            frames=sum(one.frames for one in scanned),
            beads=writers.beads,
            units=units,
            elements=scanned[0].part.data.elements,
            species_names=joined.species_names,
            protein_names=joined.protein_names,
            arrays=arrays,
        )
        return Converted(path=dest, index=made, digest=index.write(folder, made))


def _write(
    opened: list[Open],
    scanned: list[Scanned],
    joined: Joined,
    writers: Writers,
    units: UnitsConfig,
    say: Say,
) -> None:
    """The frames of all files, one after another."""
    total, done = sum(one.frames for one in scanned), 0
    for open_file, one, table in zip(opened, scanned, joined.tables, strict=True):
        with open_file() as streamed:
            for piece in _pieces(streamed, one, table, units):
                writers.write(piece)
                done += len(piece["R"])
                say("converting", done, total)


@contextmanager
def _beside(dest: Path) -> Iterator[Path]:
    """A folder that becomes ``dest`` if all goes well, and is removed otherwise."""
    parent = dest.absolute().parent
    with disk_errors(dest):
        folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".tmp", dir=parent))
    try:
        yield folder
        with disk_errors(dest):
            mask = os.umask(0o077)
            os.umask(mask)
            folder.chmod(0o777 & ~mask)  # it was made for this user alone
            flush_folder(folder)
            folder.rename(dest)
            flush_folder(parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _opener(file: Path, keys: KeysConfig, folder: Path, number: int, say: Say) -> Open:
    """How to open a file in pieces; XYZ files are read whole, once, and kept as arrays."""
    if not xyz.is_xyz(file):
        return partial(open_npz, file, keys)
    say(f"reading {file.name}", 0, 0)
    raw = xyz.read(file, keys, NO_LABELS)
    spool = folder / f"{number}.npz"
    with disk_errors(spool), spool.open("wb") as out:
        np.savez(out, **raw.arrays)
    return partial(open_spooled, Raw(raw.path, {}, raw.called, raw.holds), spool)


def _refuse_full(dest: Path, size: int) -> None:
    free = shutil.disk_usage(dest.absolute().parent).free
    if size > free:
        raise DiskError(
            f"{dest}: the converted set takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free there: free space, or convert to another file system"
        )


def _pieces(
    file: Streamed, scanned: Scanned, table: Array, units: UnitsConfig
) -> Iterator[dict[str, Array]]:
    """The arrays of some frames at a time, checked, in the units of the file."""
    wanted = set(checks.looked_at(scanned.frames).tolist())
    seen: list[Array] = []
    for raw in file.pieces(FRAMES):
        found = checks.values_of(raw, NO_LABELS, units)
        for frame in range(raw.first, raw.first + len(found.R)):
            if frame in wanted:
                real = found.R[frame - raw.first][found.mask[frame - raw.first]]
                seen.append(convert(real, LENGTH[units.length]))
        codes = (
            scanned.kinds.codes(raw, found.mask)
            if scanned.row is None
            else np.broadcast_to(scanned.row, found.mask.shape)
        )
        species = np.where(found.mask, table[codes], np.int32(0))
        piece = {"R": found.R, "species": species, "mask": found.mask}
        for key, values in (("F", found.F), ("U", found.U), ("cell", found.cell)):
            if values is not None:
                piece[key] = values
        yield piece
    checks.check_spacing(file.raw, seen, units.length)
