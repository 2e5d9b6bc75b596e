"""The PŁ chain along training: the speed that the loss's gradient feels, between its floor and its ceiling."""

import textwrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.selection import chosen_lr, described_runs
from skip_conditioning.figures.drawing.style import GREY, SETTINGS, LineStyle, arm_styles, log_axis, new_figure

#: More arms side by side are not legible.
_MOST = 5

#: A column of the metrics table, whether it is divided by ``cost_grad_squared``, how its line looks, its label.
Line = tuple[str, bool, LineStyle, str]

#: What each row of panels shows, by the label of its axis.
_ROWS: dict[str, tuple[Line, ...]] = {
    "loss on the probe": (("loss", False, "-", "loss"),),
    "|∇ℓ|² / |∇c|²": (
        ("pl_ceiling", True, (0, (1, 1)), "ceiling ‖DF‖²"),
        ("grad_squared", True, "-", "|∇ℓ|² / |∇c|², the speed felt"),
        ("pl_floor_centred", True, (0, (5, 1.5)), "floor λ(DF) on centred outputs"),
        ("pl_floor", True, (0, (3, 1, 1, 1)), "floor λ(DF)"),
    ),
    "decrease in one step": (
        ("predicted_decrease", False, (0, (1, 1)), "decrease predicted by the gradient"),
        ("observed_decrease", False, "-", "decrease observed"),
    ),
}


#: How ``pl_verdict`` names a vacuous floor.
_VACUOUS = {"pl_floor": "PŁ floor (", "pl_floor_centred": "PŁ floor, centred ("}


@matplotlib.rc_context(SETTINGS)
def bounds_along_training(experiment: Experiment, *, lr: float | None = None, trial: int | None = None) -> Figure:
    """One column for each arm: its loss, ``λ(DF) ≤ |∇ℓ|²/|∇c|² ≤ ‖DF‖²``, and the decrease of each step.

    A line has a gap where its floor is vacuous (zero but for rounding), or where the loss rose instead of falling.

    Args:
        experiment: Runs logged with ``SpectrumMonitor(bounds=True)``; five arms at most are drawn.
        lr: The learning rate to show; by default the largest at which no run diverged.
        trial: The trial to show; by default the first.

    Raises:
        NothingToDrawError: No such run has bounds.
        InputError: No run has that learning rate.
    """
    rows = experiment.metrics[experiment.metrics["split"] == "probe"].dropna(subset=["pl_ceiling"])
    if rows.empty:
        raise NothingToDrawError("no bounds were logged; train with --bounds, or with bounds=True")
    _, runs = chosen_lr(described_runs(experiment), lr)
    runs = runs[runs["run_id"].isin(rows["run_id"])]
    runs = runs[runs["trial"] == (runs["trial"].min() if trial is None else trial)].drop_duplicates("arm")[:_MOST]
    if runs.empty:
        raise NothingToDrawError("the runs chosen have no bounds; choose another trial or learning rate")
    styles = arm_styles(runs["arm"])
    figure = new_figure(7.0)
    grid = figure.subplots(len(_ROWS), len(runs), sharex="col", sharey="row", squeeze=False)
    for axes, (label, lines) in zip(grid, _ROWS.items(), strict=True):
        axes[0].set_ylabel(label)
        for axis, run_id, style in zip(axes, runs["run_id"], styles.values(), strict=True):
            run = rows[rows["run_id"] == run_id].sort_values("step")
            for line in lines:
                _draw(axis, run, line, style.colour)
        _scale(axes)
    for axis, arm in zip(grid[0], runs["arm"], strict=True):
        axis.set_title("\n".join(textwrap.wrap(arm, 60 // len(runs) + 4)))
    for axis in grid[-1]:
        axis.set_xlabel("step")
    handles = [
        Line2D([], [], color=GREY, linestyle=style, label=label)
        for lines in _ROWS.values()
        if len(lines) > 1
        for _, _, style, label in lines
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw(axis: Axes, rows: pd.DataFrame, line: Line, colour: str) -> None:
    column, is_quotient, style, _ = line
    values = rows[column].astype(float)
    if is_quotient:
        values = values / rows["cost_grad_squared"]
    if column in _VACUOUS:
        values = values.mask(rows["pl_verdict"].str.contains(_VACUOUS[column], regex=False))
    values = values.where(values > 0)  # on a logarithmic scale the line would drop to the bottom
    axis.plot(rows["step"], values, color=colour, linestyle=style, linewidth=1.6 if style == "-" else 1.2)


def _scale(axes: np.ndarray) -> None:
    """A logarithmic scale, shared by a row, over its positive values."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for axis in axes for line in axis.lines])
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive):
        low, high = float(positive.min()), float(positive.max())
        log_axis(axes[0].yaxis, low, max(high, 1.01 * low))
        axes[0].set_ylim(low / 1.5, high * 1.5)
