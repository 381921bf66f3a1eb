"""Paired differences, the set that holds the best, and what choosing takes off a loss: against
plain loops, against SciPy, and by simulation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats

from ensq import resampling
from ensq.comparison import Comparison, compare

DRAWS = 150


class Frames(NamedTuple):
    errors: Any  # [n, P, T]
    weights: Any  # [P, T]
    block: Any  # [T]


def frames_of(n: int = 4, blocks: int = 9, seed: int = 3) -> Frames:
    """Blocks of different sizes, molecules of different sizes, two parts of the loss."""
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(blocks), rng.integers(2, 9, blocks))
    components = rng.choice([30.0, 90.0, 240.0], len(block))
    weights = np.stack([components, np.ones(len(block))])
    hard = np.exp(rng.normal(size=blocks))[block]
    each = np.exp(0.2 * rng.normal(size=(n, 2, len(block))))
    each[1:] *= np.linspace(1.0, 1.8, n - 1)[:, None, None]
    return Frames(each * hard * weights, weights, block)


# -- the same in plain loops -----------------------------------------------------------------------


def loss(frames: Frames, member: int, chosen: Any) -> float:
    """Over these frames, some more than once: ratios of sums."""
    parts = zip(frames.errors[member], frames.weights, strict=True)
    return sum(float(e[chosen].sum() / w[chosen].sum()) for e, w in parts)


def error(frames: Frames, one: int, other: int | None, drawn: Any) -> float:
    """Of a loss or a difference over drawn blocks, by the linear part of its ratios."""
    chosen = np.concatenate([np.flatnonzero(frames.block == b) for b in drawn])
    count = len(drawn)
    total = 0.0
    for b in drawn:
        here = np.flatnonzero(frames.block == b)
        residual = 0.0
        for sign, member in ((1, one), (-1, other)):
            if member is None:
                continue
            for e, w in zip(frames.errors[member], frames.weights, strict=True):
                ratio = e[chosen].sum() / w[chosen].sum()
                mean = w[chosen].sum() / count
                residual += sign * (e[here].sum() - ratio * w[here].sum()) / mean
        total += residual**2
    return float(np.sqrt(total / (count * (count - 1))))


class Plain:
    """Everything from the definitions, one draw and one pair at a time."""

    def __init__(self, frames: Frames, seed: int = 0) -> None:
        self.frames, self.n = frames, len(frames.errors)
        blocks = int(frames.block.max()) + 1
        self.all = list(range(blocks))
        counts = resampling.draws_of(blocks, DRAWS, seed)
        self.drawn = [[b for b in self.all for _ in range(row[b])] for row in counts]
        self.whole = [loss(frames, m, np.arange(len(frames.block))) for m in range(self.n)]
        self.best = int(np.argmin(self.whole))
        self.losses = [[loss(frames, m, self.places(d)) for m in range(self.n)] for d in self.drawn]

    def places(self, blocks: list[int]) -> Any:
        return np.concatenate([np.flatnonzero(self.frames.block == b) for b in blocks])

    def t(self, one: int, other: int) -> list[float]:
        """Studentised deviations of the draws."""
        found = []
        for drawn, losses in zip(self.drawn, self.losses, strict=True):
            from_all = losses[one] - losses[other] - (self.whole[one] - self.whole[other])
            found.append(from_all / error(self.frames, one, other, drawn))
        return found

    def p_values(self) -> list[float]:
        """Hansen's algorithm as it stands: test, remove the worst, again; p-values never fall."""
        pairs = [(i, j) for i in range(self.n) for j in range(self.n) if i != j]
        scores = {pair: np.abs(self.t(*pair)) for pair in pairs}
        observed = {
            (i, j): (self.whole[i] - self.whole[j]) / error(self.frames, i, j, self.all)
            for i, j in pairs
        }
        left, p_values, largest = set(range(self.n)), [1.0] * self.n, 0.0
        while len(left) > 1:
            inside = [pair for pair in pairs if set(pair) <= left]
            statistic = max(abs(observed[pair]) for pair in inside)
            drawn = np.max([scores[pair] for pair in inside], axis=0)
            largest = max(largest, (1 + sum(drawn >= statistic)) / (1 + DRAWS))
            out = max(left, key=lambda i: max(observed[i, j] for j in left if j != i))
            p_values[out] = largest
            left.remove(out)
        return p_values

    def corrected(self) -> float:
        gains = []
        for drawn, losses in zip(self.drawn, self.losses, strict=True):
            others = [b for b in self.all if b not in drawn]
            if others:
                elsewhere = [loss(self.frames, m, self.places(others)) for m in range(self.n)]
                gains.append(elsewhere[int(np.argmin(losses))] - np.mean(elsewhere))
        return float(np.mean(self.whole) + np.mean(gains))


