"""Conditioning against speed, one curve for each family of arms that were tuned to equal conditioning."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.style import HOVER, PALETTE, SETTINGS, digits, key, log_axis, new_figure

_COLOURS, _MARKERS = [PALETTE[index] for index in (0, 3, 2, 1, 4)], "osD^v"
_TITLES = {"equal": "all arms at one learning rate", "best": "each arm at its own best rate"}


@matplotlib.rc_context(SETTINGS)
def matched_conditioning(curves: pd.DataFrame, *, conditioning: str) -> Figure:
    """One panel for each choice of learning rates, one line for each family; dashed for copies of equal ‖J‖_F.

    If conditioning alone drives speed, all lines are one. An interval that reaches infinity ends at the edge.

    Args:
        curves: Columns ``rate`` (``equal`` or ``best``), ``family``, ``is_copy``, ``arm``, ``conditioning``, ``steps``,
            ``steps_low``, ``steps_high``.
        conditioning: Name of the measure of conditioning, for its axis.

    Raises:
        NothingToDrawError: No arm has a finite number of steps.
    """
    shown = curves[np.isfinite(curves["steps"]) & (curves["steps"] > 0)]
    if shown.empty:
        raise NothingToDrawError("no arm reaches a threshold")
    families = list(dict.fromkeys(curves["family"]))
    rates = [rate for rate in _TITLES if (curves["rate"] == rate).any()]
    figure = new_figure(4.2)
    axes = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    ends = np.log(shown[["steps_low", "steps_high", "steps"]].to_numpy(float))
    finite = np.exp(ends[np.isfinite(ends)])
    for axis, rate in zip(axes, rates, strict=True):
        log_axis(axis.xaxis, 0.95 * shown["conditioning"].min(), 1.05 * shown["conditioning"].max())
        log_axis(axis.yaxis, 0.9 * finite.min(), 1.1 * finite.max())
        axis.set_title(_TITLES[rate])
        axis.set_xlabel(f"{conditioning} at initialisation")
        for number, family in enumerate(families):
            for is_copy in (False, True):
                rows = shown[(shown["rate"] == rate) & (shown["family"] == family) & (shown["is_copy"] == is_copy)]
                _draw(axis, rows.sort_values("conditioning"), number, is_copy)
    axes[0].set_ylabel("steps to the thresholds")
    handles = [
        key(family, color=_COLOURS[number % 5], marker=_MARKERS[number % 5], markersize=6)
        for number, family in enumerate(families)
    ]
    if curves["is_copy"].any():
        handles.append(
            key("dashed: ‖J‖_F equal too", color="0.4", linestyle=(0, (4, 2)), marker="o", markerfacecolor="white")
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=2, columnspacing=1.5)
    return figure


def _draw(axis: Axes, rows: pd.DataFrame, number: int, is_copy: bool) -> None:
    colour, marker = _COLOURS[number % 5], _MARKERS[number % 5]
    look = {"linestyle": (0, (4, 2)), "markerfacecolor": "white", "alpha": 0.8} if is_copy else {"linestyle": "-"}
    axis.plot(rows["conditioning"], rows["steps"], color=colour, marker=marker, markersize=5.5, linewidth=1.4, **look)
    bottom, top = axis.get_ylim()
    for _, row in rows.iterrows():
        low, high = np.clip([row["steps_low"], row["steps_high"]], bottom, top)
        hover = (
            f"{HOVER}{row['arm']}: {digits(row['conditioning'])}, {digits(row['steps'])} steps "
            f"[{digits(row['steps_low'])}, {digits(row['steps_high'])}]"
        )
        axis.plot([row["conditioning"]] * 2, [low, high], color=colour, linewidth=1.2, alpha=0.55, gid=hover)
