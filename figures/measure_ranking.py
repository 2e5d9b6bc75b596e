"""Ranking of measures of conditioning by how well they predict speed on runs they have not seen."""

from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.style import HOVER, PALETTE, SETTINGS, key, named_lines, new_figure, percentage

_BLUE, _ORANGE = PALETTE[:2]
_SIGNIFICANT = 0.05
#: Skills below this are arrows at the edge.
_WORST = -1.0
_LINE_HEIGHT, _NAME_WIDTH = 0.165, 40
#: Measures shown at most.
_MOST = 25


@matplotlib.rc_context(SETTINGS)
def measure_ranking(ranking: pd.DataFrame) -> Figure:
    """One line per measure, the best on top: its skill with interval, and its skill on seeds that were left out.

    Measures without a skill are left out and counted. An arrow at the edge stands for a skill below −1 and for an
    infinite one.

    Args:
        ranking: Columns ``measure, skill, skill_low, skill_high`` (NaN without an interval), ``skill_seed_out``,
            ``p_corrected``, ``first_share`` (of resamples in which it ranks first).

    Raises:
        NothingToDrawError: No measure has a skill.
    """
    known = ranking[ranking["skill"].notna()].sort_values("skill", ascending=False, kind="stable")
    if known.empty:
        raise NothingToDrawError("no measure has a skill in predicting speed")
    rows = known.head(_MOST)
    names = [fill(str(name), _NAME_WIDTH, max_lines=2, placeholder=" …") for name in rows["measure"]]
    heights = np.array([name.count("\n") + 1.5 for name in names])
    figure = new_figure(1.45 + _LINE_HEIGHT * float(heights.sum()))
    axis = figure.subplots()
    middles = named_lines(axis, names, heights)
    ends = _ends(rows)
    axis.set_xlim(ends)
    axis.axvline(0, color="0.25", linewidth=0.9, zorder=1, gid="no better than the mean")
    for y, (_, row) in zip(middles, rows.iterrows(), strict=True):
        axis.axhline(y, color="0.92", linewidth=0.8, zorder=0)
        _draw(axis, float(y), row, ends)
    _write_columns(axis, middles, rows)
    axis.set_xlabel("skill in predicting speed" + _note(len(rows), len(known), len(ranking)))
    figure.legend(handles=_legend(rows, ends), loc="outside upper center", ncols=3, columnspacing=1.5)
    return figure


def _ends(rows: pd.DataFrame) -> tuple[float, float]:
    """Ends of an axis that holds every finite skill down to the worst worth showing, and 0."""
    values = rows[["skill", "skill_low", "skill_high", "skill_seed_out"]].to_numpy(float)
    seen = np.clip(values[np.isfinite(values)], _WORST, None)
    low, high = min([*seen, 0.0]), max([*seen, 0.0])
    margin = 0.05 * (high - low) or 0.1
    return float(low - margin), float(high + margin)


def _draw(axis: Axes, y: float, row: pd.Series, ends: tuple[float, float]) -> None:
    skill, low, high, seed_out = (float(row[f"skill{part}"]) for part in ("", "_low", "_high", "_seed_out"))
    hover = (
        f"{HOVER}{row['measure']}: skill {skill:.3g} [{low:.3g}, {high:.3g}], seeds left out {seed_out:.3g},"
        f" corrected p = {row['p_corrected']:.2g}, first in {_share(row['first_share'])} of resamples"
    )
    if not np.isnan([low, high]).any():
        axis.plot(
            np.clip([low, high], *ends), [y, y], color=_BLUE, linewidth=2, solid_capstyle="butt", gid=hover,
            zorder=2,
        )  # fmt: skip
    for value, colour, down in ((skill, _BLUE, 0.0), (low, _BLUE, 0.0), (high, _BLUE, 0.0), (seed_out, _ORANGE, 0.42)):
        if not np.isnan(value) and not ends[0] <= value <= ends[1]:
            edge, arrow = (ends[0], "<") if value < ends[0] else (ends[1], ">")
            axis.plot(edge, y + down, arrow, color=colour, markersize=6, clip_on=False, gid=hover, zorder=3)
    if ends[0] <= skill <= ends[1]:
        significant = row["p_corrected"] < _SIGNIFICANT
        axis.plot(
            skill, y, "o", color=_BLUE, markerfacecolor=_BLUE if significant else "white", markersize=7.5,
            markeredgewidth=1.5, gid=hover, zorder=4,
        )  # fmt: skip
    if ends[0] <= seed_out <= ends[1]:
        axis.plot(seed_out, y + 0.42, "^", color=_ORANGE, markersize=5, gid=hover, zorder=5)


def _write_columns(axis: Axes, middles: np.ndarray, rows: pd.DataFrame) -> None:
    """On the right of each line, in how many resamples the measure ranks first, and the corrected p."""
    look: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 9}
    columns = ((46, "ranks\nfirst", "first_share", _share), (102, "corrected\np", "p_corrected", _p_value))
    for shift, title, name, written in columns:
        axis.annotate(title, (1, 1), (shift, 3), xycoords="axes fraction", va="bottom", **look)
        for y, value in zip(middles, rows[name].to_numpy(float), strict=True):
            words = "–" if np.isnan(value) else written(value)
            axis.annotate(words, (1, y), (shift, 0), xycoords=axis.get_yaxis_transform(), va="center", **look)


def _share(value: float) -> str:
    return "< 1 %" if 0 < value < 0.01 else percentage(value)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _note(shown: int, known: int, all_rows: int) -> str:
    parts = [f"the best {shown} of {known} measures, {known - shown} left out"] if shown < known else []
    if known < all_rows:
        parts.append(f"{all_rows - known} without a skill not shown")
    return f"\n({'; '.join(parts)})" if parts else ""


def _legend(rows: pd.DataFrame, ends: tuple[float, float]) -> list[Artist]:
    handles: list[Artist] = []
    for label, face, chosen in (
        (f"corrected p < {_SIGNIFICANT}, with interval", _BLUE, rows["p_corrected"] < _SIGNIFICANT),
        ("not significant", "white", ~(rows["p_corrected"] < _SIGNIFICANT)),
    ):
        if chosen.any():
            look = {"marker": "o", "markerfacecolor": face, "markersize": 7.5, "markeredgewidth": 1.5}
            handles.append(key(label, color=_BLUE, linewidth=2, **look))
    if rows["skill_seed_out"].notna().any():
        label = "one seed left out at a time"
        handles.append(key(label, color=_ORANGE, linestyle="none", marker="^", markersize=5))
    handles.append(key("no better than the mean", color="0.25", linewidth=0.9))
    values = rows[["skill", "skill_low", "skill_high", "skill_seed_out"]].to_numpy(float)
    if ((values < ends[0]) | (values > ends[1])).any():
        handles.append(key("beyond the axis", color=_BLUE, linestyle="none", marker="<"))
    return handles
