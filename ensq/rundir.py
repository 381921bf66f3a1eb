"""Every file name of a run, and the only ways in which ensq writes files.

runs/<name>/config.yaml
runs/<name>/seed-<seed>/attempt-<n>/epoch-000012-step-000000.safetensors
runs/<name>/seed-<seed>/attempt-<n>/result.safetensors
runs/<name>/logs/<worker>.log
runs/<name>/compile-cache/
runs/<name>/exported_models/
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ensq.errors import UsageError

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


def check_name(name: str) -> str:
    """Return an ensemble's name, which is also a folder's; raise UsageError if it can't be one."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the name {name!r} can't be used: names are folders, so use letters, digits and "
            "_ . + - only, at most 100, starting with a letter or digit"
        )
    return name


@dataclass(frozen=True)
class RunDir:
    """The run folder of one ensemble."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def compile_cache(self) -> Path:
        return self.path / "compile-cache"

    @property
    def exported(self) -> Path:
        return self.path / "exported_models"

    def attempt(self, seed: int, attempt: int) -> Path:
        """The folder that one attempt at one member may write to, and nobody else."""
        return self.path / f"seed-{seed}" / f"attempt-{attempt}"

    def log(self, worker_id: str) -> Path:
        return self.path / "logs" / f"{_UNSAFE.sub('_', worker_id)}.log"

    def relative(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def inside(self, relative: str) -> Path:
        """The file of a path from the database; raise UsageError if it leads out of the folder."""
        path = (self.path / relative).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise UsageError(f"the recorded path {relative!r} leads out of {self.path}")
        return path


def checkpoint_name(epoch: int, step: int) -> str:
    """File name of the checkpoint after ``epoch`` epochs and ``step`` steps of the next."""
    return f"epoch-{epoch:06d}-step-{step:06d}.safetensors"


RESULT_NAME = "result.safetensors"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> str:
    """Write beside, flush, rename, flush the folder; return the SHA-256 of ``data``.

    A crash leaves the old file or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            # mkstemp makes private files; results are meant to be readable like any other.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return sha256(data)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
