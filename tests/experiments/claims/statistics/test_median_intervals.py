import numpy as np
import pytest
from scipy import stats

from skip_conditioning.experiments.claims.statistics.median_intervals import (
    bootstrap_interval,
    exact_interval,
    mean_interval,
    median,
)

INF = np.inf


def test_exact_interval_keeps_its_coverage_where_tails_are_heavy():
    rng = np.random.default_rng(1)
    intervals = [exact_interval(rng.standard_cauchy(12), 0.9) for _ in range(400)]
    covered = sum(low <= 0 <= high for low, high in intervals)
    assert stats.binomtest(covered, 400, 0.9, alternative="less").pvalue > 1e-3
    assert covered < 400


def test_bootstrap_carries_infinities_to_the_ends_they_reach():
    low, high = bootstrap_interval(np.array([-1.0, 0.0, 1.0, 2.0, 3.0, INF, INF, INF]), 0.95, 0)
    assert -1.0 <= low < 3.0
    assert high == INF
    assert median(np.array([1.0, 2.0, INF, INF])) == INF
    assert median(np.array([-INF, 2.0, 3.0, INF])) == 2.5


def test_intervals_of_finite_values_hold_the_effect_shrink_with_confidence_and_repeat():
    values = np.random.default_rng(2).normal(0.5, 1, size=25)
    for interval in (bootstrap_interval, lambda *options: mean_interval(*options)[1:]):
        (low, high), (inner_low, inner_high) = interval(values, 0.95, 0), interval(values, 0.5, 0)
        assert low < inner_low < inner_high < high
        assert interval(values, 0.95, 0) == (low, high)
    assert mean_interval(values, 0.95, 0)[0] == pytest.approx(values.mean())
    assert np.isnan(mean_interval(np.array([1.0, INF]), 0.95, 0)).all()
