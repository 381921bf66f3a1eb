"""Results of the members in; statistics, the best model, its files and the metadata out."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensq import config as configuration
from ensq import data, selection
from ensq.config import RunConfig
from ensq.errors import EnsqError, MismatchError
from ensq.jobs import Ensemble, Job, State
from ensq.publish import publish
from ensq.rundir import RunDir, sha256
from ensq.selection import EnsembleStatistics
from ensq.store import Store

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult
    from ensq.train.export import Agreement

METADATA = "ensemble_metadata.json"
COMPARED_FRAMES = 8
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MemberReport:
    """One finished member in figures, all of the parameters that are exported."""

    index: int
    seed: int
    loss: float
    loss_error: float | None  # standard error over validation frames
    final_loss: float  # of the last epoch's parameters, for comparison
    rmse_force: float | None
    rmse_energy: float | None  # per bead
    best_epoch: int
    epochs: int
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Finalized:
    """What ``finalize`` did."""

    ensemble: Ensemble
    config: RunConfig
    folder: Path
    members: tuple[MemberReport, ...]
    missing: tuple[Job, ...]
    statistics: EnsembleStatistics
    files: tuple[str, ...]
    metadata: dict[str, Any]

    @property
    def best(self) -> MemberReport:
        return self.members[self.statistics.best]


def finalize(
    store: Store,
    ensemble: Ensemble,
    *,
    export_dir: Path | None = None,
    allow_missing: bool = False,
    save_all: bool | None = None,
    say: Say = lambda text: None,
) -> Finalized:
    """Statistics, selection and export of a trained ensemble.

    Args:
        store: The queue.
        ensemble: Which ensemble.
        export_dir: Where the files go; else ``training.export_path`` (relative to the database's
            folder), else ``exported_models`` in the run folder.
        allow_missing: Go on without the members that are not done.
        save_all: Export every member; else as ``ensemble.save_all_models`` says.
        say: Told what happens now.

    Raises:
        EnsqError: Members are missing, a result is damaged, or an export is not the trained model.
        MismatchError: The folder holds another ensemble's export, or the data have changed.
    """
    config = configuration.loads(ensemble.config)
    folder = _folder(store, ensemble, config, export_dir)
    _refuse_other(folder, ensemble)
    jobs = store.jobs(ensemble.id)
    done = [job for job in jobs if job.state is State.DONE]
    missing = tuple(job for job in jobs if job.state is not State.DONE)
    _refuse_incomplete(ensemble, done, missing, allow_missing)
    say("reading results")
    run = RunDir(store.root / ensemble.run_path)
    results = [_result(run, job, ensemble) for job in done]
    members = tuple(_report(*pair, config) for pair in zip(done, results, strict=True))
    statistics = selection.ensemble_statistics([member.loss for member in members])
    chosen = _chosen(config, members, statistics, save_all)
    sources = _sources(chosen, done)
    files, comparison = _exported_before(folder, sources) or _export(
        store, ensemble, config, results, chosen, say
    )
    metadata = _metadata(ensemble, config, members, results, missing, statistics)
    metadata |= {"export_comparison": comparison, **sources}
    metadata["files"] = {name: sha256(content) for name, content in sorted(files.items())}
    text = json.dumps(metadata, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    files[METADATA] = text.encode()
    say(f"writing {folder}")
    publish(folder, files, _previous_files(folder))
    return Finalized(
        ensemble=ensemble,
        config=config,
        folder=folder,
        members=members,
        missing=missing,
        statistics=statistics,
        files=tuple(sorted(files)),
        metadata=metadata,
    )


# -- checks ------------------------------------------------------------------------------------


def _folder(store: Store, ensemble: Ensemble, config: RunConfig, given: Path | None) -> Path:
    if given is not None:
        return given.absolute()
    if config.training.export_path is not None:
        return (store.root / config.training.export_path).absolute()
    return RunDir(store.root / ensemble.run_path).exported


def _recorded(folder: Path) -> dict[str, Any]:
    """The metadata of an earlier export in this folder, or nothing."""
    try:
        found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _previous_files(folder: Path) -> set[str]:
    files = _recorded(folder).get("files", {})
    return {METADATA, *(name for name in files if isinstance(name, str) and "/" not in name)}


def _refuse_other(folder: Path, ensemble: Ensemble) -> None:
    if folder.exists() and not folder.is_dir():
        raise EnsqError(f"{folder}: is a file, not a folder; choose another --export-dir")
    before = _recorded(folder).get("ensemble")
    if before not in (None, ensemble.name):
        raise MismatchError(
            f"{folder}: holds the export of the ensemble {before!r}; give another --export-dir"
        )


def _refuse_incomplete(
    ensemble: Ensemble, done: list[Job], missing: tuple[Job, ...], allow_missing: bool
) -> None:
    if not done:
        raise EnsqError(
            f"no member of {ensemble.name!r} is done yet; train with `ensq worker`, watch with "
            "`ensq status`"
        )
    if missing and not allow_missing:
        listed = ", ".join(f"seed {job.seed} {job.state}" for job in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise EnsqError(
            f"{len(missing)} of {len(done) + len(missing)} members of {ensemble.name!r} are not "
            f"done: {listed}{more}; train them (`ensq worker`, `ensq retry`), or go on without "
            "them: --allow-missing"
        )


def _result(run: RunDir, job: Job, ensemble: Ensemble) -> MemberResult:
    """A member's result file, verified against the queue."""
    from ensq.train import checkpoint

    assert job.result_path is not None and job.result_digest is not None
    content = checkpoint.read_verified(run.inside(job.result_path), job.result_digest)
    result = checkpoint.read_result(content)
    identity = (result.identity.config_digest, result.identity.data_digest, result.seed)
    if identity != (ensemble.config_digest, ensemble.data_digest, job.seed):
        raise MismatchError(
            f"{run.inside(job.result_path)}: not the result of seed {job.seed} of this ensemble"
        )
    return result


