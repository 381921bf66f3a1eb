"""The end of a member: its result, at the last epoch or before, by a rule of early stopping."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ensq import config as configuration
from ensq import early, faults
from ensq.rundir import RESULT_NAME
from ensq.train import checkpoint, environment
from ensq.train.checkpoint import Identity, MemberResult, Record
from ensq.train.pack import Program
from ensq.train.scribe import Scribe
from ensq.worker import protocol
from ensq.worker.protocol import MemberTask

if TYPE_CHECKING:
    from ensq.train.trainer import Member

_VALIDATION = checkpoint.HISTORY_COLUMNS.index("val_loss")


class Stopped(NamedTuple):
    """Why a member ends before its last epoch."""

    rule: str
    evidence: str  # JSON; '' where the supervisor has it


def ordered(task: MemberTask, epoch: int, told: Mapping[int, str]) -> str | None:
    """The rule by which a member is to end now, if one is.

    A decision of an earlier attempt counts from the epoch at which it was made: if the attempt's
    checkpoints were older, the epochs in between are trained again first.
    """
    if task.exempt:
        return None
    if task.order is not None and epoch >= task.order.epoch:
        return task.order.rule
    return told.get(task.job_id)


def plateau_of(record: Record, settings: protocol.Plateau | None) -> str | None:
    """The evidence (JSON) that a member is on a plateau; it follows from its history alone."""
    if settings is None:
        return None
    found = early.plateau([row[_VALIDATION] for row in record.history], settings)
    return None if found is None else json.dumps({"seed": record.seed, **found}, sort_keys=True)


def on_plateau(
    reports: Sequence[protocol.MemberEpoch], active: Sequence[tuple[int, Member]]
) -> dict[int, Stopped]:
    """The places of members that are on a plateau after this epoch."""
    evidence = {report.job_id: report.plateau for report in reports if report.plateau is not None}
    return {
        place: Stopped("plateau", evidence[member.task.job_id])
        for place, member in active
        if member.task.job_id in evidence
    }


def left_on_plateau(
    active: Sequence[tuple[int, Member]], settings: protocol.Plateau
) -> dict[int, Stopped]:
    """The places of members that stand on a plateau by their histories, before they train on."""
    found = {}
    for place, member in active:
        evidence = None
        if member.record.history and not member.task.exempt:
            evidence = plateau_of(member.record, settings)
        if evidence is not None:
            found[place] = Stopped("plateau", evidence)
    return found


def result_of(
    program: Program, identity: Identity, best: Any, record: Record, stopped: Stopped | None
) -> MemberResult:
    """A member's result; ``best`` are its parameters (host arrays)."""
    dataset = program.dataset
    return MemberResult(
        params=best,
        seed=record.seed,
        best_epoch=record.best_epoch,
        best_loss=record.best_loss,
        final_loss=record.history[-1][_VALIDATION],
        force_errors=record.best_force,
        energy_errors=record.best_energy,
        components=dataset.validated.components,
        beads=dataset.validated.beads,
        protein=dataset.validated.protein,
        species_errors=record.best_species,
        species_components=dataset.validated.species_components,
        validation_index=dataset.validated.index,
        history=np.asarray(record.history, np.float64),
        statistics=dataset.statistics.as_plain(),
        species_names=dataset.species_names,
        protein_names=dataset.protein_names,
        config=configuration.dumps(program.config),
        identity=identity,
        versions=environment.versions(),
        early=None if stopped is None else stopped._asdict(),
    )


def write_and_tell(
    control: Scribe,
    task: MemberTask,
    result: MemberResult,
    written: Mapping[str, protocol.Written],
) -> None:
    """Write the result and tell of it. ``written``: checkpoints, by job, of an early end."""
    path = Path(task.folder) / RESULT_NAME
    digest = checkpoint.write_result(path, result)
    faults.point("trainer.result")
    end = None
    if result.early is not None:
        end = protocol.Early(
            rule=result.early["rule"],
            epoch=len(result.history),
            evidence=result.early["evidence"],
            checkpoint=written.get(str(task.job_id)),
        )
    control.tell(
        protocol.MemberDone(
            job_id=task.job_id,
            best_epoch=result.best_epoch,
            best_loss=result.best_loss,
            final_loss=result.final_loss,
            path=str(path),
            digest=digest,
            early=end,
        )
    )
