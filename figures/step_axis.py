"""The step axis of a heat map: cells around measured steps, evenly or logarithmically spaced."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from figures.style import number


def evenly_spaced(steps: np.ndarray) -> bool:
    """Whether a linear axis shows all cells; else the axis is ``log(1 + step)``."""
    gaps = np.diff(steps)
    return len(gaps) == 0 or bool(gaps.max() <= 4 * gaps.min())


def cell_edges(steps: np.ndarray) -> np.ndarray:
    """Edges of the cells around ascending steps, halfway between neighbours on the axis's scale."""
    scaled = steps.astype(float) if evenly_spaced(steps) else np.log1p(steps)
    margin = np.diff(scaled).min() / 2 if len(scaled) > 1 else 0.5
    inner = (scaled[1:] + scaled[:-1]) / 2
    edges = np.concatenate([[scaled[0] - margin], inner, [scaled[-1] + margin]])
    return edges if evenly_spaced(steps) else np.expm1(edges)


def cell_middles(steps: np.ndarray) -> np.ndarray:
    """Middles of the cells around ascending steps, on the axis's scale."""
    edges = cell_edges(steps)
    if evenly_spaced(steps):
        return (edges[1:] + edges[:-1]) / 2
    return np.expm1((np.log1p(edges[1:]) + np.log1p(edges[:-1])) / 2)


def narrowest_cell(steps: np.ndarray) -> float:
    """Width of the narrowest cell around ascending steps, as a share of the axis."""
    edges = cell_edges(steps)
    widths = np.diff(edges if evenly_spaced(steps) else np.log1p(edges))
    return float(widths.min() / widths.sum())


def set_step_axis(axis: Axes, steps: np.ndarray) -> None:
    """Scale, limits and ticks for cells around ascending steps."""
    edges = cell_edges(steps)
    if evenly_spaced(steps):
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    else:
        axis.set_xscale("function", functions=(np.log1p, np.expm1))
        # Few enough that the labels of a narrow panel stay apart; on a long axis 1 would touch 0.
        decades = int(np.log10(steps[-1]))
        exponents = range(decades, 0, -((decades + 1) // 2)) if decades > 2 else range(decades, -1, -1)
        axis.xaxis.set_major_locator(FixedLocator([0, *(10**exponent for exponent in reversed(exponents))]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_xlim(edges[0], edges[-1])
