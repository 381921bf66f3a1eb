"""Files that a command is asked to write: whether they can be, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ensq.errors import UsageError


def check_outputs(source: Path, outputs: Mapping[str, Path]) -> None:
    """Refuse files, by the options that name them, that can't be or would spoil the data."""
    for option, path in outputs.items():
        if not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}: make it first")
        if path.resolve() == source.resolve():
            raise UsageError(f"{option} {path} is the data file itself: choose another name")
        inside = source.is_dir() and path.parent.resolve() == source.resolve()
        if inside and path.suffix.lower() in (".npz", ".xyz", ".extxyz", ".gz"):
            raise UsageError(
                f"{option} {path} would become one of the data files of {source}: choose another "
                "folder"
            )
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UsageError(f"{' and '.join(outputs)} name one file: choose two names")


def refuse_existing(outputs: Mapping[str, Path], force: bool) -> None:
    """Refuse what is there already, unless it is to be replaced."""
    for option, path in outputs.items():
        if path.is_dir():
            raise UsageError(f"{option} {path}: is a folder; name a file")
        if path.exists() and not force:
            raise UsageError(f"{option} {path}: is there already: choose another name, or --force")
