r"""Tests of paired log-ratios from their order alone, so that infinite ones, of runs that diverged, take part too.

- The sign test is exact for any distribution of independent pairs (Gibbons & Chakraborti 2011, §5.4).
- Equivalence is two one-sided sign tests against ``±log(margin)`` (Schuirmann 1987).
- The Wilcoxon signed-rank test has more power where log-ratios are symmetric about their median, which they are when
  arms are interchangeable, but rejects a median of 0 too often where they are skewed.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import stats

from skip_conditioning.experiments.claims.statistics.median_intervals import median

#: Power that ``pairs_needed`` plans for.
POWER: Final = 0.8
#: More pairs than these are not planned for.
MOST_PAIRS: Final = 5000
#: The share of the level that the first look at the results spends; each later one spends half of what is left, so that
#: all looks together never spend more than the level (Lan & DeMets 1983).
FIRST_LOOK_SHARE: Final = 0.8


def sign_test(log_ratios: np.ndarray) -> float:
    """Exact two-sided p value of positive and negative values being equally likely; zeros are left out.

    Args:
        log_ratios: Shape ``(n,)``; may be ±inf.
    """
    positive, negative = int((log_ratios > 0).sum()), int((log_ratios < 0).sum())
    return float(stats.binomtest(positive, positive + negative).pvalue) if positive + negative else 1.0


def signed_rank_test(log_ratios: np.ndarray) -> float:
    """Exact two-sided p value of the Wilcoxon signed-rank test, also with ties; ±inf rank beyond all finite values.

    Zeros are left out, equal magnitudes share their mean rank, and the distribution over all ``2**n`` signs is built up
    rank by rank (Hollander, Wolfe & Chicken 2014, §3.1). scipy's is exact without ties only.

    Args:
        log_ratios: Shape ``(n,)``; may be ±inf.
    """
    values = log_ratios[log_ratios != 0]
    ranks = (2 * stats.rankdata(np.abs(values))).astype(int)  # doubled, so that mean ranks are whole numbers
    chances = np.ones(1)
    for rank in ranks:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    positive = int(ranks[values > 0].sum())
    return float(min(1.0, 2 * min(chances[: positive + 1].sum(), chances[positive:].sum())))


def equivalence_test(log_ratios: np.ndarray, unknown: np.ndarray, margin: float) -> float:
    """Exact p value of the median ratio lying outside of ``1 / margin … margin``.

    The larger p value of two one-sided sign tests.

    Args:
        log_ratios: Shape ``(n,)``; may be ±inf.
        unknown: Shape ``(n,)``; pairs whose ratio could be any, which count as lying outside on both sides.
        margin: A ratio above 1.
    """
    bound, n = np.log(margin), len(log_ratios)
    inside = (log_ratios > -bound, log_ratios < bound)
    return max(float(stats.binom.sf((side & ~unknown).sum() - 1, n, 0.5)) for side in inside) if n else 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P values after Holm's (1979) step-down correction for their number, shape as given.

    As ``statsmodels.stats.multitest.multipletests``, which takes a tenth of a second to import.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return corrected


def level_at(level: float, look: int) -> float:
    """The part of a family-wise error rate that a look at the results may spend; the first look is 1."""
    return level * (FIRST_LOOK_SHARE if look == 1 else (1 - FIRST_LOOK_SHARE) / 2 ** (look - 1))


def fewest_pairs(comparisons: int, level: float) -> int:
    """The fewest pairs with which the sign test can be significant, if all pairs agree, after Holm's correction.

    Args:
        comparisons: How many are corrected for.
        level: Family-wise error rate.
    """
    pairs = 1
    while comparisons * 2.0 ** (1 - pairs) >= level:
        pairs += 1
    return pairs


def sign_test_power(pairs: np.ndarray, share: float, level: float) -> np.ndarray:
    """Chance that the exact two-sided sign test is significant in the direction of a share of the pairs.

    Args:
        pairs: Numbers of pairs, any shape.
        share: Of the pairs that have this direction.
        level: Of the test.

    Returns:
        The shape of ``pairs``.
    """
    critical = stats.binom.isf(level / 2, pairs, 0.5) + 1  # the fewest pairs with a tail of less than level / 2
    return np.asarray(stats.binom.sf(critical - 1, pairs, share))


def pairs_needed(log_ratios: np.ndarray, pairs: int, level: float, margin: float) -> float:
    """How many pairs give the sign test a power of 80 % for an effect as large as the one seen.

    An effect smaller than ``margin`` counts as that. The chance that a pair shows it is taken from a normal
    distribution with the median absolute deviation as its spread or, where half of the pairs are infinite or equal,
    from the share of pairs that do. Ties need more pairs in proportion. For planning only: no power in hindsight.

    Args:
        log_ratios: Of the pairs whose order is known.
        pairs: All pairs, those without a known order among them.
        level: Of the test.
        margin: The smallest ratio above 1 that counts as an effect.

    Returns:
        More than ``pairs``; infinity if that is over 5000 or if there is nothing to compare.
    """
    untied = log_ratios[log_ratios != 0]
    if not len(untied):
        return np.inf
    effect = max(abs(median(untied)), float(np.log(margin)))
    deviations = np.abs(untied - median(untied)) if np.isfinite(effect) else np.zeros(1)
    spread = median(deviations) / stats.norm.ppf(0.75)
    if np.isfinite(spread) and spread > 0:
        share = float(stats.norm.cdf(effect / spread))
    else:
        share = float(max((untied > 0).mean(), (untied < 0).mean()))
    share = min(share, 1 - 1 / (len(untied) + 2))  # so few pairs do not rule out pairs of the other direction
    too_few = np.flatnonzero(sign_test_power(np.arange(1, MOST_PAIRS + 1), share, level) < POWER)
    needed = too_few[-1] + 2  # the power of a discrete test is a sawtooth: from here on it stays above
    return np.inf if needed > MOST_PAIRS else float(max(np.ceil(needed * pairs / len(untied)), pairs + 1))
