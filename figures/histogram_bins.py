"""Bins of singular values: linear as in the paper, or logarithmic with a place for values under their floor."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from diagnostics.errors import InputError
from figures.style import log_ticks, number

SCALES = ("auto", "linear", "log")
#: How many times the 5 % quantile the 95 % quantile must be for logarithmic bins. A square random matrix, whose
#: spectrum reaches 0, has 22; a deep chain has thousands.
_LOG_RATIO = 100
#: Where values under their floor are drawn, as shares of the axis left of its smallest bin.
_GAP, _WIDTH = 0.02, 0.10


class Values(NamedTuple):
    """Singular values of one arm, each with the floor under which it cannot be told from zero; shapes ``(n,)``."""

    values: np.ndarray
    floors: np.ndarray

    @property
    def resolved(self) -> np.ndarray:
        """Which values lie over their floor."""
        return self.values > self.floors


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
        cls, arms: Iterable[Values], bins: int, range: tuple[float, float] | None = None, scale: str = "auto"
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
        log = scale == "log" or (scale == "auto" and _spans_decades(resolved) and (range is None or range[0] > 0))
        some_unresolved = not all(arm.resolved.all() for arm in arms)
        if log:
            low, high = range or (float(resolved.min()), float(resolved.max()))
            return cls(np.geomspace(low, high if high > low else 2 * low, bins + 1), True, some_unresolved)
        low, high = range or (0.0, _upper_end(arms))
        return cls(np.linspace(low, high, bins + 1), False, some_unresolved)

    def count(self, arm: Values) -> tuple[np.ndarray, int]:
        """Values in each bin, and how many have the place under the floor; the rest lies beyond the axis."""
        if not self.log:
            return np.histogram(arm.values, self.edges)[0], 0
        return np.histogram(arm.values[arm.resolved], self.edges)[0], int(np.sum(~arm.resolved))

    def unresolved_columns(self, count: int) -> np.ndarray:
        """Edges of equal columns, side by side, for the values of several arms under their floor."""
        return np.geomspace(self._left(_GAP + 0.9 * _WIDTH), self._left(_GAP + 0.1 * _WIDTH), count + 1)

    def set_axis(self, axis: Axes) -> None:
        """Scale, limits and ticks of the horizontal axis, and a shade behind the values under their floor."""
        low, high = float(self.edges[0]), float(self.edges[-1])
        if not self.log:
            axis.set_xlim(low, high)
            return
        ticks = {tick: number(tick) for tick in log_ticks(low, high)}
        if self.some_unresolved:
            left, right = self._left(_GAP + _WIDTH), self._left(_GAP)
            axis.axvspan(left, right, color="0.94", linewidth=0, zorder=0, gid="unresolved")
            # The label of the shade needs the room of a tick close to it.
            ticks = {tick: label for tick, label in ticks.items() if tick > self._left(-0.06)}
            ticks[float(np.sqrt(left * right))] = "under\nfloor"
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axis.xaxis.set_major_formatter(FixedFormatter(list(ticks.values())))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(self._left(_GAP + _WIDTH) if self.some_unresolved else low, high)

    def _left(self, share: float) -> float:
        """The place left of the smallest edge by a share of the axis."""
        return float(self.edges[0] * (self.edges[0] / self.edges[-1]) ** share)


def _spans_decades(resolved: np.ndarray) -> bool:
    if not len(resolved):
        return False
    low, high = np.quantile(resolved, [0.05, 0.95])
    return bool(high > _LOG_RATIO * low)


def _upper_end(arms: list[Values]) -> float:
    """Where the data end, or where 99 % of every arm's do if the rest would squeeze them into a few bins."""
    largest = max(float(np.max(arm.values)) for arm in arms)
    bulk = max(float(np.quantile(arm.values, 0.99)) for arm in arms)
    return (largest if largest < 1.5 * bulk else bulk) or 1.0
