"""How many pairs the exact sign test and interval of a median log-ratio need, for planning: no power in hindsight.

Log-ratios are taken to be normal. A spread that was estimated from a few pairs is not known: the power is then the mean
over what it may be, ``σ² = s² ν / χ²_ν``, so that the numbers of pairs that are named give it on average, and not only
where the spread happens to be overstated.
"""

from collections.abc import Callable
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


def equivalence_power(pairs: np.ndarray, outside: np.ndarray | float, level: float) -> np.ndarray:
    """Chance, at least, that the interval of the median lies between two margins.

    It does if fewer values lie beyond either margin than the order statistics leave out. The chances that too many lie
    beyond one and beyond the other are added, which understates the result by less than their product.

    Args:
        pairs: Numbers of pairs.
        outside: Chance that a pair lies beyond one margin, and beyond the other; broadcast with ``pairs``.
        level: One less the coverage of the interval.
    """
    left_out = pairs - stats.binom.isf(level / 2, pairs, 0.5)
    return np.where(left_out >= 1, np.maximum(0.0, 1 - 2 * stats.binom.sf(left_out - 1, pairs, outside)), 0.0)


def pairs_for_power(
    spread: float, effect: float, level: float, *, freedom: float | None = None, power: float = 0.8
) -> float:
    """The fewest pairs from which on the sign test has a power.

    The power of a discrete test is a sawtooth; with this number of pairs and all larger ones it is enough.

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
    shares = stats.norm.cdf(abs(effect) / _spreads(spread, freedom))
    return _fewest(lambda sizes: sign_test_power(sizes, shares, level), power)


def pairs_for_equivalence(
    spread: float, margin: float, level: float, *, freedom: float | None = None, power: float = 0.8
) -> float:
    """The fewest pairs from which on the interval of a median of 0 lies inside the margins with a power.

    Args:
        spread: Standard deviation of the log-ratios.
        margin: Log-ratio; the interval must lie between its negative and itself.
        level: One less the coverage of the interval; divide it by the number of comparisons.
        freedom: Degrees of freedom of the spread's estimate; None if it is known.
        power: Chance of finding the two alike.

    Returns:
        Infinity if there are more than 5000.
    """
    if not np.isfinite(spread):
        return np.inf
    outside = stats.norm.sf(margin / _spreads(spread, freedom))
    return _fewest(lambda sizes: equivalence_power(sizes, outside, level), power)


def _spreads(spread: float, freedom: float | None) -> np.ndarray:
    """What the spread may be, in equally likely parts, shape ``(parts, 1)``."""
    factors = np.ones(1) if freedom is None else np.sqrt(freedom / stats.chi2.ppf(_QUANTILES, freedom))
    return np.maximum(spread * factors, 1e-300)[:, None]


def _fewest(power_of: Callable[[np.ndarray], np.ndarray], power: float) -> float:
    fewest, first, last = 1, 1, 64
    while first <= 2 * MOST_PAIRS:
        sizes = np.arange(first, last + 1)
        short = np.flatnonzero(power_of(sizes).mean(axis=0) < power)
        if not len(short):
            break
        fewest = int(sizes[short[-1]]) + 1
        first, last = last + 1, 2 * last
    return float(fewest) if fewest <= MOST_PAIRS else np.inf
