"""Rank correlation of two quantities of runs with others held fixed, and its interval from resampled trials."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.experiments.claims.statistics.resampling import percentiles, resampled_counts, weighted_ranks

# A smaller share of a variance left by the other columns is rounding: they determine the quantity.
_NOTHING_LEFT = 1e-10


def partial_correlation(
    runs: pd.DataFrame,
    x: str,
    y: str,
    given: Sequence[str],
    *,
    cluster: str = "trial",
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Partial Spearman correlation of two columns: of their ranks' residuals on the ranks of the given columns.

    Infinite values rank at the ends, equal ones share their mean rank. The interval is between ``percentiles`` of the
    bootstrap over whole clusters (Davison & Hinkley 1997, §3.8), ranks being taken anew in each resample.

    Args:
        runs: One row per run.
        x: A numeric column.
        y: Another.
        given: Columns to hold fixed; without any it is Spearman's correlation.
        cluster: Column that names the independent units; the runs of each are resampled together.
        seed: Of the resampling.
        resamples: How many.
        confidence: Of the interval.

    Returns:
        Correlation, lower and upper end; all NaN where the given columns determine x or y.

    Raises:
        InputError: A column is unknown or holds NaN, x or y is constant, or there is only one cluster.
    """
    columns = [x, y, *given]
    _check(runs, columns, cluster)
    codes, labels = pd.factorize(runs[cluster], sort=True)
    values = runs[columns].to_numpy(dtype=float).T
    counts = resampled_counts(len(labels), resamples, np.random.default_rng(seed))
    estimate = float(_partial(values, np.ones((1, len(runs))))[0])
    if np.isnan(estimate):
        return np.nan, np.nan, np.nan
    low, high = np.nanquantile(_partial(values, counts[:, codes]), percentiles(confidence, len(labels)))
    return estimate, float(low), float(high)


def _partial(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Partial correlation of the ranks of rows 0 and 1 given the others, in each weighted sample."""
    ranks = np.stack([weighted_ranks(row, weights) for row in values], axis=1)
    share = (weights / weights.sum(axis=1, keepdims=True))[:, None]
    centred = (ranks - (share * ranks).sum(axis=-1, keepdims=True)) * np.sqrt(share)
    covariance = centred @ centred.swapaxes(1, 2)
    on_given = covariance[:, :2, 2:]
    # A pseudo-inverse, as given columns may determine each other.
    explained = on_given @ np.linalg.pinv(covariance[:, 2:, 2:], hermitian=True) @ on_given.swapaxes(1, 2)
    left = covariance[:, :2, :2] - explained
    variances = np.diagonal(left, axis1=1, axis2=2)
    kept = (variances > _NOTHING_LEFT * np.diagonal(covariance, axis1=1, axis2=2)[:, :2]).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(kept, left[:, 0, 1] / np.sqrt(variances.prod(axis=1)), np.nan).clip(-1, 1)


def _check(runs: pd.DataFrame, columns: Sequence[str], cluster: str) -> None:
    for name in (*columns, cluster):
        if name not in runs:
            raise InputError(f"no column {name!r}.{near_matches(name, map(str, runs.columns))}")
        if runs[name].isna().any():
            raise InputError(
                f"{name} is NaN in {int(runs[name].isna().sum())} of {len(runs)} runs; give a number for each"
            )
    for name in columns[:2]:
        if runs[name].nunique() < 2:
            raise InputError(f"{name} is the same in all runs and correlates with nothing")
    if runs[cluster].nunique() < 2:
        raise InputError(f"all runs are of one {cluster}; an interval needs several")
