"""Which members of an ensemble may be the best: paired differences of their losses, and the set
that the best one is in; pure functions.

All of it is by blocks of correlated frames (``resampling``). A loss is a sum of ratios, each a sum
over frames by a sum over frames (squared force errors by force components, squared energy errors
by frames), and it stays one in every draw of blocks, whatever their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq import alike, resampling

Array = NDArray[Any]

LEVEL = 0.95
ROUNDING = 1e-12  # of the largest loss: smaller differences and errors are none


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One member beside the best: the one with the lowest loss."""

    loss_error: float  # standard error of the loss alone, by blocks
    difference: float  # of its loss and the best's, over the same frames
    difference_error: float  # standard error of that, by blocks
    interval: tuple[float, float] | None  # of the difference; None: too few blocks for one
    probability_best: float  # share of the draws in which its loss is the lowest
    p_value: float  # of the model confidence set
    indistinguishable: bool  # from the best: it is in the set


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All members, in their order."""

    members: tuple[Compared, ...]
    best: int  # place of the lowest loss
    corrected_loss: float  # of the best, without what choosing the lowest takes off
    level: float
    blocks: int
    draws: int
    seed: int
    correlation: float | None  # of differences in blocks that follow each other; see ``alike``
    loss_correlation: float | None  # the same of losses


def compare(
    errors: Array,
    weights: Array,
    block: Array,
    best: int,
    *,
    follows: Sequence[bool] | None = None,
    level: float = LEVEL,
    draws: int = resampling.DRAWS,
    seed: int = 0,
) -> Comparison:
    """Paired differences to the best member, and which members can't be told apart from it.

    Args:
        errors: [n, P, T] per member, part of the loss and frame; a member's loss is the sum over
            parts of ``errors`` summed over frames by ``weights`` summed over frames.
        weights: [P, T], positive.
        block: [T] the block of each frame.
        best: Place of the member with the lowest loss.
        follows: [K-1] whether a block is followed by one of the same trajectory; None: each is.
        level: Of intervals and of the set.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Raises ValueError for fewer than two members or two blocks.
    """
    errors, weights = resampling.block_sums(errors, block), resampling.block_sums(weights, block)
    n, blocks = len(errors), errors.shape[-1]
    if n < 2 or blocks < 2:
        raise ValueError(f"{n} members and {blocks} blocks: at least two of both are compared")
    counts = resampling.draws_of(blocks, draws, seed)
    whole = _drawn(errors, weights, np.ones((1, blocks)))
    drawn = _drawn(errors, weights, counts)
    p_values = _p_values(whole, drawn, best)
    probability = _probability_best(drawn.losses)
    members = []
    for place in range(n):
        difference = float(whole.losses[0, place] - whole.losses[0, best])
        error = float(whole.errors(place, best)[0])
        width = float(
            np.quantile(np.abs(drawn.deviations(whole, place, best)), level, method="higher")
        )
        members.append(
            Compared(
                loss_error=float(whole.errors(place)[0]),
                difference=difference,
                difference_error=error,
                interval=(difference - width * error, difference + width * error)
                if np.isfinite(width)
                else None,
                probability_best=float(probability[place]),
                p_value=float(p_values[place]),
                indistinguishable=bool(p_values[place] >= 1 - level),
            )
        )
    return Comparison(
        members=tuple(members),
        best=best,
        corrected_loss=_corrected_loss(errors, weights, counts, whole, drawn),
        level=level,
        blocks=blocks,
        draws=draws,
        seed=seed,
        correlation=alike.correlation(_differences(whole, best).tolist(), follows),
        loss_correlation=alike.correlation(whole.residuals[:, 0].tolist(), follows),
    )


def _differences(whole: _Drawn, best: int) -> Array:
    """[n-1,K] by blocks, less their means."""
    residuals = whole.residuals[:, 0]
    return np.delete(residuals - residuals[best], best, axis=0)


@dataclass(frozen=True)
class _Drawn:
    """Losses of n members over B draws of K blocks, and what their errors are made of."""

    losses: Array  # [B, n]
    residuals: Array  # [n, B, K] the squares' sum over blocks is the loss' variance

    def errors(self, one: int, other: int | None = None) -> Array:
        """[B] standard errors of a loss, or of the difference of two, in each draw.

        A ratio's by its linear part, with K - 1 in place of K (Cochran, Sampling Techniques,
        3rd ed., eq. 6.13).
        """
        residual = self.residuals[one]
        if other is not None:
            residual = residual - self.residuals[other]
        return np.asarray(np.sqrt(np.square(residual).sum(axis=-1)))

    def deviations(self, whole: _Drawn, one: int, other: int) -> Array:
        """[B] how far the difference of two in a draw is from the one over all blocks, in standard
        errors of the draw: the bootstrap-t (Efron and Tibshirani, An Introduction to the
        Bootstrap, section 12.5).

        A draw of one block alone has no error, so that of few blocks many are infinite: nothing
        follows from them then.
        """
        difference = self.losses[:, one] - self.losses[:, other]
        expected = whole.losses[0, one] - whole.losses[0, other]
        return _studentised(difference - expected, self.errors(one, other), whole.losses)


def _drawn(errors: Array, weights: Array, counts: Array) -> _Drawn:
    """Losses in draws [B, K] of blocks, of errors [n, P, K] by weights [P, K]."""
    blocks = counts.shape[1]
    total = np.einsum("bk,pk->bp", counts, weights)
    ratio = np.einsum("bk,npk->bnp", counts, errors) / total[:, None]
    scale = np.sqrt(counts / (blocks * (blocks - 1)))
    residuals = np.zeros((len(errors), *counts.shape))
    for member, residual in enumerate(residuals):
        for part, weight in enumerate(weights):
            beside = errors[member, part] - ratio[:, member, part, None] * weight
            residual += beside * (blocks / total[:, part, None])
        residual *= scale
    return _Drawn(ratio.sum(axis=-1), residuals)


def _studentised(difference: Array, error: Array, losses: Array) -> Array:
    """Differences by their errors; 0 by 0 is 0, anything else by 0 infinite."""
    rounding = ROUNDING * float(np.abs(losses).max())
    some, certain = np.abs(difference) > rounding, error <= rounding
    by = np.where(certain, 1.0, error)
    return np.where(certain, np.where(some, np.copysign(np.inf, difference), 0.0), difference / by)


def _p_values(whole: _Drawn, drawn: _Drawn, best: int) -> Array:
    """[n] of the model confidence set: Hansen, Lunde and Nason, Econometrica 79, 453 (2011).

    Its range statistic, max |t_ij| over pairs of the set (their section 3.1.2), needs no sum over
    the set, so that each pair is drawn once: members are put back in the opposite order in which
    they are removed. A member's p-value is the largest of the tests up to its removal.
    """
    order, largest = _removed(whole, best)
    inside, drawn_largest = [best], np.zeros(len(drawn.losses))
    tests = []
    for place, statistic in zip(reversed(order), reversed(largest), strict=True):
        for other in inside:
            np.maximum(
                drawn_largest, np.abs(drawn.deviations(whole, place, other)), out=drawn_largest
            )
        inside.append(place)
        # The whole set counts as a draw too: none of so many draws is not a probability of 0.
        tests.append((1 + np.sum(drawn_largest >= statistic)) / (1 + len(drawn_largest)))
    p_values = np.ones(len(whole.residuals))
    p_values[order] = np.maximum.accumulate(tests[::-1])
    return p_values


def _removed(whole: _Drawn, best: int) -> tuple[list[int], list[float]]:
    """Members in the order in which the set loses them, and the statistic of the set before.

    The one goes that is worse than some other by most errors; of equals that with the larger loss,
    then the later one. The best is left.
    """
    losses = whole.losses[0]
    n = len(losses)
    t = np.zeros((n, n))
    for one in range(n):
        for other in range(one):
            difference, error = losses[one] - losses[other], whole.errors(one, other)[0]
            t[one, other] = _studentised(difference, error, losses)
            t[other, one] = -t[one, other]
    order, largest = [], []
    left = list(range(n))
    while len(left) > 1:
        worst = {place: max(t[place, other] for other in left) for place in left}
        out = max(
            (place for place in left if place != best), key=lambda i: (worst[i], losses[i], i)
        )
        order.append(out)
        largest.append(float(worst[out]))
        left.remove(out)
    return order, largest


def _probability_best(losses: Array) -> Array:
    """[n] share of the draws in which each has the lowest loss [B, n]; equals share a draw."""
    lowest = losses <= losses.min(axis=1, keepdims=True) * (1 + ROUNDING)
    return np.asarray((lowest / lowest.sum(axis=1, keepdims=True)).mean(axis=0))


def _corrected_loss(
    errors: Array, weights: Array, counts: Array, whole: _Drawn, drawn: _Drawn
) -> float:
    """The loss that the best of a draw has over the blocks that were not drawn.

    Those know nothing of the choice. Their mean over draws, taken against the mean of all members
    over the same blocks, which no choice has touched, so that easy and hard blocks cancel.
    """
    out = (counts == 0).any(axis=1)
    elsewhere = (counts[out] == 0).astype(np.float64)
    total = np.einsum("bk,pk->bp", elsewhere, weights)
    losses = (np.einsum("bk,npk->bnp", elsewhere, errors) / total[:, None]).sum(axis=-1)
    chosen = np.take_along_axis(losses, drawn.losses[out].argmin(axis=1)[:, None], axis=1)[:, 0]
    return float(whole.losses.mean() + np.mean(chosen - losses.mean(axis=1)))
