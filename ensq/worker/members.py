"""The members that a worker holds, and how its log speaks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensq.jobs import Claim, Job
from ensq.progress import duration, loss
from ensq.worker import protocol as say
from ensq.worker.child import TrainerChild


@dataclass
class Member:
    """A member that this worker holds."""

    job: Job
    claim: Claim
    settled: bool = False  # its row is known to stand where its training went on

    @property
    def name(self) -> str:
        return f"seed {self.job.seed}"


def names(members: Sequence[Member]) -> str:
    """Members in a line of the log."""
    return ", ".join(member.name for member in members)


def with_last_lines(end: str, child: TrainerChild) -> str:
    """What happened, with the last lines of the log: enough to see why without opening it."""
    lines = child.last_lines()
    if not lines:
        return f"{end}; its log {child.log_path} has no lines of it"
    said = " | ".join(line[:160] for line in lines)
    return f"{end}; last lines of {child.log_path}: {said}"


def epoch_line(member: Member, record: say.MemberEpoch) -> str:
    """An epoch in a line of the log."""
    epochs = member.job.epochs
    left = max(0, epochs - record.epoch) * record.seconds
    return (
        f"{member.name} epoch {record.epoch}/{epochs}: train {loss(record.train_loss)}, "
        f"val {loss(record.val_loss)}, best {loss(record.best_loss)} (epoch {record.best_epoch}), "
        f"{record.seconds:.3g} s/epoch, {duration(left)} left"
    )
