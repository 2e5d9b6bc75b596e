"""Loss curves per arm: mean ± standard deviation over trials of the log-loss, one panel per learning rate.

The logarithm is averaged, not the loss: the band then cannot reach below zero on the logarithmic axis, and one
slow trial does not hide the others. Runs that diverged or failed are drawn one by one and not averaged, as the
mean would jump where they end.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures.drawing import style
from skip_conditioning.figures.drawing.losses import BROKEN, draw_losses, set_loss_limits, split_losses, windowed
from skip_conditioning.figures.drawing.selection import described_runs


@matplotlib.rc_context(style.SETTINGS)
def loss_curves(experiment: Experiment, *, split: str = "train") -> Figure:
    """Mean ± standard deviation of the log-loss per arm, one panel per learning rate.

    Args:
        experiment: Its ``runs`` and ``metrics`` are used.
        split: Which rows of ``metrics``.

    Raises:
        NothingToDrawError: No loss of that split was logged.
    """
    runs = described_runs(experiment)
    losses, window = windowed(split_losses(experiment, split))
    styles = style.arm_styles(runs["arm"])
    rates = sorted(runs["lr"].unique())
    columns = style.panel_columns(len(rates))
    figure = style.new_figure(1.0 + (3.2 if columns == 1 else 2.7) * -(-len(rates) // columns))
    for axis, lr in zip(style.panel_grid(figure, len(rates)), rates, strict=True):
        panel = runs[runs["lr"].isna() if np.isnan(lr) else runs["lr"] == lr]
        draw_losses(axis, losses, panel, styles)
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axis.set_title(f"{style.lr_label(lr)}\n{_census(panel)}")
    set_loss_limits(figure.axes[0], losses, runs)
    figure.supxlabel("step" + (f" (mean over windows of {window} steps)" if window > 1 else ""), fontsize=10)
    figure.supylabel(f"{split} loss", fontsize=10)
    handles = _legend(runs, styles)
    figure.legend(handles=handles, loc="outside upper center", ncols=style.legend_columns(handles))
    return figure


def _census(runs: pd.DataFrame) -> str:
    broken = runs["status"].value_counts()
    notes = [f"{broken[status]} of {len(runs)} runs {status}" for status in BROKEN if status in broken]
    return ", ".join([style.counted(list(runs.groupby("arm")["trial"].nunique()), "trial"), *notes])


def _legend(runs: pd.DataFrame, styles: dict[str, style.ArmStyle]) -> list[Artist]:
    handles = style.arm_keys(styles)
    whole = runs[~runs["status"].isin(BROKEN)]
    if whole.groupby(["arm", "lr"], dropna=False).size().max() > 1:
        handles.append(Patch(color=style.GREY, alpha=0.3, linewidth=0, label="± 1 std of log-loss"))
    statuses = [status for status in BROKEN if (runs["status"] == status).any()]
    if statuses:
        label = f"{' or '.join(statuses)} run, × its end"
        handles.append(style.key(label, color=style.GREY, linestyle=(0, (3, 2)), linewidth=0.8, marker="x"))
    return handles
