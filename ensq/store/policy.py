"""What becomes of a job when an attempt at it ends: counts, budgets and back-off. Pure functions.

Four things are counted apart. A *failure* (exception, NaN) may happen three times. A *strike* is a
crash of the trainer or the loss of a worker: three in a row without a new checkpoint set the job
aside, since it may be what kills them. An *interruption* never uses up either budget, but three in
a row that nobody asked for, without a new checkpoint, can't lead anywhere. A host that could not
work (its disk is full, no trainer starts) counts nothing against the job.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ensq.jobs import Job, Outcome, State

TIME_LIMIT = "the time limit is near"  # how the reason of such an interruption begins
_GROWTH = 6.0  # each pause is that much longer than the one before


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Budgets, and pauses in seconds."""

    failures: int = 3
    strikes: int = 3
    stalls: int = 3
    pause: float = 10.0  # after the first failure or crash
    longest_pause: float = 300.0

    def pause_after(self, times: int) -> float:
        """How long a job waits after its ``times``-th failure or strike; 0 after none."""
        if times < 1:
            return 0.0
        return min(self.longest_pause, self.pause * _GROWTH ** (times - 1))

    def is_last_try(self, job: Job) -> bool:
        """Whether one more strike sets the job aside. Then it is tried without those that it was
        packed with, since it may be another one that ended their trainers."""
        return job.strikes >= max(1, self.strikes - 1)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended that did not finish its job."""

    outcome: Outcome  # FAILURE, CRASH, LOST, INTERRUPTED or BLOCKED
    reason: str
    retry: bool = True  # False: it would come again, as a configuration error or a divergence
    asked: bool = False  # an interruption that a person asked for: drain, hold, Ctrl-C
    log_tail: str | None = None
    limits_before: int = 0  # attempts from the same place that a time limit ended as well

    @property
    def by_time_limit(self) -> bool:
        return self.outcome is Outcome.INTERRUPTED and self.reason.startswith(TIME_LIMIT)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The job afterwards: ``job`` has the new counts, state and error."""

    job: Job
    pause: float  # seconds before it may be claimed again


def judge(policy: Policy, job: Job, ending: Ending, *, progressed: bool) -> Verdict:
    """What the end of an attempt means for its job.

    Args:
        policy: The budgets.
        job: The running job, with the counts before.
        ending: How the attempt ended.
        progressed: Whether the attempt left a newer checkpoint than it began from.
    """
    counted = _count(job, ending, progressed)
    if policy.is_last_try(counted):
        counted = replace(counted, pack=None)
    error = _why_not_again(policy, counted, ending)
    if error is not None:
        return Verdict(job=replace(counted, state=State.FAILED, error=error), pause=0.0)
    state = State.HELD if job.wish == "hold" else State.QUEUED
    times = {
        Outcome.FAILURE: counted.failures,
        Outcome.CRASH: counted.strikes,
        Outcome.LOST: counted.strikes - 1,  # at once the first time: nodes die without our help
        Outcome.BLOCKED: 2,  # disks are not emptied within seconds
    }.get(ending.outcome, 0)
    return Verdict(job=replace(counted, state=state, error=None), pause=policy.pause_after(times))


def _count(job: Job, ending: Ending, progressed: bool) -> Job:
    if progressed:
        job = replace(job, strikes=0, stalls=0)
    match ending.outcome:
        case Outcome.FAILURE:
            return replace(job, failures=job.failures + 1)
        case Outcome.CRASH:
            return replace(job, crashes=job.crashes + 1, strikes=job.strikes + 1)
        case Outcome.LOST:
            return replace(job, losses=job.losses + 1, strikes=job.strikes + 1)
        case Outcome.INTERRUPTED:
            stalled = not (progressed or ending.asked)
            return replace(job, interruptions=job.interruptions + 1, stalls=job.stalls + stalled)
        case Outcome.BLOCKED:
            return job
    raise ValueError(f"an attempt does not go back or fail by being {ending.outcome}")


def _why_not_again(policy: Policy, job: Job, ending: Ending) -> str | None:
    reason = " ".join(ending.reason.split())
    if ending.outcome is Outcome.FAILURE:
        if not ending.retry:
            return reason
        if job.failures >= policy.failures:
            return f"failed {job.failures} times, the last time: {reason}"
    if ending.outcome in (Outcome.CRASH, Outcome.LOST) and job.strikes >= policy.strikes:
        return (
            f"set aside: it ended {job.strikes} trainers or workers in a row without a new "
            f"checkpoint, the last time: {reason}"
        )
    if ending.outcome is Outcome.INTERRUPTED and job.stalls >= policy.stalls:
        if ending.by_time_limit and ending.limits_before >= job.stalls - 1:
            return (
                f"the time limit is shorter than a checkpoint interval: it ended {job.stalls} "
                f"attempts in a row before a new checkpoint, the last time: {reason}; start "
                "workers with a longer time limit, then `ensq retry`"
            )
        return (
            f"no progress: {job.stalls} attempts in a row were interrupted before a new "
            f"checkpoint, the last time: {reason}; is the time limit too short?"
        )
    return None
