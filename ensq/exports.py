"""An export: which models, made from what, where it goes, and whether it is there already."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ensq import data
from ensq.config import RunConfig
from ensq.errors import MismatchError, UsageError
from ensq.jobs import Ensemble, Job
from ensq.rundir import RunDir, sha256
from ensq.store import Store

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult

METADATA = "ensemble_metadata.json"
Say = Callable[[str], None]
Priors = Literal["embedded", "native"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is exported and how; by default as the configuration says."""

    priors: Priors
    ensemble_mean: bool
    save_all: bool
    reference_energies: bool

    @classmethod
    def of(
        cls,
        config: RunConfig,
        *,
        priors: Priors | None = None,
        ensemble_mean: bool | None = None,
        save_all: bool | None = None,
        reference_energies: bool | None = None,
    ) -> Options:
        def or_else(given: Any, configured: Any) -> Any:
            return configured if given is None else given

        return cls(
            priors=or_else(priors, config.export.priors),
            ensemble_mean=or_else(ensemble_mean, config.export.ensemble_mean),
            save_all=or_else(save_all, config.ensemble.save_all_models),
            reference_energies=or_else(reference_energies, config.export.reference_energies),
        )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The files' contents by name, and what the metadata tell about them."""

    files: dict[str, bytes]
    about: dict[str, Any]


# What an export writes into the metadata, and takes from there when it is made already.
ABOUT = (
    "export_comparison",
    "ensemble_mean",
    "lammps_priors",
    "export_notes",
    "reference_force_rms",
    "comparison",
)


# -- where it goes, and what is there -----------------------------------------------------------


def export_folder(store: Store, ensemble: Ensemble, config: RunConfig, given: Path | None) -> Path:
    """The folder that was given, or configured, or the run's own."""
    if given is not None:
        return given.absolute()
    if config.training.export_path is not None:
        return (store.root / config.training.export_path).absolute()
    return RunDir.of(store.root, ensemble.run_path).exported


def recorded(folder: Path) -> dict[str, Any]:
    """The metadata of an earlier export in this folder, or nothing."""
    try:
        found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def previous_files(folder: Path) -> set[str]:
    """The files that an earlier export wrote there."""
    files = recorded(folder).get("files", {})
    return {METADATA, *(name for name in files if isinstance(name, str) and "/" not in name)}


def refuse_other(folder: Path, ensemble: Ensemble) -> None:
    """Raise unless the folder is a new one, or one of this ensemble."""
    if Path.cwd().is_relative_to(folder):
        raise UsageError(
            f"{folder}: is replaced as a whole, so it can't be the folder that you are in, or one "
            "above it; name one below"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, not a folder; choose another --export-dir")
    before = recorded(folder).get("ensemble")
    if before not in (None, ensemble.name):
        raise MismatchError(
            f"{folder}: holds the export of the ensemble {before!r}; give another --export-dir"
        )


def refuse_unwritable(folder: Path) -> None:
    """Raise UsageError unless the folder can be written, before anything is computed for it.

    A trial folder is made where ``publish`` makes its own, beside the folder, or in the lowest
    folder above it that is there already.
    """
    place = folder.absolute().parent
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        Path(tempfile.mkdtemp(prefix=f".{folder.name}.try-", dir=place)).rmdir()
    except OSError as error:
        raise UsageError(
            f"{folder}: can't be written ({place}: {error.strerror}); choose another --export-dir"
        ) from error


def exported_before(folder: Path, sources: dict[str, Any]) -> Exported | None:
    """The exports in the folder, if they are of the same sources and undamaged."""
    before = recorded(folder)
    if any(before.get(key) != value for key, value in sources.items()):
        return None
    files: dict[str, bytes] = {}
    try:
        for name, digest in before["files"].items():
            if Path(name).name != name:
                return None  # not a name that ensq wrote
            files[name] = (folder / name).read_bytes()
            if sha256(files[name]) != digest:
                return None
        return Exported(files=files, about={key: before[key] for key in ABOUT})
    except (OSError, KeyError, AttributeError, TypeError, ValueError):
        return None


# -- what it is made from -----------------------------------------------------------------------


def read_member(store: Store, ensemble: Ensemble, job: Job) -> MemberResult:
    """A finished member's result file, verified against the queue."""
    from ensq.train import checkpoint

    run = RunDir.of(store.root, ensemble.run_path)
    assert job.result_path is not None and job.result_digest is not None
    path = run.inside(job.result_path)
    result = checkpoint.read_result(checkpoint.read_verified(path, job.result_digest))
    identity = (result.identity.config_digest, result.identity.data_digest, result.seed)
    if identity != (ensemble.config_digest, ensemble.data_digest, job.seed):
        raise MismatchError(f"{path}: not the result of seed {job.seed} of this ensemble")
    return result


def sources_of(
    chosen: dict[str, int], done: Sequence[Job], config: RunConfig, options: Options
) -> dict[str, Any]:
    """What the exports are made from, with and how: the same gives the same files."""
    from ensq.train import environment

    made_from: dict[str, Any] = {stem: done[place].result_digest for stem, place in chosen.items()}
    if makes_mean(options, len(done)):
        made_from[mean_stem(config)] = [job.result_digest for job in done]
    made_from |= {
        name: job.result_digest
        for name, job in zip(member_names(config, [job.index for job in done]), done, strict=True)
    }
    return {
        "exported_from": made_from,
        "exported_with": environment.versions(),
        "export": {
            "priors": options.priors,
            "ensemble_mean": options.ensemble_mean,
            "reference_energies": options.reference_energies,
        },
    }


def makes_mean(options: Options, members: int) -> bool:
    """Whether there is a mean model: it takes two members to be one."""
    return options.ensemble_mean and members > 1


def member_names(config: RunConfig, indices: Sequence[int]) -> list[str]:
    """The files that hold every member, whatever else is exported: what predictions need."""
    return [f"{config.model_context}_ensemble_{index}.safetensors" for index in indices]


def mean_stem(config: RunConfig) -> str:
    return f"{config.model_context}_ensemble_mean"


def validation_frames(
    store: Store, ensemble: Ensemble, config: RunConfig, result: MemberResult
) -> data.Data:
    """The frames that the members were validated on, in their order."""
    path = store.root / ensemble.data_path
    if data.digest(path) != ensemble.data_digest:
        raise MismatchError(
            f"{path}: the data have changed since the ensemble was enqueued; restore the file, "
            "which the exported models are compared on"
        )
    whole = data.load(path, config.data, config.training.gammas, config.unit)
    return whole.take(result.validation_index)
