"""Dose and response: conditioning and slowness against the gain of the skip, and against each other."""

from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.style import GREY, HOVER, PALETTE, SETTINGS, digits, log_axis, new_figure, number

_SIDES = ("mediator", "speed")
_BLUE = PALETTE[0]
#: Stands for the logarithm of infinity, so that quantiles are defined; beyond any axis.
_BEYOND = 300.0
#: Gains named beside their colours at most.
_MOST_NAMED = 16

_Ends = tuple[float, float]


@matplotlib.rc_context(SETTINGS)
def dose_response(doses: pd.DataFrame, *, mediator: str) -> Figure:
    """Conditioning and slowness against the gain α, by trial with quartiles, and slowness against conditioning.

    Quantiles are linear between logarithms. A value that is 0 or infinite lies at the edge of its logarithmic axis.

    Args:
        doses: Columns ``gain``, ``trial``, ``mediator`` and ``speed`` (slowness: less is faster).
        mediator: Name of the measure of conditioning, for its axes.

    Raises:
        NothingToDrawError: In rows with all columns no conditioning, or no slowness, is positive and finite.
    """
    numbers = doses.astype(dict.fromkeys(("gain", *_SIDES), float))
    runs = numbers.dropna(subset=["gain", *_SIDES]).sort_values("gain", kind="stable")
    positive = {side: runs.loc[np.isfinite(runs[side]) & (runs[side] > 0), side] for side in _SIDES}
    if any(values.empty for values in positive.values()):
        raise NothingToDrawError("no gain has a positive finite conditioning and slowness")
    ends = {side: _ends(values) for side, values in positive.items()}
    figure = new_figure(4.6)
    panels = figure.subplot_mosaic([["mediator", "both"], ["speed", "both"]], width_ratios=[1, 1.1])
    panels["speed"].sharex(panels["mediator"])
    panels["mediator"].tick_params(labelbottom=False)
    for side, name in zip(_SIDES, (mediator, "slowness"), strict=True):
        _draw_response(panels[side], runs, side, ends[side], name)
    panels["speed"].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    panels["speed"].set_xlabel("gain α of the skip")
    _draw_both(panels["both"], runs, ends, mediator)
    notes = []
    if any(len(values) < len(runs) for values in positive.values()):
        notes.append("at the edge of an axis: infinite or 0")
    if len(runs) < len(doses):
        notes.append(f"{len(doses) - len(runs)} of {len(doses)} runs lack a value and are not shown")
    if notes:
        figure.supxlabel("; ".join(notes), fontsize=9)
    figure.legend(handles=_legend(), loc="outside upper center", ncols=4, columnspacing=1.5)
    return figure


def _ends(values: pd.Series) -> _Ends:
    """Ends of an axis around positive values, with a margin."""
    low, high = float(values.min()), float(values.max())
    margin = max((high / low) ** 0.06, 1.05)
    return low / margin, high * margin


def _quartiles(values: np.ndarray) -> np.ndarray:
    """Lower quartile, median and upper quartile of numbers that may be infinite or 0."""
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log10(values), -_BEYOND, _BEYOND)
    quartiles = np.quantile(logs, [0.25, 0.5, 0.75])
    return np.where(quartiles > _BEYOND / 2, np.inf, np.where(quartiles < -_BEYOND / 2, 0, 10.0**quartiles))


def _draw_response(axis: Axes, runs: pd.DataFrame, side: str, ends: _Ends, name: str) -> None:
    """One side against the gain."""
    log_axis(axis.yaxis, *ends)
    axis.set_ylim(ends)
    axis.set_ylabel(fill(name, 28, max_lines=2, placeholder=" …"), parse_math=False)
    for trial, curve in runs.groupby("trial"):
        axis.plot(
            curve["gain"], np.clip(curve[side], *ends), color="0.72", linewidth=0.7, zorder=1,
            gid=f"{HOVER}trial {trial}",
        )  # fmt: skip
    gains = np.unique(runs["gain"].to_numpy(float))
    groups = [runs.loc[runs["gain"] == gain, side].to_numpy(float) for gain in gains]
    exact = np.array([_quartiles(values) for values in groups])
    low, middle, high = np.clip(exact, *ends).T
    axis.fill_between(gains, low, high, color=_BLUE, alpha=0.2, linewidth=0, zorder=2, gid="quartiles")
    axis.plot(gains, middle, color=_BLUE, linewidth=1.8, zorder=3, gid="median")
    for gain, values, quartiles, position in zip(gains, groups, exact, middle, strict=True):
        first, median, third = map(digits, quartiles)
        hover = f"{HOVER}α = {gain:g}: median {median}, quartiles {first} and {third}, {len(values)} runs"
        axis.plot(
            gain, position, "o", color=_BLUE, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6, zorder=4,
            clip_on=False, gid=hover,
        )  # fmt: skip


def _draw_both(axis: Axes, runs: pd.DataFrame, ends: dict[str, _Ends], mediator: str) -> None:
    """Slowness against conditioning, a point for each run and a larger one for the medians of each gain."""
    log_axis(axis.xaxis, *ends["mediator"])
    log_axis(axis.yaxis, *ends["speed"])
    axis.set(xlim=ends["mediator"], ylim=ends["speed"], ylabel="slowness")
    axis.set_xlabel(fill(mediator, 46), parse_math=False)
    gains = sorted(runs["gain"].unique())
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(gains)))
    middles = []
    for gain, shade in zip(gains, shades, strict=True):
        group = runs[runs["gain"] == gain]
        x, y = (np.clip(group[side].to_numpy(float), *ends[side]) for side in _SIDES)
        axis.scatter(x, y, s=16, color=[shade], linewidth=0, alpha=0.75, zorder=2, clip_on=False, gid=f"α = {gain:g}")
        exact = [_quartiles(group[side].to_numpy(float))[1] for side in _SIDES]
        middles.append([float(np.clip(value, *ends[side])) for value, side in zip(exact, _SIDES, strict=True)])
        axis.plot(
            *middles[-1], "o", color=shade, markersize=9.5, markeredgecolor="0.1", markeredgewidth=1.1, zorder=4,
            clip_on=False, gid=f"{HOVER}α = {gain:g}: median {mediator} {exact[0]:.3g}, slowness {exact[1]:.3g}",
        )  # fmt: skip
    axis.plot(*np.transpose(middles), color="0.1", linewidth=0.9, zorder=3, gid="medians")
    norm = BoundaryNorm(np.arange(len(gains) + 1) - 0.5, len(gains))
    named = range(0, len(gains), -(-len(gains) // _MOST_NAMED))
    bar = axis.figure.colorbar(ScalarMappable(norm, ListedColormap(shades)), ax=axis, ticks=list(named), aspect=30)
    bar.ax.set_yticklabels([number(float(gains[position])) for position in named])
    bar.ax.tick_params(which="both", length=0)
    bar.ax.set_title("α")
    bar.outline.set_visible(False)


def _legend() -> list[Artist]:
    return [
        Line2D([], [], color="0.72", linewidth=0.9, label="one trial"),
        Line2D([], [], color=_BLUE, marker="o", markersize=5.5, label="median"),
        Patch(color=_BLUE, alpha=0.2, linewidth=0, label="quartiles"),
        Line2D(
            [], [], color="0.1", marker="o", markerfacecolor=GREY, markersize=8, linewidth=0.9, label="medians of one α"
        ),
    ]