# -- figures -----------------------------------------------------------------------------------


def _report(job: Job, result: MemberResult, config: RunConfig) -> MemberReport:
    """Figures of a member, computed anew from its errors per frame."""
    from ensq.train import statistics

    gammas = config.training.gammas
    errors = (result.force_errors, result.energy_errors, result.components)
    scores = statistics.scores(*errors, result.beads, gammas)
    if job.best_loss is None or not np.isclose(scores.loss, job.best_loss, rtol=1e-9):
        raise EnsqError(
            f"seed {job.seed}: the queue records a loss of {job.best_loss}, the result file gives "
            f"{scores.loss}; run `ensq db check`, then train it again (`ensq retry`)"
        )
    return MemberReport(
        index=job.index,
        seed=job.seed,
        loss=scores.loss,
        loss_error=selection.standard_error(statistics.frame_losses(*errors, gammas)),
        final_loss=result.final_loss,
        rmse_force=scores.rmse_force,
        rmse_energy=scores.rmse_energy,
        best_epoch=result.best_epoch,
        epochs=len(result.history),
        attempts=job.attempt,
    )


def _metadata(
    ensemble: Ensemble,
    config: RunConfig,
    members: tuple[MemberReport, ...],
    results: list[MemberResult],
    missing: tuple[Job, ...],
    statistics: EnsembleStatistics,
) -> dict[str, Any]:
    best = members[statistics.best]
    training_config = json.loads(configuration.dumps(config))
    energy = config.data.units.energy
    return {
        "ensemble": ensemble.name,
        "model_context": config.model_context,
        "n_models": len(members),
        "base_seed": config.seeds[0],
        "seeds": [member.seed for member in members],
        "validation_losses": [member.loss for member in members],
        "mean_loss": statistics.mean,
        "std_loss": statistics.std,
        "variance_loss": statistics.variance,
        "ddof": 0,
        "best_model_index": best.index,
        "best_model_seed": best.seed,
        "best_model_loss": best.loss,
        "losses_are_of": "the exported parameters: those of each member's best epoch",
        "loss_definition": "gammas.F * mean over real force components (F - F_ref)^2 "
        "+ gammas.U * mean over frames (U - U_ref)^2, over the whole validation set",
        "units": {"length": "Angstrom", "energy": energy, "force": f"{energy}/Angstrom"},
        "final_validation_losses": [member.final_loss for member in members],
        "standard_errors": [member.loss_error for member in members],
        "standard_error_of": "the mean over validation frames, taken as independent",
        "force_rmse": [member.rmse_force for member in members],
        "energy_rmse_per_bead": [member.rmse_energy for member in members],
        "members": [
            {
                "index": member.index,
                "seed": member.seed,
                "best_epoch": member.best_epoch,
                "epochs": member.epochs,
                "attempts": member.attempts,
            }
            for member in members
        ],
        "missing_members": [
            {"index": job.index, "seed": job.seed, "state": str(job.state), "error": job.error}
            for job in missing
        ],
        "validation_frames": len(results[0].components),
        "species": list(results[0].species_names),
        "priors": _about_priors(config),
        "config_digest": ensemble.config_digest,
        "data_digest": ensemble.data_digest,
        "versions": results[0].versions,
        "training_config": training_config,
    }


