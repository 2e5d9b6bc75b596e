"""Histograms of singular values per arm: of averaged order statistics, as in the paper, and pooled.

The i-th largest singular value is averaged over trials and first steps; the histogram of these averages is
that of a typical spectrum. The pooled one keeps the spread between trials and steps that averaging hides.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diagnostics.errors import InputError
from diagnostics.tables import Experiment
from figures.errors import NothingToDrawError
from figures.selection import (
    chosen_lr,
    described_runs,
    first_steps,
    first_steps_label,
    of_layer,
    select_spectra,
)
from figures.style import (
    SETTINGS,
    ArmStyle,
    arm_styles,
    counted,
    fitted,
    legend_columns,
    lr_label,
    map_label,
    new_figure,
    value_name,
)


@matplotlib.rc_context(SETTINGS)
def singular_value_histograms(
    experiment: Experiment,
    *,
    map: str = "tail",
    layer: str | None = None,
    batch_mode: str | None = None,
    steps: int = 10,
    bins: int = 32,
    range: tuple[float, float] | None = None,
    lr: float | None = None,
) -> Figure:
    """Two panels: averaged order statistics, and pooled singular values.

    Args:
        experiment: Its ``runs`` and ``spectra`` are used.
        map: Which derivative.
        layer: Of which layer; by default the first one measured.
        batch_mode: ``batch`` or ``sample``; by default ``batch`` where it was measured.
        steps: How many of the first measured steps to average.
        bins: Number of bins.
        range: Ends of the bins; the paper takes (0, 6). By default from 0 to where the data end.
        lr: Learning rate; by default the largest at which no run diverged.

    Raises:
        NothingToDrawError: The tables hold no such singular values.
        InputError: An option has an impossible value.
    """
    if bins < 1 or (range is not None and not range[0] < range[1]):
        raise InputError(f"cannot make {bins} bins on {range}; give a positive number and an increasing range")
    rate, runs = chosen_lr(described_runs(experiment), lr)
    spectra = select_spectra(experiment, map, batch_mode)
    name, spectra = of_layer(spectra[spectra["run_id"].isin(runs["run_id"])], layer)
    spectra = first_steps(spectra, steps).merge(runs[["run_id", "arm", "trial"]], on="run_id")
    spectra = spectra[spectra["values"].notna()]
    if spectra.empty:
        raise NothingToDrawError(f"no singular values of map {map!r} at {lr_label(rate)} were kept")
    averaged = order_statistics(spectra)
    pooled = {str(arm): np.concatenate(list(rows["values"])) for arm, rows in spectra.groupby("arm")}
    low, high = range or (0.0, _upper_end(pooled))
    edges = np.linspace(low, high, bins + 1)
    styles = {arm: style for arm, style in arm_styles(runs["arm"]).items() if arm in averaged}

    figure = new_figure(3.9)
    left, right = figure.subplots(1, 2, sharex=True)
    for axis, values, density in ((left, averaged, False), (right, pooled, True)):
        _draw(axis, values, styles, edges, share=density)
    left.set(xlabel=value_name(map), title="order statistics, averaged", ylabel=f"{value_name(map)}s per bin")
    right.set(xlabel=value_name(map), title="all values, pooled", ylabel="share of the values per bin (%)")
    trials = counted(list(spectra.groupby("arm")["trial"].nunique()), "trial")
    figure.suptitle(
        fitted(map_label(map, name), f"{first_steps_label(spectra, 'over')}, {trials}, {lr_label(rate)}", ": "),
        fontsize=10,
    )
    handles = [Line2D([], [], color=s.colour, linestyle=s.line, linewidth=1.8, label=arm) for arm, s in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns(handles))
    return figure


def order_statistics(spectra: pd.DataFrame) -> dict[str, np.ndarray]:
    """Mean spectrum of each arm: the i-th largest singular value averaged over trials, steps and samples.

    Args:
        spectra: Columns ``arm`` and ``values`` (each descending, all of one length within an arm).

    Raises:
        InputError: The lengths differ, so the i-th largest values cannot be compared.
    """
    means = {}
    for arm, rows in spectra.groupby("arm"):
        sizes = sorted(set(rows["values"].map(len)))
        if len(sizes) > 1:
            numbers = " and ".join(map(str, sizes))
            raise InputError(f"spectra of arm {arm!r} have {numbers} values, so cannot be averaged; choose one --layer")
        means[str(arm)] = np.mean(np.stack(list(rows["values"])), axis=0)
    return means


def _upper_end(values: dict[str, np.ndarray]) -> float:
    """Where the data end, or where 99 % of every arm's do if the rest would squeeze them into a few bins."""
    largest = max(float(np.max(arm)) for arm in values.values())
    bulk = max(float(np.quantile(arm, 0.99)) for arm in values.values())
    return (largest if largest < 1.5 * bulk else bulk) or 1.0


def _draw(
    axis: Axes, values: dict[str, np.ndarray], styles: dict[str, ArmStyle], edges: np.ndarray, *, share: bool
) -> None:
    beyond = []
    for arm, style in styles.items():
        data = values[arm]
        counts, _ = np.histogram(data, edges)
        heights = 100 * counts / len(data) if share else counts
        axis.stairs(heights, edges, fill=True, color=style.colour, alpha=0.1)
        axis.stairs(heights, edges, color=style.colour, linestyle=style.line, linewidth=1.8, label=arm, baseline=None)
        beyond.append(100 * (1 - counts.sum() / len(data)))
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(bottom=0)
    if max(beyond) > 0:
        note = f"up to {max(beyond):.2g} % of an arm's\nvalues lie beyond the axis"
        axis.text(0.98, 0.97, note, transform=axis.transAxes, ha="right", va="top", fontsize=8, color="0.3")
