"""Forest plot: ratios of paired comparisons with their intervals, one line each, around the line of no effect."""

from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from skip_conditioning.figures.drawing import style
from skip_conditioning.figures.drawing.saving import NothingToDrawError

_LINE_HEIGHT, _LABEL_WIDTH = 0.19, 36


@matplotlib.rc_context(style.SETTINGS)
def forest_plot(findings: pd.DataFrame, *, equivalent: float | None = None) -> Figure:
    """One line per finding that has a ratio, with its interval and its numbers beside it.

    An arrow at the edge stands for a ratio or an end of an interval that is infinite or 0.

    Args:
        findings: Columns ``what`` (words on the left), ``verdict``, ``ratio``, ``low`` and ``high`` (NaN without an
            interval), ``label`` (numbers on the right, as text).
        equivalent: Ratios from its inverse to it are shaded as no effect; None for no such band.

    Raises:
        NothingToDrawError: No finding has a ratio.
    """
    rows = findings[findings["ratio"].notna()].reset_index(drop=True)
    if rows.empty:
        raise NothingToDrawError("no finding has a ratio")
    names = [fill(name, _LABEL_WIDTH, max_lines=4, placeholder=" …") for name in rows["what"]]
    heights = np.array([max(2.2, name.count("\n") + 1.6) for name in names])
    figure = style.new_figure(1.1 + _LINE_HEIGHT * float(heights.sum()))
    axis = figure.subplots()
    middles = style.named_lines(axis, names, heights)
    low, high = _ends(rows[["ratio", "low", "high"]].to_numpy(float), equivalent)
    style.log_axis(axis.xaxis, low, high)
    axis.set(xlim=(low, high), xlabel="ratio (logarithmic axis)")
    if equivalent is not None and equivalent > 1:
        axis.axvspan(1 / equivalent, equivalent, color="0.9", linewidth=0, zorder=0, gid="equivalence band")
    axis.axvline(1, color="0.25", linewidth=0.9, zorder=1, gid="equal")
    for y, row in zip(middles, rows.itertuples(), strict=True):
        _draw(axis, float(y), row, (low, high))
    for y, label in zip(middles, rows["label"], strict=True):
        axis.text(
            1.03, y, label, transform=axis.get_yaxis_transform(), va="center", fontsize=9, parse_math=False,
        )  # fmt: skip
    handles = _legend(rows, equivalent)
    figure.legend(handles=handles, loc="outside upper center", ncols=style.legend_columns(handles), columnspacing=1.2)
    return figure


def _ends(values: np.ndarray, equivalent: float | None) -> tuple[float, float]:
    """Ends of an axis that holds every positive finite value, 1 and the band, with a margin."""
    seen = values[np.isfinite(values) & (values > 0)]
    band = equivalent or 1.05
    low, high = min([*seen, 1 / band]), max([*seen, band])
    margin = max((high / low) ** 0.08, 1.04)
    return low / margin, high * margin


def _draw(axis: Axes, y: float, row: object, ends: tuple[float, float]) -> None:
    ratio, low, high, verdict, what, label = (
        getattr(row, name) for name in ("ratio", "low", "high", "verdict", "what", "label")
    )
    arm_style = style.VERDICT_STYLES[verdict]
    hover = f"{style.HOVER}{what}: {label} ({verdict})"
    if not np.isnan([low, high]).any():
        axis.plot(
            np.clip([low, high], *ends), [y, y], color=arm_style.colour, linewidth=2, solid_capstyle="butt",
            gid=hover, zorder=2,
        )  # fmt: skip
    outside = [end for end, value in zip(ends, (low, high), strict=True) if value == (0 if end == ends[0] else np.inf)]
    outside += [ends[0]] if ratio <= 0 else [ends[1]] if np.isinf(ratio) else []
    for end in set(outside):
        arrow = "<" if end == ends[0] else ">"
        axis.plot(end, y, arrow, color=arm_style.colour, markersize=7, clip_on=False, gid=hover, zorder=3)
    if ends[0] <= ratio <= ends[1]:
        axis.plot(
            ratio, y, arm_style.marker, color=arm_style.colour, markersize=8, markeredgecolor="white",
            markeredgewidth=0.8, gid=hover, zorder=4,
        )  # fmt: skip


def _legend(rows: pd.DataFrame, equivalent: float | None) -> list[Artist]:
    handles: list[Artist] = [
        style.key(verdict, color=arm_style.colour, marker=arm_style.marker, linewidth=2, markersize=7)
        for verdict, arm_style in style.VERDICT_STYLES.items()
        if (rows["verdict"] == verdict).any()
    ]
    handles.append(style.key("equal", color="0.25", linewidth=0.9))
    if equivalent is not None and equivalent > 1:
        handles.append(Patch(color="0.9", label=f"counts as none: {1 / equivalent:.3g}–{equivalent:.3g}"))
    values = rows[["ratio", "low", "high"]].to_numpy(float)
    if (np.isinf(values) | (values <= 0)).any():
        handles.append(style.key("beyond any axis", linestyle="none", marker=">", color=style.GREY))
    return handles
