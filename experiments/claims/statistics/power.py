"""How many pairs the exact sign test of a median log-ratio needs, for planning: no power in hindsight.

Log-ratios are taken to be normal. A spread that was estimated from a few pairs is not known: the power is then the mean
over what it may be, ``σ² = s² ν / χ²_ν``, so that the numbers of pairs that are named give it on average, and not only
where the spread happens to be overstated.
"""

from typing import Final

import numpy as np
from scipy import stats

#: More pairs than these are not planned for.
MOST_PAIRS: Final = 5000
#: Quantiles over which an uncertain spread is averaged.
_QUANTILES: Final = (np.arange(40) + 0.5) / 40
#: Variance of the standard deviation over that of the quartiles' estimate, for a normal distribution.
_EFFICIENCY: Final = 0.37


def quartile_spread(values: np.ndarray) -> tuple[float, float]:
    """Standard deviation from the quartiles of numbers, some of them infinite, and its degrees of freedom.

    Args:
        values: Shape ``(n,)``, two or more.
    """
    low, high = np.quantile(np.clip(values, -1e300, 1e300), [0.25, 0.75])
    return float((high - low) / (2 * stats.norm.ppf(0.75))), max(1.0, _EFFICIENCY * (len(values) - 1))


def sign_test_power(pairs: np.ndarray, share: np.ndarray | float, level: float) -> np.ndarray:
    """Chance that the exact two-sided sign test is significant in the direction of a share of the pairs.

    Args:
        pairs: Numbers of pairs.
        share: Of the pairs that have this direction; broadcast with ``pairs``.
        level: Of the test, such as 0.05.
    """
    critical = stats.binom.isf(level / 2, pairs, 0.5) + 1  # the fewest pairs with a tail of at most level / 2
    return np.asarray(stats.binom.sf(critical - 1, pairs, share))


def pairs_for_power(
    spread: float, effect: float, level: float, *, freedom: float | None = None, power: float = 0.8
) -> float:
    """The fewest pairs with which the sign test has a power.

    That of a discrete test is a sawtooth: a pair more may have a little less.

    Args:
        spread: Standard deviation of the log-ratios.
        effect: Median log-ratio to be found.
        level: Of the test; divide it by the number of comparisons.
        freedom: Degrees of freedom of the spread's estimate; None if it is known.
        power: Chance of finding the effect.

    Returns:
        Infinity if there are more than 5000.
    """
    if not np.isfinite(spread):
        return np.inf
    factors = np.ones(1) if freedom is None else np.sqrt(freedom / stats.chi2.ppf(_QUANTILES, freedom))
    shares = stats.norm.cdf(abs(effect) / np.maximum(spread * factors, 1e-300))[:, None]
    first, last = 1, 64
    while first <= MOST_PAIRS:
        sizes = np.arange(first, last + 1)
        enough = np.flatnonzero(sign_test_power(sizes, shares, level).mean(axis=0) >= power)
        if len(enough):
            return float(sizes[enough[0]])
        first, last = last + 1, 2 * last
    return np.inf
