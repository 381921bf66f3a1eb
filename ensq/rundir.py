"""Every file name of a run, and the only ways in which ensq writes files.

runs/<name>/config.yaml
runs/<name>/seed-<seed>/attempt-<n>/epoch-000012-step-000000.safetensors
runs/<name>/seed-<seed>/attempt-<n>/result.safetensors
runs/<name>/logs/<worker>-<claim>.log
runs/<name>/slurm/workers-<digest>.sh
runs/<name>/compile-cache/
runs/<name>/exported_models/
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ensq import faults
from ensq.errors import DiskError, UsageError

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,17})")
_CHECKPOINT = re.compile(r"epoch-([0-9]{6,18})-step-([0-9]{6,18})\.safetensors")
_BESIDE = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp", re.DOTALL)  # names that write_atomic makes up

_REPAIR = "repair or mount the file system again, then start again"
_GRANT = "give this user the right to write there"
# What a disk can do to a program that is none of its own fault, and what a person does then.
DISK_ERRORS = {
    errno.ENOSPC: "free space on that file system, then start again",
    errno.EDQUOT: "free space, or have your quota raised, then start again",
    errno.EROFS: "mount the file system writable again, or use another folder",
    errno.EACCES: _GRANT,
    errno.EPERM: _GRANT,
    **dict.fromkeys((errno.ESTALE, errno.EIO, errno.ENXIO, errno.EREMOTEIO), _REPAIR),
    **dict.fromkeys((errno.ETIMEDOUT, errno.ENOTCONN), _REPAIR),
}


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

    @classmethod
    def of(cls, root: Path, run_path: str) -> RunDir:
        """The run folder that the database names; raise UsageError if it is not below ``root``.

        A database may come from anybody, and must not make us write elsewhere.
        """
        parts = PurePosixPath(run_path).parts
        if not parts or parts[0].startswith("/") or ".." in parts or "\0" in run_path:
            raise UsageError(f"the recorded run folder {run_path!r} leads out of {root}")
        return cls(root / run_path)

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

    def log(self, worker_id: str, claim: int) -> Path:
        """What a worker's trainer says about the members of one claim."""
        return self.path / "logs" / f"{_UNSAFE.sub('_', worker_id)}-{claim}.log"

    def relative(self, path: Path) -> str:
        """A file's path as the database records it. Raises ValueError if it is not in here."""
        if not path.is_relative_to(self.path):  # ``inside`` has followed the links above us
            return path.resolve().relative_to(self.path.resolve()).as_posix()
        return path.relative_to(self.path).as_posix()

    def inside(self, relative: str) -> Path:
        """The file of a path from the database; raise UsageError if it leads out of the folder."""
        path = (self.path / relative).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise UsageError(f"the recorded path {relative!r} leads out of {self.path}")
        return path

    # What attempts have left

    def unrecorded(
        self, seed: int, attempt: int, since_epoch: int, since_step: int, from_attempt: int
    ) -> tuple[list[Path], list[Path]]:
        """Checkpoints and results of earlier attempts that may never have been recorded.

        Only the attempts since the one that wrote the recorded checkpoint count: a later one went
        on from that file, or from one that came of it. Older ones are of a line that was given up.
        Whether a file is whole must be verified.

        Args:
            seed: Of the member.
            attempt: The present attempt; its own folder is not looked at.
            since_epoch: Place of the recorded checkpoint (0, 0 if there is none) …
            since_step: … only what is newer is wanted.
            from_attempt: The attempt that wrote it; 1 if there is none.

        Returns:
            Checkpoints, the newest place first and at one place the higher attempt first; results,
            the higher attempt first.
        """
        checkpoints, results = [], []
        for number, file in self._files(seed):
            if not from_attempt <= number < attempt:
                continue
            place = place_of(file.name)
            if place is not None and place > (since_epoch, since_step):
                checkpoints.append((place, number, file))
            elif file.name == RESULT_NAME:
                results.append((number, file))
        return (
            [file for *_, file in sorted(checkpoints, reverse=True)],
            [file for _, file in sorted(results, reverse=True)],
        )

    def prune(
        self, seed: int, attempt: int, keep: Collection[str], *, newest: int = 0
    ) -> list[Path]:
        """Remove the checkpoints, and what killed writers left, of attempts before this one.

        Results and other files are never touched, nor is the folder of this attempt or a later
        one: its owner may be writing. What can't be removed stays; that is no failure.

        Args:
            seed: Of the member.
            attempt: The first attempt whose files stay.
            keep: Paths relative to the run folder that stay: those that are recorded.
            newest: So many of the newest checkpoints stay, too.

        Returns:
            What is gone.
        """
        old = [(number, file) for number, file in self._files(seed) if number < attempt]
        found = [(place_of(file.name), number, file) for number, file in old]
        checkpoints = sorted((one for one in found if one[0] is not None), reverse=True)
        chosen = [file for *_, file in checkpoints[newest:]]
        chosen += [file for _, file in old if _BESIDE.fullmatch(file.name)]
        removed = []
        for file in chosen:
            if self.relative(file) not in keep:
                with suppress(OSError):
                    file.unlink()
                    removed.append(file)
        return removed

    def _files(self, seed: int) -> Iterator[tuple[int, Path]]:
        """All files of a member with the number of their attempt; no link is followed.

        A link could lead out of the run folder, and a pipe would never end: only plain files.
        """
        member = self.path / f"seed-{seed}"
        if member.is_symlink():
            return
        for folder in _entries(member):
            found = _ATTEMPT.fullmatch(folder.name)
            if found is not None and folder.is_dir(follow_symlinks=False):
                for file in _entries(member / folder.name):
                    if file.is_file(follow_symlinks=False):
                        yield int(found[1]), member / folder.name / file.name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing if it is none or can't be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def place_of(name: str) -> tuple[int, int] | None:
    """Epoch and step that the name of a checkpoint says; None for any other name."""
    found = _CHECKPOINT.fullmatch(name)
    if found is None:
        return None
    epoch, step = int(found[1]), int(found[2])
    return (epoch, step) if name == checkpoint_name(epoch, step) else None


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
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that can't flush folders
            raise
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path, doing: str = "written") -> DiskError | None:
    """What a person should be told where the disk is to blame for an error; None where it isn't."""
    if error.errno not in DISK_ERRORS:
        return None
    why = os.strerror(error.errno)
    return DiskError(f"{path}: can't be {doing}: {why}; {DISK_ERRORS[error.errno]}")


