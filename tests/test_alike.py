"""Blocks that follow each other: whether they are alike, and what that does to intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import pearsonr

from ensq import alike, choosing
from ensq.comparison import Comparison, compare
from ensq.resampling import blocks_of, follows

FRAMES = 640  # 32 blocks of 20


def remembering(rng: np.random.Generator, shape: tuple[int, ...], frames: float) -> Any:
    """Normal series [..., T] with the autocorrelation exp(-lag / frames)."""
    keep = math.exp(-1 / frames)
    noise = rng.normal(size=(*shape[:-1], shape[-1] + 1000)) * math.sqrt(1 - keep**2)
    return np.asarray(lfilter([1.0], [1.0, -keep], noise))[..., 1000:]


def test_correlation_is_that_of_pairs_of_one_trajectory() -> None:
    rng = np.random.default_rng(0)
    values = remembering(rng, (400,), 3.0)
    assert alike.correlation([values.tolist()]) == pytest.approx(
        pearsonr(values[1:], values[:-1]).statistic, abs=0.01
    )
    block, replica = blocks_of(640, replica=np.arange(640) // 160), np.arange(640) // 160
    chosen = follows(block, replica=replica)
    assert [k for k, same in enumerate(chosen) if not same] == [7, 15, 23]
    steps = np.repeat([0.0, 1.0, 1.0, 0.0], 8) + 0.01 * rng.normal(size=32)
    within, all_pairs = (
        alike.correlation([steps.tolist()], chosen),
        alike.correlation([steps.tolist()]),
    )
    assert within == pytest.approx(1.0, abs=0.01)
    assert all_pairs == pytest.approx((31 - 2 * 2) / 31, abs=0.02)


def test_few_pairs_and_equal_values_have_none() -> None:
    assert alike.correlation([[1.0, 2.0, 4.0, 3.0]]) is None
    assert alike.correlation([[1.0] * 9]) is None and alike.correlation([]) is None
    assert (
        follows(blocks_of(700, replica=np.arange(100).repeat(7)), replica=np.arange(100).repeat(7))
        == [False] * 31
    )
    assert alike.note(None, 31) is None and alike.note(0.9, 6) is None
    assert alike.note(0.29, 31) is None
    assert "true intervals are about 1.7 times as wide" in (alike.note(0.5, 31) or "")


def test_widening_is_that_of_an_ar1_process() -> None:
    """Bartlett: the variance of a mean of K is 1 + 2 sum (1 - k/K) r^k times as large."""
    lags = np.arange(1, 5000)
    for r in (0.1, 0.5, 0.8):
        wanted = 1 + 2 * np.sum((1 - lags / 5000) * r**lags)
        assert alike.widening(r) == pytest.approx(math.sqrt(wanted), rel=1e-3)
    assert alike.widening(-0.4) == 1.0 and math.isfinite(alike.widening(1.0))


def compared(memory: float, runs: int, *, shuffled: bool = False) -> list[Comparison]:
    """Two equal members, whose errors are of frames that remember ``memory`` frames."""
    rng, block, found = np.random.default_rng(1), blocks_of(FRAMES), []
    for _ in range(runs):
        errors = 50 + remembering(rng, (2, FRAMES), memory)
        if shuffled:  # whole blocks
            order = np.argsort(rng.permutation(32)[block], kind="stable")
            errors = errors[:, order]
        best = int(errors.mean(axis=1).argmin())
        found.append(compare(errors[:, None], np.ones((1, FRAMES)), block, best, draws=300))
    return found


def held(found: list[Comparison]) -> float:
    """How often the interval of the difference holds the true one, 0."""
    worst = [one.members[1 - one.best] for one in found]
    return float(np.mean([one.interval is not None and one.interval[0] <= 0 for one in worst]))


def noted(found: list[Comparison]) -> float:
    return float(np.mean([alike.note(one.correlation, 31) is not None for one in found]))


def test_intervals_hold_the_truth_where_nothing_is_noted_and_too_rarely_where_it_is() -> None:
    """A tenth of a block, and two blocks. Intervals of 95 %; 300 runs, so +- 4 %."""
    short, long = compared(2.0, 300), compared(40.0, 300)
    assert held(short) > 0.91 and noted(short) < 0.1
    assert held(long) < 0.75 and noted(long) > 0.9


def test_blocks_in_any_order_are_not_alike() -> None:
    """The control: it is their order that tells."""
    assert noted(compared(40.0, 100, shuffled=True)) < 0.15


def told(**blocks: Any) -> dict[str, Any]:
    number = {"number": 32, "fewest_frames": 20, "most_frames": 20, "trajectories": 1}
    members = [{"interval": [0.0, 1.0]}]
    return {"best_seed": 1, "level": 0.95, "indistinguishable_seeds": [1], "members": members,
            "blocks": number | blocks}  # fmt: skip


def test_table_says_so_and_metadata_of_older_versions_are_read() -> None:
    assert len(choosing.statements(told())) == 1
    assert len(choosing.statements(told(pairs=31, correlation=0.2))) == 1
    said = choosing.statements(told(pairs=31, correlation=0.64))
    assert said[1].startswith("blocks that follow each other are alike (correlation 0.64)")
