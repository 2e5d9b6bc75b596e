"""Spearman's rank correlation with a bootstrap interval that respects pairs, or why there is none."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, spearmanr

_RESAMPLES = 2000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ over runs.

    Attributes:
        rho: The coefficient, or None where it is undefined.
        low: Lower end of the interval, or None where there is none.
        high: Upper end.
        runs: Number of points.
        reason: Why ρ or its interval is missing; else empty.
    """

    rho: float | None
    low: float | None
    high: float | None
    runs: int
    reason: str = ""

    def __str__(self) -> str:
        if self.rho is None:
            return f"ρ undefined: {self.reason}"
        if self.low is None or self.high is None:
            return f"ρ = {_signed(self.rho)} (no interval: {self.reason})"
        return f"ρ = {_signed(self.rho)} [{_signed(self.low)}, {_signed(self.high)}]"


def rank_correlation(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> RankCorrelation:
    """Spearman's ρ with a 95 % percentile bootstrap interval over whole clusters.

    Runs of one trial share an initialisation and a data order, so they are not independent: whole trials are
    drawn, with replacement. Infinite values are ranked like any others.

    Args:
        x: Shape ``(n,)``.
        y: Shape ``(n,)``.
        clusters: What must be drawn together, such as the trial; shape ``(n,)``.
    """
    runs = len(x)
    if runs < 3:
        return RankCorrelation(None, None, None, runs, "fewer than 3 runs")
    if np.ptp(rankdata(x)) == 0 or np.ptp(rankdata(y)) == 0:
        return RankCorrelation(None, None, None, runs, f"no spread in {'x' if np.ptp(rankdata(x)) == 0 else 'y'}")
    rho = float(spearmanr(x, y).statistic)
    names, members = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        return RankCorrelation(rho, None, None, runs, "1 trial")
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    rhos = _weighted_rhos(x, y, drawn[:, members].astype(float))
    defined = rhos[np.isfinite(rhos)]
    if len(defined) < _RESAMPLES / 2:
        return RankCorrelation(rho, None, None, runs, "most resamples are constant")
    low, high = np.quantile(defined, [0.025, 0.975])
    return RankCorrelation(rho, float(low), float(high), runs)


def _weighted_rhos(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's ρ of samples that hold each point a number of times; NaN where one side is constant.

    Args:
        x: Shape ``(n,)``.
        y: Shape ``(n,)``.
        weights: How often each sample holds each point, shape ``(samples, n)``.
    """
    middle = weights.sum(axis=1, keepdims=True) / 2
    ranks_x, ranks_y = (weights @ _below(side).T - middle for side in (x, y))
    squares = np.sum(weights * ranks_x**2, axis=1) * np.sum(weights * ranks_y**2, axis=1)
    products = np.sum(weights * ranks_x * ranks_y, axis=1)
    return np.divide(products, np.sqrt(squares), out=np.full(len(weights), np.nan), where=squares > 0)


def _below(side: np.ndarray) -> np.ndarray:
    """Entry (i, j) is 1 where j lies below i and ½ where they are tied: its row sums are ranks, less ½."""
    return (side[None, :] < side[:, None]) + 0.5 * (side[None, :] == side[:, None])


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
