"""Singular values of table rows: all of them, or the nodes of a quadrature, each of which stands for many."""

from typing import NamedTuple

import numpy as np
import pandas as pd


class SingularValues(NamedTuple):
    """Singular values of one arm, each with the floor under which it cannot be told from zero; shapes ``(n,)``.

    Attributes:
        values: Singular values, or nodes of quadratures.
        floors: Those of the spectra they belong to.
        counts: How many singular values each stands for; 1 unless it is a node.
    """

    values: np.ndarray
    floors: np.ndarray
    counts: np.ndarray

    @property
    def resolved(self) -> np.ndarray:
        """Which values lie over their floor."""
        return self.values > self.floors

    @property
    def size(self) -> float:
        """How many singular values there are."""
        return float(self.counts.sum())

    @property
    def unresolved(self) -> float:
        """How many of them lie under their floor."""
        return float(self.counts[~self.resolved].sum())

    def quantile(self, share: float) -> float:
        """The value below which a share of all lies."""
        return weighted_quantile(self.values, self.counts, share)


def with_points(spectra: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold singular values or a quadrature of their density, in one form.

    Args:
        spectra: Rows of the spectra table.

    Returns:
        Those rows with the columns ``points`` (descending) and ``counts`` (how many singular values each point
        stands for: 1, or a node's weight times ``min(rows, cols)``); both hold arrays.
    """
    kept = spectra[spectra["values"].notna() | spectra["nodes"].notna()]
    exact = kept["values"].notna()
    points = kept["values"].where(exact, kept["nodes"]).map(lambda values: np.asarray(values, float))
    sizes = np.minimum(kept["rows"], kept["cols"])
    rows = zip(exact, points, kept["weights"], sizes, strict=True)
    counts = [np.ones(len(nodes)) if whole else _counts(weights, size) for whole, nodes, weights, size in rows]
    return kept.assign(points=points, counts=pd.Series(counts, index=kept.index, dtype=object))


def pooled(rows: pd.DataFrame) -> SingularValues:
    """All points of some spectra, as from ``with_points``, with the floor of the spectrum each belongs to."""
    return SingularValues(
        np.concatenate(list(rows["points"])),
        np.repeat(rows["floor"].to_numpy(float), rows["points"].map(len)),
        np.concatenate(list(rows["counts"])),
    )


def weighted_quantile(values: np.ndarray, counts: np.ndarray, share: float) -> float:
    """The value below which a share of all lies; ``numpy.quantile`` where all count the same.

    Each value is taken for the middle of those it stands for, and between neighbours the quantile is linear.
    Below the middle of the smallest (above that of the largest) it is this value itself.
    """
    if np.ptp(counts) == 0:
        return float(np.quantile(values, share))
    order = np.argsort(values)
    values, counts = values[order], counts[order]
    middles = (np.cumsum(counts) - counts / 2) / counts.sum()
    return float(np.interp(share, middles, values))


def _counts(weights: np.ndarray, size: int) -> np.ndarray:
    weights = np.asarray(weights, float)
    return weights * (size / weights.sum())
