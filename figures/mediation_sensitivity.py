"""Sensitivity of a mediated effect to unmeasured causes of both the mediator and the outcome."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.style import HOVER, PALETTE, SETTINGS, digits, new_figure

_BLUE, _RED = PALETTE[0], PALETTE[3]
#: The curve runs off the axis beyond so many times the larger of the total and the effect without confounding.
_REACH = 3.0


@matplotlib.rc_context(SETTINGS)
def mediation_sensitivity(curve: pd.DataFrame, *, total: float) -> Figure:
    """The indirect effect against the correlation ρ of the errors of mediator and outcome, which no run can measure.

    At ρ = 0 nothing unmeasured drives both. Where the curve crosses 0, so strong a confounder would explain the whole
    indirect effect; the correlations for which it keeps its sign are shaded.

    Args:
        curve: Columns ``rho`` and ``indirect``; rows without a finite value are left out.
        total: The total effect, in the same units; not drawn unless finite.

    Raises:
        NothingToDrawError: The curve has no finite value.
    """
    rows = curve[["rho", "indirect"]].astype(float).replace([np.inf, -np.inf], np.nan).dropna()
    rows = rows.sort_values("rho", kind="stable")
    if rows.empty:
        raise NothingToDrawError("the curve of sensitivity has no finite value")
    rho, indirect = rows["rho"].to_numpy(float), rows["indirect"].to_numpy(float)
    crossings = zero_crossings(rho, indirect)
    figure = new_figure(4.0)
    axis = figure.subplots()
    axis.axhline(0, color="0.25", linewidth=0.9, zorder=1, gid="zero")
    axis.plot(
        rho, indirect, color=_BLUE, linewidth=2, marker="o" if len(rho) == 1 else "", zorder=3, gid="indirect",
        label="indirect effect",
    )  # fmt: skip
    if np.isfinite(total):
        axis.axhline(
            total, color=_RED, linestyle=(0, (5, 2)), linewidth=1.5, zorder=2, gid="total",
            label=f"total effect {digits(total, 2)}",
        )  # fmt: skip
    if rho[0] <= 0 <= rho[-1]:
        _mark_unconfounded(axis, rho, indirect, crossings)
    axis.set_ylim(_ends(rho, indirect, total))
    _mark_crossings(axis, crossings)
    axis.set(xlabel="correlation ρ of the errors of conditioning and speed", ylabel="effect on speed")
    if not crossings.size:
        note = f"the indirect effect does not cross 0 from ρ = {digits(rho[0], 2)} to {digits(rho[-1], 2)}"
        axis.set_xlabel(f"{axis.get_xlabel()}\n({note})")
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.5)
    return figure


def zero_crossings(rho: np.ndarray, indirect: np.ndarray) -> np.ndarray:
    """Correlations at which the effect changes its sign or touches 0, ascending, linear between neighbours."""
    touched = rho[indirect == 0]
    before = np.flatnonzero(indirect[:-1] * indirect[1:] < 0)
    shares = indirect[before] / (indirect[before] - indirect[before + 1])
    return np.unique(np.concatenate([touched, rho[before] + shares * (rho[before + 1] - rho[before])]))


def _ends(rho: np.ndarray, indirect: np.ndarray, total: float) -> tuple[float, float]:
    """Ends of the axis: the whole curve, unless it grows so far that what matters would be flat."""
    sizes = np.abs([np.interp(0, rho, indirect), total if np.isfinite(total) else 0.0, np.median(np.abs(indirect))])
    reach = _REACH * float(sizes.max()) or 1.0
    values = np.clip([*indirect, 0.0, total if np.isfinite(total) else 0.0], -reach, reach)
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def _mark_unconfounded(axis: Axes, rho: np.ndarray, indirect: np.ndarray, crossings: np.ndarray) -> None:
    """The effect at ρ = 0, and the correlations around it for which it keeps its sign."""
    effect = float(np.interp(0, rho, indirect))
    low = max([rho[0], *crossings[crossings <= 0]])
    high = min([rho[-1], *crossings[crossings >= 0]])
    if effect and low < high:
        axis.axvspan(low, high, color="0.94", linewidth=0, zorder=0, label="keeps its sign", gid="keeps its sign")
    axis.plot(
        0, effect, "o", color=_BLUE, markersize=8, markeredgecolor="white", zorder=4,
        label=f"without confounding: {digits(effect, 2)}", gid=f"{HOVER}ρ = 0: indirect effect {digits(effect, 2)}",
    )  # fmt: skip


def _mark_crossings(axis: Axes, crossings: np.ndarray) -> None:
    """A diamond where the effect is 0, and the correlation beside the one nearest to ρ = 0."""
    for rho in crossings:
        axis.plot(
            rho, 0, "D", color="white", markeredgecolor="0.1", markeredgewidth=1.4, markersize=7, zorder=5,
            gid=f"{HOVER}indirect effect 0 at ρ = {digits(rho, 2)}",
        )  # fmt: skip
    if crossings.size:
        nearest = crossings[np.argmin(np.abs(crossings))]
        left, right = axis.get_xlim()
        side = -1 if nearest > (left + right) / 2 else 1
        axis.annotate(
            f"0 at ρ = {digits(nearest, 2)}", (nearest, 0), (10 * side, 9), textcoords="offset points",
            ha="right" if side < 0 else "left", va="bottom", gid="crossing",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
