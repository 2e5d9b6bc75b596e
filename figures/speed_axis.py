"""The axis of speed: numbers below, and above them rows of their own for runs without one, slowest last."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from figures.style import log_ticks, number

#: Fates of runs without a number, from slow to slowest.
_ROWS = {"censored": "never", "diverged": "diverged"}


@dataclass(frozen=True)
class SpeedAxis:
    """Places runs on the axis of speed.

    Attributes:
        low: Smallest number; NaN if there is none.
        high: Largest number.
        log: Whether the axis is logarithmic.
        fates: Which rows without numbers there are, lowest first.
    """

    low: float
    high: float
    log: bool
    fates: tuple[str, ...]

    @classmethod
    def of(cls, points: pd.DataFrame, speed_measure: str) -> "SpeedAxis":
        """The axis for all points: logarithmic where they allow it and it says more."""
        low, high = float(points["speed"].min()), float(points["speed"].max())
        log = low > 0 and speed_measure not in ("auc_log_loss", "speed_rank")
        return cls(low, high, log, tuple(fate for fate in _ROWS if (points["fate"] == fate).any()))

    def place(self, points: pd.DataFrame) -> np.ndarray:
        """Where the points lie on the axis, in its units."""
        rows = {fate: self._row(rank) for rank, fate in enumerate(self.fates)}
        return points["speed"].fillna(points["fate"].map(rows)).to_numpy()

    def rank(self, points: pd.DataFrame) -> np.ndarray:
        """Numbers in the order of slowness; runs that share a row are tied."""
        rows = {"censored": np.nextafter(np.inf, 0), "diverged": np.inf}
        return points["speed"].fillna(points["fate"].map(rows)).to_numpy()

    def apply(self, axis: Axes) -> None:
        """Set scale, limits and ticks, and shade the rows."""
        axis.set_yscale("log" if self.log else "linear")
        empty = np.isnan(self.low)
        edge, top = self._at(1.08), self._at(1.08 + 0.15 * len(self.fates))
        bottom = edge if empty else self._at(-0.08)
        if self.fates:
            axis.axhspan(edge, top, color="0.94", linewidth=0, zorder=0)
        found = log_ticks(bottom, edge) if self.log else MaxNLocator(5).tick_values(bottom, edge)
        ticks = [] if empty else [float(tick) for tick in found if bottom <= tick <= edge]
        rows = [self._row(rank) for rank in range(len(self.fates))]
        axis.yaxis.set_major_locator(FixedLocator([*ticks, *rows]))
        axis.yaxis.set_major_formatter(FixedFormatter([*map(number, ticks), *(_ROWS[fate] for fate in self.fates)]))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(bottom, top)

    def _row(self, rank: int) -> float:
        return self._at(1.155 + 0.15 * rank)

    def _at(self, share: float) -> float:
        """The value at a share of the way from ``low`` to ``high``, on the axis's scale."""
        if np.isnan(self.low):
            return share
        if self.log:
            return self.low * float(np.exp(share * max(np.log(self.high / self.low), 0.5)))
        return self.low + share * (self.high - self.low or 1.0)
