"""Results of the members in; statistics, the best model, its files and the metadata out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ensq import choosing, exports, metadata, modelfiles, stopped
from ensq import config as configuration
from ensq.config import RunConfig
from ensq.errors import EnsqError
from ensq.exports import METADATA, Exported, Options, Say
from ensq.jobs import Ensemble, Job, State
from ensq.metadata import MemberReport
from ensq.publish import publish
from ensq.rundir import sha256
from ensq.selection import EnsembleStatistics
from ensq.store import Store

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult

__all__ = ["METADATA", "Finalized", "MemberReport", "finalize"]


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
    priors: exports.Priors | None = None,
    ensemble_mean: bool | None = None,
    reference_energies: bool | None = None,
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
        priors: Inside the model files, or as LAMMPS input; else as ``export.priors`` says.
        ensemble_mean: Export the members' mean too; else as ``export.ensemble_mean`` says.
        reference_energies: Whether model files add them; else as ``export.reference_energies``
            says.
        say: Told what happens now.

    Raises:
        EnsqError: Members are missing, a result is damaged, or an export is not the trained model.
        MismatchError: The folder holds another ensemble's export, or the data have changed.
        UsageError: The folder can't be written.
    """
    config = configuration.loads(ensemble.config)
    options = Options.of(
        config,
        priors=priors,
        ensemble_mean=ensemble_mean,
        save_all=save_all,
        reference_energies=reference_energies,
    )
    folder = exports.export_folder(store, ensemble, config, export_dir)
    exports.refuse_other(folder, ensemble)
    jobs = store.jobs(ensemble.id)
    done = [job for job in jobs if job.state is State.DONE]
    missing = tuple(job for job in jobs if job.state is not State.DONE)
    _refuse_incomplete(ensemble, done, missing, allow_missing)
    about_stopped = stopped.told(store, ensemble, done)
    done = stopped.counted(ensemble, done)
    exports.refuse_unwritable(folder)
    say("reading results")
    results = [exports.read_member(store, ensemble, job) for job in done]
    members = tuple(
        metadata.report_of(job, result) for job, result in zip(done, results, strict=True)
    )
    statistics = metadata.statistics_of(members)
    exported, sources = _exported(
        store, ensemble, config, options, folder, _Trained(done, results, members, statistics), say
    )
    told = metadata.metadata_of(ensemble, config, options, members, results, missing)
    told |= {**exported.about, **sources, "early_stopping": about_stopped}
    told["member_files"] = exports.member_names(config, [job.index for job in done])
    told["files"] = {name: sha256(content) for name, content in sorted(exported.files.items())}
    text = json.dumps(told, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    files = {**exported.files, METADATA: text.encode()}
    say(f"writing {folder}")
    publish(folder, files, exports.previous_files(folder))
    return Finalized(
        ensemble=ensemble,
        config=config,
        folder=folder,
        members=members,
        missing=missing,
        statistics=statistics,
        files=tuple(sorted(files)),
        metadata=told,
    )


class _Trained(NamedTuple):
    """The members that count, in their order."""

    jobs: Sequence[Job]
    results: Sequence[MemberResult]
    reports: Sequence[MemberReport]
    statistics: EnsembleStatistics


def _exported(
    store: Store,
    ensemble: Ensemble,
    config: RunConfig,
    options: Options,
    folder: Path,
    trained: _Trained,
    say: Say,
) -> tuple[Exported, dict[str, Any]]:
    """The exports and what they are made from; those in the folder if they are of the same."""
    best = trained.statistics.best
    chosen = _chosen(config, options, trained.reports, best)
    sources = exports.sources_of(chosen, trained.jobs, config, options)
    before = exports.exported_before(folder, sources)
    if before is not None:
        return before, sources
    results, indices = trained.results, [job.index for job in trained.jobs]
    frames = exports.validation_frames(store, ensemble, config, results[0])
    made = modelfiles.make(frames, config, options, results, chosen, say)
    made.about["comparison"] = choosing.comparison_of(results, indices, best, frames.replica)
    made.files.update(modelfiles.all_members(config, results, indices))
    return made, sources


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


def _chosen(
    config: RunConfig, options: Options, members: Sequence[MemberReport], best: int
) -> dict[str, int]:
    """File stems and the place of the member that each is of."""
    context = config.model_context
    chosen = {f"{context}_best": best}
    if options.save_all:
        chosen |= {
            f"{context}_ensemble_{member.index}": place for place, member in enumerate(members)
        }
    return chosen
