"""Early stopping as a worker does it: its members against all of the ensemble, after each epoch.

No worker waits for another: each judges the members that it trains, by what is recorded. The rules
themselves are in ``ensq.early``; that never too many are stopped is the store's to see to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from ensq import early, faults
from ensq.config.early import OFF, EarlyStoppingConfig, loads
from ensq.errors import ConfigError, DatabaseError
from ensq.jobs import Decision, Ensemble, Job, Verdict
from ensq.store import EarlyMember, EarlyView, Store
from ensq.worker import protocol as say
from ensq.worker.members import Member
from ensq.worker.recording import Recorder

_QUIET = 5.0  # seconds between looks at the settings while early stopping is off


class Referee:
    """Decides about the members of one claim. What fails here is tried again after an epoch."""

    def __init__(
        self,
        *,
        store: Store,
        ensemble: Ensemble,
        recorder: Recorder,
        log: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ensemble = ensemble
        self._recorder = recorder
        self._log = log
        self._monotonic = monotonic
        self._quiet_until = 0.0
        self._known: tuple[str | None, EarlyStoppingConfig] = (None, OFF)
        self._said = ""  # what went wrong last
        self._unasked: set[int] = set()  # jobs whose earlier decisions could not be read

    # Before training

    def plateau(self) -> say.Plateau | None:
        """The rule that the trainer itself follows, as it is in force when training begins."""
        section = self._section(self._ensemble.early_stopping)
        if section.mode == "off" or section.plateau is None:
            return None
        rule = section.plateau
        return say.Plateau(
            patience=rule.patience,
            min_delta=rule.min_delta,
            min_epochs=rule.min_epochs,
            stops=section.stops,
        )

    def orders(self, jobs: Sequence[Job]) -> dict[int, Decision]:
        """Decisions of earlier attempts that were not carried out.

        None where the database is away: then they are found again after the next epoch.
        """
        try:
            found = self._store.orders([job.id for job in jobs])
        except DatabaseError:
            self._unasked |= {job.id for job in jobs}
            return {}
        for job in jobs:
            if (decision := found.get(job.id)) is not None:
                words = early.in_words(decision.verdict, decision.evidence)
                self._log(f"seed {job.seed}: decided by attempt {decision.attempt}: {words}")
        return found

    # After an epoch

    def after_epoch(self, event: say.EpochDone, send: Callable[[say.Command], None]) -> None:
        """Judge the members of an epoch that was recorded; ``send`` tells the trainer."""
        self._note_plateaus(event)
        if self._recorder.ledger.has_writes():
            return  # the database is away
        try:
            self._obey(send)
            self._compare(send)
        except DatabaseError as error:
            self._complain(f"early stopping: {error}")

    def _obey(self, send: Callable[[say.Command], None]) -> None:
        """Carry out decisions that could not be read when training began."""
        if self._unasked:
            for job, decision in self._store.orders(self._unasked).items():
                send(say.Finish(job_ids=(job,), rule=decision.rule))
            self._unasked.clear()

    def _note_plateaus(self, event: say.EpochDone) -> None:
        """Record those that would stop; a member that does stop brings its decision along."""
        plateau = self.plateau()
        if plateau is None or plateau.stops:
            return
        for record in event.members:
            member = self._recorder.held.get(record.job_id)
            if member is not None and record.plateau is not None and not member.over:
                self._decide(member, "plateau", record.plateau, OFF, 0, lambda command: None)

    def _compare(self, send: Callable[[say.Command], None]) -> None:
        if self._monotonic() < self._quiet_until:
            return
        view = self._store.early_view(self._ensemble.id)
        rule = self._section(view.settings)
        if rule.mode == "off":
            self._quiet_until = self._monotonic() + _QUIET
            return
        judged: dict[int, list[EarlyMember]] = {}
        there = [place for place in view.members if not place.gone]
        for place in there:
            if self._is_judged(place):
                others = [other.epoch for other in there if other is not place]
                newest = early.newest_common_epoch(place.epoch, others, rule.min_members)
                if newest - rule.patience + 1 >= rule.min_epochs:
                    judged.setdefault(newest, []).append(place)
        for newest, places in judged.items():
            self._judge(rule, view, newest, places, send)

    def _is_judged(self, place: EarlyMember) -> bool:
        member = self._recorder.held.get(place.job_id)
        return (
            member is not None
            and not member.over
            and not (place.exempt or place.stopped)
            and place.epoch < place.epochs
        )

    def _judge(
        self,
        rule: EarlyStoppingConfig,
        view: EarlyView,
        newest: int,
        places: Sequence[EarlyMember],
        send: Callable[[say.Command], None],
    ) -> None:
        """Judge members at one epoch, the worst of them first."""
        first = newest - rule.patience + 1
        there = {
            place.job_id: place.seed
            for place in view.members
            if place.epoch >= first and not place.gone
        }
        window: dict[int, dict[int, float]] = {e: {} for e in range(first, newest + 1)}
        for (job, epoch), loss in self._store.losses_between(there, first, newest).items():
            if loss is not None:
                window[epoch][there[job]] = loss
        places = [place for place in places if _may_hold(rule, place.seed, window)]
        blocks = self._blocks(rule, there, places, window)
        left = sum(place.left for place in view.members)
        places.sort(key=lambda place: window[newest][place.seed], reverse=True)
        for place in places:
            evidence = early.judge(
                rule,
                place.seed,
                window,
                lambda epoch, seed: blocks.get((seed, epoch)),
                members=len(view.members),
            )
            member = self._recorder.held.get(place.job_id)
            if evidence is not None and member is not None:
                text = json.dumps(evidence, sort_keys=True)
                self._decide(member, rule.rule, text, rule, left, send)

    def _blocks(
        self,
        rule: EarlyStoppingConfig,
        there: dict[int, int],
        places: Sequence[EarlyMember],
        window: early.Window,
    ) -> dict[tuple[int, int], tuple[float, ...]]:
        """Losses by blocks, by seed and epoch, of these members and of the best of each epoch."""
        if rule.rule != "paired" or not places:
            return {}
        best = {min(losses, key=lambda seed: (losses[seed], seed)) for losses in window.values()}
        wanted = best | {place.seed for place in places}
        ids = [job for job, seed in there.items() if seed in wanted]
        found = self._store.blocks_between(ids, min(window), max(window))
        return {(there[job], epoch): blocks for (job, epoch), blocks in found.items()}

    def _decide(
        self,
        member: Member,
        name: str,
        evidence: str,
        rule: EarlyStoppingConfig,
        left: int,
        send: Callable[[say.Command], None],
    ) -> None:
        """Record that a rule holds, once; have the trainer end the member if that is so."""
        key = f"{name} {rule.mode}"
        key += f" {left} {rule.min_members}" if rule.stops else ""  # one that was kept may go now
        if key in member.told:
            return
        member.told.add(key)

        def write() -> None:
            if member.job.id not in self._recorder.held:
                return
            with self._recorder.fenced(member):
                verdict = self._store.decide(
                    member.claim,
                    rule=name,
                    evidence=evidence,
                    stop=rule.stops,
                    min_members=rule.min_members,
                )
                faults.point("worker.decided")
                self._log(f"{member.name}: {early.in_words(verdict, evidence)}")
                if verdict is Verdict.STOPPED and rule.stops:
                    send(say.Finish(job_ids=(member.job.id,), rule=name))

        self._recorder.ledger.add(write)

    # Settings

    def _section(self, text: str | None) -> EarlyStoppingConfig:
        if text != self._known[0]:
            try:
                self._known = text, loads(text)
            except ConfigError as error:
                self._complain(str(error))
                self._known = text, OFF
        return self._known[1]

    def _complain(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._log(text)


def _may_hold(rule: EarlyStoppingConfig, seed: int, window: early.Window) -> bool:
    """Whether losses alone don't say that the rule can't hold: blocks are read of few only."""
    margin = rule.margin if rule.rule == "paired" else 0.0
    return all(
        seed in losses and losses[seed] > (1.0 + margin) * min(losses.values())
        for losses in window.values()
    )
