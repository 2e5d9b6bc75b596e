import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from skip_conditioning.experiments.claims.statistics.median_intervals import exact_interval
from skip_conditioning.experiments.claims.statistics.paired_tests import (
    equivalence_test,
    fewest_pairs,
    holm,
    sign_test,
    signed_rank_test,
)

INF = np.inf
SMALL = [[0.3, -1.0, 2.0, 0.7, 1.1], [0.5, 0.5, -0.5, 1.0, 2.0, 2.0], [1.0, INF, INF, -INF, 0.2], [0.0, 0.0, 3.0, 1.0]]


def equivalence(values):
    return equivalence_test(values, np.zeros(len(values), dtype=bool), 1.05)


def signs(values):
    """Every way to give signs to the magnitudes of the non-zero values."""
    magnitudes = np.abs(values)[values != 0]
    return np.array(list(itertools.product([1, -1], repeat=len(magnitudes)))), magnitudes


@pytest.mark.parametrize("values", SMALL)
def test_sign_test_equals_enumeration(values):
    all_signs, _ = signs(np.array(values))
    observed = abs(np.sign(values).sum())
    assert sign_test(np.array(values)) == pytest.approx((abs(all_signs.sum(axis=1)) >= observed).mean())


@pytest.mark.parametrize("values", SMALL)
def test_signed_rank_test_equals_enumeration_with_ties_zeros_and_infinities(values):
    values = np.array(values)
    all_signs, magnitudes = signs(values)
    ranks = stats.rankdata(magnitudes)
    observed = abs(ranks @ np.sign(values[values != 0]))
    expected = (abs(all_signs @ ranks) >= observed - 1e-9).mean()
    assert signed_rank_test(values) == pytest.approx(expected)


@pytest.mark.parametrize("n", [6, 30, 200])
def test_signed_rank_test_equals_scipy_where_scipy_is_exact(n):
    values = np.random.default_rng(n).normal(0.2, size=n)
    expected = stats.wilcoxon(values, method="exact").pvalue
    assert signed_rank_test(values) == pytest.approx(expected)


@pytest.mark.parametrize("values", [*SMALL, [0.01, -0.02, 0.0, 0.03, 0.01, -0.01], [0.01, 0.1, 0.0, 0.0, 0.0, 0.0]])
def test_equivalence_is_two_one_sided_sign_tests(values):
    bound, values = np.log(1.05), np.array(values)
    lower, upper = (stats.binomtest(int(k), len(values), alternative="greater").pvalue
                    for k in ((values > -bound).sum(), (values < bound).sum()))  # fmt: skip
    assert equivalence(values) == pytest.approx(max(lower, upper))


def test_equivalence_agrees_with_the_exact_interval():
    rng = np.random.default_rng(0)
    agree = []
    for _ in range(60):
        values = rng.normal(0.01, rng.choice([0.02, 0.05, 0.08]), size=20)
        low, high = exact_interval(values, 0.9)
        agree.append((equivalence(values) <= 0.05) == (-np.log(1.05) < low and high < np.log(1.05)))
        agree.append(equivalence(values) <= 0.05)
    assert all(agree[::2])
    assert 10 < sum(agree[1::2]) < 50  # both answers occurred


def test_holm_multiplies_the_smallest_by_their_number():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    p_values = np.random.default_rng(3).random(20) ** 3
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize(("comparisons", "pairs"), [(1, 6), (2, 7), (4, 8), (8, 9)])
def test_fewest_pairs_are_those_with_which_agreement_is_significant(comparisons, pairs):
    assert fewest_pairs(comparisons, 0.05) == pairs
    p = [sign_test(np.ones(n)) for n in (pairs, pairs - 1)]
    assert holm([p[0]] * comparisons).max() < 0.05 <= holm([p[1]] * comparisons).min()


def test_pairs_whose_ratio_is_unknown_count_against_equivalence():
    values = np.zeros(20)
    assert equivalence(values) < 1e-5
    assert equivalence_test(values, np.arange(20) > 0, 1.05) > 0.9
