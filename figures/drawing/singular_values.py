"""Singular values of table rows: all of them, or the nodes of a quadrature, each of which stands for many; and bins.

Bins are linear as in the paper, or logarithmic with a place for values under their floor.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.figures.drawing.axes import SigmaAxis

SCALES = ("auto", "linear", "log")
#: How many times the 5 % quantile the 95 % quantile must be for logarithmic bins. A square random matrix, whose
#: spectrum reaches 0, has 22; a deep chain has thousands.
_LOG_RATIO = 100


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


@dataclass(frozen=True)
class Bins:
    """Edges, and what becomes of values that fit between none.

    Attributes:
        edges: Ascending, shape ``(bins + 1,)``.
        log: Whether edges and axis are logarithmic; then values under their floor have a place of their own.
        some_unresolved: Whether there are such values.
    """

    edges: np.ndarray
    log: bool
    some_unresolved: bool

    @classmethod
    def of(
        cls, arms: Iterable[SingularValues], bins: int, range: tuple[float, float] | None = None, scale: str = "auto"
    ) -> "Bins":
        """Bins for the values of all arms.

        Args:
            arms: The values.
            bins: How many.
            range: Lowest and highest edge; by default from 0 (logarithmic: from the smallest resolved value) to
                where the data end.
            scale: ``linear``, ``log``, or ``auto``: logarithmic where the 95 % quantile of the resolved values of
                all arms is more than 100 times the 5 % quantile (and a given range begins above 0).

        Raises:
            InputError: A logarithmic scale is asked for and there is no positive value, or the range reaches 0.
        """
        arms = list(arms)
        resolved = np.concatenate([arm.values[arm.resolved] for arm in arms])
        if scale == "log" and not (len(resolved) if range is None else range[0] > 0):
            raise InputError("logarithmic bins need positive ends; choose --scale linear or another --range")
        log = scale == "log" or (scale == "auto" and spans_decades(arms) and (range is None or range[0] > 0))
        some_unresolved = not all(arm.resolved.all() for arm in arms)
        if log:
            low, high = range or (float(resolved.min()), float(resolved.max()))
            return cls(np.geomspace(low, high if high > low else 2 * low, bins + 1), True, some_unresolved)
        low, high = range or (0.0, _upper_end(arms))
        return cls(np.linspace(low, high, bins + 1), False, some_unresolved)

    @property
    def axis(self) -> SigmaAxis:
        """The horizontal axis: linear bins need no place under the floor, as they reach 0."""
        return SigmaAxis(float(self.edges[0]), float(self.edges[-1]), self.log, self.log and self.some_unresolved)

    def count(self, arm: SingularValues) -> tuple[np.ndarray, float]:
        """Values in each bin, and how many have the place under the floor; the rest lies beyond the axis."""
        if not self.log:
            return np.histogram(arm.values, self.edges, weights=arm.counts)[0], 0.0
        over = arm.resolved
        return np.histogram(arm.values[over], self.edges, weights=arm.counts[over])[0], arm.unresolved


def spans_decades(arms: Iterable[SingularValues], ratio: float = _LOG_RATIO) -> bool:
    """Whether the resolved values of all arms together spread so far that only a logarithmic axis shows them.

    Args:
        arms: The values.
        ratio: How many times their 5 % quantile the 95 % quantile must be.
    """
    arms = list(arms)
    values = np.concatenate([arm.values[arm.resolved] for arm in arms])
    counts = np.concatenate([arm.counts[arm.resolved] for arm in arms])
    if not len(values):
        return False
    low, high = (weighted_quantile(values, counts, share) for share in (0.05, 0.95))
    return bool(high > ratio * low)


def _upper_end(arms: list[SingularValues]) -> float:
    """Where the data end, or where 99 % of every arm's do if the rest would squeeze them into a few bins."""
    largest = max(float(np.max(arm.values)) for arm in arms)
    bulk = max(arm.quantile(0.99) for arm in arms)
    return (largest if largest < 1.5 * bulk else bulk) or 1.0