@contextmanager
def disk_errors(path: Path, doing: str = "written") -> Iterator[None]:
    """Inside, an OSError that the disk is to blame for becomes a DiskError."""
    try:
        yield
    except OSError as error:
        found = disk_error(error, path, doing)
        if found is None:
            raise
        raise found from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that they survive a power cut.

    Raises DiskError, or another OSError such as for a file in its place.
    """
    with disk_errors(folder):
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            flush_folder(new.parent)


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> str:
    """Write beside, flush, rename, flush the folder; return the SHA-256 of ``data``.

    A crash leaves the old file or the new one, never half of one. A ``private`` one nobody else
    can read, at no time.

    Raises DiskError where the disk is full, read-only or the like, or another OSError; nothing is
    left half-written, and the old file is untouched unless it was the last flush that failed.
    """
    about = str(path)
    with disk_errors(path):
        faults.point("write.begin", about)
        make_folder(path.parent)
        _write_beside(path, data, private)
        faults.point("write.renamed", about)
        flush_folder(path.parent)
        faults.point("write.done", about)
    return sha256(data)


def _write_beside(path: Path, data: bytes, private: bool) -> None:
    """Write a file beside, flush it, and give it its name."""
    with _beside(path) as (handle, beside):
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if not private:
                # mkstemp makes private files; results are meant to be readable like any other.
                os.fchmod(file.fileno(), 0o666 & ~_umask())
            faults.point("write.written", str(path))
            os.fsync(file.fileno())
        faults.point("write.flushed", str(path))
        Path(beside).replace(path)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write into, for what is too large to be bytes in memory first.

    It gets its name when the block ends without an error, flushed as ``write_atomic`` does; else it
    is gone. Raises DiskError or another OSError as that does.
    """
    with disk_errors(path):
        make_folder(path.parent)
        with _beside(path) as (handle, beside):
            try:
                yield Path(beside)
                os.fchmod(handle, 0o666 & ~_umask())
                os.fsync(handle)
            finally:
                os.close(handle)
            Path(beside).replace(path)
        flush_folder(path.parent)


@contextmanager
def _beside(path: Path) -> Iterator[tuple[int, str]]:
    """A new file in the same folder, open and by its name, which is removed after an error."""
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        yield handle, beside
    except BaseException:
        with suppress(OSError):
            Path(beside).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