def _about_priors(config: RunConfig) -> str:
    if not config.model.use_priors:
        return "none"
    return (
        "embedded in the .mlir files; bead i is bonded to bead i+1 in the order of the engine's "
        "list: run LAMMPS on one rank with `atom_modify sort 0 0` and without ghost atoms"
    )


# -- files -------------------------------------------------------------------------------------


def _chosen(
    config: RunConfig,
    members: tuple[MemberReport, ...],
    statistics: EnsembleStatistics,
    save_all: bool | None,
) -> dict[str, int]:
    """File stems and the place of the member that each is of."""
    context = config.model_context
    chosen = {f"{context}_best": statistics.best}
    if config.ensemble.save_all_models if save_all is None else save_all:
        chosen |= {
            f"{context}_ensemble_{member.index}": place for place, member in enumerate(members)
        }
    return chosen


def _sources(chosen: dict[str, int], done: list[Job]) -> dict[str, Any]:
    """What the exports are made from and with: the same gives the same files."""
    from ensq.train import environment

    return {
        "exported_from": {stem: done[place].result_digest for stem, place in chosen.items()},
        "exported_with": environment.versions(),
    }


def _exported_before(
    folder: Path, sources: dict[str, Any]
) -> tuple[dict[str, bytes], dict[str, Any]] | None:
    """The exports in the folder, if they are of the same sources and undamaged."""
    before = _recorded(folder)
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
        return files, dict(before["export_comparison"])
    except (OSError, KeyError, AttributeError, TypeError, ValueError):
        return None


def _export(
    store: Store,
    ensemble: Ensemble,
    config: RunConfig,
    results: list[MemberResult],
    chosen: dict[str, int],
    say: Say,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files' contents, and how each model file compares with its trained member."""
    from ensq.train import checkpoint, export

    frames = _frames_to_compare(store, ensemble, config, results[0])
    made: dict[int, tuple[dict[str, bytes], Agreement]] = {}
    for place in sorted(set(chosen.values())):
        result = results[place]
        say(f"exporting seed {result.seed} and comparing it with the trained model")
        module = export.to_bytes(result)
        agreement = export.compare(module, result, frames.R, frames.species, frames.mask)
        contents = {
            ".mlir": module,
            # For people's scripts; ensq itself never reads a pickle.
            "_params.pkl": pickle.dumps(result.params, protocol=4),
            ".safetensors": checkpoint.result_bytes(result),
        }
        made[place] = contents, agreement
    files = {
        stem + ending: content
        for stem, place in chosen.items()
        for ending, content in made[place][0].items()
    }
    return files, {f"{stem}.mlir": _in_words(made[place][1]) for stem, place in chosen.items()}


def _in_words(found: Agreement) -> dict[str, Any]:
    return {
        "frames": found.frames,
        "relative_energy_difference": found.energy_error,
        "relative_force_difference": found.force_error,
    }


def _frames_to_compare(
    store: Store, ensemble: Ensemble, config: RunConfig, result: MemberResult
) -> data.Data:
    """A few validation frames, spread over the set."""
    path = store.root / ensemble.data_path
    if data.digest(path) != ensemble.data_digest:
        raise MismatchError(
            f"{path}: the data have changed since the ensemble was enqueued; restore the file, "
            "which the exported models are compared on"
        )
    index = result.validation_index
    places = np.unique(np.linspace(0, len(index) - 1, COMPARED_FRAMES).astype(int))
    return data.load(path, config.training.gammas).take(index[places])
