"""The part of the store for early stopping: see ``ensq.store.early``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ensq.jobs import Claim, Decision, Verdict
from ensq.store import early, fences
from ensq.store.probing import Probing
from ensq.store.values import EarlyView


class Deciding(Probing):
    """What rules of early stopping look at, and what they decided. Each method is a transaction."""

    def early_view(self, ensemble_id: int) -> EarlyView:
        """The section in force, and where each member stands."""
        return self._read(lambda c: early.view(c, ensemble_id))

    def early_settings(self, ensemble_id: int) -> str | None:
        """The section early_stopping in force, as JSON; None where none was enqueued."""
        return self._read(lambda c: early.settings(c, ensemble_id))

    def losses_between(
        self, job_ids: Collection[int], first: int, last: int
    ) -> dict[tuple[int, int], float | None]:
        """Validation losses of epochs ``first`` to ``last``, by job and epoch.

        None where a loss was not a number.
        """
        return self._read(lambda c: early.losses(c, job_ids, first, last))

    def blocks_between(
        self, job_ids: Collection[int], first: int, last: int
    ) -> dict[tuple[int, int], tuple[float, ...]]:
        """The same losses by blocks of frames, where they were recorded."""
        return self._read(lambda c: early.blocks(c, job_ids, first, last))

    def orders(self, job_ids: Collection[int]) -> dict[int, Decision]:
        """Decisions to stop that still stand, by job."""
        return self._read(lambda c: early.orders(c, job_ids))

    def decide(
        self, claim: Claim, *, rule: str, evidence: str, stop: bool, min_members: int
    ) -> Verdict:
        """Record that a rule holds for a member: it is to be stopped, or with ``stop=False`` would.

        A rule takes members only while more than ``min_members`` are left that were not taken
        before, counted in the same transaction; then the member is ``KEPT``. One that a person
        resumed is, too, and nothing is recorded. Twice is the same as once. Raises LeaseLost.
        """
        verdict = self._write(
            lambda c, now: early.decide(
                c, now, claim, rule=rule, evidence=evidence, stop=stop, min_members=min_members
            )
        )
        if verdict is None:
            raise fences.lost(claim)
        return verdict

    def resume(self, ensemble: str, seeds: Sequence[int] | None = None) -> list[int]:
        """Queue members that were stopped early, to be trained to their last epoch.

        They go on from where they stopped, and no rule stops them again. Returns the seeds that
        changed. Raises UsageError for an unknown name or seed.
        """
        return self._write(lambda c, now: early.resume(c, now, ensemble, seeds))
