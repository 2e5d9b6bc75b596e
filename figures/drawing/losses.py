"""Losses of runs as curves: averaged over trials and windows of steps, drawn, and the limits of their axis."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.style import ArmStyle, log_axis

#: A loss below this (cross-entropy in float32 underflows to 0) is drawn here.
_SMALLEST = 1e-12
#: Longer curves are averaged over windows of steps, so that the noise of single batches does not hide them.
_MOST_POINTS = 250
#: Statuses of runs that ended early.
BROKEN = ("diverged", "failed")


def split_losses(experiment: Experiment, split: str) -> pd.DataFrame:
    """Columns ``run_id, step, loss`` of one split.

    Raises:
        NothingToDrawError: Nothing was logged of that split; the message names those there are.
    """
    metrics = experiment.metrics
    losses = metrics.loc[(metrics["split"] == split) & metrics["loss"].notna(), ["run_id", "step", "loss"]]
    if losses.empty:
        splits = ", ".join(sorted(metrics["split"].dropna().unique())) or "none"
        raise NothingToDrawError(f"no loss of split {split!r} was logged; splits: {splits}")
    return losses


def windowed(losses: pd.DataFrame, *, log_steps: bool = False) -> tuple[pd.DataFrame, int]:
    """Curves of at most 250 points: the geometric mean of the loss over windows of steps, at their mean step.

    Args:
        losses: Columns ``run_id, step, loss``.
        log_steps: Whether windows are to be equally wide on a logarithmic step axis.

    Returns:
        The curves, and how many steps the widest window spans (1: unchanged).
    """
    steps = np.unique(losses["step"])
    if len(steps) <= _MOST_POINTS:
        return losses, 1
    scaled = np.log1p(steps) if log_steps else (steps - steps[0]) // -(-(np.ptp(steps) + 1) // _MOST_POINTS)
    windows = np.floor(scaled * (_MOST_POINTS / scaled[-1])) if log_steps else scaled
    middles = pd.Series(steps).groupby(windows).transform("mean").to_numpy()
    logs = np.log(losses["loss"].clip(lower=_SMALLEST))
    placed = losses.assign(step=middles[np.searchsorted(steps, losses["step"])], loss=logs)
    means = placed.groupby(["run_id", "step"], as_index=False)["loss"].mean()
    return means.assign(loss=np.exp(means["loss"])), int(np.unique(windows, return_counts=True)[1].max())


def draw_losses(axis: Axes, losses: pd.DataFrame, runs: pd.DataFrame, styles: dict[str, ArmStyle]) -> None:
    """Draw the arms' curves into one panel: band and mean of whole runs, each broken run to its end."""
    for arm, style in styles.items():
        of_arm = runs[runs["arm"] == arm]
        whole = of_arm[~of_arm["status"].isin(BROKEN)]
        curve = mean_curve(losses[losses["run_id"].isin(whole["run_id"])])
        if len(curve):
            axis.plot(
                curve.index, curve["mean"], color=style.colour, linestyle=style.line, linewidth=1.8,
                label=arm, marker="o" if len(curve) == 1 else "", markersize=4,
            )  # fmt: skip
            band = curve.dropna(subset="low")  # a single run has none
            if len(band):
                axis.fill_between(band.index, band["low"], band["high"], color=style.colour, alpha=0.2, linewidth=0)
        for run_id in of_arm.loc[of_arm["status"].isin(BROKEN), "run_id"]:
            _draw_broken(axis, losses[losses["run_id"] == run_id], style)


def _draw_broken(axis: Axes, losses: pd.DataFrame, style: ArmStyle) -> None:
    finite = losses[np.isfinite(losses["loss"])]
    if finite.empty:
        return
    axis.plot(finite["step"], finite["loss"], color=style.colour, linestyle=(0, (3, 2)), linewidth=0.8, gid="broken")
    axis.plot(
        finite["step"].iloc[-1], finite["loss"].iloc[-1], marker="x", color=style.colour, markersize=7,
        markeredgewidth=1.8, linestyle="none", gid="end", clip_on=False, zorder=5,
    )  # fmt: skip


def mean_curve(losses: pd.DataFrame) -> pd.DataFrame:
    """Geometric mean of the loss per step, and one standard deviation of its logarithm below and above.

    Args:
        losses: Columns ``run_id, step, loss``.

    Returns:
        Columns ``mean, low, high``, indexed by step; low and high are NaN where there is only one run.
    """
    logs = np.log(losses["loss"].where(np.isfinite(losses["loss"])).clip(lower=_SMALLEST))
    groups = logs.groupby(losses["step"])
    mean, deviation = groups.mean(), groups.std()
    curve = {"mean": np.exp(mean), "low": np.exp(mean - deviation), "high": np.exp(mean + deviation)}
    return pd.DataFrame(curve).dropna(subset="mean")


def set_loss_limits(axis: Axes, losses: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Logarithmic limits that show all whole runs, and little more than the start of diverging ones.

    Runs that go higher are drawn along the upper rim, to where they end.
    """
    finite = losses[np.isfinite(losses["loss"])]
    broken = finite["run_id"].isin(runs.loc[runs["status"].isin(BROKEN), "run_id"])
    starts = finite.groupby("run_id")["loss"].first()
    seen = np.concatenate([finite.loc[~broken, "loss"], starts, [2 * starts.max()] if broken.any() else []])
    low, high = max(float(np.min(seen)), _SMALLEST), max(float(np.max(seen)), _SMALLEST)
    margin = max((high / low) ** 0.05, 1.05)
    low, high = low / margin, high * margin
    log_axis(axis.yaxis, low, high)
    axis.set_ylim(low, high)
    for sibling in axis.get_shared_y_axes().get_siblings(axis):
        for line in (line for line in sibling.lines if line.get_gid() in ("broken", "end")):
            line.set_ydata(np.clip(np.asarray(line.get_ydata(), dtype=float), low, high / margin))
