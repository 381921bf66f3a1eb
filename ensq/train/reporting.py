"""What is told of an epoch of one member, for its history and for the queue."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from ensq.train import statistics
from ensq.train.checkpoint import Record
from ensq.worker import protocol


def numbers(scores: statistics.Scores) -> tuple[float, float, float]:
    """Loss and errors for the history, NaN standing for a part that is not trained on."""
    return (
        scores.loss,
        math.nan if scores.rmse_force is None else scores.rmse_force,
        math.nan if scores.rmse_energy is None else scores.rmse_energy,
    )


def report_of(
    job_id: int,
    record: Record,
    epoch: int,
    train: float,
    scores: statistics.Scores,
    rate: float,
    seconds: float,
    blocks: Iterable[float] = (),
    plateau: str | None = None,
) -> protocol.MemberEpoch:
    """The epoch for the queue; its checkpoint is added when it is written."""
    return protocol.MemberEpoch(
        job_id=job_id,
        epoch=epoch,
        train_loss=train,
        val_loss=scores.loss,
        val_rmse_force=scores.rmse_force,
        val_rmse_energy=scores.rmse_energy,
        learning_rate=rate,
        seconds=seconds,
        best_epoch=record.best_epoch,
        best_loss=record.best_loss,
        checkpoint=None,
        blocks=tuple(map(float, blocks)),
        plateau=plateau,
    )


def with_checkpoint(
    report: protocol.MemberEpoch, written: protocol.Written | None
) -> protocol.MemberEpoch:
    return msgspec.structs.replace(report, checkpoint=written)
