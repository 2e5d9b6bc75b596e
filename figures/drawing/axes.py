"""Axes that several figures share: of singular values, of speed, and of measured steps.

Each is made from what it has to show, places values, and sets scale, limits and ticks of a panel.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from skip_conditioning.figures.drawing.style import log_ticks, number

#: Where values under their floor are drawn, as shares of the axis left of its low end.
_GAP, _WIDTH = 0.02, 0.10
#: Labels of the rows of runs of runs without a number, from slow to slowest.
_ROWS = {"censored": "never", "diverged": "diverged"}


@dataclass(frozen=True)
class SigmaAxis:
    """A horizontal axis of singular values, with a strip left of it for those under their floor.

    Attributes:
        low: Where the axis begins, without that strip.
        high: Where it ends.
        log: Whether it is logarithmic; then both ends are positive.
        has_strip: Whether there is a strip for values under their floor.
    """

    low: float
    high: float
    log: bool
    has_strip: bool

    def columns(self, count: int) -> np.ndarray:
        """Edges of equal columns, side by side, in the strip under the floor; shape ``(count + 1,)``."""
        return self.at(np.linspace(-(_GAP + 0.9 * _WIDTH), -(_GAP + 0.1 * _WIDTH), count + 1))

    def at(self, share: float | np.ndarray) -> np.ndarray:
        """The value at a share of the way from ``low`` to ``high``; negative shares lie left of it."""
        if self.log:
            return self.low * (self.high / self.low) ** np.asarray(share)
        return self.low + (self.high - self.low) * np.asarray(share)

    def apply(self, axis: Axes, most_ticks: int | None = None) -> None:
        """Set scale, limits and ticks, and shade the strip under the floor.

        Args:
            axis: The panel.
            most_ticks: Labels that a narrow panel has room for.
        """
        left = float(self.at(-(_GAP + _WIDTH))) if self.has_strip else self.low
        if not self.log and not self.has_strip and most_ticks is None:
            # Matplotlib's own ticks will do.
            axis.set_xlim(self.low, self.high)
            return
        ticks = {tick: number(tick) for tick in self._ticks(most_ticks)}
        if self.has_strip:
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


@dataclass(frozen=True)
class SpeedAxis:
    """A vertical axis of speed, with a row above it for runs that never reached the threshold, and one for diverged.

    Attributes:
        low: Smallest number; NaN without any.
        high: Largest number.
        log: Whether the axis is logarithmic.
        fates: The rows that there are, lowest first.
    """

    low: float
    high: float
    log: bool
    fates: tuple[str, ...]

    @classmethod
    def of(cls, points: pd.DataFrame, speed_measure: str) -> "SpeedAxis":
        """The axis for all points: logarithmic for positive numbers, but linear for ranks and mean log-losses."""
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
        candidates = log_ticks(bottom, edge) if self.log else MaxNLocator(5).tick_values(bottom, edge)
        ticks = [] if empty else [float(tick) for tick in candidates if bottom <= tick <= edge]
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


@dataclass(frozen=True)
class StepAxis:
    """A horizontal axis of cells around measured steps: linear, or ``log(1 + step)`` where steps grow apart.

    Attributes:
        steps: Ascending, shape ``(n,)``.
    """

    steps: np.ndarray

    @property
    def linear(self) -> bool:
        """Whether a linear axis shows all cells."""
        gaps = np.diff(self.steps)
        return len(gaps) == 0 or bool(gaps.max() <= 4 * gaps.min())

    @property
    def edges(self) -> np.ndarray:
        """Edges of the cells, halfway between neighbouring steps on the axis's scale; shape ``(n + 1,)``."""
        scaled = self.steps.astype(float) if self.linear else np.log1p(self.steps)
        margin = np.diff(scaled).min() / 2 if len(scaled) > 1 else 0.5
        inner = (scaled[1:] + scaled[:-1]) / 2
        edges = np.concatenate([[scaled[0] - margin], inner, [scaled[-1] + margin]])
        return edges if self.linear else np.expm1(edges)

    @property
    def middles(self) -> np.ndarray:
        """Middles of the cells on the axis's scale; shape ``(n,)``."""
        edges = self.edges
        if self.linear:
            return (edges[1:] + edges[:-1]) / 2
        return np.expm1((np.log1p(edges[1:]) + np.log1p(edges[:-1])) / 2)

    @property
    def narrowest_cell(self) -> float:
        """Width of the narrowest cell, as a share of the axis."""
        widths = np.diff(self.edges if self.linear else np.log1p(self.edges))
        return float(widths.min() / widths.sum())

    def apply(self, axis: Axes) -> None:
        """Set scale, limits and ticks."""
        if self.linear:
            axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        else:
            axis.set_xscale("function", functions=(np.log1p, np.expm1))
            # Few enough that the labels of a narrow panel stay apart; on a long axis 1 would touch 0.
            decades = int(np.log10(self.steps[-1]))
            exponents = range(decades, 0, -((decades + 1) // 2)) if decades > 2 else range(decades, -1, -1)
            axis.xaxis.set_major_locator(FixedLocator([0, *(10**exponent for exponent in reversed(exponents))]))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axis.set_xlim(self.edges[0], self.edges[-1])
