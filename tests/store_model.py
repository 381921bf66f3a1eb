"""A queue in plain Python that behaves as the store should: the store is held against it.

No SQL, no transactions and none of the store's code: lists, and what the design says. Failures are
tried again without a pause here (``store_tools.AT_ONCE``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from store_tools import LEASE

from ensq.jobs import TERMINAL, Checkpoint, Claim, Outcome, State

EPOCHS = 3  # of each member
BUDGET = 3  # failures, strikes or stalls
_CAUSES = {
    Outcome.FAILURE: "failures",
    Outcome.CRASH: "crashes",
    Outcome.LOST: "losses",
    Outcome.INTERRUPTED: "interruptions",
}
COUNTS = (*_CAUSES.values(), "strikes", "stalls")


class Refused(Exception):
    """The store answers with an EnsqError and writes nothing."""


def place(checkpoint: Checkpoint | None) -> tuple[int, int]:
    return (checkpoint.epoch, checkpoint.step) if checkpoint else (0, 0)


@dataclass
class Try:
    owner: str
    start: tuple[int, int]
    outcome: Outcome | None = None


@dataclass
class Member:
    """A job; its id is its place among all jobs, from 1."""

    id: int
    ensemble: str
    seed: int
    state: State = State.QUEUED
    owner: str | None = None
    wish: str | None = None
    pack: int | None = None  # number of the claim of several that it was last part of
    losses: list[tuple[float, int]] = field(default_factory=list)  # and by which attempt
    checkpoint: Checkpoint | None = None
    previous: Checkpoint | None = None
    tries: list[Try] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    result: str | None = None
    signs: int = 0  # of life of the owner

    @property
    def epoch(self) -> int:
        return len(self.losses)

    @property
    def attempt(self) -> int:
        return len(self.tries)

    @property
    def bound(self) -> bool:
        """Whether it goes on with those of its pack only."""
        return self.pack is not None and self.checkpoint is not None

    def leave(self, state: State, outcome: Outcome) -> None:
        self.state, self.owner, self.wish = state, None, None
        self.tries[-1].outcome = outcome

    def move(self, checkpoint: Checkpoint) -> None:
        if self.checkpoint is None or self.checkpoint.path != checkpoint.path:
            self.previous = self.checkpoint
        self.checkpoint = checkpoint

    def end(self, outcome: Outcome, retry: bool = True, asked: bool = False) -> None:
        """The attempt is over and the job isn't."""
        counts = self.counts
        progressed = place(self.checkpoint) > self.tries[-1].start
        if progressed:
            counts["strikes"] = counts["stalls"] = 0
        if outcome in _CAUSES:
            counts[_CAUSES[outcome]] += 1
        failed = outcome is Outcome.FAILURE and (not retry or counts["failures"] >= BUDGET)
        if outcome in (Outcome.CRASH, Outcome.LOST):
            counts["strikes"] += 1
            failed = counts["strikes"] >= BUDGET
        if outcome is Outcome.INTERRUPTED:
            counts["stalls"] += not (asked or progressed)
            failed = counts["stalls"] >= BUDGET
        if counts["strikes"] >= BUDGET - 1:
            self.pack = None
        state = State.HELD if self.wish else State.QUEUED
        self.leave(State.FAILED if failed else state, outcome)


