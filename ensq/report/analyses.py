"""What was found out about an ensemble, as it lies in its folders of analyses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from ensq.errors import EnsqError
from ensq.report.known import Known

T = TypeVar("T")


def read_all(
    known: Known,
    find: Callable[[Path], Iterable[Path]],
    read: Callable[[Path], T],
    stale: Callable[[T], str],
) -> tuple[list[tuple[Path, T]], list[str]]:
    """All files of a kind that are of these members, the run's own before the export folder's.

    Args:
        known: The ensemble.
        find: The files in a folder.
        read: Raises EnsqError for what can't be read.
        stale: Why one is not of these members, as a sentence goes on after its path; else empty.

    Returns them, and notes on the others. What was made anew elsewhere is no loss, and no note.
    """
    found: list[tuple[Path, T]] = []
    notes: dict[Path, str] = {}
    for path in (path for folder in known.analyses for path in find(folder)):
        try:
            one = read(path)
        except EnsqError as error:
            notes[path] = str(error)
            continue
        if why := stale(one):
            notes[path] = f"{path} {why}"
        else:
            found.append((path, one))
    names = {path.name for path, _ in found}
    return found, [note for path, note in notes.items() if path.name not in names]
