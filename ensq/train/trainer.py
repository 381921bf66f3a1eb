"""Training a pack from where it stands to its last epoch, and telling about it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from ensq import config as configuration
from ensq import faults
from ensq.config import RunConfig
from ensq.rundir import checkpoint_name
from ensq.train import checkpoint, finishing, resuming, statistics
from ensq.train.batches import Batches, batches_of_epoch
from ensq.train.checkpoint import Identity, Record, Restored
from ensq.train.costs import Costs
from ensq.train.finishing import Stopped
from ensq.train.pack import Errors, Lanes, Program, lane, stack
from ensq.train.reporting import numbers, report_of, with_checkpoint
from ensq.train.scribe import Control, Scribe
from ensq.worker import protocol
from ensq.worker.protocol import MemberTask

SECONDS_PER_CALL = 0.5  # how long a stop may have to wait for the running call
KEPT_CHECKPOINTS = 3  # two that the queue points to, and one that it does not know yet


@dataclass
class Member:
    """One lane of the pack."""

    task: MemberTask
    record: Record
    ended: bool = False  # diverged, or its lease is lost
    written: list[Path] | None = None


@dataclass
class _Place:
    epoch: int  # epochs completed
    step: int  # steps done of the next


class Trainer:
    """Trains packs of one program, one after another."""

    def __init__(self, program: Program, config: RunConfig, data_digest: str) -> None:
        self.program = program
        self.config = config
        self.identity = Identity(configuration.digest(config), data_digest)
        self.plateau: protocol.Plateau | None = None
        self._steps_per_call = 1
        self.costs = Costs(proportional=jax.default_backend() == "cpu")

    def train(
        self,
        tasks: Sequence[MemberTask],
        control: Control,
        plateau: protocol.Plateau | None = None,
    ) -> None:
        """Train these members, as one pack where they stand at the same place."""
        self.plateau = plateau
        with Scribe(control) as scribe:
            self._train(tasks, scribe)

    def _train(self, tasks: Sequence[MemberTask], control: Scribe) -> None:
        tasks = [task for task in tasks if not self._adopt(task, control)]
        restored = [self._restore(task, control) for task in tasks]
        places = sorted({(r.epoch, r.step) for r in restored}, reverse=True)
        for epoch, step in places:
            chosen = [i for i, r in enumerate(restored) if (r.epoch, r.step) == (epoch, step)]
            pack = Pack(
                self,
                control,
                [Member(tasks[i], restored[i].record) for i in chosen],
                self.program.spread(stack([restored[i].state for i in chosen])),
                _Place(epoch, step),
            )
            if not pack.run():
                return

    def _adopt(self, task: MemberTask, control: Control) -> bool:
        """Whether an earlier attempt has finished the member, which is told of then."""
        done = resuming.adopted(
            task,
            self.config.epochs,
            self.identity,
            lambda text: control.send(protocol.Phase(text=text)),
        )
        if done is not None:
            control.send(done)
        return done is not None

    def _restore(self, task: MemberTask, control: Control) -> Restored:
        """The newest checkpoint that verifies, else a new member."""
        found, resumed = resuming.newest(task, self.program, self.config.epochs, self.identity)
        control.send(resumed)
        if found is not None:
            return found
        if self.config.training.pretrain_prior and not self.program.priors_fitted:
            self.program.fit_priors(lambda text: control.send(protocol.Phase(text=text)))
        return Restored(self.program.new_member(task.seed), Record(seed=task.seed), 0, 0)

    def steps_to_run(self, left: int) -> int:
        return max(1, min(left, self._steps_per_call))

    def ran(self, steps: int, seconds: float) -> None:
        """Adapt the length of a call, so that a stop never waits long; no result depends on it."""
        wanted = steps * SECONDS_PER_CALL / max(seconds, 1e-6)
        self._steps_per_call = max(1, int(min(wanted, 4 * self._steps_per_call)))


class Pack:
    """Members in step with each other, from one place to the end."""

    def __init__(
        self,
        trainer: Trainer,
        control: Scribe,
        members: list[Member],
        lanes: Lanes,
        place: _Place,
    ) -> None:
        self.trainer, self.control = trainer, control
        self.program, self.config = trainer.program, trainer.config
        self.members, self.lanes, self.place = members, lanes, place
        self.seconds = 0.0  # of the epoch under way
        self.batch_frames = np.zeros(0)  # [S] frames in each batch of it

    def run(self) -> bool:
        """Train to the end. Returns False if a stop ended it before."""
        self._end_on_plateau()
        while self.place.epoch < self.config.epochs and self._active():
            if not self._train_epoch():
                written = self._checkpoint_all()
                self.control.settle()
                self.control.send(protocol.Stopped(checkpoints=written))
                return False
            if self._active():
                self._finish_epoch()
                self._shrink()
        active = self._active()
        if active:
            (best,) = self.program.fetch(self.lanes, "best")
            for place, member in active:
                self._finish_member(lane(best, place), member)
        return True

    def _active(self) -> list[tuple[int, Member]]:
        dropped = self.control.dropped()
        for member in self.members:
            member.ended = member.ended or member.task.job_id in dropped
        return [(place, m) for place, m in enumerate(self.members) if not m.ended]

    def _shrink(self) -> None:
        """Go on without the lanes of members that have ended, where that saves time."""
        active, now = self._active(), len(self.members)
        if not 0 < len(active) < now:
            return
        ready = self.program.is_compiled(len(active), self.place.epoch)
        steps = (self.config.epochs - self.place.epoch) * self.program.steps_per_epoch
        if not self.trainer.costs.smaller_pays(now, len(active), steps=steps, is_compiled=ready):
            return
        self.control.send(
            protocol.Phase(text=f"the pack goes on with {len(active)} of its {now} members")
        )
        kept = np.array([place for place, _ in active])
        self.lanes = self.program.take(self.lanes, kept)
        self.members = [member for _, member in active]

    # -- one epoch -----------------------------------------------------------------------------

    def _train_epoch(self) -> bool:
        """The steps left of this epoch. Returns False if a stop came first."""
        epoch, total = self.place.epoch, self.program.steps_per_epoch
        batches = batches_of_epoch(
            self.program.dataset.sizes, self.program.batch, self.config.data.seed, epoch
        )
        self.batch_frames = batches.frames
        while self.place.step < total and self._active():
            if self.control.stop_wanted():
                return False
            self._finish_early()
            if not self._active():
                break
            if self.place.step == 0 and self.program.starts_stage(epoch):
                self.lanes = self.program.begin_stage(self.lanes, epoch)
            if not self.program.is_compiled(len(self.members), epoch):
                self._compile(batches)
            self._run_some(batches)
        return True

    def _compile(self, batches: Batches) -> None:
        self.control.send(protocol.Phase(text="compiling"))
        began = time.monotonic()
        self.lanes = self.program.compile(self.lanes, self.place.epoch, batches)
        jax.block_until_ready(self.lanes.alive)
        seconds = time.monotonic() - began
        self.trainer.costs.compiled(seconds)
        self.control.send(protocol.Phase(text=f"compiled in {seconds:.1f} s"))
        faults.point("trainer.compiled")

    def _run_some(self, batches: Batches) -> None:
        start = self.place.step
        stop = start + self.trainer.steps_to_run(self.program.steps_per_epoch - start)
        began = time.monotonic()
        self.lanes = self.program.run_steps(self.lanes, self.place.epoch, batches, start, stop)
        jax.block_until_ready(self.lanes.alive)
        seconds = time.monotonic() - began
        self.seconds += seconds
        self.trainer.ran(stop - start, seconds)
        self.trainer.costs.stepped(len(self.members), stop - start, seconds)
        self.place.step = stop
        self.control.tell(
            protocol.StepDone(
                epoch=self.place.epoch + 1, step=stop, steps=self.program.steps_per_epoch
            )
        )
        faults.point("trainer.step")

    def _finish_epoch(self) -> None:
        """Validate, keep the best, write checkpoints, report the epoch."""
        began = time.monotonic()
        validation = self.program.validate(self.program.evaluated(self.lanes))
        self.place = _Place(self.place.epoch + 1, 0)
        reports = self._score(validation, began)
        improved = np.zeros(len(self.members), bool)
        for place, member in self._active():
            improved[place] = member.record.best_epoch == self.place.epoch
        self.lanes = self.program.keep_best(self.lanes, improved)
        self.seconds = 0.0
        faults.point("trainer.validated")
        written: dict[str, protocol.Written] = {}
        if self.place.epoch % self.config.training.checkpoint_freq == 0 or self._at_end():
            written = self._checkpoint_all()
        self.control.do(partial(self._tell, reports, written))
        plateau = self.trainer.plateau
        if plateau is not None and plateau.stops:
            self._end_early(finishing.on_plateau(reports, self._active()))

    def _tell(
        self, reports: list[protocol.MemberEpoch], written: dict[str, protocol.Written]
    ) -> None:
        """Report the epoch, after its checkpoints: ``written`` is filled by then."""
        self.control.tell(
            protocol.EpochDone(
                members=tuple(
                    with_checkpoint(report, written.get(str(report.job_id))) for report in reports
                )
            )
        )
        faults.point("trainer.told")

    def _at_end(self) -> bool:
        return self.place.epoch == self.config.epochs

    def _score(self, validation: Errors, began: float) -> list[protocol.MemberEpoch]:
        """Losses of the active members; a member without finite ones is reported and ends."""
        dataset = self.program.dataset
        frames = self.batch_frames
        batch_losses, alive = self.program.fetch(self.lanes, "batch_losses", "alive")
        batch_losses = np.asarray(batch_losses, np.float64)
        epoch = self.place.epoch
        rate = self.program.learning_rate(epoch - 1, self.program.steps_per_epoch - 1)
        seconds = self.seconds + time.monotonic() - began
        reports = []
        for place, member in self._active():
            scores = statistics.scores(
                validation.force[place],
                validation.energy[place],
                dataset.validated.components,
                dataset.validated.beads,
                self.config.training.gammas,
            )
            train = float(np.sum(batch_losses[place] * frames) / frames.sum())
            if not (alive[place] and math.isfinite(train) and math.isfinite(scores.loss)):
                self._diverged(member, epoch)
                continue
            if scores.loss < member.record.best_loss:
                member.record.best_loss, member.record.best_epoch = scores.loss, epoch
                member.record.best_force = validation.force[place]
                member.record.best_energy = validation.energy[place]
                member.record.best_species = validation.species[place]
            row = (train, *numbers(scores), rate, seconds)
            # a new list: the scribe may still be writing the one before
            member.record.history = [*member.record.history, row]
            plateau = None
            if not (member.task.exempt or self._at_end()):
                plateau = finishing.plateau_of(member.record, self.trainer.plateau)
            blocks = self._block_losses(validation, place)
            reports.append(
                report_of(
                    *(member.task.job_id, member.record, epoch, train, scores, rate, seconds),
                    blocks,
                    plateau,
                )
            )
        return reports

    def _block_losses(self, validation: Errors, place: int) -> NDArray[Any]:
        """[K] the loss of one member by blocks of validation frames."""
        validated = self.program.dataset.validated
        losses = statistics.frame_losses(
            validation.force[place],
            validation.energy[place],
            validated.components,
            self.config.training.gammas,
        )
        return statistics.block_losses(losses, validated.block)

    def _diverged(self, member: Member, epoch: int) -> None:
        member.ended = True
        self.control.send(
            protocol.MemberFailed(
                job_id=member.task.job_id,
                kind="diverged",
                message=f"seed {member.task.seed}: the loss was not finite in epoch {epoch}; lower "
                "the learning rate (optimizer.<name>.lr) or set optimizer.grad_clip",
            )
        )

    # -- files ---------------------------------------------------------------------------------

    def _checkpoint_all(self, only: Container[int] | None = None) -> dict[str, protocol.Written]:
        """Have a checkpoint written of every active member at the present place.

        ``only``: places of members; of all if None. Returns what will be written, by job id, once
        the scribe has come to it.
        """
        epoch, step = self.place.epoch, self.place.step
        written: dict[str, protocol.Written] = {}
        if epoch == 0 and step == 0:
            return written
        self.control.settle()
        # A copy: the arrays of the lanes are given away to the next step.
        host = Lanes(*self.program.fetch(self.lanes, *Lanes._fields))
        states = [
            (member, lane(host, place), copy.copy(member.record))
            for place, member in self._active()
            if only is None or place in only
        ]
        self.control.do(partial(self._write_all, states, epoch, step, written))
        return written

    def _write_all(
        self,
        states: list[tuple[Member, Lanes, Record]],
        epoch: int,
        step: int,
        written: dict[str, protocol.Written],
    ) -> None:
        for member, state, record in states:
            path = Path(member.task.folder) / checkpoint_name(epoch, step)
            digest = checkpoint.write_checkpoint(
                path, state, record, epoch, step, self.trainer.identity
            )
            written[str(member.task.job_id)] = protocol.Written(
                path=str(path), digest=digest, epoch=epoch, step=step
            )
            self._prune(member, path)
        faults.point("trainer.checkpointed")

    def _prune(self, member: Member, newest: Path) -> None:
        """Only files that this attempt wrote are ever removed."""
        member.written = [path for path in member.written or [] if path != newest] + [newest]
        for old in member.written[:-KEPT_CHECKPOINTS]:
            with suppress(OSError):  # one file too many is no reason to stop
                old.unlink(missing_ok=True)
        member.written = member.written[-KEPT_CHECKPOINTS:]

    # -- ends ----------------------------------------------------------------------------------

    def _finish_early(self) -> None:
        """End the members that a rule has stopped, as soon as they have anything to give."""
        told = self.control.finishing()
        ends = {}
        for place, member in self._active():
            rule = finishing.ordered(member.task, self.place.epoch, told)
            if rule is not None and member.record.best_epoch:
                ends[place] = Stopped(rule, "")
        self._end_early(ends)

    def _end_on_plateau(self) -> None:
        """End members whose last attempt came to an epoch's checkpoint and no further."""
        plateau = self.trainer.plateau
        if plateau is None or not plateau.stops or self.place.step or self._at_end():
            return
        self._end_early(finishing.left_on_plateau(self._active(), plateau))

    def _end_early(self, ends: Mapping[int, Stopped]) -> None:
        """End these lanes here; the others are not touched. They could go on from a checkpoint."""
        if not ends:
            return
        written = self._checkpoint_all(ends)
        for place in ends:
            faults.point("trainer.early", self.members[place].task.folder)
        (best,) = self.program.fetch(self.lanes, "best")
        for place, stopped in ends.items():
            self.members[place].ended = True
            self._finish_member(lane(best, place), self.members[place], stopped, written)

    def _finish_member(
        self,
        best: Any,
        member: Member,
        stopped: Stopped | None = None,
        written: Mapping[str, protocol.Written] = MappingProxyType({}),
    ) -> None:
        result = finishing.result_of(
            self.program, self.trainer.identity, best, member.record, stopped
        )
        work = partial(finishing.write_and_tell, self.control, member.task, result, written)
        self.control.do(work)
