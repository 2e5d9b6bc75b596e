"""Bootstrap resamples of clusters: how often each is drawn, ranks in them, and the ends of intervals."""

import numpy as np
from scipy import stats


def resampled_counts(clusters: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each cluster is drawn in each bootstrap resample, shape ``(resamples, clusters)``, float64."""
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(float)


def percentiles(confidence: float, clusters: int) -> tuple[float, float]:
    """The quantiles of bootstrap estimates that are the ends of an interval, widened for few clusters.

    Resampling few clusters understates the spread by ``sqrt((n - 1) / n)`` and ignores that it is an estimate itself;
    Hesterberg's (2015, The American Statistician 69(4)) expanded percentiles make up for both as Student's t would.
    """
    t = stats.t.ppf((1 - confidence) / 2, clusters - 1)
    low = float(stats.norm.cdf(t * np.sqrt(clusters / (clusters - 1))))
    return low, 1 - low


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks, from 1 on, in samples that hold each value a number of times.

    Args:
        values: Shape ``(n,)``; may be infinite.
        weights: How often each sample holds each value, shape ``(samples, n)``.

    Returns:
        Shape ``(samples, n)``; meaningless where the weight is 0.
    """
    distinct, code = np.unique(values, return_inverse=True)
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(len(distinct)))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, code]
