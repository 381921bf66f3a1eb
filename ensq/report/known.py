"""All that a report can say of an ensemble's training: from the queue, or from an export folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensq import config as configuration
from ensq import exports, stopped, trained
from ensq.config import RunConfig, early
from ensq.errors import EnsqError
from ensq.jobs import Attempt, Decision, EpochRecord, Job, State, WorkerInfo
from ensq.rundir import RunDir
from ensq.trained import ANALYSIS, Members

if TYPE_CHECKING:
    from ensq.jobs import Ensemble
    from ensq.store import Store
    from ensq.train.checkpoint import MemberResult


EARLY = f"{State.DONE.value} (early"  # begins the state of members that a rule stopped


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member as it stands."""

    index: int
    seed: int
    job_id: int | None  # None where the queue is not known
    state: str  # in words: of the queue, "done (early: RULE)", or "done" of an export folder
    epochs: int  # it is to train
    history: tuple[EpochRecord, ...]
    best_epoch: int | None
    best_loss: float | None
    loss_error: float | None  # standard error of it, frames taken as independent
    rmse_force: float | None  # of the best epoch's parameters
    rmse_energy: float | None  # per bead
    attempts: int
    tries: tuple[Attempt, ...]  # empty where the queue is not known
    error: str | None
    counts: bool  # among the trained members; False for those that are not done
    result: MemberResult | None
    digest: str | None  # SHA-256 of the file of ``result``

    @property
    def is_done(self) -> bool:
        return self.state.startswith(State.DONE.value)

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped before its last epoch, by a rule."""
        return self.state.startswith(EARLY)

    @property
    def last_epoch(self) -> int:
        return self.history[-1].epoch if self.history else 0


@dataclass(frozen=True, kw_only=True)
class Known:
    """An ensemble as it stands. Times are seconds since 1970."""

    name: str
    config: RunConfig
    config_digest: str
    data_digest: str
    data_path: str | None
    members: tuple[Member, ...]
    workers: dict[str, WorkerInfo]
    decisions: tuple[Decision, ...]  # of early stopping, oldest first
    early_stopping: str | None  # the section in force as JSON; None: off, or not known
    last_event: float | None  # time of what happened last; None where the queue is not known
    from_queue: bool
    source: str  # where all this was read
    exported: Path | None  # folder of the export, if there is one
    metadata: dict[str, Any]  # of the export; empty if there is none
    analysis: Path  # folder of what else was found out
    notes: tuple[str, ...]  # what could not be read

    @property
    def analyses(self) -> tuple[Path, ...]:
        """Folders of what else was found out, by the run's name and from its export folder."""
        folders = [self.analysis]
        if self.exported is not None and self.exported / ANALYSIS != self.analysis:
            folders.append(self.exported / ANALYSIS)
        return tuple(folders)

    @property
    def best(self) -> Member | None:
        """The member that the lowest validation loss makes the best, among those that are done;
        as long as none is, among all."""
        return best_of(self.counted) or best_of(self.members)

    @property
    def finished(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.is_done)

    @property
    def counted(self) -> tuple[Member, ...]:
        """Those that make the ensemble: done, unless a rule stopped them and they are left out."""
        return tuple(member for member in self.members if member.counts)

    @property
    def results(self) -> tuple[MemberResult, ...]:
        return tuple(one.result for one in self.members if one.result is not None)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the files of the members that count."""
        return tuple(one.digest or "" for one in self.counted)

    @property
    def energy_unit(self) -> str:
        return self.config.unit

    @property
    def force_unit(self) -> str:
        return f"{self.config.unit}/Å"

    @property
    def loss_unit(self) -> str:
        """Empty where the loss is a sum of what has different units."""
        gammas = self.config.training.gammas
        if gammas.U == 0 and gammas.F == 1:
            return f"({self.force_unit})²"
        if gammas.F == 0 and gammas.U == 1:
            return f"({self.energy_unit})²"
        return ""


def best_of(members: Sequence[Member]) -> Member | None:
    """The first of those with the lowest loss; None if none has one."""
    with_loss = [one for one in members if one.best_loss is not None]
    return min(with_loss, key=lambda one: one.best_loss or 0.0, default=None)


def from_store(store: Store, ensemble: Ensemble) -> Known:
    """From the queue, also while its members are being trained.

    A result file that can't be read is a note, not an error: there is more to say.
    """
    config = configuration.loads(ensemble.config)
    jobs = store.jobs(ensemble.id)
    notes: list[str] = []
    counted = _counted(ensemble, jobs)
    members = tuple(_member(store, ensemble, job, job.id in counted, notes) for job in jobs)
    ids = {one.worker_id for member in members for one in member.tries}
    folder = exports.export_folder(store, ensemble, config, None)
    metadata = exports.recorded(folder)
    if metadata.get("ensemble") != ensemble.name:
        metadata = {}
    events = store.events(ensemble.id, 1)
    return Known(
        name=ensemble.name,
        config=config,
        config_digest=ensemble.config_digest,
        data_digest=ensemble.data_digest,
        data_path=ensemble.data_path,
        members=members,
        workers=store.workers(ids),
        decisions=tuple(store.decisions(ensemble.id)),
        early_stopping=_early_stopping(ensemble),
        last_event=max([*(one.time for one in events), *(job.updated_at for job in jobs)]),
        from_queue=True,
        source=store.where,
        exported=folder if metadata else None,
        metadata=metadata,
        analysis=RunDir.of(store.root, ensemble.run_path).path / ANALYSIS,
        notes=tuple(notes),
    )


def _early_stopping(ensemble: Ensemble) -> str | None:
    """The section in force; None where it says that early stopping is off."""
    section = early.loads(ensemble.early_stopping)
    return None if section.mode == "off" else ensemble.early_stopping


def from_folder(folder: Path) -> Known:
    """From an export folder alone. Raises UsageError or CheckpointError as ``trained`` does."""
    return from_members(trained.from_folder(folder), exports.recorded(folder), str(folder))


def from_members(found: Members, metadata: dict[str, Any], source: str) -> Known:
    config = found.config
    gone = metadata.get("missing_members")
    tried = {one.get("seed"): one.get("attempts") for one in _dicts(metadata.get("members"))}
    places = {one.get("seed"): one.get("index") for one in _dicts(metadata.get("members"))}
    members = [
        _of_result(
            result,
            digest,
            int(places.get(result.seed) or place),
            int(tried.get(result.seed) or 1),
        )
        for place, (result, digest) in enumerate(zip(found.results, found.digests, strict=True))
    ]
    members += [_absent(one, config.epochs) for one in _dicts(gone)]
    first = found.results[0]
    return Known(
        name=found.name,
        config=config,
        config_digest=first.identity.config_digest,
        data_digest=first.identity.data_digest,
        data_path=None,
        members=tuple(sorted(members, key=lambda one: one.index)),
        workers={},
        decisions=(),
        early_stopping=None,
        last_event=None,
        from_queue=False,
        source=source,
        exported=found.exported,
        metadata=metadata,
        analysis=found.analysis,
        notes=(),
    )


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _absent(about: dict[str, Any], epochs: int) -> Member:
    """A member that an export was made without."""
    error = about.get("error")
    return Member(
        index=int(about.get("index", 0)),
        seed=int(about.get("seed", 0)),
        job_id=None,
        state=str(about.get("state", "?")),
        epochs=epochs,
        history=(),
        best_epoch=None,
        best_loss=None,
        loss_error=None,
        rmse_force=None,
        rmse_energy=None,
        attempts=0,
        tries=(),
        error=None if error is None else str(error),
        counts=False,
        result=None,
        digest=None,
    )


def _counted(ensemble: Ensemble, jobs: Sequence[Job]) -> set[int]:
    """Jobs that count as trained; none if all of them were stopped and are left out."""
    try:
        found = stopped.counted(ensemble, [job for job in jobs if job.state is State.DONE])
    except EnsqError:
        return set()
    return {job.id for job in found}


def _member(store: Store, ensemble: Ensemble, job: Job, counts: bool, notes: list[str]) -> Member:
    from ensq.train import statistics

    result = None
    if job.state is State.DONE:
        try:
            result = exports.read_member(store, ensemble, job)
        except EnsqError as error:
            notes.append(f"seed {job.seed}: {error}")
    history = tuple(store.epochs(job.id))
    best = next((one for one in history if one.epoch == job.best_epoch), None)
    return Member(
        index=job.index,
        seed=job.seed,
        job_id=job.id,
        state=str(job.state) if job.early is None else f"{EARLY}: {job.early})",
        epochs=job.epochs,
        history=history,
        best_epoch=job.best_epoch,
        best_loss=job.best_loss,
        loss_error=None if result is None else statistics.loss_error(result),
        rmse_force=None if best is None else best.val_rmse_force,
        rmse_energy=None if best is None else best.val_rmse_energy,
        attempts=job.attempt,
        tries=tuple(store.attempts(job.id)),
        error=job.error,
        counts=counts,
        result=result,
        digest=None if result is None else job.result_digest,
    )


def _of_result(result: MemberResult, digest: str, index: int, attempts: int) -> Member:
    from ensq.train import statistics

    scores = statistics.scores_of(result)
    return Member(
        index=index,
        seed=result.seed,
        job_id=None,
        state=State.DONE.value,
        epochs=configuration.loads(result.config).epochs,
        history=_history(result.history),
        best_epoch=result.best_epoch,
        best_loss=scores.loss,
        loss_error=statistics.loss_error(result),
        rmse_force=scores.rmse_force,
        rmse_energy=scores.rmse_energy,
        attempts=attempts,
        tries=(),
        error=None,
        counts=True,
        result=result,
        digest=digest,
    )


def _history(rows: Any) -> tuple[EpochRecord, ...]:
    """The losses in a result's file: a row for each epoch."""
    found = []
    for number, row in enumerate(np.asarray(rows, np.float64), start=1):
        train, val, force, energy, rate, seconds = (float(value) for value in row)
        found.append(
            EpochRecord(
                epoch=number,
                train_loss=train,
                val_loss=val,
                val_rmse_force=None if math.isnan(force) else force,
                val_rmse_energy=None if math.isnan(energy) else energy,
                learning_rate=rate,
                seconds=seconds,
            )
        )
    return tuple(found)
