"""The members that a worker holds, and how its log speaks of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ensq.errors import DiskError, EnsqError
from ensq.jobs import Claim, Decision, Ensemble, EpochRecord, Job, Outcome
from ensq.progress import duration, loss, printable
from ensq.rundir import RunDir, make_folder
from ensq.worker import protocol as say
from ensq.worker.child import TrainerChild

# What became of a member that can't go on, by what the trainer says: how it is counted, and
# whether another try can help.
FAILED = {
    "exception": (Outcome.FAILURE, True),
    "checkpoint": (Outcome.FAILURE, True),
    "memory": (Outcome.CRASH, True),
    "diverged": (Outcome.FAILURE, False),
    "mismatch": (Outcome.FAILURE, False),
    "data": (Outcome.FAILURE, False),
}


@dataclass
class Member:
    """A member that this worker holds."""

    job: Job
    claim: Claim
    checkpoints: int = 0  # recorded by this attempt
    over: bool = False  # its end is on its way into the database
    told: set[str] = field(default_factory=set)  # rules of early stopping that have held for it

    @property
    def name(self) -> str:
        return f"seed {self.job.seed}"


def names(members: Sequence[Member]) -> str:
    """Members in a line of the log."""
    return ", ".join(member.name for member in members)


def task_of(
    job: Job, run_dir: RunDir, log: Callable[[str], None], decision: Decision | None = None
) -> say.MemberTask:
    """What the trainer is told about a member: where it may write, and what it may go on from.

    First what earlier attempts left behind and nobody recorded, then the recorded checkpoints.
    Of the attempts before the one that wrote the recorded checkpoint nothing is of use: others
    have gone on from there. ``decision``: one to stop it early that was not carried out yet.
    """
    recorded = job.checkpoint
    since = (recorded.epoch, recorded.step) if recorded else (0, 0)
    first = _attempt_of(recorded.path) if recorded else 1
    left, results = run_dir.unrecorded(job.seed, job.attempt, *since, first)
    resume = [say.ResumeFrom(path=str(path)) for path in left]
    for checkpoint in (recorded, job.previous_checkpoint):
        if checkpoint is None:
            continue
        try:
            path = run_dir.inside(checkpoint.path)
        except EnsqError as error:
            log(f"seed {job.seed}: {printable(str(error))}; not used")
            continue
        resume.append(say.ResumeFrom(path=str(path), digest=checkpoint.digest))
    return say.MemberTask(
        job_id=job.id,
        seed=job.seed,
        attempt=job.attempt,
        folder=str(run_dir.attempt(job.seed, job.attempt)),
        resume=tuple(resume),
        results=tuple(map(str, results)),
        order=None if decision is None else say.Order(rule=decision.rule, epoch=decision.epoch),
        exempt=job.exempt,
    )


def train_command(
    jobs: Sequence[Job],
    ensemble: Ensemble,
    root: Path,
    log_path: Path,
    log: Callable[[str], None],
    orders: Mapping[int, Decision],
    plateau: say.Plateau | None,
) -> say.Train:
    """What the trainer is told of a claim; ``root`` is the folder that paths begin from."""
    run_dir = RunDir.of(root, ensemble.run_path)
    return say.Train(
        members=tuple(task_of(job, run_dir, log, orders.get(job.id)) for job in jobs),
        config=ensemble.config,
        run_folder=str(run_dir.path),
        data_path=str(root / ensemble.data_path),  # an absolute path stays as it is
        data_digest=ensemble.data_digest,
        log=str(log_path.absolute()),
        plateau=plateau,
    )


def make_folders_or_refuse(jobs: Sequence[Job], run_dir: RunDir) -> None:
    """Make each attempt's folder, so that it survives a power cut.

    Raises DiskError where that can't be.
    """
    try:
        for job in jobs:
            make_folder(run_dir.attempt(job.seed, job.attempt))
    except (OSError, DiskError) as error:
        raise DiskError(
            f"can't start training in {run_dir.path}: {error}; free or repair it, then start the "
            "worker again"
        ) from error


def _attempt_of(path: str) -> int:
    """The attempt that wrote a checkpoint, by its folder; 1 if it lies elsewhere."""
    number = PurePosixPath(path).parent.name.removeprefix("attempt-")
    return int(number) if number.isdecimal() else 1


def record_of(losses: say.EpochLosses | say.MemberEpoch) -> EpochRecord:
    """An epoch as the store takes it."""
    return EpochRecord(
        epoch=losses.epoch,
        train_loss=losses.train_loss,
        val_loss=losses.val_loss,
        val_rmse_force=losses.val_rmse_force,
        val_rmse_energy=losses.val_rmse_energy,
        learning_rate=losses.learning_rate,
        seconds=losses.seconds,
    )


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
