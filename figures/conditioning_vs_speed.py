"""Conditioning against speed: one point per run, one panel per learning rate.

The runs of one trial are joined by a line, in the order in which the arms were listed.

Learning rates get panels of their own because they drive speed by themselves: a correlation across them would
mix their effect with that of conditioning.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures.drawing import selection, style
from skip_conditioning.figures.drawing.axes import SpeedAxis
from skip_conditioning.figures.drawing.rank_correlation import rank_correlation
from skip_conditioning.figures.drawing.saving import NothingToDrawError

_INTERVAL = "Spearman's ρ with a 95 % bootstrap interval over trials"
#: What joins the arms of one trial: everything but the arm is the same.
_PAIR = ["dataset", "model", "trial", "lr"]


@matplotlib.rc_context(style.SETTINGS)
def conditioning_vs_speed(
    experiment: Experiment,
    speed: pd.DataFrame,
    *,
    measure: str = "condition_number",
    map: str = "tail",
    layer: str | None = None,
    batch_mode: str | None = None,
    steps: int = 1,
    speed_measure: str = "steps_to_threshold",
) -> Figure:
    """One point per run with Spearman's ρ per learning rate; censored and diverged runs keep their place.

    In ρ a run that never reached the threshold ranks behind all that did, and a diverged one behind those.

    Args:
        experiment: Its ``runs`` and ``spectra`` are used.
        speed: The table of ``experiments.speed``, one row per run.
        measure: A statistic of the spectra table, or ``sigma_qNN``.
        map: Which derivative.
        layer: Of which layer; by default the first one measured.
        batch_mode: ``batch`` or ``sample``; by default ``batch`` where it was measured.
        steps: How many of the first measured steps to average over; 1 is initialisation.
        speed_measure: A column of ``speed`` in which less is faster.

    Raises:
        NothingToDrawError: The tables hold no such spectra, or fewer than two runs.
        InputError: An option has an impossible value.
    """
    runs = selection.described_runs(experiment)
    if len(runs) < 2:
        raise NothingToDrawError("a single run has nothing to be compared with; give the directory of an experiment")
    name, spectra = selection.of_layer(selection.select_spectra(experiment, map, batch_mode), layer)
    spectra = selection.first_steps(spectra, steps)
    conditioning = selection.averaged(selection.measured(spectra, measure), ["run_id"], measure)
    points = join_points(runs, conditioning, speed, speed_measure)
    if points.empty:
        raise NothingToDrawError("no run has both a spectrum and a row in speed.parquet")

    rates = sorted(points["lr"].unique())
    columns = style.panel_columns(len(rates))
    figure = style.new_figure(1.3 + (3.4 if columns == 1 else 2.8) * -(-len(rates) // columns))
    axes = style.panel_grid(figure, len(rates))
    styles = style.arm_styles(runs["arm"])
    scale = SpeedAxis.of(points, speed_measure)
    for axis, lr in zip(axes, rates, strict=True):
        panel = points[points["lr"].isna() if np.isnan(lr) else points["lr"] == lr]
        _draw_panel(axis, panel.assign(y=scale.place(panel)), styles)
        correlation = rank_correlation(panel["x"].to_numpy(), scale.rank(panel), panel["trial"].to_numpy())
        axis.set_title(f"{style.lr_label(lr)}, {len(panel)} run{'s' if len(panel) > 1 else ''}\n{correlation}")
    _set_x(axes[0], _with_errors(points), measure)
    for axis in axes:
        scale.apply(axis)
    missing = len(runs) - len(points)
    note = f"\n{missing} of {len(runs)} runs lack a spectrum or a speed and are not shown" if missing else ""
    x_label = style.fitted(
        f"{style.measure_label(measure, map)} of {style.map_label(map, name)}",
        selection.first_steps_label(spectra, "mean over"),
        ", ",
    )
    figure.supxlabel(x_label + note, fontsize=10)
    figure.supylabel(_speed_label(speed_measure, speed), fontsize=10)
    handles = _legend(points, styles)
    figure.legend(handles=handles, loc="outside upper center", ncols=style.legend_columns(handles), title=_INTERVAL)
    return figure


def join_points(
    runs: pd.DataFrame, conditioning: pd.DataFrame, speed: pd.DataFrame, speed_measure: str
) -> pd.DataFrame:
    """The points to draw.

    Args:
        runs: As from ``described_runs``.
        conditioning: Columns ``run_id, value, error, bound``.
        speed: The speed table.
        speed_measure: The column of it to show.

    Returns:
        The runs that have both, with ``x``, ``error``, ``bound``, ``speed`` (NaN unless reached) and ``fate``:
        ``reached``, ``censored`` (never reached the threshold) or ``diverged``.

    Raises:
        InputError: ``speed`` has no such column of numbers.
    """
    candidates = [name for name in speed.select_dtypes("number").columns if name != "loss_threshold"]
    selection.check_option("speed measure", speed_measure, candidates)
    table = speed[["run_id", "censored", "diverged"]].assign(speed=speed[speed_measure].astype(float))
    points = runs.merge(conditioning.rename(columns={"value": "x"}), on="run_id").merge(table, on="run_id")
    diverged = points["diverged"].astype(bool) | (points["status"] == "diverged")
    # Only the time to a threshold can be censored; other measures of such a run are plain numbers.
    censored = points["censored"].astype(bool) & (speed_measure == "steps_to_threshold")
    points["fate"] = np.select([diverged, censored], ["diverged", "censored"], "reached")
    points["speed"] = points["speed"].where(points["fate"] == "reached")
    return points[(points["fate"] != "reached") | np.isfinite(points["speed"])]


def _draw_panel(axis: Axes, points: pd.DataFrame, styles: dict[str, style.ArmStyle]) -> None:
    order = {arm: rank for rank, arm in enumerate(styles)}
    for _, pair in points.groupby(_PAIR, dropna=False):
        pair = pair.sort_values("arm", key=lambda arms: arms.map(order))
        axis.plot(pair["x"], pair["y"], color="0.75", linewidth=0.6, zorder=1, gid="pair")
    for (arm, fate), group in points.groupby(["arm", "fate"]):
        arm_style = styles[str(arm)]
        axis.scatter(
            group["x"], group["y"], s=36, zorder=3, gid=f"{arm} {fate}", clip_on=False,
            marker="X" if fate == "diverged" else arm_style.marker,
            facecolor="none" if fate == "censored" else arm_style.colour,
            edgecolor=arm_style.colour if fate == "censored" else "white",
            linewidth=1.3 if fate == "censored" else 0.6,
        )  # fmt: skip
    known = points[points["error"] > 0]
    axis.errorbar(
        known["x"], known["y"], xerr=known["error"], fmt="none", ecolor=style.GREY, elinewidth=0.9, zorder=2,
        gid="error",
    )  # fmt: skip
    figure = axis.get_figure(root=True)
    assert figure is not None
    for bound, shift in (("above", 9), ("below", -9)):
        group = points[points["bound"] == bound]
        if group.empty:
            continue
        beside = axis.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
        axis.plot(
            group["x"], group["y"], linestyle="none", marker=_arrow(bound), markersize=8, color="0.2",
            markeredgewidth=0, transform=beside, gid=f"bound {bound}", zorder=4, clip_on=False,
        )  # fmt: skip


def _arrow(bound: str) -> str:
    return r"$\rightarrow$" if bound == "above" else r"$\leftarrow$"


def _with_errors(points: pd.DataFrame) -> pd.Series:
    """The ends of error bars, those of large errors no lower than a third of the value: the axis is logarithmic."""
    x, error = points["x"], points["error"].fillna(0)
    return pd.concat([x + error, np.maximum(x - error, x / 3)])


def _set_x(axis: Axes, x: pd.Series, measure: str) -> None:
    low, high = float(x.min()), float(x.max())
    if measure in selection.COUNTS or low <= 0:
        margin = 0.08 * (high - low) or 1.0
        axis.set_xlim(low - margin, high + margin)
        return
    margin = max((high / low) ** 0.1, 1.05)
    style.log_axis(axis.xaxis, low / margin, high * margin)
    axis.set_xlim(low / margin, high * margin)


def _speed_label(speed_measure: str, speed: pd.DataFrame) -> str:
    if speed_measure == "steps_to_threshold":
        thresholds = set(speed.get("loss_threshold", pd.Series(dtype=float)).dropna())
        return f"steps to loss {thresholds.pop():g}" if len(thresholds) == 1 else "steps to the loss threshold"
    if speed_measure.startswith("loss_at_step_"):
        return f"loss at step {speed_measure.removeprefix('loss_at_step_')}"
    names = {
        "auc_log_loss": "mean log-loss over all steps",
        "final_loss": "final loss",
        "speed_rank": "rank (1 is fastest)",
    }
    return names.get(speed_measure, speed_measure)


def _legend(points: pd.DataFrame, styles: dict[str, style.ArmStyle]) -> list[Artist]:
    handles: list[Artist] = [
        style.key(arm, linestyle="none", marker=arm_style.marker, color=arm_style.colour, markersize=6.5)
        for arm, arm_style in styles.items()
    ]
    if points.groupby(_PAIR, dropna=False).size().max() > 1:
        handles.append(style.key("same trial", color="0.7", linewidth=0.9))
    fates = set(points["fate"])
    if "censored" in fates:
        hollow = {"markerfacecolor": "white", "markeredgecolor": style.GREY, "markeredgewidth": 1.5}
        handles.append(style.key("never reached", linestyle="none", marker="o", markersize=6.5, **hollow))
    if "diverged" in fates:
        handles.append(style.key("diverged", linestyle="none", marker="X", color=style.GREY, markersize=7))
    for side, name in style.bound_sides(points["bound"]):
        handles.append(style.key(name, linestyle="none", marker=_arrow(side), color="0.2", markersize=9))
    if (points["error"] > 0).any():
        handles.append(style.key("± standard error", color=style.GREY, linewidth=0.9))
    return handles
