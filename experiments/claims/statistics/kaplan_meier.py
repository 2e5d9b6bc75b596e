"""Median of right-censored times (Kaplan & Meier 1958)."""

import warnings

import numpy as np
from scipy import stats


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
