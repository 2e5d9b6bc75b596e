"""A ridge plot of singular values: its layers and steps, its axes, and its ridges, which are smoothed densities.

Values of a spectrum and nodes of a quadrature are smoothed in the same way.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from skip_conditioning.figures.drawing.axes import SigmaAxis
from skip_conditioning.figures.drawing.singular_values import SingularValues, pooled

#: Cells from end to end of an axis.
CELLS = 240
_MOST_LAYERS = 20
#: The axis holds all but this share of an arm's values at either end; what lies beyond is declared.
_TAIL = 0.005
#: A kernel reaches over this share of the points to either side, and at least over this number. Singular values repel
#: each other and nodes lie even more regularly, so few make a smooth curve: the nodes of 32 Lanczos steps join to one.
_REACH, _FEWEST = 1 / 32, 2
#: Standard deviation of a kernel over its reach.
_WIDTH = 0.75
#: Least and largest standard deviation, as shares of the axis: a point on its own stays a visible peak.
_NARROWEST, _WIDEST = 0.012, 0.08
#: More points than this are joined with their neighbours first, which no curve shows.
_MOST_POINTS = 512


@dataclass(frozen=True)
class Ridge:
    """One arm at one step.

    Attributes:
        density: Per decade (logarithmic axis) or per unit, in equal cells from end to end of the axis.
        under: Share of the singular values under their floor.
        beyond: Share beyond the ends of the axis.
    """

    density: np.ndarray
    under: float
    beyond: float


def spread_steps(steps: np.ndarray, most: int) -> np.ndarray:
    """At most so many of some ascending steps, first and last among them, spread evenly in ``log(1 + step)``."""
    if len(steps) <= most:
        return steps
    scaled = np.log1p(steps - steps[0])
    free = np.ones(len(steps), bool)
    # The last target first, so that it gets the last step whatever the others take.
    for target in np.linspace(scaled[-1], 0, most) if most > 1 else [scaled[-1]]:
        free[np.argmin(np.where(free, np.abs(scaled - target), np.inf))] = False
    return steps[~free]


def spread_layers(layers: list[str]) -> list[str]:
    """All layers, or 20 of them spread evenly, first and last among them."""
    if len(layers) <= _MOST_LAYERS:
        return layers
    return [layers[position] for position in np.linspace(0, len(layers) - 1, _MOST_LAYERS).round().astype(int)]


def fitting_axis(rows: pd.DataFrame, log: bool) -> SigmaAxis:
    """The axis that holds the resolved values of all arms and steps of one layer, but for the last of their tails."""
    groups = [pooled(group) for _, group in rows.groupby(["arm", "step"])]
    has_strip = any(group.unresolved > 0 for group in groups)
    over = [SingularValues(*(part[group.resolved] for part in group)) for group in groups if group.resolved.any()]
    if not over:
        return SigmaAxis(*((0.1, 1.0) if log else (0.0, 1.0)), log, has_strip)
    low, high = (choose(group.quantile(q) for group in over) for choose, q in ((min, _TAIL), (max, 1 - _TAIL)))
    if not log:
        return SigmaAxis(0.0, 1.05 * high, False, has_strip)
    # Never so narrow that a spectrum of one value would fill the axis.
    margin = max((high / low) ** 0.05, 3 / (high / low), 1.05)
    return SigmaAxis(low / margin, high * margin, True, has_strip)


def ridge_of(rows: pd.DataFrame, axis: SigmaAxis) -> Ridge:
    """The mean density of some spectra, each counting the same."""
    low, high = np.log10([axis.low, axis.high]) if axis.log else (axis.low, axis.high)
    edges = np.linspace(low, high, CELLS + 1)
    density, under, beyond = np.zeros(CELLS), 0.0, 0.0
    for _, row in rows.iterrows():
        shares = row["counts"] / row["counts"].sum()
        over = row["points"] > row["floor"]
        values, within = row["points"], over & (row["points"] >= axis.low) & (row["points"] <= axis.high)
        positions = np.log10(values[within]) if axis.log else values[within]
        density += smoothed(positions, shares[within], edges) / len(rows)
        under += float(shares[~over].sum()) / len(rows)
        beyond += float(shares[over & ~within].sum()) / len(rows)
    return Ridge(density, under, beyond)


def smoothed(points: np.ndarray, shares: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Density of weighted points, each spread by a Gaussian about as wide as its neighbours are away.

    No share is lost at the ends: what a kernel would put beyond them lies within. A quadrature does not resolve what
    lies between nodes, so neither does the curve: on a logarithmic axis its low end is a guess as wide as a kernel.

    Args:
        points: Where they lie on the axis (for a logarithmic one: their logarithms), between its ends.
        shares: What each weighs, same shape ``(n,)``.
        edges: Ascending, equally spaced, shape ``(cells + 1,)``.

    Returns:
        The density in each cell, shape ``(cells,)``; its integral is the sum of the shares.
    """
    cell = edges[1] - edges[0]
    if not len(points):
        return np.zeros(len(edges) - 1)
    order = np.argsort(points)
    points, shares = _joined(points[order], shares[order])
    middles = (edges[1:] + edges[:-1]) / 2
    widths = kernel_widths(points, edges[-1] - edges[0])
    kernels = np.exp(-0.5 * ((middles - points[:, None]) / widths[:, None]) ** 2)
    return (shares / kernels.sum(axis=1) / cell) @ kernels


def kernel_widths(points: np.ndarray, span: float) -> np.ndarray:
    """Standard deviation of the kernel of each of some ascending points on an axis of the given length."""
    reach = max(_FEWEST, round(_REACH * len(points)))
    positions = np.arange(len(points))
    low, high = np.maximum(positions - reach, 0), np.minimum(positions + reach, len(points) - 1)
    distances = (points[high] - points[low]) * reach / np.maximum(high - low, 1)
    return np.clip(_WIDTH * distances, _NARROWEST * span, _WIDEST * span)


def _joined(points: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``_MOST_POINTS`` points, each the mean of neighbours."""
    if len(points) <= _MOST_POINTS:
        return points, shares
    starts = np.linspace(0, len(points), _MOST_POINTS, endpoint=False).astype(int)
    sums = np.add.reduceat(shares, starts)
    weighted = np.add.reduceat(points * shares, starts)
    means = np.add.reduceat(points, starts) / np.diff([*starts, len(points)])
    return np.divide(weighted, sums, out=means, where=sums > 0), sums
