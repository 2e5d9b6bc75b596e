"""Medians and means, with their intervals: of log-ratios, some of them infinite, and of right-censored times."""

import warnings
from typing import Final

import numpy as np
from scipy import stats

_RESAMPLES: Final = 9999
# Stands for infinity where order statistics are averaged, which would make NaN of inf - inf; an average of it and any
# log-ratio is beyond the second number, no log-ratio is.
_INFINITE, _BEYOND = 1e300, 1e100


def median(values: np.ndarray) -> float:
    """Median of numbers, shape ``(n,)``, that may be infinite; NaN of none, 0 between -inf and inf."""
    return _unclip(np.median(np.clip(values, -_INFINITE, _INFINITE))) if len(values) else np.nan


def exact_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of the median between two order statistics: the sign test inverted, so that its coverage is exact.

    Args:
        values: Shape ``(n,)``; may be ±inf.
        confidence: Of the interval.

    Returns:
        Lower and upper end; ±inf where there are too few values for the coverage.
    """
    if not len(values):
        return -np.inf, np.inf
    interval = stats.quantile_test(values, q=0.0, p=0.5).confidence_interval(confidence)
    low, high = float(interval.low), float(interval.high)
    return (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)


def bootstrap_interval(values: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron & Tibshirani 1993, §13).

    Percentiles depend on the order of the resampled medians alone, so an end is ±inf where the medians of so many
    resamples are. (A correction for bias, as in BCa, would need finite influence values.)

    Args:
        values: Shape ``(n,)``; may be ±inf.
        confidence: Of the interval.
        seed: Of the resampling.

    Returns:
        Lower and upper end; NaN without values.
    """
    if not len(values):
        return np.nan, np.nan
    if len(np.unique(values)) == 1:
        return float(values[0]), float(values[0])
    with np.errstate(over="ignore"):  # in its standard error, which is not used
        interval = stats.bootstrap(
            (np.clip(values, -_INFINITE, _INFINITE),),
            np.median,
            confidence_level=confidence,
            n_resamples=_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return _unclip(interval.low), _unclip(interval.high)


def mean_interval(values: np.ndarray, confidence: float, seed: int) -> tuple[float, float, float]:
    """Mean and its bootstrap (BCa) interval.

    Args:
        values: Shape ``(n,)``.
        confidence: Of the interval.
        seed: Of the resampling.

    Returns:
        Mean, lower and upper end; NaN where a value is infinite or there is none.
    """
    if not len(values) or not np.isfinite(values).all():
        return np.nan, np.nan, np.nan
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        return mean, mean, mean
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=_RESAMPLES, rng=np.random.default_rng(seed)
    ).confidence_interval
    return mean, float(interval.low), float(interval.high)


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


def _unclip(value: float) -> float:
    return float(np.sign(value) * np.inf) if abs(value) > _BEYOND else float(value)
