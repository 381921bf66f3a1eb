"""Figures of errors and uncertainty against independent computations: plain loops, SciPy, and
numbers by uncertainty-toolbox."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from ensq.calibration import accuracy, factors, ranking, scoring
from ensq.calibration.accuracy import Errors, Label
from ensq.calibration.factors import Sample
from ensq.calibration.figures import Resampling
from ensq.resampling import blocks_of

Array = NDArray[Any]


def resampling(frames: int, draws: int = 300) -> Resampling:
    return Resampling(blocks_of(frames), draws)


def normal(n: int, scale: float = 1.0, seed: int = 0) -> tuple[Array, Array]:
    """Errors and sigma; with ``scale`` 1 the one describes the other."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.1, 2.0, n)
    return scale * sigma * rng.normal(size=n), sigma


def test_errors_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    error, sigma = rng.normal(size=(50, 3)), rng.uniform(1, 2, (50, 3))
    frame, group = np.repeat(np.arange(25), 2), rng.integers(0, 3, 50)
    drawn = resampling(25)
    found = accuracy.by_group(
        drawn, Errors(error, sigma, frame), group, [Label("a"), Label("b"), Label("c")]
    )
    for place, name in enumerate("abc"):
        values = [float(x) for row, g in zip(error, group, strict=True) if g == place for x in row]
        one = found[place]
        assert (one.name, one.count) == (name, len(values))
        assert one.rmse.value == pytest.approx((sum(v * v for v in values) / len(values)) ** 0.5)
        assert one.mae.value == pytest.approx(sum(abs(v) for v in values) / len(values))
        assert one.sharpness is not None
        assert one.sharpness.value == pytest.approx(np.sqrt((sigma[group == place] ** 2).mean()))
    rmse, _, _ = accuracy.overall(drawn, Errors(error, sigma, frame))
    assert rmse.figure().value == pytest.approx(np.sqrt((error**2).mean()))


def test_the_likelihood_and_coverage_are_scipys() -> None:
    error, sigma = normal(3000, 1.4)
    found = scoring.estimate(resampling(3000), error, sigma, np.arange(3000)).scores()
    assert found.nll.value == pytest.approx(-stats.norm(0, sigma).logpdf(error).mean())
    for one, share in zip(found.coverage, (0.6827, 0.9545, 0.68, 0.95), strict=True):
        assert one.nominal == pytest.approx(share, abs=1e-4)
        low, high = stats.norm(0, sigma).interval(one.nominal)
        inside = ((low <= error) & (error <= high)).mean()
        assert one.observed.value == pytest.approx(inside, abs=1e-12)
    assert found.sharpness.value == pytest.approx(np.sqrt(np.mean(sigma**2)))
    assert found.ratio.value == pytest.approx(np.sqrt((error**2).mean() / (sigma**2).mean()))


@pytest.mark.parametrize(("members", "ddof"), [(2, 0), (4, 1), (5, 0)])
def test_few_members_cover_as_students_t_says(members: int, ddof: int) -> None:
    """Members and truth drawn alike: even then one sigma holds fewer than 68 % of the errors."""
    rng = np.random.default_rng(6)
    drawn = rng.normal(size=(members + 1, 200_000))
    error = drawn[:members].mean(axis=0) - drawn[members]
    sigma = drawn[:members].std(axis=0, ddof=ddof)
    for sigmas in (1.0, 2.0):
        expected = scoring.like_members(sigmas, members, ddof)
        assert (np.abs(error) <= sigmas * sigma).mean() == pytest.approx(expected, abs=0.005)
        assert expected < stats.norm.cdf(sigmas) - stats.norm.cdf(-sigmas)


def toolbox_sample() -> tuple[Array, Array]:
    """The sample that uncertainty-toolbox 0.1.1 was given, without a random number."""
    i = np.arange(400)
    sigma = 0.2 + ((i * 7919) % 400) / 400.0
    return 1.3 * sigma * stats.norm.ppf((((i * 104729) % 400) + 0.5) / 400), sigma


def test_figures_are_those_of_uncertainty_toolbox() -> None:
    """nll_gaussian, sharpness, miscalibration_area(num_bins=101) and get_proportion_in_interval."""
    error, sigma = toolbox_sample()
    found = scoring.estimate(resampling(400), error, sigma, np.arange(400)).scores()
    assert found.nll.value == pytest.approx(1.2996441819376787, rel=1e-12)
    assert found.sharpness.value == pytest.approx(0.756031993370651, rel=1e-12)
    assert found.miscalibration_area.value == pytest.approx(0.08245, abs=1e-5)
    assert [one.observed.value for one in found.coverage[2:]] == pytest.approx([0.555, 0.87])