@dataclass
class Queue:
    """All jobs, and who looked at which of them when."""

    time: Callable[[], float]
    members: list[Member] = field(default_factory=list)
    ensembles: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)  # workers that ended, or whose process is gone
    drained: set[str] = field(default_factory=set)
    looks: dict[str, dict[tuple[int, int], tuple[int, float]]] = field(default_factory=dict)
    packs: int = 0

    def of(self, ensemble: str, seeds: Iterable[int] | None = None) -> list[Member]:
        mine = [member for member in self.members if member.ensemble == ensemble]
        return mine if seeds is None else [member for member in mine if member.seed in set(seeds)]

    def held(self, claim: Claim) -> Member | None:
        member = self.members[claim.job_id - 1]
        same = (member.attempt, member.owner) == (claim.attempt, claim.owner)
        return member if member.state is State.RUNNING and same else None

    # People

    def add(self, ensemble: str, seeds: Sequence[int]) -> tuple[int, ...]:
        if ensemble not in self.ensembles:
            self.ensembles.append(ensemble)
        there = {member.seed for member in self.of(ensemble)}
        new = tuple(seed for seed in seeds if seed not in there)
        for seed in new:
            self.members.append(Member(len(self.members) + 1, ensemble, seed))
        return new

    def cancel(self, ensemble: str, seeds: Iterable[int] | None) -> list[int]:
        changed = []
        for member in self.of(ensemble, seeds):
            if member.state in (State.DONE, State.CANCELLED):
                continue
            if member.state is State.RUNNING:
                member.leave(State.CANCELLED, Outcome.CANCELLED)
            member.state = State.CANCELLED
            changed.append(member.seed)
        return changed

    def retry(self, ensemble: str, seeds: Iterable[int] | None) -> list[int]:
        changed = []
        for member in self.of(ensemble, seeds):
            if member.state in (State.FAILED, State.CANCELLED):
                member.state = State.QUEUED
                member.counts.clear()
                changed.append(member.seed)
        return changed

    def hold(self, ensemble: str, seeds: Iterable[int] | None) -> list[int]:
        changed = []
        for member in self.of(ensemble, seeds):
            if member.state is State.QUEUED:
                member.state = State.HELD
            elif member.state is State.RUNNING and not member.wish:
                member.wish = "hold"
            else:
                continue
            changed.append(member.seed)
        return changed

    def unhold(self, ensemble: str, seeds: Iterable[int] | None) -> list[int]:
        changed = []
        for member in self.of(ensemble, seeds):
            if member.state is State.HELD:
                member.state = State.QUEUED
            elif member.wish:
                member.wish = None
            else:
                continue
            changed.append(member.seed)
        return changed

    # Workers

    def reap(self, observer: str) -> list[int]:
        """Jobs taken back from those who died, or gave this observer no sign for a lease."""
        before, now = self.looks.get(observer, {}), self.time()
        looks, lost = {}, []
        for member in self.members:
            if member.state is not State.RUNNING:
                continue
            signs, since = before.get((member.id, member.attempt), (member.signs, now))
            looks[member.id, member.attempt] = sight = (
                (signs, since) if signs == member.signs else (member.signs, now)
            )
            if member.owner in self.gone or now - sight[1] > LEASE:
                lost.append(member.id)
                member.end(Outcome.LOST)
        self.looks[observer] = looks
        return lost

    def claim(self, worker: str, limit: int, whole: bool = False) -> list[int]:
        queued = [member for member in self.members if member.state is State.QUEUED]
        order = {name: number for number, name in enumerate(self.ensembles)}
        queued.sort(key=lambda m: (order[m.ensemble], [-n for n in place(m.checkpoint)], m.id))
        if not queued:
            return []
        head = queued[0]
        there = self.there(head)
        if head.bound:
            pack = [member for member in there if member.pack == head.pack]
            pack = pack if whole else pack[:limit]
        else:
            pack = [member for member in there if not member.bound][:limit]
        return self.hand_out(worker, pack, pack if len(pack) > 1 else [])

    def claim_beside(self, worker: str, claim: Claim, limit: int) -> list[int]:
        """Take members that stand where that claim does, but no more than a fair share."""
        head = self.held(claim)
        if head is None:
            return []
        free = [m for m in self.there(head) if not m.bound and m.counts["strikes"] < BUDGET - 1]
        alone = {
            member.owner
            for member in self.of(head.ensemble)
            if member.state is State.RUNNING and member.pack is None
        }
        share = math.ceil((len(free) + 1) / max(1, len(alone)))
        pack = free[: min(limit, share - 1)]
        return self.hand_out(worker, pack, [head, *pack] if pack else [])

    def there(self, head: Member) -> list[Member]:
        """The queued members at a member's place."""
        return [
            member
            for member in self.of(head.ensemble)
            if member.state is State.QUEUED and place(member.checkpoint) == place(head.checkpoint)
        ]

    def hand_out(self, worker: str, taken: list[Member], packed: list[Member]) -> list[int]:
        self.packs += 1
        for member in taken:
            member.state, member.owner, member.wish = State.RUNNING, worker, None
            member.pack = None
            member.signs += 1
            del member.losses[place(member.checkpoint)[0] :]
            member.tries.append(Try(worker, place(member.checkpoint)))
        for member in packed:
            member.pack = self.packs
        return [member.id for member in taken]

    def renew(self, claims: Iterable[Claim]) -> list[Claim]:
        still = []
        for claim in claims:
            member = self.held(claim)
            if member is not None:
                member.signs += 1
                still.append(claim)
        return still

    def record(self, claim: Claim, epoch: int, loss: float, checkpoint: Checkpoint | None) -> bool:
        member = self.held(claim)
        if member is None:
            return False
        if epoch <= member.epoch:
            if member.losses[epoch - 1] != (loss, claim.attempt):
                raise Refused
            return True
        if epoch > member.epoch + 1:
            raise Refused
        member.losses.append((loss, claim.attempt))
        member.signs += 1
        if checkpoint:
            member.move(checkpoint)
        return True

    def save(self, claim: Claim, checkpoint: Checkpoint) -> bool:
        member = self.held(claim)
        if member is None:
            return False
        if checkpoint.epoch != member.epoch or place(checkpoint) < place(member.checkpoint):
            raise Refused
        member.move(checkpoint)
        member.signs += 1
        return True

    def stand_at(
        self, claim: Claim, checkpoint: Checkpoint | None, losses: Sequence[float]
    ) -> bool:
        member = self.held(claim)
        if member is None:
            return False
        if checkpoint == member.checkpoint:
            return True
        epoch = place(checkpoint)[0]
        filled = member.losses + [(loss, claim.attempt) for loss in losses[member.epoch : epoch]]
        if len(filled) < epoch:
            raise Refused
        if place(checkpoint) > place(member.checkpoint):
            member.previous = member.checkpoint
            member.counts["strikes"] = member.counts["stalls"] = 0
        elif place(checkpoint) <= place(member.previous):
            member.previous = None
        member.losses, member.checkpoint = filled[:epoch], checkpoint
        member.tries[-1].start = place(checkpoint)
        member.signs += 1
        return True

    def finish(self, claim: Claim, digest: str, losses: Sequence[float] = ()) -> bool:
        member = self.members[claim.job_id - 1]
        mine = Try(claim.owner, member.tries[-1].start, Outcome.DONE)
        if (member.state, member.result) == (State.DONE, digest) and member.tries[-1] == mine:
            return True
        if self.held(claim) is None:
            return False
        filled = member.losses + [(loss, claim.attempt) for loss in losses[member.epoch :]]
        if len(filled) != EPOCHS:
            raise Refused
        member.losses, member.result = filled, digest
        member.leave(State.DONE, Outcome.DONE)
        return True

    def end(
        self, claim: Claim, outcome: Outcome, *, retry: bool = True, asked: bool = False
    ) -> bool:
        member = self.held(claim)
        if member is None:
            ended = self.members[claim.job_id - 1].tries[claim.attempt - 1]
            return (ended.owner, ended.outcome) == (claim.owner, outcome)
        member.end(outcome, retry, asked)
        return True

    @property
    def over(self) -> bool:
        return all(member.state in TERMINAL for member in self.members)
