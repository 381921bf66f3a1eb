"""Members trained by ensq's own trainer in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensq.train import checkpoint
from ensq.train.checkpoint import MemberResult
from ensq.train.pack import Program
from ensq.train.trainer import Trainer
from ensq.worker import protocol


class Silent:
    """Never asks for a stop; keeps what was said of finished members."""

    def __init__(self) -> None:
        self.done: list[protocol.MemberDone] = []

    def stop_wanted(self) -> bool:
        return False

    def dropped(self) -> frozenset[int]:
        return frozenset()

    def finishing(self) -> dict[int, str]:
        return {}

    def send(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.MemberFailed):
            raise AssertionError(message.message)
        if isinstance(message, protocol.MemberDone):
            self.done.append(message)


def train(
    program: Program, seeds: Sequence[int], folder: Path, pack: int
) -> dict[int, MemberResult]:
    """Results of the members by seed, ``pack`` of them trained together at a time."""
    trainer, control = Trainer(program, program.config, "0" * 64), Silent()
    for start in range(0, len(seeds), pack):
        tasks = [
            protocol.MemberTask(
                job_id=seed, seed=seed, attempt=1, folder=str(folder / f"pack-{pack}" / str(seed))
            )
            for seed in seeds[start : start + pack]
        ]
        trainer.train(tasks, control)
    results = [
        checkpoint.read_result(checkpoint.read_verified(Path(done.path), done.digest))
        for done in control.done
    ]
    assert sorted(result.seed for result in results) == sorted(seeds)
    return {result.seed: result for result in results}
