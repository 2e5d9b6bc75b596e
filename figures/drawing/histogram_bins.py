"""Bins of singular values: linear as in the paper, or logarithmic with a place for values under their floor."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.figures.drawing.axes import SigmaAxis
from skip_conditioning.figures.drawing.singular_values import SingularValues, weighted_quantile

SCALES = ("auto", "linear", "log")
#: How many times the 5 % quantile the 95 % quantile must be for logarithmic bins. A square random matrix, whose
#: spectrum reaches 0, has 22; a deep chain has thousands.
_LOG_RATIO = 100


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
