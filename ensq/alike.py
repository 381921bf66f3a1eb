"""Whether blocks of frames are long enough: those that follow each other must not be alike.

Blocks that are shorter than frames remember are correlated, and errors over blocks are too small
then. Nothing but the standard library: the rules of early stopping ask, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FEWEST = 7  # pairs of blocks that follow each other; fewer tell nothing
ALIKE = 0.3  # intervals of 95 % hold the truth in less than 90 % of cases above
_ONE_IN_TWENTY = 1.645  # standard deviations of a normal distribution, on one side


def correlation(
    series: Sequence[Sequence[float]], follows: Sequence[bool] | None = None
) -> float | None:
    """The correlation of blocks that follow each other, of all series together.

    Args:
        series: One or more, each of a value per block, in the blocks' order.
        follows: Whether each block but the last is followed by one of the same trajectory; None:
            not known, and all pairs are taken. Those of different trajectories are as good as
            independent, so that the number is lower then, as it is for the error of the mean.

    Returns None for too few pairs, or where all values of a series are the same.
    """
    pairs = products = squares = 0.0
    for values in series:
        mean = math.fsum(values) / len(values)
        away = [value - mean for value in values]
        is_pair = [True] * (len(away) - 1) if follows is None else follows
        there = [away[k] * away[k + 1] for k, chosen in enumerate(is_pair) if chosen]
        if len(there) < FEWEST:
            return None
        products += math.fsum(there) / len(there)
        squares += math.fsum(one * one for one in away) / len(away)
        pairs += len(there)
    return products / squares if pairs and squares > 0 else None


def limit(pairs: int) -> float:
    """The correlation above which blocks are said to be alike: ``ALIKE``, and for few blocks what
    independent ones exceed by chance in one of twenty cases."""
    return max(ALIKE, _ONE_IN_TWENTY / math.sqrt(pairs) - 1.0 / pairs)


def widening(correlated: float) -> float:
    """By how much errors over blocks are too small, if blocks remember as an AR(1) process does:
    sqrt((1 + r) / (1 - r)); 1 for a correlation below 0."""
    r = min(max(correlated, 0.0), 0.95)
    return math.sqrt((1.0 + r) / (1.0 - r))


def note(correlated: float | None, pairs: int) -> str | None:
    """That blocks are alike, in words; None if they aren't, or it isn't known."""
    if correlated is None or pairs < FEWEST or correlated <= limit(pairs):
        return None
    return (
        f"blocks that follow each other are alike (correlation {correlated:.2f}): the trajectories "
        f"are short for their memory, and true intervals are about {widening(correlated):.1f} "
        "times as wide"
    )
