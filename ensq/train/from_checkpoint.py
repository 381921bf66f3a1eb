"""A member as its checkpoint holds it, for export while it is still in training, or afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ensq.train.compat import enable_x64

import numpy as np

from ensq import config as configuration
from ensq import seal
from ensq.config import RunConfig
from ensq.errors import CheckpointError, MismatchError, UsageError
from ensq.train import checkpoint, environment, sealed, statistics
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
    ensemble: str,
    cache: Path | None = None,
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
        ensemble: The run's name, for errors.
        cache: The run's folder, which may know what a pass over large data finds.
        say: Told what happens now.

    Raises:
        UsageError: It is no checkpoint.
        CheckpointError: It can't be read, or is damaged.
        MismatchError: It is another run's, or the data have changed.
    """
    content = _content(path, digest)
    epoch, step = _position(path, content, identity, ensemble)
    with enable_x64(config.training.precision == "float64"):
        program = Program(config, prepare(data_path, identity.data_digest, config, say, cache))
        try:
            restored = checkpoint.restore(content, program.template(epoch, step), identity)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        say("computing the validation loss")
        result = _as_result(program, restored, config, identity)
    return Snapshot(result, epoch, step)


def _position(path: Path, content: bytes, identity: Identity, ensemble: str) -> tuple[int, int]:
    """Epoch and step of a checkpoint that is of this run."""
    try:
        position = checkpoint.read_position(content)
    except CheckpointError as error:
        raise UsageError(f"{path}: {_what_it_is(content) or error}") from error
    found = sealed.metadata(content, "checkpoint")
    if found["format"] > 2 and not seal.is_whole(content):  # format 2 had no seal
        raise CheckpointError(f"{path}: damaged (it does not match its own seal)")
    other = [
        name
        for name, key in (("configuration", "config_digest"), ("data", "data_digest"))
        if found.get(key) != getattr(identity, key)
    ]
    if other:
        verb = "differ" if len(other) > 1 or other == ["data"] else "differs"
        raise MismatchError(
            f"{path}: a checkpoint of another run than {ensemble}: the {' and the '.join(other)} "
            f"{verb}; name the ensemble that it is of"
        )
    return position


def _what_it_is(content: bytes) -> str | None:
    """What a file is that is no checkpoint, where it is known."""
    try:
        seed = checkpoint.read_result(content).seed
    except CheckpointError:
        return None
    return f"a result, not a checkpoint: use --member, or --seed {seed}"


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
