"""Gradient descent towards an optimum at infinity: loss and norm of the parameters against steps, per arm.

Every initialisation is a line; dashed, the loss that is guaranteed. With cross-entropy the loss falls like a power of
the steps while the norm grows without end; with the mean square there is an optimum nearby.
"""

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.style import GREY, SETTINGS, ArmStyle, arm_styles, log_axis, new_figure

_COSTS = ("cross-entropy", "mean square")
#: A loss or guarantee below this has converged to rounding, and is drawn here.
_SMALLEST = 1e-16


@matplotlib.rc_context(SETTINGS)
def convergence_at_infinity(table: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Loss with its guarantee for both costs, and ``|θ|`` with cross-entropy; one row of panels per data set.

    Args:
        table: ``convergence.parquet``: ``dataset, cost, arm, gain, initialisation, step, loss, guarantee,
            parameter_norm``, among others.
        fits: ``convergence_fits.parquet``, whose exponents of cross-entropy stand in the legend, with the range over
            initialisations: those of the first data set.

    Raises:
        NothingToDrawError: The table is empty.
    """
    if table.empty:
        raise NothingToDrawError("no run of the convergence experiment was logged")
    table, fits = (frame.assign(label=_labels(frame)) for frame in (table, fits))
    styles = arm_styles(table["label"])
    datasets = list(dict.fromkeys(table["dataset"]))
    figure = new_figure(1.1 + 2.8 * len(datasets))
    for axes, dataset in zip(figure.subplots(len(datasets), 3, squeeze=False), datasets, strict=True):
        runs = table[table["dataset"] == dataset]
        for axis, cost in zip(axes, _COSTS, strict=False):
            _draw(axis, runs[runs["cost"] == cost], styles, "loss")
            axis.set(title=f"{dataset}, {cost}", ylabel="loss")
        _draw(axes[2], runs[runs["cost"] == _COSTS[0]], styles, "parameter_norm")
        axes[2].set(title=f"{dataset}, {_COSTS[0]}", ylabel="norm of the parameters |θ|")
    for axis in figure.axes[-3:]:
        axis.set_xlabel("step")
    handles = _legend(styles, fits[(fits["dataset"] == datasets[0]) & (fits["cost"] == _COSTS[0])])
    figure.legend(
        handles=handles, loc="outside upper center", ncols=3, title_fontsize=9,
        title=f"fitted to {datasets[0]}, {_COSTS[0]}: loss $\\propto$ step$^{{-p}}$ over the last decade of steps",
    )  # fmt: skip
    return figure


def _labels(frame: pd.DataFrame) -> pd.Series:
    """The arm; of runs with less than the largest gain of that arm, the gain as well."""
    largest = frame.groupby("arm")["gain"].transform("max")
    small = frame["arm"] + frame["gain"].map(", γ = {:.2g}".format)
    return frame["arm"].where(frame["gain"] == largest, small)


def _draw(axis: Axes, runs: pd.DataFrame, styles: Mapping[str, ArmStyle], quantity: str) -> None:
    """Lines of all runs against steps, both logarithmic, and the guarantees of losses; step 0 is left out."""
    runs = runs[(runs["step"] > 0) & np.isfinite(runs[quantity])]
    for _, run in runs.groupby(["label", "initialisation"], sort=False):
        colour = styles[run["label"].iloc[0]].colour
        axis.plot(run["step"], run[quantity].clip(lower=_SMALLEST), color=colour, linewidth=1, alpha=0.8)
        if quantity == "loss":
            guarantee = run["guarantee"].clip(lower=_SMALLEST)
            axis.plot(run["step"], guarantee, color=colour, linewidth=0.8, alpha=0.6, linestyle=(0, (4, 2)))
    if len(runs):
        log_axis(axis.xaxis, 1, float(runs["step"].max()))
        axis.xaxis.set_major_locator(LogLocator(numticks=4))  # three panels leave little room
        low, high = axis.dataLim.intervaly
        log_axis(axis.yaxis, low, high)


def _legend(styles: Mapping[str, ArmStyle], fits: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = []
    for label, style in styles.items():
        exponents = fits.loc[fits["label"] == label, "exponent"]
        fitted = f", p = {exponents.min():.2f} to {exponents.max():.2f}" if len(exponents) else ""
        handles.append(Line2D([], [], color=style.colour, linewidth=1.5, label=f"{label}{fitted}"))
    return [*handles, Line2D([], [], color=GREY, linestyle=(0, (4, 2)), label="guaranteed loss")]