@pytest.mark.parametrize("seed", [3, 4])
def test_all_figures_are_those_of_the_definitions_in_plain_loops(seed: int) -> None:
    frames = frames_of(seed=seed)
    plain = Plain(frames, seed)
    found = compare(*frames, plain.best, draws=DRAWS, seed=seed)
    wins = np.bincount(np.argmin(plain.losses, axis=1), minlength=plain.n) / DRAWS
    p_values = plain.p_values()
    assert (found.best, found.blocks, found.draws) == (plain.best, 9, DRAWS)
    assert found.corrected_loss == pytest.approx(plain.corrected(), rel=1e-10)
    for place, member in enumerate(found.members):
        difference = plain.whole[place] - plain.whole[plain.best]
        assert member.difference == pytest.approx(difference, rel=1e-10)
        assert member.probability_best == pytest.approx(wins[place])
        assert member.p_value == pytest.approx(p_values[place])
        assert member.indistinguishable == (p_values[place] >= 0.05)
        alone = error(frames, place, None, plain.all)
        assert member.loss_error == pytest.approx(alone, rel=1e-10)
        if place == plain.best:
            assert member.interval == (0, 0)
            continue
        off = error(frames, place, plain.best, plain.all)
        assert member.difference_error == pytest.approx(off, rel=1e-10)
        deviations = sorted(np.abs(plain.t(place, plain.best)))
        width = deviations[int(np.ceil(0.95 * (DRAWS - 1)))] * off
        assert member.interval == pytest.approx((difference - width, difference + width), rel=1e-10)
    assert len({member.p_value for member in found.members}) > 2, "nothing is told from this"


def test_errors_of_equal_blocks_are_scipys_and_so_is_the_paired_t() -> None:
    rng = np.random.default_rng(5)
    errors = rng.normal(5, 1, (2, 1, 24 * 6)) + np.array([0.0, 0.3])[:, None, None]
    block = np.repeat(np.arange(24), 6)
    found = compare(errors, np.ones((1, 144)), block, 0).members
    means = errors[:, 0].reshape(2, 24, 6).mean(axis=-1)
    assert found[0].loss_error == pytest.approx(scipy.stats.sem(means[0]))
    assert found[1].difference_error == pytest.approx(scipy.stats.sem(means[1] - means[0]))
    t = scipy.stats.ttest_rel(means[1], means[0]).statistic
    assert found[1].difference / found[1].difference_error == pytest.approx(t)
    low, high = found[1].interval or (0, 0)
    of_t = scipy.stats.t.interval(0.95, 23, found[1].difference, found[1].difference_error)
    assert (low, high) == pytest.approx(of_t, rel=0.2)


def test_error_of_a_loss_is_its_spread_over_draws() -> None:
    frames = frames_of(blocks=60)
    found = compare(*frames, 0, draws=50)
    plain = Plain(frames)
    spread = np.std(plain.losses, axis=0) * np.sqrt(60 / 59)
    assert [member.loss_error for member in found.members] == pytest.approx(list(spread), rel=0.2)


# -- what it is good for, by simulation ------------------------------------------------------------


def simulated(
    rng: Any, worse: tuple[float, ...], *, by_frame: bool = False, blocks: int = 32
) -> Comparison:
    """Members that are so much worse than the first, whose noise is common to a block's frames."""
    sizes = rng.integers(6, 15, blocks)
    block = np.repeat(np.arange(blocks), sizes)
    components = np.repeat(rng.choice([30.0, 60.0], blocks), sizes)
    noise = rng.normal(size=(len(worse), blocks))[:, block]
    noise += rng.normal(size=noise.shape) + 3 * rng.normal(size=blocks)[block]  # some blocks hard
    errors = ((50 + noise + np.array(worse)[:, None]) * components)[:, None]
    losses = errors.sum(axis=(1, 2)) / components.sum()
    if by_frame:
        block = np.arange(len(block))
    return compare(errors, components[None], block, int(losses.argmin()), draws=400)


def held(found: list[Comparison], place: int = 0) -> float:
    """How often the set holds a member."""
    return float(np.mean([one.members[place].indistinguishable for one in found]))


def least(level: float, draws: int) -> float:
    """A share that a true one of ``level`` falls below in one of a thousand tests."""
    return float(scipy.stats.binom.ppf(0.001, draws, level)) / draws


@pytest.fixture(scope="module")
def identical() -> list[Comparison]:
    rng = np.random.default_rng(11)
    return [simulated(rng, (0.0,) * 4) for _ in range(250)]


def test_set_holds_all_identical_members_at_the_level(identical: list[Comparison]) -> None:
    every = np.mean([all(m.indistinguishable for m in one.members) for one in identical])
    assert every >= least(0.95, len(identical))
    assert held(identical) >= 0.95


def test_intervals_of_single_differences_would_break_it(identical: list[Comparison]) -> None:
    """Each is right for a pair that is chosen beforehand; the best is not."""
    wrong = [any(m.interval and m.interval[0] > 0 for m in one.members) for one in identical]
    assert np.mean(wrong) > 0.1


