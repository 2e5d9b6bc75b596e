"""Sweep of learning rates: speed against the rate, arm by arm, and the rate that was chosen for each."""

from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from skip_conditioning.figures.drawing import style
from skip_conditioning.figures.drawing.saving import NothingToDrawError

#: More arms than this get a panel each.
_MOST_TOGETHER = 6
#: Share of the height left free above the lines; and the height, in inches, of a row of numbers of diverged runs.
_ROOM, _ROW = 0.08, 0.15

_Ends = tuple[float, float]


@matplotlib.rc_context(style.SETTINGS)
def learning_rate_sweep(sweep: pd.DataFrame, *, measure: str) -> Figure:
    """A line per arm with its interval and a star at the chosen rate; numbers on top count diverged runs.

    Up to six arms share a panel; more get one each, with the others in grey. The axis of the measure is logarithmic
    where its values are positive and differ by a factor of 5; an infinite value lies at the edge.

    Args:
        sweep: Columns ``arm, lr, median, low, high, diverged`` (a count), ``runs, is_best``.
        measure: Name of the measure, for its axis.

    Raises:
        NothingToDrawError: No arm has a finite median at a learning rate.
    """
    rows = sweep.astype(dict.fromkeys(("lr", "median", "low", "high"), float))
    rows = rows[np.isfinite(rows["lr"]) & (rows["lr"] > 0)]
    if not np.isfinite(rows["median"]).any():
        raise NothingToDrawError("no arm has a finite median at any learning rate")
    styles = style.arm_styles(rows["arm"])
    rows = rows.sort_values("lr", kind="stable")
    groups = [list(styles)] if len(styles) <= _MOST_TOGETHER else [[arm] for arm in styles]
    height = 3.4 if len(groups) == 1 else 1.35
    figure = style.new_figure(1.2 + (height + 0.3) * -(-len(groups) // 3))
    axes = style.panel_grid(figure, len(groups))
    rooms = [rows.loc[rows["arm"].isin(arms) & (rows["diverged"] > 0), "arm"].nunique() for arms in groups]
    ends = _set_axes(axes[0], rows, _ROOM + _ROW * max(rooms) / height)
    for axis, arms in zip(axes, groups, strict=True):
        for other, curve in rows[~rows["arm"].isin(arms)].groupby("arm", sort=False):
            axis.plot(curve["lr"], np.clip(curve["median"], *ends), color="0.83", linewidth=0.8, zorder=1, gid=other)
        for arm in arms:
            _draw(axis, rows[rows["arm"] == arm], arm, styles[arm], ends)
        _count_diverged(axis, rows, arms, styles, _ROW / height)
        if len(groups) > 1:
            axis.set_title(fill(str(arms[0]), 32, max_lines=2, placeholder=" …"), fontsize=9, parse_math=False)
    figure.supxlabel("learning rate", fontsize=10)
    figure.supylabel(fill(measure, 56), fontsize=10, parse_math=False)
    handles = _legend(rows, styles if len(groups) == 1 else {}, len(groups) > 1)
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if len(handles) > 4 else 4, columnspacing=1.5)
    return figure


def _set_axes(axis: Axes, rows: pd.DataFrame, room: float) -> _Ends:
    """Scales, limits and ticks of all panels, which share them; returns the ends between which values are drawn.

    Args:
        axis: One of the panels.
        rows: All rows of the sweep.
        room: Share of the height to leave free above the values.
    """
    values = rows[["median", "low", "high"]].to_numpy(float)
    medians = rows["median"].to_numpy(float)
    medians = medians[np.isfinite(medians)]
    spread = 2 * np.ptp(medians) or np.inf
    seen = values[np.isfinite(values) & (values >= medians.min() - spread) & (values <= medians.max() + spread)]
    log = bool((seen > 0).all() and seen.max() >= 5 * seen.min())
    low, high = (float(np.log(end)) if log else float(end) for end in (seen.min(), seen.max()))
    margin = 0.06 * (high - low) or abs(high) / 10 or 1.0
    low, high = low - margin, high + margin
    top = low + (high - low) / (1 - room)
    low, high, top = (float(np.exp(end)) if log else end for end in (low, high, top))
    if log:
        style.log_axis(axis.yaxis, low, top)
    axis.set_ylim(low, top)
    rates = np.unique(rows["lr"].to_numpy(float))
    factor = max((rates[-1] / rates[0]) ** 0.06, 1.1)
    style.log_axis(axis.xaxis, rates[0] / factor, rates[-1] * factor)
    axis.set_xlim(rates[0] / factor, rates[-1] * factor)
    if rates[-1] >= 10 * rates[0]:
        axis.xaxis.set_major_locator(LogLocator(subs=(1,), numticks=6))
    axis.xaxis.set_minor_locator(FixedLocator(list(rates)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    return low, high


def _draw(axis: Axes, curve: pd.DataFrame, arm: str, arm_style: style.ArmStyle, ends: _Ends) -> None:
    """One arm: interval, line, a point at each rate and a star at the chosen one."""
    low, middle, high = (np.clip(curve[name].to_numpy(float), *ends) for name in ("low", "median", "high"))
    axis.fill_between(curve["lr"], low, high, color=arm_style.colour, alpha=0.15, linewidth=0, zorder=2)
    axis.plot(curve["lr"], middle, color=arm_style.colour, linestyle=arm_style.line, linewidth=1.6, zorder=3, gid=arm)
    for y, (_, row) in zip(middle, curve.iterrows(), strict=True):
        numbers = [style.digits(row[name]) for name in ("median", "low", "high")]
        chosen, infinite = ", the chosen rate" if row["is_best"] else "", row["median"] == np.inf
        hover = (
            f"{style.HOVER}{arm}, learning rate {row['lr']:g}{chosen}: median {numbers[0]} [{numbers[1]}, {numbers[2]}]"
        )
        axis.plot(
            row["lr"], y, "*" if chosen else "^" if infinite else arm_style.marker,
            color=arm_style.colour, markersize=13 if chosen else 7 if infinite else 4.5,
            markeredgecolor="0.1" if chosen else "white", markeredgewidth=0.8 if chosen else 0.4,
            zorder=5 if chosen else 4, clip_on=False,
            gid=f"{hover}, {row['diverged']:g} of {row['runs']:g} runs diverged",
        )  # fmt: skip


def _count_diverged(
    axis: Axes, rows: pd.DataFrame, arms: list[str], styles: dict[str, style.ArmStyle], step: float
) -> None:
    """A row of numbers for each arm of a panel that has diverged runs, from the top."""
    diverged = rows[(rows["diverged"] > 0) & rows["arm"].isin(arms)]
    for rank, arm in enumerate(arm for arm in arms if (diverged["arm"] == arm).any()):
        if len(arms) > 1:
            axis.plot(
                1.015, 1 - (rank + 0.5) * step, styles[arm].marker, color=styles[arm].colour, markersize=5,
                transform=axis.transAxes, clip_on=False,
            )  # fmt: skip
        for _, row in diverged[diverged["arm"] == arm].iterrows():
            axis.text(
                row["lr"], 1 - rank * step, f"{row['diverged']:g}", transform=axis.get_xaxis_transform(), ha="center",
                va="top", fontsize=8, color=styles[arm].colour, fontweight="bold", gid=f"diverged {arm}",
            )  # fmt: skip


def _legend(rows: pd.DataFrame, styles: dict[str, style.ArmStyle], others: bool) -> list[Artist]:
    handles: list[Artist] = [
        style.key(
            fill(str(arm), 40, max_lines=2, placeholder=" …"),
            color=arm_style.colour, marker=arm_style.marker, markersize=5, linestyle=arm_style.line,
        )
        for arm, arm_style in styles.items()
    ]  # fmt: skip
    if others:
        handles.append(style.key("the other arms", color="0.83", linewidth=1.2))
    handles.append(Patch(color=style.GREY, alpha=0.25, linewidth=0, label="interval"))
    if rows["is_best"].any():
        edge = {"markeredgecolor": "0.1", "markeredgewidth": 0.8}
        handles.append(style.key("chosen rate", linestyle="none", marker="*", markersize=12, color=style.GREY, **edge))
    if (rows["median"] == np.inf).any():
        handles.append(style.key("infinite", linestyle="none", marker="^", color=style.GREY, markersize=7))
    if (rows["diverged"] > 0).any():
        label = f"diverged, of {style.counted(rows['runs'].astype(int).tolist(), 'run')}"
        handles.append(style.key(label, linestyle="none", marker="$2$", color=style.GREY, markersize=6))
    return handles