def test_the_area_is_the_integral_of_the_distance_to_the_diagonal() -> None:
    rng = np.random.default_rng(1)
    curve = np.clip(scoring.EXPECTED + 0.1 * rng.normal(size=101), 0, 1)
    fine = np.linspace(0, 1, 1_000_001)
    distance = np.abs(np.interp(fine, scoring.EXPECTED, curve) - fine)
    assert float(scoring.area(curve)) == pytest.approx(distance.mean(), rel=1e-4)


def test_a_perfect_sigma_scores_as_such() -> None:
    error, sigma = normal(200_000)
    every = np.arange(200_000)
    found = scoring.estimate(resampling(200_000), error, sigma, every).scores()
    assert found.miscalibration_area.value < 0.003
    for one in found.coverage:
        assert one.observed.value == pytest.approx(one.nominal, abs=0.004)
        assert one.observed.low is not None and one.observed.high is not None
    assert found.ratio.value == pytest.approx(1, abs=0.01)
    tiny = scoring.estimate(resampling(200_000), error, 1e-3 * sigma, every).scores()
    huge = scoring.estimate(resampling(200_000), error, 1e3 * sigma, every).scores()
    assert tiny.miscalibration_area.value > 0.49
    assert huge.miscalibration_area.value > 0.49


def test_spearman_is_scipys_and_its_draws_follow_it() -> None:
    error, sigma = normal(900, seed=4)
    frame = np.repeat(np.arange(300), 3)
    drawn = resampling(300)
    found = ranking.spearman(drawn, ranking.ranked(error, sigma, frame))
    assert found is not None
    assert float(found.value) == pytest.approx(stats.spearmanr(sigma, np.abs(error)).statistic)
    for draw in range(5):
        times = drawn.weights[draw].astype(int)[drawn.block[frame]]
        again = np.repeat(np.arange(900), times)
        exact = stats.spearmanr(sigma[again], np.abs(error[again])).statistic
        assert found.draws[draw] == pytest.approx(exact, abs=0.01)
    equal = ranking.ranked(error, np.ones(900), frame)
    assert ranking.spearman(drawn, equal) is None, "no correlation with a constant"


def test_errors_in_bins_of_sigma_are_those_of_sorted_arrays() -> None:
    error, sigma = normal(2000, 1.5, seed=5)
    found = ranking.binned(
        resampling(2000), error, sigma, ranking.ranked(error, sigma, np.arange(2000))
    )
    order = np.argsort(sigma)
    for place, chosen in enumerate(np.split(order, ranking.BINS)):
        assert found.counts[place] == 100
        assert found.sigma.value[place] == pytest.approx(np.sqrt((sigma[chosen] ** 2).mean()))
        assert found.error.value[place] == pytest.approx(np.sqrt((error[chosen] ** 2).mean()))


def fit(error: Array, sigma: Array, members: int = 5, ddof: int = 0, **more: Any) -> Any:
    """The three factors by name, of frames of one sample each."""
    sample = Sample(error, sigma, np.arange(len(error)), members=members, ddof=ddof, **more)
    found = factors.fit(resampling(len(error)), sample, by_species="species" in more)
    return {factor.how: factor for factor in found}


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(1e-3, 1e3), members=st.integers(2, 8))
def test_a_larger_sigma_makes_a_smaller_factor(scale: float, members: int) -> None:
    error, sigma = normal(400, 1.7)
    one, other = fit(error, sigma, members), fit(error, scale * sigma, members)
    for how in ("global", "noise"):
        assert other[how].alpha.value == pytest.approx(one[how].alpha.value / scale, rel=2e-3)
    theirs = one["imbalzano"].alpha, other["imbalzano"].alpha
    if None not in theirs:
        plain, scaled = (alpha.value**2 + 1 / members for alpha in theirs)
        assert scaled == pytest.approx(plain / scale**2, rel=1e-9)


def test_the_factors_are_their_formulas() -> None:
    error, sigma = normal(500, 2.0)
    found = fit(error, sigma, members=6, ddof=1)
    mean = np.mean(error**2 / sigma**2)
    assert found["global"].alpha.value == pytest.approx(mean**0.5)
    assert found["global"].noise is None
    assert found["imbalzano"].alpha.value == pytest.approx((-1 / 6 + 3 / 5 * mean) ** 0.5)
    # sigma^2 of ddof 0 is smaller by 5/6; their formula has ddof 1
    zero = fit(error, sigma * (5 / 6) ** 0.5, members=6, ddof=0)
    assert zero["imbalzano"].alpha.value == pytest.approx(found["imbalzano"].alpha.value)
    assert (zero["imbalzano"].ddof, zero["global"].ddof) == (1, 0)


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_imbalzanos_factor_finds_the_width_of_the_truth_about_few_members(alpha: float) -> None:
    """Members and truth are drawn about one mean; ddof 0 in the formula would not find alpha."""
    rng, members = np.random.default_rng(3), 6
    width = rng.uniform(0.5, 2.0, 100_000)
    drawn = width * rng.normal(size=(members, 100_000))
    truth = alpha * width * rng.normal(size=100_000)
    error = drawn.mean(axis=0) - truth
    found = fit(error, drawn.std(axis=0, ddof=1), members=members, ddof=1)
    assert found["imbalzano"].alpha.value == pytest.approx(alpha, rel=0.03)
    wrong = -1 / members + (members - 3) / (members - 1) * np.mean(error**2 / drawn.var(axis=0))
    assert abs(wrong**0.5 - alpha) > 0.05 * alpha


