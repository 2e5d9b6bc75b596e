r"""Exact sign test and interval of a median whose values are known to lie between bounds; median of censored times.

Each of n independent values lies somewhere in ``[low_i, high_i]``; the two are equal where it was measured. With
``B ~ Binomial(n, 1/2)`` the sign test rejects a median of at most 0 at level α/2 if ``P(B ≥ #{low_i > 0}) ≤ α/2``. The
interval between order statistics (the k-th smallest low and the k-th largest high) holds all medians that the test does
not reject, so the two never disagree; its coverage is at least ``1 − α`` for any distribution (Gibbons & Chakraborti
2011, §5.4), and what is unknown only widens it.
"""

import warnings

import numpy as np
from scipy import stats


def sign_test(low: np.ndarray, high: np.ndarray) -> float:
    """Exact two-sided p value of the median being 0; pairs of unknown sign, and ties, count against either direction.

    Args:
        low: Lower bound of each value, shape ``(n,)``; may be ±inf.
        high: Upper bound of each, shape ``(n,)``; equal to ``low`` where the value is known.
    """
    n, positive, negative = len(low), int((low > 0).sum()), int((high < 0).sum())
    return float(min(1.0, 2 * stats.binom.sf(max(positive, negative) - 1, n, 0.5))) if n else 1.0


def median_interval(low: np.ndarray, high: np.ndarray, level: float) -> tuple[float, float]:
    """The sign test inverted: interval of the median with coverage ``level`` or more.

    Args:
        low: Lower bound of each value, shape ``(n,)``; may be ±inf.
        high: Upper bound of each.
        level: Coverage, such as 0.95.

    Returns:
        Lower and upper end; ±inf where there are too few values for the coverage.
    """
    n = len(low)
    k = int(stats.binom.ppf((1 - level) / 2, n, 0.5)) if n else 0  # the smallest k with P(B ≤ k) ≥ α/2
    k += bool(n and stats.binom.cdf(k, n, 0.5) <= (1 - level) / 2)  # the largest with P(B ≤ k − 1) ≤ α/2
    if k < 1:
        return -np.inf, np.inf
    return float(np.sort(low)[k - 1]), float(np.sort(high)[n - k])


def fewest_values(level: float) -> int:
    """The fewest values of which the median has an interval with coverage ``level``: ``2^(1 − n) ≤ 1 − level``."""
    return int(np.ceil(1 - np.log2(1 - level) - 1e-9))


def median(values: np.ndarray) -> float:
    """Median of numbers that may be infinite: NaN of none; of two in the middle the mean, if that is finite."""
    if not len(values):
        return np.nan
    ordered = np.sort(values)
    below, above = float(ordered[(len(values) - 1) // 2]), float(ordered[len(values) // 2])
    if np.isfinite(below) and np.isfinite(above):
        return (below + above) / 2
    return below if below == above else 0.0 if below == -above else above if np.isinf(above) else below


def kaplan_meier_median(times: np.ndarray, censored: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Kaplan-Meier median of times, and its interval (Brookmeyer & Crowley 1982).

    Args:
        times: Of the event or of the censoring, shape ``(n,)``.
        censored: Whether each ended without the event, shape ``(n,)``.
        confidence: Of the interval.

    Returns:
        Median, lower and upper end; infinity where fewer than half had the event, NaN without times.
    """
    if not len(times):
        return np.nan, np.nan, np.nan
    if censored.all():
        return np.inf, float(times.max()), np.inf
    survival = stats.ecdf(stats.CensoredData(times[~censored], right=times[censored])).sf
    # Where all or none are left the formula has no value: NaN, which counts as above one half.
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings(action="ignore"):
        interval = survival.confidence_interval(confidence, method="log-log")
    curves = (survival.probabilities, interval.low.probabilities, interval.high.probabilities)
    median, low, high = (_falls_to_half(survival.quantiles, curve) for curve in curves)
    return median, low, high


def _falls_to_half(times: np.ndarray, probabilities: np.ndarray) -> float:
    below = np.flatnonzero(probabilities <= 0.5)
    return float(times[below[0]]) if len(below) else np.inf
