"""The sign test, its interval, and medians: against scipy, and as to coverage."""

import numpy as np
import pytest
from scipy import stats

from skip_conditioning.experiments.claims.statistics.median_intervals import (
    fewest_values,
    kaplan_meier_median,
    median,
    median_interval,
    sign_test,
)

INF = np.inf


@pytest.mark.parametrize("n", [1, 5, 6, 20, 31])
def test_sign_test_and_interval_are_those_of_scipy(n):
    values = np.random.default_rng(n).normal(0.4, 1, n)
    expected = stats.binomtest(int((values > 0).sum()), n).pvalue
    assert sign_test(values, values) == pytest.approx(expected)
    reference = stats.quantile_test(values, q=0.0, p=0.5).confidence_interval(0.95)
    ends = np.nan_to_num([reference.low, reference.high], nan=INF) * [np.nan_to_num(-np.sign(-1), nan=1), 1]
    low, high = median_interval(values, values, 0.95)
    if n < fewest_values(0.95):
        assert (low, high) == (-INF, INF)
    else:
        assert [low, high] == pytest.approx(list(ends))


def test_ties_and_unknown_values_count_against_either_direction():
    ones = np.ones(8)
    assert sign_test(ones, ones) == 2 / 2**8
    tied = np.array([0.0, 0.0, *ones[:6]])
    assert sign_test(tied, tied) == pytest.approx(2 * stats.binom.sf(5, 8, 0.5))
    low, high = np.array([-INF, -INF, *ones[:6]]), np.array([INF, INF, *ones[:6]])
    assert sign_test(low, high) == sign_test(tied, tied)
    assert sign_test(np.empty(0), np.empty(0)) == 1.0


def test_the_interval_covers_as_often_as_stated_for_skewed_values():
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(3000):
        values = rng.exponential(size=12) - np.log(2)
        low, high = median_interval(values, values, 0.95)
        missed += not low <= 0 <= high
    assert missed / 3000 < 0.055


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3, 1, 2], 2), ([1, 2], 1.5), ([-INF, INF], 0), ([1, INF], INF), ([-INF, 1], -INF), ([INF], INF)],
)
def test_median_of_infinite_numbers(values, expected):
    assert median(np.array(values, float)) == expected


def test_fewest_values_is_the_first_number_with_an_interval():
    for level in (0.9, 0.95, 1 - 0.05 / 24):
        n = fewest_values(level)
        assert np.isfinite(median_interval(np.ones(n), np.ones(n), level)).all()
        assert not np.isfinite(median_interval(np.ones(n - 1), np.ones(n - 1), level)).any()


def test_median_of_times_counts_those_that_never_ended():
    times, censored = np.array([3.0, 5.0, 8.0, 9.0, 9.0]), np.array([False, False, False, True, True])
    assert kaplan_meier_median(times, censored, 0.95)[0] == 8.0
    assert kaplan_meier_median(times, np.ones(5, bool), 0.95)[0] == INF
