"""Rows to values and values to rows: the one place where columns and fields meet."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import Row

from ensq.jobs import (
    Attempt,
    Checkpoint,
    Ensemble,
    EpochRecord,
    Job,
    Result,
    SlurmCluster,
    SlurmJob,
    WorkerInfo,
)
from ensq.store.strict import made
from ensq.store.values import Event

NO_CHECKPOINT: dict[str, Any] = {"path": None, "digest": None, "epoch": 0, "step": 0}


def to_ensemble(row: Row[Any]) -> Ensemble:
    return made(Ensemble, row._mapping)


def to_worker(row: Row[Any]) -> WorkerInfo:
    values = dict(row._mapping)
    return made(WorkerInfo, values | {"drain": bool(values["drain"])})


def to_slurm_job(row: Row[Any]) -> SlurmJob:
    return made(SlurmJob, row._mapping)


def to_slurm_cluster(row: Row[Any]) -> SlurmCluster:
    return made(SlurmCluster, row._mapping)


def to_attempt(row: Row[Any]) -> Attempt:
    return made(Attempt, row._mapping)


def to_event(row: Row[Any]) -> Event:
    return made(Event, row._mapping)


def to_job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    values.pop("final_loss")
    values["index"] = values.pop("position")
    if values["exempt"] in (0, 1):
        values["exempt"] = bool(values["exempt"])
    values["checkpoint"] = _to_checkpoint(values, "checkpoint")
    values["previous_checkpoint"] = _to_checkpoint(values, "previous")
    return made(Job, values)


def to_result(row: Row[Any]) -> Result:
    values = {
        "best_epoch": row.best_epoch,
        "best_loss": _or_nan(row.best_loss),
        "final_loss": _or_nan(row.final_loss),
        "path": row.result_path,
        "digest": row.result_digest,
    }
    return made(Result, values)


def to_epoch(row: Row[Any]) -> EpochRecord:
    values = {
        "epoch": row.epoch,
        "train_loss": _or_nan(row.train_loss),
        "val_loss": _or_nan(row.val_loss),
        "val_rmse_force": row.val_rmse_force,
        "val_rmse_energy": row.val_rmse_energy,
        "learning_rate": row.learning_rate,
        "seconds": row.seconds,
    }
    return made(EpochRecord, values)


def from_epoch(record: EpochRecord) -> dict[str, Any]:
    """The columns of an epoch's row, without job and attempt."""
    return {
        "epoch": int(record.epoch),
        "train_loss": number(record.train_loss),
        "val_loss": number(record.val_loss),
        "val_rmse_force": number(record.val_rmse_force),
        "val_rmse_energy": number(record.val_rmse_energy),
        "learning_rate": float(record.learning_rate),
        "seconds": float(record.seconds),
    }


def from_checkpoint(checkpoint: Checkpoint | None, prefix: str) -> dict[str, Any]:
    """The four columns of a checkpoint; ``prefix`` is 'checkpoint' or 'previous'."""
    if checkpoint is None:
        return {f"{prefix}_{key}": value for key, value in NO_CHECKPOINT.items()}
    return {
        f"{prefix}_path": checkpoint.path,
        f"{prefix}_digest": checkpoint.digest,
        f"{prefix}_epoch": int(checkpoint.epoch),
        f"{prefix}_step": int(checkpoint.step),
    }


def number(value: float | None) -> float | None:
    """A plain float, so that NumPy's kinds are not stored as bytes; NaN becomes NULL."""
    if value is None or math.isnan(value):
        return None
    return float(value)


def one_line(text: str) -> str:
    """Text without line breaks, for a table."""
    return " ".join(text.split())


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _to_checkpoint(values: dict[str, Any], prefix: str) -> Checkpoint | None:
    found = {key: values.pop(f"{prefix}_{key}") for key in NO_CHECKPOINT}
    return None if found["path"] is None else made(Checkpoint, found)
