"""Histograms of singular values per arm: of averaged order statistics, as in the paper, and pooled.

The i-th largest singular value is averaged over trials and first steps; the histogram of these averages is
that of a typical spectrum. The pooled one keeps the spread between trials and steps that averaging hides.
Nothing is dropped in silence: values under their floor and values beyond the axis are drawn or declared.

An estimated density counts as the singular values it stands for: each node of its quadrature for as many as its
weight says.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures.drawing import selection, style
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.singular_values import SCALES, Bins, SingularValues, pooled, with_points

#: The paper draws the spectra of this network on (0, 6).
_PAPER, _PAPER_RANGE = ("paper-mnist", "tail", "stem", "batch"), (0.0, 6.0)
#: Fills of more arms than this mix to mud.
_MOST_FILLED = 3
#: Sums of weights are no more precise.
_ROUNDING = 1e-9


@matplotlib.rc_context(style.SETTINGS)
def singular_value_histograms(
    experiment: Experiment,
    *,
    map: str = "tail",
    layer: str | None = None,
    batch_mode: str | None = None,
    steps: int = 10,
    bins: int = 32,
    range: tuple[float, float] | None = None,
    scale: str = "auto",
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
        range: Ends of the bins; by default all values, but (0, 6) as in the paper for its MNIST network.
        scale: ``linear`` or ``log`` bins; ``auto`` chooses by how far the values spread (see ``Bins.of``).
        lr: Learning rate; by default the largest at which no run diverged.

    Raises:
        NothingToDrawError: The tables hold no such singular values.
        InputError: An option has an impossible value.
    """
    selection.check_option("scale", scale, SCALES)
    if bins < 1 or (range is not None and not range[0] < range[1]):
        raise InputError(f"cannot make {bins} bins on {range}; give a positive number and an increasing range")
    rate, runs = selection.chosen_lr(selection.described_runs(experiment), lr)
    spectra = selection.select_spectra(experiment, map, batch_mode)
    name, spectra = selection.of_layer(spectra[spectra["run_id"].isin(runs["run_id"])], layer)
    spectra = selection.first_steps(spectra, steps).merge(runs[["run_id", "arm", "trial", "model"]], on="run_id")
    missing = len(spectra)
    spectra = with_points(spectra)
    missing -= len(spectra)
    if spectra.empty:
        raise NothingToDrawError(
            f"no singular values of map {map!r} at {style.lr_label(rate)} were kept, nor their density"
        )
    averaged = order_statistics(spectra)
    everything = {str(arm): pooled(rows) for arm, rows in spectra.groupby("arm")}
    edges = Bins.of(everything.values(), bins, range, scale)
    if range is None and not edges.log and _as_in_the_paper(spectra):
        edges = Bins.of(everything.values(), bins, _PAPER_RANGE, "linear")
    styles = {arm: arm_style for arm, arm_style in style.arm_styles(runs["arm"]).items() if arm in averaged}

    figure = style.new_figure(3.9)
    left, right = figure.subplots(1, 2, sharex=True)
    for axis, values, share in ((left, averaged, False), (right, everything, True)):
        note = _draw(axis, values, styles, edges, share=share)
        axis.set_xlabel(style.value_name(map) + note)
    left.set(title="order statistics, averaged", ylabel=f"{style.value_name(map)}s per bin")
    right.set(title="all values, pooled", ylabel="share of the values per bin (%)")
    trials = style.counted(list(spectra.groupby("arm")["trial"].nunique()), "trial")
    title = style.fitted(
        style.map_label(map, name),
        f"{selection.first_steps_label(spectra, 'over')}, {trials}, {style.lr_label(rate)}",
        ": ",
    )
    figure.suptitle(title + _notes(spectra, missing), fontsize=10)
    handles = style.arm_keys(styles)
    figure.legend(handles=handles, loc="outside lower center", ncols=style.legend_columns(handles))
    return figure


def order_statistics(spectra: pd.DataFrame) -> dict[str, SingularValues]:
    """Mean spectrum of each arm: the i-th largest singular value averaged over trials, steps and samples.

    A node stands for singular values in a row, so spectra are averaged piece by piece between the ranks at which
    any of them changes. Floors are averaged likewise: each value is off by at most its floor, so their mean by at
    most the floors' mean.

    Args:
        spectra: Columns ``arm``, ``floor``, ``points`` and ``counts``, as from ``with_points``.

    Raises:
        InputError: The numbers of singular values differ within an arm, so the i-th largest cannot be compared.
    """
    means = {}
    for arm, rows in spectra.groupby("arm"):
        sizes = sorted({round(counts.sum()) for counts in rows["counts"]})
        if len(sizes) > 1:
            numbers = " and ".join(map(str, sizes))
            raise InputError(f"spectra of arm {arm!r} have {numbers} values, so cannot be averaged; choose one --layer")
        ends = [np.cumsum(counts) for counts in rows["counts"]]
        # Rounded, so that the last ranks of all spectra are the same number.
        ranks = np.unique(np.concatenate([[0.0], *ends]).round(6))
        middles = (ranks[1:] + ranks[:-1]) / 2
        pieces = [
            points[np.minimum(np.searchsorted(end, middles), len(points) - 1)]
            for end, points in zip(ends, rows["points"], strict=True)
        ]
        floors = np.full(len(middles), rows["floor"].mean())
        means[str(arm)] = SingularValues(np.mean(pieces, axis=0), floors, np.diff(ranks))
    return means


def _notes(spectra: pd.DataFrame, missing: int) -> str:
    """Lines for the title that say what was estimated, and what is not shown."""
    estimates, note = int(spectra["values"].isna().sum()), ""
    if estimates:
        which = "all" if estimates == len(spectra) else f"{estimates} of {len(spectra)}"
        note = f"\n{which} spectra are estimated densities: nodes counted by their weights"
    return note + (
        f"\nnot shown: {missing} {'spectrum' if missing == 1 else 'spectra'} without singular values" if missing else ""
    )


def _as_in_the_paper(spectra: pd.DataFrame) -> bool:
    return set(spectra[["model", "map", "layer", "batch_mode"]].itertuples(index=False, name=None)) == {_PAPER}


def _draw(
    axis: Axes, arms: dict[str, SingularValues], styles: dict[str, style.ArmStyle], bins: Bins, *, share: bool
) -> str:
    """Draw one panel; returns lines for its axis label that say what the bins do not show."""
    beyond, unresolved = [], []
    for position, (arm, arm_style) in enumerate(styles.items()):
        counts, under = bins.count(arms[arm])
        size = arms[arm].size
        unit = 100 / size if share else 1
        if len(styles) <= _MOST_FILLED:
            axis.stairs(unit * counts, bins.edges, fill=True, color=arm_style.colour, alpha=0.1)
        axis.stairs(
            unit * counts, bins.edges, color=arm_style.colour, linestyle=arm_style.line, linewidth=1.8, label=arm,
            baseline=None,
        )  # fmt: skip
        if under:
            column = bins.axis.columns(len(styles))[position : position + 2]
            axis.stairs([unit * under], column, fill=True, color=arm_style.colour, gid=f"{arm} under")
        beyond.append(1 - (counts.sum() + under) / size)
        unresolved.append(arms[arm].unresolved / size)
    bins.axis.apply(axis)
    axis.set_ylim(bottom=0)
    notes = [(max(beyond), "beyond the axis"), (0 if bins.log else max(unresolved), "under their floor")]
    return "".join(
        f"\nup to {style.percentage(share)} of an arm's values {fate}" for share, fate in notes if share > _ROUNDING
    )
