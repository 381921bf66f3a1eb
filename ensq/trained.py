"""The trained members of an ensemble and where they come from: a run, or an export folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensq import config as configuration
from ensq import exports, stopped
from ensq.config import RunConfig
from ensq.errors import CheckpointError, EnsqError, UsageError
from ensq.jobs import State
from ensq.rundir import RunDir, sha256

if TYPE_CHECKING:
    from ensq.jobs import Ensemble
    from ensq.store import Store
    from ensq.train.checkpoint import MemberResult

MEMBER_FILES = "member_files"  # in the metadata: the members' .safetensors, in their order
ANALYSIS = "analysis"


@dataclass(frozen=True, kw_only=True)
class Members:
    """Trained members of one ensemble, in the order of their places."""

    name: str  # of the ensemble
    results: tuple[MemberResult, ...]
    digests: tuple[str, ...]  # SHA-256 of the files that they were read from
    analysis: Path  # folder for what is found out about them
    exported: Path | None  # folder of their export, if there is one
    data: Path | None  # the training's data, if they are known here

    @property
    def config(self) -> RunConfig:
        return configuration.loads(self.results[0].config)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(result.seed for result in self.results)

    @property
    def species_names(self) -> tuple[str, ...]:
        return self.results[0].species_names


def is_folder(name: str) -> bool:
    """Whether a NAME|FOLDER means a folder: it is an export folder, or has a slash."""
    return "/" in name or (Path(name) / exports.METADATA).exists()


def find(name: str, db: str | None) -> Members:
    """The members that a NAME of the queue or an export FOLDER means.

    A text that is a folder, or has a slash, is a folder; anything else is a name, looked up in the
    database ``db``.

    Raises:
        UsageError: There is no such ensemble or folder.
        EnsqError: No member is done, or a file is damaged.
    """
    if is_folder(name):
        return from_folder(Path(name))
    from ensq.store import Store

    if db is None or ("://" not in db and not Path(db).exists()):
        raise UsageError(
            f"{name}: no export folder (it has no {exports.METADATA}), and there is no database "
            f"{db} with an ensemble of that name: name the folder, or the database by --db "
            "(in Python: db=...)"
        )
    with Store.open(db, read_only=True) as store:
        ensemble = store.ensemble(name)
        if ensemble is None:
            known = ", ".join(one.name for one in store.ensembles())
            raise UsageError(f"no ensemble {name!r} in {store.where}; there are: {known or 'none'}")
        return from_store(store, ensemble)


def from_store(store: Store, ensemble: Ensemble) -> Members:
    """The members of a run that are done.

    Raises EnsqError if none is, MismatchError or CheckpointError for files that are not theirs.
    """
    done = [job for job in store.jobs(ensemble.id) if job.state is State.DONE]
    if not done:
        raise EnsqError(
            f"no member of {ensemble.name!r} is done yet; train with `ensq worker`, watch with "
            "`ensq status`"
        )
    done = stopped.counted(ensemble, done)
    config = configuration.loads(ensemble.config)
    folder = exports.export_folder(store, ensemble, config, None)
    return Members(
        name=ensemble.name,
        results=tuple(exports.read_member(store, ensemble, job) for job in done),
        digests=tuple(str(job.result_digest) for job in done),
        analysis=RunDir.of(store.root, ensemble.run_path).path / ANALYSIS,
        exported=folder if exports.recorded(folder).get("ensemble") == ensemble.name else None,
        data=store.root / ensemble.data_path,
    )


def from_folder(folder: Path) -> Members:
    """The members whose files lie in an export folder; nothing else is needed.

    Raises:
        UsageError: It is no export folder, or one of an older ensq without all members.
        CheckpointError: A file is missing, damaged, or not one of this ensemble.
    """
    about = exports.recorded(folder)
    if not about:
        raise UsageError(
            f"{folder}: no export folder of `ensq finalize`: it has no readable {exports.METADATA}"
        )
    names = about.get(MEMBER_FILES)
    if not isinstance(names, list) or not names:
        raise UsageError(
            f"{folder}: was exported by an ensq that did not write all members; run `ensq "
            "finalize` again where the queue is"
        )
    results, digests = [], []
    for name in names:
        result, digest = _read(folder, name, about.get("files"))
        results.append(result)
        digests.append(digest)
    return Members(
        name=str(about.get("ensemble")),
        results=tuple(results),
        digests=tuple(digests),
        analysis=folder / ANALYSIS,
        exported=folder,
        data=None,
    )


def _read(folder: Path, name: Any, known: Any) -> tuple[MemberResult, str]:
    """A member's file, verified by the digest in the metadata."""
    from ensq.train import checkpoint

    if not isinstance(name, str) or Path(name).name != name or not isinstance(known, dict):
        raise CheckpointError(f"{folder / exports.METADATA}: damaged ({exports.METADATA})")
    try:
        content = checkpoint.read_verified(folder / name, str(known.get(name)))
        return checkpoint.read_result(content), sha256(content)
    except CheckpointError as error:
        text = str(error)
        where = "" if text.startswith(str(folder)) else f"{folder / name}: "
        raise CheckpointError(
            f"{where}{text}; copy the export folder again, or run `ensq finalize`"
        ) from error
