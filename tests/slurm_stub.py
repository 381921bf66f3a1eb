"""Stubs of SLURM's commands, and rows as they print them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SQUEUE = (
    *("label", "job_id", "restarts", "uid", "cluster", "state", "reason", "node", "submitted"),
    "name",
)
SACCT = ("label", "job_id", "uid", "cluster", "state", "node", "submitted", "name")
# The word that ends a field is the last thing in the arguments of squeue, and among sacct's.
_WORD = {
    "squeue": 'for last; do :; done; word="${last##*:}"',
    "sacct": 'for one; do case "$one" in --delimiter=*) word="${one#*=}";; esac; done',
}


def stub(folder: Path, script: str, command: str = "squeue") -> dict[str, str]:
    """An environment in which the command is this shell script, which knows ``$word``."""
    folder.mkdir(exist_ok=True)
    path = folder / command
    path.write_text(f"#!/bin/sh\n{_WORD[command]}\n{script}\n")
    path.chmod(0o755)
    return dict(os.environ) | {"PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(folder)}


def printing(text: str, folder: Path, command: str = "squeue") -> dict[str, str]:
    """A stub that prints this text, with the word in place of ``@``."""
    folder.mkdir(exist_ok=True)
    (folder / f"{command}.txt").write_text(text)
    return stub(folder, f'sed "s/@/$word/g" {folder}/{command}.txt', command)


def row(label: str = "120_3", **values: object) -> str:
    """A row of squeue, with ``@`` for the word that ends each field."""
    return _row(SQUEUE, label, values)


def sacct_row(label: str = "120_3", **values: object) -> str:
    return _row(SACCT, label, values)


def _row(names: tuple[str, ...], label: str, values: Mapping[str, object]) -> str:
    usual: dict[str, object] = {
        "label": label,
        "job_id": "123",
        "restarts": 0,
        "uid": os.getuid(),
        "cluster": "lab",
        "state": "RUNNING",
        "reason": "None",
        "node": "n1",
        "submitted": 1_000_000,
        "name": "ensq-chignolin",
    }
    return "".join(f"{(usual | dict(values))[name]}@" for name in names) + "\n"
