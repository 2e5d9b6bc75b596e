"""Interventions: how each changes conditioning and speed, compared with the chain."""

from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from skip_conditioning.figures.drawing import style
from skip_conditioning.figures.drawing.saving import NothingToDrawError

#: What an intervention does, and how its arms look.
KIND_STYLES = {
    "better conditioning without a skip": style.ArmStyle(style.PALETTE[0], "o", "-"),
    "another skip": style.ArmStyle(style.PALETTE[2], "D", "-"),
    "skip without better conditioning": style.ArmStyle(style.PALETTE[3], "s", "-"),
    "skip gain": style.ArmStyle(style.PALETTE[4], "^", "-"),
    "skip and better conditioning": style.ArmStyle(style.PALETTE[1], "v", "-"),
    "the skip itself": style.ArmStyle("0.15", "P", "-"),
}
_Ends = tuple[float, float]
#: Where a label is tried around its point: directions, and how far its nearest side is from the point.
_REACHES, _TURNS = np.repeat([5, 12, 22, 36, 54, 76, 100], 16), np.tile(np.arange(16) * np.pi / 8, 7)
_WAYS = np.column_stack([np.cos(_TURNS), np.sin(_TURNS)])
#: A label farther away gets a line that leads to it, in points.
_LEADER = 14


@matplotlib.rc_context(style.SETTINGS)
def intervention_effects(
    effects: pd.DataFrame, *, mediator: str, equivalent: float | None = None, smaller_is_better: bool = True
) -> Figure:
    """One point per arm: its conditioning and its slowness as ratios over the chain's, with intervals both ways.

    An arrow at the edge stands for a ratio of 0 or infinity, and for an end of an interval beyond the edge. Arms
    without one of the ratios are named below.

    Args:
        effects: Columns ``arm``, ``kind`` (of ``KIND_STYLES``), ``mediator_ratio``, ``speed_ratio``, ``_low`` and
            ``_high`` of each (NaN without an interval), ``mediator_is_bound`` (drawn hollow) and ``verdict``.
        mediator: Name of the measure of conditioning, for its axis.
        equivalent: Ratios of slowness from its inverse to it are shaded as no effect; None for no such band.
        smaller_is_better: Whether a smaller mediator is better conditioning.

    Raises:
        NothingToDrawError: No arm has both ratios.
    """
    known = effects[["mediator_ratio", "speed_ratio"]].notna().all(axis=1)
    if (rows := effects[known]).empty:
        raise NothingToDrawError("no arm has a ratio of conditioning and one of slowness over the chain's")
    band = max(equivalent or 1.0, 1.0)
    axis = (figure := style.new_figure(6.4)).subplots()
    across, along = _ends(rows, "mediator"), _ends(rows, "speed", band)
    style.log_axis(axis.xaxis, *across)
    style.log_axis(axis.yaxis, *along)
    axis.set(xlim=across, ylim=along)
    if band > 1:
        axis.axhspan(1 / band, band, color="0.93", linewidth=0, zorder=0, gid="equivalence band")
    axis.axvline(1, color="0.25", linewidth=0.9, zorder=1, gid="as the chain")
    axis.axhline(1, color="0.25", linewidth=0.9, zorder=1, gid="as the chain")
    axis.plot(1, 1, "+", color="0.15", markersize=11, markeredgewidth=1.6, zorder=3, gid=f"{style.HOVER}the chain")
    quadrants = _name_quadrants(axis, smaller_is_better)
    positions = [_draw(axis, row, mediator, across, along) for _, row in rows.iterrows()]
    label = fill(f"{mediator}, over the chain's (better to the {'left' if smaller_is_better else 'right'})", 95)
    if not known.all():
        label += "\n" + fill(f"without a ratio: {', '.join(map(str, effects.loc[~known, 'arm']))}", 110)
    axis.set_xlabel(label, parse_math=False)
    axis.set_ylabel("slowness over the chain's (faster below)")
    figure.legend(handles=_legend(axis, rows, band), loc="outside upper center", ncols=2, columnspacing=1.5)
    names = [fill(str(arm), 28, max_lines=2, placeholder=" …") for arm in rows["arm"]]
    _label(figure, axis, [("chain", (1.0, 1.0)), *zip(names, positions, strict=True)], quadrants)
    return figure


def _ends(rows: pd.DataFrame, side: str, band: float = 1.0) -> _Ends:
    """Ends of an axis around all points, as much of their intervals as leaves the points apart, and 1 off the edge."""
    points = _logs(rows[f"{side}_ratio"])
    low, high = min([*points, -np.log(band)]), max([*points, np.log(band)])
    reach = max(0.6 * (high - low), np.log(1.5))
    intervals = _logs(rows[[f"{side}_low", f"{side}_high"]]).clip(low - reach, high + reach)
    below, above = -min([low, *intervals, -0.1]), max([high, *intervals, 0.1])
    below, above = max(below, above / 3), max(above, below / 3)
    margin = 0.09 * (below + above)
    return float(np.exp(-below - margin)), float(np.exp(above + margin))


def _logs(ratios: pd.Series | pd.DataFrame) -> np.ndarray:
    values = ratios.to_numpy(float)
    return np.log(values[np.isfinite(values) & (values > 0)])


