"""What the parts of a training take here, and what follows for a worker whose time is limited.

Measured by the worker from what its trainer says. Two questions are answered: how long before the
time limit a stop must begin, and how much time a member needs to reach its first checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

SAFETY = 2.0  # a stop may take that many times what was measured: disks are slow now and then
FIXED = 5.0  # seconds for the rows, the trainer's end, and a clock that differs from SLURM's
FIRST = 20.0  # seconds from a claim to the first step, where nothing was measured: JAX, compiling
LONGEST_STEP = 10.0  # seconds of a call of the trainer, where nothing was measured
_QUARTER, _HALF = 0.25, 0.5  # shares of an allocation that a stop may cost
_STAYS = 0.5  # share of the time to the first step that a trainer which has compiled needs


class Timing:
    """Times of one ensemble's members in this worker, in seconds; None where not measured."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.cold: float | None = None  # from a claim to the first step, by a new trainer …
        self.warm: float | None = None  # … and by one that trained such a member before
        self.step: float | None = None  # the longest wait between two steps of an epoch
        self.epoch: float | None = None  # the longest epoch
        self.end: float | None = None  # from the last step of an epoch to its checkpoint, at most
        self.stop: float | None = None  # from the wish to stop to the last checkpoint
        self.usual: float | None = None  # an epoch, as other workers have measured it
        self._claimed: float | None = None  # until the first step
        self._is_warm = False
        self._sign: float | None = None  # the last step of the epoch under way
        self._epoch_began: float | None = None
        self._stop_asked: float | None = None

    # What happens

    def claimed(self, *, warm: bool, usual: float | None = None) -> None:
        """Members were claimed.

        Args:
            warm: For a trainer that is there and trained such members before.
            usual: Seconds of their epochs as the queue knows them, or None.
        """
        self._claimed, self._is_warm = self._monotonic(), warm
        self.usual = usual
        self._sign = self._epoch_began = None

    def probed(self, seconds: float) -> None:
        """The trainer measured for so long, as it does once only."""
        if self._claimed is not None:
            self._claimed += seconds

    def stepped(self) -> str | None:
        """The trainer did steps. In words how long the first one took, if it was the first."""
        now, told = self._monotonic(), None
        if self._claimed is not None:
            took = now - self._claimed
            kind = "the trainer of the claim before" if self._is_warm else "a new trainer"
            told = f"the first steps are done {took:.1f} s after the claim, by {kind}"
            if self._is_warm:
                self.warm = _longer(self.warm, took)
            else:
                self.cold = _longer(self.cold, took)
            self._claimed = None
        elif self._sign is not None:
            self.step = _longer(self.step, now - self._sign)
        if self._epoch_began is None:
            self._epoch_began = now
        self._sign = now
        return told

    def finished_epoch(self) -> None:
        """The trainer validated, wrote checkpoints if they were due, and told of an epoch."""
        now = self._monotonic()
        if self._sign is not None:
            self.end = _longer(self.end, now - self._sign)
        if self._epoch_began is not None:
            self.epoch = _longer(self.epoch, now - self._epoch_began)
        self._epoch_began, self._sign = now, None

    def asked_to_stop(self) -> None:
        self._stop_asked = self._monotonic()

    def stopped(self) -> None:
        """The answer to it has come: all is saved."""
        if self._stop_asked is not None:
            self.stop = _longer(self.stop, self._monotonic() - self._stop_asked)

    # What follows

    def stopping(self) -> float | None:
        """Seconds of a stop at the worst moment, or None if nothing is known.

        A wish that comes as an epoch ends waits for a call, the validation with its checkpoint,
        and a checkpoint of its own, which takes no longer.
        """
        known = [] if self.stop is None else [self.stop]
        if self.end is not None:
            known.append((self.step or 0.0) + 2 * self.end)
        if not known and self.usual is not None:
            known.append(3 * self.usual)  # none of the three takes longer than an epoch
        return max(known, default=None)

    def margin(self, most: float, allocation: float) -> float:
        """How long before the time limit to stop.

        Args:
            most: The option that bounds it.
            allocation: Seconds that were left when this worker began.
        """
        stop = self.stopping()
        # What others have recorded is a bound, and a rough one.
        measured = self.stop is not None or self.end is not None
        share = (_HALF if measured else _QUARTER) * allocation
        return min(most, share, math.inf if stop is None else SAFETY * stop + FIXED)

    def need(self, usual: float | None, *, warm: bool) -> float:
        """Seconds from a claim to a saved first checkpoint.

        Args:
            usual: Seconds of the member's epoch as the queue knows it, or None.
            warm: The trainer that is there trained such a member before.
        """
        # A call lasts half a second, or one step; a step is no longer than an epoch.
        guess = LONGEST_STEP if usual is None else min(usual, LONGEST_STEP)
        step = guess if self.step is None else self.step
        stop = self.stopping()
        return self._first_step(warm) + step + (guess if stop is None else stop) + FIXED

    def _first_step(self, warm: bool) -> float:
        if warm and self.warm is not None:
            return self.warm
        cold = FIRST if self.cold is None else self.cold
        return _STAYS * cold if warm else cold


def too_late(left: float, need: float, *, first: bool) -> bool:
    """Whether a member that needs ``need`` seconds should not be begun with ``left`` seconds.

    A worker tries its first claim as long as that is not hopeless. Perhaps the guess is wrong;
    and if it isn't, only tries can show that the time limit is too short for the member: workers
    that leave without trying would be started again for ever.
    """
    return left < (min(need, FIRST) if first else need)


def _longer(before: float | None, now: float) -> float:
    return now if before is None else max(before, now)
