"""One member's model file made again, from its result or from any of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensq import config as configuration
from ensq import exports, modelfiles
from ensq.config import RunConfig
from ensq.errors import EnsqError, UsageError
from ensq.exports import Options, Priors, Say
from ensq.jobs import Checkpoint, Ensemble, Job, State
from ensq.publish import publish
from ensq.rundir import RunDir
from ensq.store import Store

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult


@dataclass(frozen=True, kw_only=True)
class Reexported:
    """What was exported, and how it compares with what was trained."""

    folder: Path
    files: tuple[str, ...]
    seed: int
    epoch: int  # whose parameters these are
    loss: float
    rmse_force: float | None
    rmse_energy: float | None  # per bead
    unit: str  # of energies
    comparison: dict[str, Any]
    reference_energies: dict[str, Any]
    notes: tuple[str, ...]


def reexport(
    store: Store,
    ensemble: Ensemble,
    *,
    index: int | None = None,
    seed: int | None = None,
    checkpoint: Path | None = None,
    priors: Priors | None = None,
    folder: Path | None = None,
    reference_energies: bool | None = None,
    say: Say = lambda text: None,
) -> Reexported:
    """Export one member alone; the others may still be in training.

    Args:
        store: The queue.
        ensemble: Which ensemble.
        index: A finished member by its place, or
        seed: by its seed: the parameters of its best epoch.
        checkpoint: A checkpoint file of any member: the parameters of that moment.
        priors: Inside the model file, or as LAMMPS input; else as ``export.priors`` says.
        folder: Where the files go; else where ``finalize`` puts them.
        reference_energies: Whether the file adds them; else as ``export.reference_energies`` says.
        say: Told what happens now.

    Raises:
        UsageError: It is not clear which member is meant, or there is none; the file is no
            checkpoint; the folder can't be written.
        EnsqError: The member is not done, a file is damaged, or the export is not what was trained.
        MismatchError: The data have changed, the folder holds another ensemble's export, or the
            checkpoint is another run's.
    """
    config = configuration.loads(ensemble.config)
    options = Options.of(
        config,
        priors=priors,
        ensemble_mean=False,
        save_all=False,
        reference_energies=reference_energies,
    )
    target = exports.export_folder(store, ensemble, config, folder)
    exports.refuse_other(target, ensemble)
    exports.refuse_unwritable(target)
    jobs = store.jobs(ensemble.id)
    if checkpoint is None:
        result = exports.read_member(store, ensemble, _finished(store, ensemble, jobs, index, seed))
        stem = f"{config.model_context}_seed{result.seed}"
    else:
        if index is not None or seed is not None:
            raise UsageError("a checkpoint tells its member: leave out --member and --seed")
        result, place = _of_checkpoint(store, ensemble, config, jobs, checkpoint, say)
        stem = f"{config.model_context}_seed{result.seed}_{place}"
    files, comparison, notes = _files(store, ensemble, config, options, result, stem, say)
    say(f"writing {target}")
    publish(target, files, ())
    return _told(config, options, result, target, files, comparison, notes)


def _told(
    config: RunConfig,
    options: Options,
    result: MemberResult,
    folder: Path,
    files: dict[str, bytes],
    comparison: dict[str, Any],
    notes: list[str],
) -> Reexported:
    from ensq.train import statistics

    scores = statistics.scores_of(result)
    return Reexported(
        folder=folder,
        files=tuple(sorted(files)),
        seed=result.seed,
        epoch=result.best_epoch,
        loss=scores.loss,
        rmse_force=scores.rmse_force,
        rmse_energy=scores.rmse_energy,
        unit=config.unit,
        comparison=comparison,
        reference_energies=modelfiles.about_reference_energies(config, options, result),
        notes=tuple(notes),
    )


def _finished(
    store: Store, ensemble: Ensemble, jobs: list[Job], index: int | None, seed: int | None
) -> Job:
    """The member that is meant, which must be done."""
    if index is not None and seed is not None:
        raise UsageError("give --member or --seed, not both")
    if index is None and seed is None:
        if len(jobs) > 1:
            raise UsageError(
                f"which member of {ensemble.name}? give --member 0 to {len(jobs) - 1}, --seed, or "
                "--checkpoint"
            )
        found = jobs
    else:
        found = [job for job in jobs if seed in (None, job.seed) and index in (None, job.index)]
    if not found:
        meant = f"seed {seed}" if index is None else f"member {index}"
        known = ", ".join(f"{job.index} (seed {job.seed})" for job in jobs)
        raise UsageError(f"{ensemble.name} has no {meant}; its members are {known}")
    (job,) = found
    if job.state is not State.DONE:
        raise EnsqError(
            f"seed {job.seed} is {job.state}, not done; {_way_out(store, job, ensemble)}"
        )
    return job


def _way_out(store: Store, job: Job, ensemble: Ensemble) -> str:
    if job.checkpoint is None:
        return "it has no checkpoint yet"
    path = RunDir.of(store.root, ensemble.run_path).inside(job.checkpoint.path)
    return f"export its newest checkpoint: --checkpoint {path}"


def _of_checkpoint(
    store: Store, ensemble: Ensemble, config: RunConfig, jobs: list[Job], path: Path, say: Say
) -> tuple[MemberResult, str]:
    """The member that a checkpoint file holds, and its place in the training for file names."""
    from ensq.train import from_checkpoint
    from ensq.train.checkpoint import Identity

    run = RunDir.of(store.root, ensemble.run_path)
    known: list[Checkpoint] = [
        one for job in jobs for one in (job.checkpoint, job.previous_checkpoint) if one
    ]
    digests = {run.inside(one.path): one.digest for one in known}
    snapshot = from_checkpoint.read(
        path,
        config,
        Identity(ensemble.config_digest, ensemble.data_digest),
        store.root / ensemble.data_path,
        digest=digests.get(path.resolve()),
        ensemble=ensemble.name,
        cache=run.path,
        say=say,
    )
    if snapshot.result.seed not in {job.seed for job in jobs}:
        raise UsageError(f"{path}: seed {snapshot.result.seed} is no member of {ensemble.name}")
    place = f"epoch{snapshot.epoch}" + (f"_step{snapshot.step}" if snapshot.step else "")
    return snapshot.result, place


def _files(
    store: Store,
    ensemble: Ensemble,
    config: RunConfig,
    options: Options,
    result: MemberResult,
    stem: str,
    say: Say,
) -> tuple[dict[str, bytes], dict[str, Any], list[str]]:
    """The member's files by name, how its model file compares, and what must be said about it."""
    from ensq.train import export, lammps, lammps_data
    from ensq.train.reference import Reference

    frames = exports.validation_frames(store, ensemble, config, result)
    shown = modelfiles.spread_places(frames.n_frames)
    reference = Reference(frames.take(shown), config.model.cutoff)
    every = modelfiles.spread_places(len(shown))
    contents, comparison = modelfiles.member_files(result, reference, every, options, say)
    files = {stem + ending: content for ending, content in contents.items()}
    if modelfiles.native_priors(config, options):
        native = lammps_data.system_files(result, stem, frames)
        native |= lammps.prior_files(result, stem, f"{stem}.mlir", next(iter(native)))
        files |= {name: text.encode() for name, text in native.items()}
    constant = export.reference_energies(result, reference.frames)
    return files, comparison, modelfiles.notes_on_energies(config, options, constant, [comparison])