def _draw(axis: Axes, row: pd.Series, mediator: str, across: _Ends, along: _Ends) -> tuple[float, float]:
    """One arm; returns where its marker lies."""
    arm_style = KIND_STYLES[row["kind"]]
    bound = " (a bound)" if row["mediator_is_bound"] else ""
    hover = (
        f"{style.HOVER}{row['arm']}: {mediator} {_interval(row, 'mediator')}{bound}, slowness {_interval(row, 'speed')}"
        f" ({row['kind']}; {row['verdict']})"
    )
    x, y = float(np.clip(row["mediator_ratio"], *across)), float(np.clip(row["speed_ratio"], *along))
    for side, (first, last), arrows in (("mediator", across, "<>"), ("speed", along, "v^")):
        ends = np.clip([row[f"{side}_low"], row[f"{side}_high"]], first, last)
        if not np.isnan(ends).any():
            line = (ends, [y, y]) if side == "mediator" else ([x, x], ends)
            axis.plot(*line, color=arm_style.colour, linewidth=1.3, alpha=0.6, gid=hover, zorder=2)
        for end, arrow in zip((first, last), arrows, strict=True):
            position = (end, y) if side == "mediator" else (x, end)
            if end in ends or position == (x, y):
                axis.plot(*position, arrow, color=arm_style.colour, markersize=6, clip_on=False, gid=hover, zorder=3)
    if x not in across and y not in along:
        face, edge = ("white", arm_style.colour) if bound else (arm_style.colour, "white")
        axis.plot(
            x, y, arm_style.marker, markersize=8.5, markeredgewidth=1.6 if bound else 0.8, markerfacecolor=face,
            markeredgecolor=edge, gid=hover, zorder=4,
        )  # fmt: skip
    return x, y


def _interval(row: pd.Series, side: str) -> str:
    ratio, low, high = (style.digits(row[f"{side}_{part}"]) for part in ("ratio", "low", "high"))
    return f"×{ratio}" + ("" if "nan" in (low, high) else f" [{low}, {high}]")


def _name_quadrants(axis: Axes, smaller_is_better: bool) -> list[Text]:
    better, worse = (0.01, 0.99) if smaller_is_better else (0.99, 0.01)
    corners = [
        (better, 0.015, "better conditioned\nand faster"), (worse, 0.015, "worse conditioned,\nyet faster"),
        (better, 0.985, "better conditioned,\nyet slower"), (worse, 0.985, "worse conditioned\nand slower"),
    ]  # fmt: skip
    return [
        axis.text(
            x, y, name, transform=axis.transAxes, color="0.5", fontsize=9, fontstyle="italic", zorder=1,
            ha="left" if x < 0.5 else "right", va="bottom" if y < 0.5 else "top",
        )
        for x, y, name in corners
    ]  # fmt: skip


def _legend(axis: Axes, rows: pd.DataFrame, band: float) -> list[Artist]:
    point: dict[str, Any] = {"linestyle": "none", "markersize": 7}
    handles: list[Artist] = [
        style.key(kind, **point, color=arm_style.colour, marker=arm_style.marker)
        for kind, arm_style in KIND_STYLES.items()
        if (rows["kind"] == kind).any()
    ]
    if rows["mediator_is_bound"].any():
        look = point | {"markerfacecolor": "white", "markeredgewidth": 1.6}
        handles.append(style.key("hollow: conditioning is a bound", **look, color=style.GREY, marker="o"))
    if any(not line.get_clip_on() for line in axis.lines):
        handles.append(style.key("goes on beyond the axis", **point, color=style.GREY, marker=">"))
    if band > 1:
        handles.append(Patch(color="0.93", label=f"slowness counts as the same: {1 / band:.3g}–{band:.3g}"))
    return handles


def _label(figure: Figure, axis: Axes, points: list[tuple[str, tuple[float, float]]], fixed: list[Text]) -> None:
    """Write names beside points where they cover the least; the second round makes use of where others went."""
    look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "in_layout": False}
    ground = {"boxstyle": "square,pad=0.05", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
    labels = [
        axis.annotate(name, position, (0, 0), **look, fontsize=8.5, parse_math=False, zorder=5, bbox=ground)
        for name, position in points
    ]
    figure.draw_without_rendering()
    scale, line = (
        figure.dpi / 72,
        {"arrowstyle": "-", "color": style.GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 6},
    )
    markers = [line for line in axis.lines if np.size(line.get_xdata()) == 1]
    avoided = [*fixed, *axis.lines, *markers * 4]  # a covered marker counts five times as much as a bar
    obstacles = np.array([artist.get_window_extent().padded(1.5 * scale).extents for artist in avoided])
    frame, boxes = np.array([axis.get_window_extent().extents]), np.full((len(labels), 4), -1e9)
    for position, label in list(enumerate(labels)) * 2:
        anchor, size = axis.transData.transform(label.xy), np.array(label.get_window_extent().size)
        shifts = (size / 2 + _REACHES[:, None] * scale) * _WAYS
        spots = np.hstack([anchor + shifts - size / 2, anchor + shifts + size / 2])
        others = np.delete(boxes, position, axis=0)
        covered = _covered(spots, obstacles) + 3 * _covered(spots, others) - 9 * _covered(spots, frame)
        best = int(np.argmin(covered + _REACHES / 60))
        boxes[position] = spots[best]
        label.set_position(tuple(shifts[best] / scale))
    for label, box in zip(labels, boxes, strict=True):
        anchor = axis.transData.transform(label.xy)
        nearest = (np.clip(anchor, box[:2], box[2:]) - anchor) / scale
        if np.hypot(*nearest) > _LEADER:
            axis.annotate("", label.xy, tuple(nearest), **look, arrowprops=line, zorder=3)


def _covered(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How much of each box others cover: roots of shares, so that a thin line counts; ``(n, 4)`` and ``(m, 4)``."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sizes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.sqrt(np.clip(high - low, 0, None).prod(axis=-1) / sizes[:, None]).sum(axis=1)
