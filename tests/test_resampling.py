"""Blocks of correlated frames, and intervals by the block bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ensq import resampling
from ensq.calibration.figures import Resampling
from ensq.resampling import SHORTEST, block_sums, blocks_of, bootstrap, draws_of, interval


def test_a_block_is_a_part_of_one_trajectory_without_gaps() -> None:
    rng = np.random.default_rng(0)
    replica = rng.integers(0, 3, 300)
    protein = rng.integers(0, 2, 300)
    index = rng.permutation(300)
    block = blocks_of(300, index=index, replica=replica, protein=protein)
    assert set(block) == set(range(block.max() + 1))
    for number in range(block.max() + 1):
        inside = block == number
        assert len(set(zip(replica[inside], protein[inside], strict=True))) == 1
        of_it = (replica == replica[inside][0]) & (protein == protein[inside][0])
        between = of_it & (index >= index[inside].min()) & (index <= index[inside].max())
        assert (between == inside).all()


def test_blocks_are_so_many_and_not_too_short() -> None:
    assert blocks_of(640).max() == 31
    assert np.bincount(blocks_of(40)).min() == SHORTEST
    assert blocks_of(4).max() == 0


def test_many_trajectories_are_joined_whole() -> None:
    replica = np.repeat(np.arange(100), 7)
    block = blocks_of(700, replica=replica)
    assert block.max() + 1 == resampling.BLOCKS
    for number in range(100):
        assert len(set(block[replica == number])) == 1
    # trajectories of a single frame are independent: nothing has to be joined
    assert blocks_of(20, replica=np.arange(20)).max() == 19


def test_no_frames_have_no_blocks() -> None:
    with pytest.raises(ValueError, match="no frames"):
        blocks_of(0)


def test_sums_of_blocks_give_the_same_draws_as_frames_gathered() -> None:
    rng = np.random.default_rng(1)
    values, block = rng.normal(size=60), blocks_of(60)
    members = [np.flatnonzero(block == number) for number in range(block.max() + 1)]
    slow = bootstrap(lambda frames: values[frames].mean(), members, draws=50, seed=3)
    weights = draws_of(len(members), 50, 3)
    sums, counts = block_sums(values, block), block_sums(np.ones(60), block)
    np.testing.assert_allclose((weights @ sums) / (weights @ counts), slow)
    drawn = Resampling(block, 50, 3)
    every = np.arange(60)
    fast = drawn.ratio(drawn.sums(values, every), drawn.sums(None, every))
    np.testing.assert_allclose(fast.draws, slow)
    assert fast.value == pytest.approx(values.mean())


def test_a_seed_gives_the_same_draws() -> None:
    assert (draws_of(8, 20, 5) == draws_of(8, 20, 5)).all()
    assert (draws_of(8, 20, 5) != draws_of(8, 20, 6)).any()


def test_the_percentiles_lie_farther_out_with_few_blocks() -> None:
    values = np.random.default_rng(2).normal(size=200_000)
    for blocks in (5, 30):
        low, high = interval(values, blocks=blocks)
        wide = np.sqrt(blocks / (blocks - 1)) * stats.t.ppf(0.975, blocks - 1)
        assert high == pytest.approx(wide, rel=0.03)
        assert low == pytest.approx(-wide, rel=0.03)
    assert interval(values)[1] == pytest.approx(1.96, rel=0.02)
    with pytest.raises(ValueError, match="fewer than 2"):
        interval(values, blocks=1)


def _correlated(rng: np.random.Generator, frames: int, memory: float) -> np.ndarray:
    """A series with autocorrelation memory^lag, mean 0 and variance 1."""
    from scipy.signal import lfilter

    noise = rng.normal(size=frames + 200) * np.sqrt(1 - memory**2)
    return np.asarray(lfilter([1.0], [1.0, -memory], noise))[200:]


def _coverage(by_frame: bool, series: int = 400) -> float:
    """How often the interval of a mean over two correlated trajectories holds the true 0."""
    rng, held = np.random.default_rng(7), 0
    replica = np.repeat([0, 1], 320)
    block = np.arange(640) if by_frame else blocks_of(640, replica=replica)
    drawn = Resampling(block, 400)
    every = np.arange(640)
    for _ in range(series):
        values = np.concatenate([_correlated(rng, 320, 0.8) for _ in range(2)])
        found = drawn.ratio(drawn.sums(values, every), drawn.sums(None, every)).figure()
        assert found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    return held / series


def test_intervals_by_blocks_hold_the_truth_and_those_by_frames_do_not() -> None:
    assert 0.90 <= _coverage(by_frame=False) <= 0.99
    assert _coverage(by_frame=True) < 0.75, "frames of a trajectory are no independent samples"


def test_a_group_in_one_block_alone_has_no_interval() -> None:
    drawn = Resampling(blocks_of(100), 200)
    values = drawn.sums(np.ones(5), np.arange(5))  # frames of the first block
    found = drawn.ratio(values, drawn.sums(None, np.arange(5))).figure()
    assert (found.value, found.low, found.high) == (1.0, None, None)
