"""A tiny data set, a tiny model and a trainer's listener, for tests of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensq import config, data
from ensq.config import RunConfig
from ensq.worker import protocol

FRAMES, BEADS, SPECIES = 40, 6, 3

# 30 frames to train on in batches of 8, so that the last batch holds 6; 10 to validate.
SETTINGS = """
data: {path: tiny.npz, max_buckets: 1}  # frames of 4 to 6 beads, together
model:
  cutoff: 4.0
  allegro: {n_channels: 4, mlp_n_hidden: 8, n_radial_basis: 4, max_ell: 0}
training:
  stages: [{optimizer: adam, epochs: 2}, {optimizer: lion, epochs: 1}]
  val_fraction: 0.25
  batch_per_device: 8
  gammas: {F: 1.0, U: 0.1}
optimizer:
  adam: {lr: 1.0e-2}
  lion: {lr: 0.5}  # far too large: the last epoch is not the best one
"""


def settings(*overrides: str) -> RunConfig:
    return config.parse(SETTINGS, "settings", overrides)


def tiny_arrays(fewest: int = 4) -> dict[str, Any]:
    """Chains of ``fewest`` to 6 beads, harmonic bonds, a little noise; padding holds rubbish."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(FRAMES, BEADS, 3))
    steps *= rng.uniform(1.2, 1.8, size=(FRAMES, BEADS, 1)) / np.linalg.norm(
        steps, axis=-1, keepdims=True
    )
    R = np.cumsum(steps, axis=1)
    mask = (np.arange(BEADS) < rng.integers(fewest, BEADS + 1, size=(FRAMES, 1))).astype(float)
    bonds = R[:, 1:] - R[:, :-1]
    length = np.linalg.norm(bonds, axis=-1)
    real = mask[:, 1:]
    pull = (3.0 * (length - 1.5) * real / length)[..., None] * bonds
    F = np.zeros_like(R)
    F[:, :-1] += pull
    F[:, 1:] -= pull
    U = 1.5 * ((length - 1.5) ** 2 * real).sum(axis=1)
    F += 0.05 * rng.normal(size=F.shape)
    F[mask == 0], R[mask == 0] = 77.0, 0.5
    species = rng.integers(0, SPECIES, size=BEADS)
    U = U + (mask * np.array([-3.0, 5.0, 2.0])[species]).sum(axis=1)
    return {
        "R": R.astype(np.float32),
        "F": F.astype(np.float32),
        "U": U,
        "species": species,
        "mask": mask,
        "species_names": np.array(["A", "B", "C"]),
    }


def write_tiny(path: Path) -> Path:
    np.savez(path, **tiny_arrays())
    return path


def task(
    folder: Path, seed: int, attempt: int = 1, resume: Any = (), results: Any = ()
) -> protocol.MemberTask:
    """A member whose job id is its seed; files in ``resume`` that are paths were never recorded."""
    return protocol.MemberTask(
        job_id=seed,
        seed=seed,
        attempt=attempt,
        folder=str(folder / f"seed-{seed}" / f"attempt-{attempt}"),
        resume=tuple(
            protocol.ResumeFrom(path=str(source))
            if isinstance(source, Path)
            else protocol.ResumeFrom(path=source.path, digest=source.digest)
            for source in resume
        ),
        results=tuple(map(str, results)),
    )


def train_command(
    run: Path, path: Path, made: RunConfig, *members: protocol.MemberTask
) -> protocol.Train:
    return protocol.Train(
        members=members,
        config=config.dumps(made),
        run_folder=str(run),
        data_path=str(path),
        data_digest=data.digest(path),
    )


class Listener:
    """Hears what a trainer says; may ask it to stop, or to end members early, after some steps."""

    def __init__(
        self, stop_after: int | None = None, finish: dict[int, str] | None = None, at: int = 0
    ) -> None:
        """``finish``: the members that end early ``at`` so many steps, by which rules."""
        self.messages: list[Any] = []
        self.stop_after = stop_after
        self.finish, self.finish_at = finish or {}, at

    def stop_wanted(self) -> bool:
        return self.stop_after is not None and len(self.of(protocol.StepDone)) >= self.stop_after

    def dropped(self) -> frozenset[int]:
        return frozenset()

    def finishing(self) -> dict[int, str]:
        return self.finish if len(self.of(protocol.StepDone)) >= self.finish_at else {}

    def send(self, message: protocol.Message) -> None:
        self.messages.append(message)

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]

    def epochs(self, job_id: int) -> list[protocol.MemberEpoch]:
        members = [member for done in self.of(protocol.EpochDone) for member in done.members]
        return [member for member in members if member.job_id == job_id]


DATA = "d" * 64  # as the digest of the data of the program that is trained in this process


class Undisturbed:
    """Seed 1 trained to the end in one go, and the files that left."""

    def __init__(self, folder: Path, program: Any) -> None:
        self.folder, self.program = folder, program
        self.told = self.train(task(folder, 1))
        self.result = self.read(1)

    def train(self, *tasks: protocol.MemberTask, data: str = DATA) -> Listener:
        from ensq.train.trainer import Trainer

        listener = Listener()
        Trainer(self.program, settings(), data).train(tasks, listener)
        return listener

    def path(self, attempt: int, name: str = "result.safetensors") -> Path:
        return self.folder / "seed-1" / f"attempt-{attempt}" / name

    def checkpoint(self, epoch: int) -> Path:
        return self.path(1, f"epoch-{epoch:06d}-step-000000.safetensors")

    def read(self, attempt: int) -> Any:
        from ensq.train import checkpoint

        return checkpoint.read_result(self.path(attempt).read_bytes())

    def assert_equal(self, attempt: int) -> None:
        """The attempt's result has the same bits, but for how long its epochs took."""
        from ensq.train import checkpoint

        found, expected = self.read(attempt), self.result
        mine, theirs = checkpoint.flatten(found.params), checkpoint.flatten(expected.params)
        assert {k: v.tobytes() for k, v in mine.items()} == {
            k: v.tobytes() for k, v in theirs.items()
        }
        assert found.history[:, :5].tobytes() == expected.history[:, :5].tobytes()
        assert found.best_loss == expected.best_loss
