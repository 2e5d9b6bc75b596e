"""What a ridge plot of singular values shows: which layers and steps, on which axis, and the ridges."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from skip_conditioning.figures.drawing.axes import SigmaAxis
from skip_conditioning.figures.drawing.smoothing import smoothed
from skip_conditioning.figures.drawing.values import Values, pooled

#: Cells from end to end of an axis.
CELLS = 240
_MOST_LAYERS = 20
#: The axis holds all but this share of an arm's values at either end; what lies beyond is declared.
_TAIL = 0.005


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
    return [layers[place] for place in np.linspace(0, len(layers) - 1, _MOST_LAYERS).round().astype(int)]


def fitting_axis(rows: pd.DataFrame, log: bool) -> SigmaAxis:
    """The axis that holds the resolved values of all arms and steps of one layer, but for the last of their tails."""
    groups = [pooled(group) for _, group in rows.groupby(["arm", "step"])]
    floor_place = any(group.unresolved > 0 for group in groups)
    over = [Values(*(part[group.resolved] for part in group)) for group in groups if group.resolved.any()]
    if not over:
        return SigmaAxis(*((0.1, 1.0) if log else (0.0, 1.0)), log, floor_place)
    low, high = (choose(group.quantile(q) for group in over) for choose, q in ((min, _TAIL), (max, 1 - _TAIL)))
    if not log:
        return SigmaAxis(0.0, 1.05 * high, False, floor_place)
    # Never so narrow that a spectrum of one value would fill the axis.
    margin = max((high / low) ** 0.05, 3 / (high / low), 1.05)
    return SigmaAxis(low / margin, high * margin, True, floor_place)


def ridge_of(rows: pd.DataFrame, axis: SigmaAxis) -> Ridge:
    """The mean density of some spectra, each counting the same."""
    low, high = np.log10([axis.low, axis.high]) if axis.log else (axis.low, axis.high)
    edges = np.linspace(low, high, CELLS + 1)
    density, under, beyond = np.zeros(CELLS), 0.0, 0.0
    for _, row in rows.iterrows():
        shares = row["counts"] / row["counts"].sum()
        over = row["points"] > row["floor"]
        values, within = row["points"], over & (row["points"] >= axis.low) & (row["points"] <= axis.high)
        places = np.log10(values[within]) if axis.log else values[within]
        density += smoothed(places, shares[within], edges) / len(rows)
        under += float(shares[~over].sum()) / len(rows)
        beyond += float(shares[over & ~within].sum()) / len(rows)
    return Ridge(density, under, beyond)