def test_frames_taken_as_independent_break_the_level() -> None:
    rng = np.random.default_rng(11)
    found = [simulated(rng, (0.0,) * 4, by_frame=True, blocks=8) for _ in range(25)]
    assert held(found) < least(0.95, len(found)), "blocks would be needed for nothing"


def test_each_of_identical_members_is_as_probably_the_best(identical: list[Comparison]) -> None:
    shares = [[member.probability_best for member in one.members] for one in identical]
    assert np.sum(shares, axis=1) == pytest.approx(1.0)
    error = np.std(shares, axis=0) / np.sqrt(len(shares))
    assert (np.abs(np.mean(shares, axis=0) - 0.25) < 4 * error).all()


def test_lowest_loss_is_too_low_and_the_corrected_one_is_not(identical: list[Comparison]) -> None:
    """Against the mean of all members, which is free of any choice and of how hard the frames are:
    identical members leave a correction nothing to gain."""
    rises = [np.mean([member.difference for member in one.members]) for one in identical]
    error = np.std(rises) / np.sqrt(len(rises))
    assert np.mean(rises) > 10 * error
    rng = np.random.default_rng(12)
    gains = []
    for _ in range(250):
        block = np.repeat(np.arange(20), 3)
        errors = 50 + rng.normal(size=(4, 1, 20))[..., block]
        found = compare(errors, np.ones((1, 60)), block, int(errors.mean(-1).argmin()), draws=100)
        gains.append(found.corrected_loss - errors.mean())
    assert abs(np.mean(gains)) < 4 * np.std(gains) / np.sqrt(len(gains))


def test_worse_member_is_told_apart_and_those_as_good_are_not() -> None:
    rng = np.random.default_rng(13)
    found = [simulated(rng, (0.0, 0.0, 0.0, 2.0)) for _ in range(60)]
    assert held(found, place=3) < 0.05
    assert min(held(found, place) for place in range(3)) >= least(0.95, len(found))
    assert max(one.members[3].probability_best for one in found) < 0.05


def test_corrected_loss_of_a_clear_winner_is_its_own() -> None:
    found = simulated(np.random.default_rng(14), (0.0, 20.0, 20.0))
    errors = [member.difference for member in found.members]
    assert errors[0] == 0
    frames = frames_of(n=2)
    frames.errors[1] = frames.errors[0] + 5 * frames.weights
    apart = compare(*frames, 0)
    assert apart.corrected_loss == pytest.approx(loss(frames, 0, np.arange(len(frames.block))))


# -- edges -----------------------------------------------------------------------------------------


def test_copies_share_the_draws_and_differ_by_nothing() -> None:
    frames = frames_of(n=2)
    errors = np.concatenate(
        [frames.errors[:1], frames.errors[:1], frames.errors[:1] + frames.weights]
    )
    found = compare(errors, frames.weights, frames.block, 0).members
    assert found[0].probability_best == found[1].probability_best == 0.5
    assert (found[1].difference, found[1].interval, found[1].p_value) == (0, (0, 0), 1)
    assert not found[2].indistinguishable


@pytest.mark.parametrize("blocks", [2, 3])
def test_two_or_three_blocks_tell_nothing_apart(blocks: int) -> None:
    frames = frames_of(n=3, blocks=blocks)
    frames.errors[2] *= 50
    found = compare(*frames, int(frames.errors.sum(axis=(1, 2)).argmin())).members
    assert all(member.indistinguishable for member in found)
    assert found[2].interval is None
    assert found[2].difference_error > 0


def test_difference_without_noise_is_certain() -> None:
    weights = np.array([[30.0, 60.0, 30.0, 90.0]])
    errors = np.stack([3.1 * weights, 3.2 * weights, 3.7 * weights])
    found = compare(errors, weights, np.arange(4), 0)
    assert [member.indistinguishable for member in found.members] == [True, False, False]
    assert [member.probability_best for member in found.members] == [1, 0, 0]
    assert found.corrected_loss == pytest.approx(3.1)


def test_order_of_members_changes_nothing() -> None:
    frames = frames_of(n=5, blocks=20)
    best = Plain(frames).best
    there = compare(*frames, best)
    order = np.array([3, 1, 4, 0, 2])
    turned = compare(
        frames.errors[order], frames.weights, frames.block, int(np.flatnonzero(order == best)[0])
    )
    for place, member in zip(order, turned.members, strict=True):
        same = there.members[place]
        assert (member.p_value, member.probability_best) == (same.p_value, same.probability_best)
        assert member.interval == pytest.approx(same.interval)


def test_one_member_or_one_block_is_refused() -> None:
    frames = frames_of()
    with pytest.raises(ValueError, match="1 members"):
        compare(frames.errors[:1], frames.weights, frames.block, 0)
    with pytest.raises(ValueError, match="1 blocks"):
        compare(frames.errors, frames.weights, np.zeros_like(frames.block), 0)
