"""The rules that compare a member with the others of its ensemble.

Members are compared at the same epoch, the newest that enough of them have reached. A rule holds
for a member if it holds at that epoch and at those before it, ``patience`` in a row.

``sigma``: the loss is above the best's by more than ``sigma`` standard deviations (ddof 0) of all
losses at that epoch. The spread of n numbers is never below twice their standard deviation
(Popoviciu), so for sigma <= 2 this holds for the worst member nearly whatever the losses are.

``paired``: the loss is above (1 + margin) times the best's, tested over blocks of validation
frames: Student's one-sided test of d_k = L_k(member) - (1 + margin) L_k(best). Its standard error
is widened where blocks that follow each other are correlated (``ensq.alike``). The probability of
an error is spent over all ordered pairs of members (the best is chosen by its losses) and over the
looks: patience epochs are one look, and the i-th may spend the share 1/(i (i + 1)) of it. A run of
so many epochs contains exactly one that is the first of a look: no run is missed by counting so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ensq import alike
from ensq.early.student import upper_tail

MIN_BLOCKS = 8  # fewer tell too little of how much their mean varies

Losses = Mapping[int, float]  # by seed, of the members that have one
Window = Mapping[int, Losses]  # by epoch
Blocks = Callable[[int, int], Sequence[float] | None]  # of an epoch and a seed


class Rule(Protocol):
    """The settings that rules need, as ``config.early.EarlyStoppingConfig`` has them."""

    @property
    def rule(self) -> str: ...
    @property
    def sigma(self) -> float: ...
    @property
    def confidence(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def min_epochs(self) -> int: ...
    @property
    def patience(self) -> int: ...
    @property
    def min_members(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class SigmaAt:
    """What the rule ``sigma`` finds at one epoch."""

    holds: bool
    best_seed: int
    difference: float  # to the best's loss
    threshold: float  # of the difference


@dataclass(frozen=True, kw_only=True)
class PairedAt:
    """What the rule ``paired`` finds at one epoch."""

    holds: bool
    best_seed: int
    difference: float  # to the best's loss
    above_margin: float  # mean of d_k
    standard_error: float  # of it, over blocks, widened where they are alike
    blocks: int
    correlation: float | None  # of d_k in blocks that follow each other; None: d_k are all the same
    t: float | None  # None for infinity: all blocks agree
    p: float
    level: float  # below which p must be


def newest_common_epoch(own: int, others: Sequence[int], min_members: int) -> int:
    """The newest epoch that a member and ``min_members`` in all have reached; 0 for none.

    ``others`` are the epochs of all other members.
    """
    ranked = sorted((min(own, other) for other in others), reverse=True)
    need = min_members - 1
    if need <= 0:
        return own
    return ranked[need - 1] if len(ranked) >= need else 0


def level_of(epoch: int, members: int, rule: Rule) -> float:
    """The probability of an error that one comparison at this epoch may spend."""
    look = 1 + (epoch - rule.min_epochs) // rule.patience
    pairs = members * (members - 1)
    return (1.0 - rule.confidence) / (pairs * look * (look + 1))


def sigma_at(losses: Losses, seed: int, sigma: float) -> SigmaAt:
    """The rule ``sigma`` at one epoch."""
    best = _best(losses)
    difference = losses[seed] - losses[best]
    threshold = sigma * _spread(list(losses.values()))[1]
    holds = difference > threshold
    return SigmaAt(holds=holds, best_seed=best, difference=difference, threshold=threshold)


def paired_at(
    losses: Losses,
    seed: int,
    blocks: Callable[[int], Sequence[float] | None],
    margin: float,
    level: float,
) -> PairedAt | None:
    """The rule ``paired`` at one epoch; None where the member isn't above the margin at all, or
    where there are no losses by blocks to compare.

    Args:
        losses: By seed, of all members that have reached the epoch.
        seed: Whose loss is judged.
        blocks: Losses by blocks of a seed, whose mean is its loss.
        margin: Relative to the best's loss.
        level: Below which the probability must be.
    """
    best = _best(losses)
    if best == seed or not losses[seed] > (1.0 + margin) * losses[best]:
        return None
    mine, theirs = blocks(seed), blocks(best)
    if mine is None or theirs is None or len(mine) != len(theirs) or len(mine) < MIN_BLOCKS:
        return None
    above = [m - (1.0 + margin) * b for m, b in zip(mine, theirs, strict=True)]
    mean, deviation = _spread(above)
    count = len(above)
    if not mean > 0:
        return None
    error = deviation / math.sqrt(count - 1)  # of the mean, by the estimate with ddof 1
    correlation = alike.correlation([above])
    error *= 1.0 if correlation is None else alike.widening(correlation)
    # all blocks agree up to rounding: any test would be surer than its numbers
    t = mean / error if error > 1e-14 * mean else math.inf
    p = upper_tail(t, count - 1)
    return PairedAt(
        holds=p < level,
        best_seed=best,
        difference=losses[seed] - losses[best],
        above_margin=mean,
        standard_error=error,
        blocks=count,
        correlation=correlation,
        t=t if math.isfinite(t) else None,
        p=p,
        level=level,
    )


def judge(
    rule: Rule, seed: int, window: Window, blocks: Blocks, *, members: int
) -> dict[str, Any] | None:
    """The evidence that a rule holds for a member, to be kept as JSON; None if it doesn't hold.

    Args:
        rule: Which, and its settings.
        seed: Of the member that is judged.
        window: Losses of all members that have them, at ``patience`` epochs in a row.
        blocks: Losses by blocks of an epoch and a seed, or None; for the rule ``paired`` only.
        members: Of the whole ensemble.
    """
    epochs = sorted(window)
    if not epochs or len(epochs) != rule.patience or epochs[0] < rule.min_epochs:
        return None
    found: list[tuple[int, SigmaAt | PairedAt]] = []
    for epoch in reversed(epochs):
        losses = window[epoch]
        if seed not in losses or len(losses) < max(2, rule.min_members):
            return None
        at = _at(rule, seed, epoch, losses, blocks, members)
        if at is None or not at.holds:
            return None
        found.append((epoch, at))
    return _evidence(rule, seed, window, found, members)


def _at(
    rule: Rule, seed: int, epoch: int, losses: Losses, blocks: Blocks, members: int
) -> SigmaAt | PairedAt | None:
    if rule.rule == "sigma":
        return sigma_at(losses, seed, rule.sigma)

    def of(seed: int) -> Sequence[float] | None:
        return blocks(epoch, seed)

    return paired_at(losses, seed, of, rule.margin, level_of(epoch, members, rule))


def _evidence(
    rule: Rule,
    seed: int,
    window: Window,
    found: list[tuple[int, SigmaAt | PairedAt]],
    members: int,
) -> dict[str, Any]:
    """All numbers of the newest epoch, and the decisive ones of those before."""
    epoch, newest = found[0]
    losses = window[epoch]
    mean, std = _spread(list(losses.values()))
    settings: dict[str, float] = {"min_epochs": rule.min_epochs, "patience": rule.patience}
    settings |= {"min_members": rule.min_members}
    if rule.rule == "sigma":
        settings |= {"sigma": rule.sigma}
    else:
        settings |= {"confidence": rule.confidence, "margin": rule.margin}
    return {
        "rule": rule.rule,
        "seed": seed,
        "epoch": epoch,
        "epochs_in_a_row": len(found),
        "members": members,
        "losses": {str(seed): losses[seed] for seed in sorted(losses)},
        "mean": mean,
        "std": std,
        "ddof": 0,
        "loss": losses[seed],
        "best_loss": losses[newest.best_seed],
        **_plain(newest),
        "settings": settings,
        "before": [{"epoch": epoch, **_plain(at)} for epoch, at in found[1:]],
    }


def _plain(at: SigmaAt | PairedAt) -> dict[str, Any]:
    return {name: value for name, value in vars(at).items() if name != "holds"}


def _best(losses: Losses) -> int:
    """The seed of the lowest loss; of two that are equal the lower one."""
    return min(losses, key=lambda seed: (losses[seed], seed))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, ddof 0."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