def test_a_factor_that_cannot_be_had_is_refused_in_words() -> None:
    error, sigma = normal(400)
    few = fit(error, sigma, members=3)["imbalzano"]
    assert few.alpha is None and "more than 3 members, and there are 3" in few.refused
    small = fit(0.01 * error, sigma, members=5)["imbalzano"]
    assert small.alpha is None and "alpha^2 would be -0.2" in small.refused
    with pytest.raises(ValueError, match="alpha\\^2 would be"):
        factors.applied(small, sigma, members=5, ddof=0)


def noisy(n: int, alpha: float, noise: Any, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    sigma = np.exp(rng.normal(size=n))
    return np.sqrt(alpha**2 * sigma**2 + noise**2) * rng.normal(size=n), sigma


def test_the_fit_with_noise_finds_both_numbers_and_its_intervals_hold_them() -> None:
    error, sigma = noisy(20_000, 1.8, 3.0)
    found = fit(error, sigma)["noise"]
    for figure, truth in ((found.alpha, 1.8), (found.noise, 3.0)):
        assert figure.value == pytest.approx(truth, rel=0.05)
        assert figure.low < truth < figure.high


def test_the_fit_with_noise_has_the_largest_likelihood() -> None:
    from scipy.optimize import minimize

    error, sigma = noisy(1500, 0.7, 0.4, seed=9)

    def minus(x: Array) -> float:
        return float(-stats.norm(0, np.sqrt(x[0] ** 2 * sigma**2 + x[1] ** 2)).logpdf(error).mean())

    best = minimize(minus, [1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-7})
    found = fit(error, sigma)["noise"]
    at = minus(np.array([found.alpha.value, found.noise.value]))
    assert at <= best.fun + 1e-6
    assert found.alpha.value == pytest.approx(abs(best.x[0]), rel=0.01)


def test_the_fit_stays_at_zero_where_there_is_no_noise_or_no_spread_in_the_errors() -> None:
    error, sigma = noisy(20_000, 1.5, 0.0)
    pure = fit(error, sigma)
    assert pure["noise"].alpha.value == pytest.approx(1.5, rel=0.02)
    assert pure["noise"].noise.value < 0.02
    rng = np.random.default_rng(99)
    flat = fit(2.0 * rng.normal(size=20_000), sigma)["noise"]
    assert flat.noise.value == pytest.approx(2.0, rel=0.02)
    assert flat.alpha.value < 0.2


def test_each_species_gets_its_own_noise() -> None:
    species = np.arange(30_000) % 2
    error, sigma = noisy(30_000, 1.2, np.where(species == 0, 1.0, 4.0))
    found = fit(error, sigma, species=species, species_names=("C", "N", "unseen"))["noise"]
    assert found.by_species.alpha.value == pytest.approx(1.2, rel=0.05)
    assert set(found.by_species.noise) == {"C", "N"}
    assert found.by_species.noise["C"].value == pytest.approx(1.0, rel=0.08)
    assert found.by_species.noise["N"].value == pytest.approx(4.0, rel=0.05)
    assert 1.0 < found.noise.value < 4.0


def test_a_calibrated_sigma_is_judged_better_with_paired_intervals() -> None:
    error, sigma = normal(4000, 2.0)
    sample = Sample(error, sigma, np.arange(4000), members=5, ddof=0)
    drawn = resampling(4000)
    plain, scaled, *_ = factors.judge(drawn, sample, factors.fit(drawn, sample)).judged
    assert (plain.how, scaled.how) == ("none", "global")
    assert scaled.scores.coverage[0].observed.value == pytest.approx(0.6827, abs=0.02)
    change = scaled.nll_change
    assert change is not None and change.low is not None and change.high is not None
    assert change.value == pytest.approx(scaled.scores.nll.value - plain.scores.nll.value)
    assert change.high < 0
    assert scaled.scores.nll.low is not None and plain.scores.nll.high is not None
    apart = plain.scores.nll.high - plain.scores.nll.low  # type: ignore[operator]
    assert change.high - change.low < 1.2 * apart


def test_members_that_agree_to_rounding_have_no_spread() -> None:
    sigma = np.array([0.0, 1e-9, 1e-3])
    assert scoring.has_spread(sigma, 1.0).tolist() == [False, False, True]
