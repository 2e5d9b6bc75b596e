"""How the curvature of the loss grows with the parameters, with and without normalisation."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.style import GREY, SETTINGS, ArmStyle, arm_styles, log_axis, new_figure, number

_DASHED = (0, (3, 1.5))
#: Decades left free above the curves for the exponents, as a share of those that the curves take.
_HEADROOM = 0.5


@matplotlib.rc_context(SETTINGS)
def curvature_growth(table: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """``‖∇²ℓ(rθ)‖`` against r, log-log; a row for each cost and activation, a column for each choice of what is scaled.

    One colour per normaliser; dashed, where it differs, the effective norm, in units of the weights' length. Exponents
    of both stand in each panel, the effective one in parentheses. Norms that have not converged are not drawn, but
    counted.

    Args:
        table: ``curvature_growth.parquet``: columns ``normaliser, activation, cost, scaled, r, norm, effective_norm,
            converged``.
        fits: ``curvature_growth_fits.parquet``: a row for each curve, with ``exponent``, ``effective_exponent`` and
            ``unresolved``.

    Raises:
        NothingToDrawError: The table has no positive norm that has converged.
    """
    table = table[(table["norm"] > 0) & table["converged"]]
    if table.empty:
        raise NothingToDrawError("the table of curvature holds no positive norm that has converged; choose smaller r")
    styles = arm_styles(sorted(table["normaliser"].unique()))
    rows = list(table[["cost", "activation"]].drop_duplicates().itertuples(index=False, name=None))
    columns = list(table["scaled"].unique())
    figure = new_figure(0.9 + 2.5 * len(rows))
    axes = figure.subplots(len(rows), len(columns), sharex=True, squeeze=False)
    for (cost, activation), line in zip(rows, axes, strict=True):
        for scaled, axis in zip(columns, line, strict=True):
            curves, fitted = (
                frame[(frame["cost"] == cost) & (frame["activation"] == activation) & (frame["scaled"] == scaled)]
                for frame in (table, fits)
            )
            _draw(axis, curves, fitted, styles)
            unresolved = fitted["unresolved"].sum()
            note = f" ({unresolved} unresolved)" if unresolved else ""
            axis.set_title(f"{scaled} × r\n{cost}, {activation}{note}", fontsize=9)
    low, high = float(fits["r_low"].min()), float(fits["r_high"].max())
    figure.supxlabel(
        f"r (exponents p of the norm ~ r^p: least squares on {number(round(low, 1))} ≤ r ≤ {number(high)})", fontsize=10
    )
    figure.supylabel("norm of the Hessian", fontsize=10)
    handles = [
        Line2D([], [], color=GREY, linewidth=1.8, label="‖∇²ℓ‖, by normaliser"),
        Line2D(
            [],
            [],
            color=GREY,
            linewidth=1.4,
            linestyle=_DASHED,
            label="effective: in units of |w| (exponents in parentheses)",
        ),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _draw(axis: Axes, curves: pd.DataFrame, fits: pd.DataFrame, styles: dict[str, ArmStyle]) -> None:
    """One panel: a solid curve for each normaliser, a dashed one beside it where the effective norm differs."""
    for normaliser, curve in curves.groupby("normaliser"):
        style = styles[str(normaliser)]
        fit = fits[fits["normaliser"] == normaliser].iloc[0]
        label = f"{normaliser}: p = {_exponent(fit['exponent'])}"
        if not np.array_equal(curve["norm"], curve["effective_norm"]):
            label += f" ({_exponent(fit['effective_exponent'])})"
            axis.plot(curve["r"], curve["effective_norm"], color=style.colour, linestyle=_DASHED, linewidth=1.4)
        axis.plot(
            curve["r"], curve["norm"], color=style.colour, linewidth=1.8, marker=style.marker, markersize=4, label=label
        )
    norms = curves[["norm", "effective_norm"]].to_numpy()
    low, high = float(norms[norms > 0].min()), float(norms.max())
    top = max(high * (high / low) ** _HEADROOM, 100 * high)
    log_axis(axis.yaxis, low, top)
    axis.set_ylim(low / (top / low) ** 0.03, top)
    log_axis(axis.xaxis, float(curves["r"].min()), float(curves["r"].max()))
    axis.legend(loc="upper left", fontsize=7.5, borderaxespad=0.2, labelspacing=0.25)


def _exponent(value: float) -> str:
    return "unknown" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
