"""A member as its checkpoint holds it, for export while it is still in training, or afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jax.experimental import enable_x64

from ensq import config as configuration
from ensq.config import RunConfig
from ensq.errors import CheckpointError
from ensq.train import checkpoint, environment, statistics
from ensq.train.checkpoint import Identity, MemberResult, Restored
from ensq.train.dataset import prepare
from ensq.train.pack import Program, lane, stack


@dataclass(frozen=True)
class Snapshot:
    """The evaluated parameters of a checkpoint with their errors, in the form of a result."""

    result: MemberResult
    epoch: int  # epochs completed
    step: int  # steps done of the next


def read(
    path: Path,
    config: RunConfig,
    identity: Identity,
    data_path: Path,
    *,
    digest: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Snapshot:
    """The member of a checkpoint file; averaged parameters if there are any.

    Its figures are those of these parameters over the validation set, computed here.

    Args:
        path: The file.
        config: The run's configuration.
        identity: The run that the file must be of.
        data_path: The run's data.
        digest: The file's SHA-256 where the queue knows it; else the file vouches for itself.
        say: Told what happens now.

    Raises:
        CheckpointError: It can't be read, is damaged, or another run's.
        MismatchError: The data have changed.
    """
    content = _content(path, digest)
    try:
        epoch, step = checkpoint.read_position(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    with enable_x64(config.training.precision == "float64"):
        program = Program(config, prepare(data_path, identity.data_digest, config, say))
        try:
            restored = checkpoint.restore(content, program.template(epoch, step), identity)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        say("computing the validation loss")
        result = _as_result(program, restored, config, identity)
    return Snapshot(result, epoch, step)


def _as_result(
    program: Program, restored: Restored, config: RunConfig, identity: Identity
) -> MemberResult:
    """The evaluated parameters and their errors over the validation set."""
    dataset, validated = program.dataset, program.dataset.validated
    params = stack([program.evaluated(restored.state)])
    errors = program.validate(params)
    force, energy = errors.force[0], errors.energy[0]
    counts = (validated.components, validated.beads)
    loss = statistics.scores(force, energy, *counts, config.training.gammas).loss
    history = np.asarray(restored.record.history, np.float64)
    return MemberResult(
        params=lane(params, 0),
        seed=restored.record.seed,
        best_epoch=restored.epoch,
        best_loss=loss,
        final_loss=loss,
        force_errors=force,
        energy_errors=energy,
        components=validated.components,
        beads=validated.beads,
        protein=validated.protein,
        species_errors=errors.species[0],
        species_components=validated.species_components,
        validation_index=validated.index,
        history=history.reshape(-1, len(checkpoint.HISTORY_COLUMNS)),
        statistics=dataset.statistics.as_plain(),
        species_names=dataset.species_names,
        protein_names=dataset.protein_names,
        config=configuration.dumps(config),
        identity=identity,
        versions=environment.versions(),
    )


def _content(path: Path, digest: str | None) -> bytes:
    if digest is not None:
        return checkpoint.read_verified(path, digest)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
