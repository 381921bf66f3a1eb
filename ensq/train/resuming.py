"""Where a member goes on: its newest checkpoint that verifies, or a result that is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ensq.errors import CheckpointError, DiskError
from ensq.rundir import sha256
from ensq.train import checkpoint
from ensq.train.checkpoint import Identity, MemberResult, Restored
from ensq.train.pack import Program
from ensq.worker import protocol
from ensq.worker.protocol import EpochLosses, MemberTask


def newest(
    task: MemberTask, program: Program, epochs: int, identity: Identity
) -> tuple[Restored | None, protocol.Resumed]:
    """A member as its newest checkpoint left it, or None for a new one; and what to tell of it.

    Raises DiskError if all that is left of its training are files that can't be read now: a bad
    disk or wrong permissions are no reason to begin again.
    """
    rejected: list[str] = []
    unreadable: CheckpointError | None = None
    for source in task.resume:
        path = Path(source.path)
        try:
            data = checkpoint.read_verified(path, source.digest)
            restored = _restore(data, task.seed, program, epochs, identity)
        except CheckpointError as error:
            if isinstance(error, checkpoint.UnreadableError):
                unreadable = error
            text = str(error)
            rejected.append(text if text.startswith(source.path) else f"{source.path}: {text}")
            continue
        written = protocol.Written(
            path=source.path, digest=sha256(data), epoch=restored.epoch, step=restored.step
        )
        return restored, protocol.Resumed(
            job_id=task.job_id,
            checkpoint=written,
            history=losses(restored.record.history),
            rejected=tuple(rejected),
        )
    if unreadable is not None:
        raise DiskError(
            f"{unreadable}; no older checkpoint can be used either: make it readable, then start "
            "the worker again"
        ) from unreadable
    return None, protocol.Resumed(job_id=task.job_id, checkpoint=None, rejected=tuple(rejected))


def _restore(data: bytes, seed: int, program: Program, epochs: int, identity: Identity) -> Restored:
    """The member in a checkpoint. Raises CheckpointError unless it is a place of its training."""
    epoch, step = checkpoint.read_position(data)
    if epoch > epochs or step >= (program.steps_per_epoch if epoch < epochs else 1):
        raise CheckpointError(f"epoch {epoch}, step {step} is no place of a training of {epochs}")
    restored = checkpoint.restore(data, program.template(epoch, step), identity)
    if restored.record.seed != seed:
        raise CheckpointError(f"a checkpoint of seed {restored.record.seed}, not of seed {seed}")
    return restored


def adopted(
    task: MemberTask, epochs: int, identity: Identity, say: Callable[[str], None]
) -> protocol.MemberDone | None:
    """What there is to tell of a member that an earlier attempt finished, or None.

    That attempt wrote the result and could not have it recorded, because its worker died or the
    database was away.
    """
    for name in task.results:
        try:
            data = checkpoint.read_verified(Path(name), None)
            result = checkpoint.read_result(data)
            _check_adoptable(result, task, epochs, identity)
        except CheckpointError as error:
            say(f"seed {task.seed}: a result of an earlier attempt is not used: {error}")
            continue
        return protocol.MemberDone(
            job_id=task.job_id,
            best_epoch=result.best_epoch,
            best_loss=result.best_loss,
            final_loss=result.final_loss,
            path=name,
            digest=sha256(data),
            adopted=losses(result.history),
            early=_early_end(result),
        )
    return None


def _early_end(result: MemberResult) -> protocol.Early | None:
    if result.early is None:
        return None
    rule, evidence = result.early["rule"], result.early["evidence"]
    return protocol.Early(epoch=len(result.history), rule=rule, evidence=evidence)


def _check_adoptable(
    result: MemberResult, task: MemberTask, epochs: int, identity: Identity
) -> None:
    """Raise CheckpointError unless the result is what training this member would give."""
    if result.identity != identity or result.seed != task.seed:
        raise CheckpointError("the result of another run or seed")
    if result.early is not None and task.exempt:
        raise CheckpointError("a rule had stopped it early, and it was resumed")
    trained = len(result.history)
    whole = trained == epochs if result.early is None else 1 <= trained < epochs
    if not whole or not 1 <= result.best_epoch <= trained:
        raise CheckpointError(f"its history is not of {epochs} epochs")
    validation = result.history[:, 1]
    if (result.best_loss, result.final_loss) != (validation[result.best_epoch - 1], validation[-1]):
        raise CheckpointError("its losses are not those of its history")


def losses(history: Iterable[Sequence[float] | Any]) -> tuple[EpochLosses, ...]:
    """Rows of a history for the queue, in which nothing stands for what is not trained on."""
    return tuple(
        EpochLosses(
            epoch=epoch,
            train_loss=float(train),
            val_loss=float(validation),
            val_rmse_force=_given(force),
            val_rmse_energy=_given(energy),
            learning_rate=float(rate),
            seconds=float(seconds),
        )
        for epoch, (train, validation, force, energy, rate, seconds) in enumerate(history, 1)
    )


def _given(error: float) -> float | None:
    return None if math.isnan(error) else float(error)
