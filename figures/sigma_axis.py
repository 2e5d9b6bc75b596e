"""A horizontal axis of singular values, with a place of its own left of it for those under their floor."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from figures.style import log_ticks, number

#: Where values under their floor are drawn, as shares of the axis left of its low end.
_GAP, _WIDTH = 0.02, 0.10


@dataclass(frozen=True)
class SigmaAxis:
    """An axis and its place for values under their floor.

    Attributes:
        low: Where the axis begins, without that place.
        high: Where it ends.
        log: Whether it is logarithmic; then both ends are positive.
        floor_place: Whether there is a place for values under their floor.
    """

    low: float
    high: float
    log: bool
    floor_place: bool

    def columns(self, count: int) -> np.ndarray:
        """Edges of equal columns, side by side, in the place under the floor."""
        return self.at(np.linspace(-(_GAP + 0.9 * _WIDTH), -(_GAP + 0.1 * _WIDTH), count + 1))

    def at(self, share: float | np.ndarray) -> np.ndarray:
        """The value at a share of the way from ``low`` to ``high``; negative shares lie left of it."""
        if self.log:
            return self.low * (self.high / self.low) ** np.asarray(share)
        return self.low + (self.high - self.low) * np.asarray(share)

    def apply(self, axis: Axes, most_ticks: int | None = None) -> None:
        """Set scale, limits and ticks, and shade the place under the floor.

        Args:
            axis: What to set.
            most_ticks: How many labels a narrow panel has room for.
        """
        left = float(self.at(-(_GAP + _WIDTH))) if self.floor_place else self.low
        if not self.log and not self.floor_place and most_ticks is None:
            # Matplotlib's own ticks do.
            axis.set_xlim(self.low, self.high)
            return
        ticks = {tick: number(tick) for tick in self._ticks(most_ticks)}
        if self.floor_place:
            right = float(self.at(-_GAP))
            axis.axvspan(left, right, color="0.94", linewidth=0, zorder=0, gid="unresolved")
            # The label of the shade needs the room of a tick close to it.
            nearest = self.at(0.06 if most_ticks is None else 0.2)
            ticks = {tick: label for tick, label in ticks.items() if tick > nearest}
            ticks[float(self.at(-_GAP - _WIDTH / 2))] = "under\nfloor"
        axis.set_xscale("log" if self.log else "linear")
        axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axis.xaxis.set_major_formatter(FixedFormatter(list(ticks.values())))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(left, self.high)

    def _ticks(self, most: int | None) -> list[float]:
        if self.log:
            ticks = log_ticks(self.low, self.high)
        else:
            ticks = list(MaxNLocator(most or 5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high))
        ticks = [float(tick) for tick in ticks if self.low <= tick <= self.high]
        if not self.log or most is None or len(ticks) <= most:
            return ticks
        decades = [tick for tick in ticks if np.isclose(np.log10(tick) % 1, (0, 1)).any()]
        ticks = decades if len(decades) > 1 else ticks
        return ticks[:: -(-len(ticks) // most)]
