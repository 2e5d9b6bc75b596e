"""Numbers of pairs that are named give the power that they are named for."""

import numpy as np
import pytest
from scipy import stats

from skip_conditioning.experiments.claims.statistics.median_intervals import median_interval
from skip_conditioning.experiments.claims.statistics.power import (
    MOST_PAIRS,
    equivalence_power,
    pairs_for_equivalence,
    pairs_for_power,
    quartile_spread,
    sign_test_power,
)
from tests.experiments.claims.simulation import named_power

EFFECT = np.log(1.1)


def test_power_is_that_of_simulated_sign_tests():
    rng = np.random.default_rng(0)
    values = rng.normal(-EFFECT, 0.2, (4000, 41))
    smaller = (values < 0).sum(axis=1)
    share = (values < 0).mean()
    measured = np.mean([count >= 28 for count in smaller])  # of 41, the fewest with a tail of at most 2.5 %
    assert sign_test_power(np.array([41]), share, 0.05)[0] == pytest.approx(measured, abs=0.02)


@pytest.mark.parametrize("spread", [0.06, 0.12, 0.3])
def test_from_the_number_named_on_the_power_is_enough(spread):
    needed = int(pairs_for_power(spread, EFFECT, 0.05))
    share = stats.norm.cdf(EFFECT / spread)
    powers = sign_test_power(np.arange(1, 4 * needed), share, 0.05)
    assert (powers[needed - 1 :] >= 0.8).all()
    assert powers[needed - 2] < 0.8
    assert pairs_for_power(spread, EFFECT, 0.05 / 8) > needed


@pytest.mark.parametrize("spread", [0.06, 0.12])
def test_the_number_named_for_equivalence_gives_its_power(spread):
    needed = int(pairs_for_equivalence(spread, EFFECT, 0.05))
    rng = np.random.default_rng(1)
    ends = [median_interval(x, x, 0.95) for x in rng.normal(0, spread, (2000, needed))]
    inside = np.mean([low > -EFFECT and high < EFFECT for low, high in ends])
    assert inside == pytest.approx(
        float(equivalence_power(np.array([needed]), stats.norm.sf(EFFECT / spread), 0.05)[0]), abs=0.03
    )
    assert inside > 0.77
    assert pairs_for_equivalence(spread, EFFECT, 0.05, freedom=4) > needed


@pytest.mark.parametrize("pairs", [6, 10, 30])
def test_numbers_named_from_estimated_spreads_give_the_power_on_average(pairs):
    assert 0.75 <= named_power(0.3, pairs, 60) <= 0.86


def test_heavy_tails_and_infinite_values_leave_the_spread_finite():
    values = np.array([-np.inf, -0.1, 0.0, 0.1, 0.05, -0.05, np.inf, np.inf])
    spread, freedom = quartile_spread(values)
    assert np.isfinite(spread)
    assert freedom == pytest.approx(0.37 * 7)
    assert pairs_for_power(np.inf, EFFECT, 0.05) == np.inf
    assert pairs_for_power(30.0, EFFECT, 0.05) == np.inf > MOST_PAIRS
