"""Density of the singular values of each layer over training: a panel per layer, a ridge per step, arms overlaid.

A ridge is the mean density of an arm's spectra at one step. Its area is the share of the singular values over their
floor; the share under it is a bar at the left edge. Areas compare within a panel, whose ridges have one scale.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures.drawing import selection, style
from skip_conditioning.figures.drawing.axes import SigmaAxis
from skip_conditioning.figures.drawing.ridges import CELLS, Ridge, fitting_axis, ridge_of, spread_layers, spread_steps
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.singular_values import SCALES, pooled, spans_decades, with_points

#: Logarithmic axes come sooner than in a histogram, whose wide panels show more of a linear one.
_LOG_RATIO = 30
#: Heights in units of the distance between ridges: of the tallest ridge, and of the typical one.
_TALLEST, _TYPICAL = 2.0, 0.9
#: Fills of more arms than this mix to mud.
_MOST_FILLED = 3


@matplotlib.rc_context(style.SETTINGS)
def singular_value_ridges(
    experiment: Experiment,
    *,
    map: str = "tail",
    layer: str | None = None,
    batch_mode: str | None = None,
    steps: int = 6,
    scale: str = "auto",
    lr: float | None = None,
) -> Figure:
    """One panel per layer; in it a ridge per step, the first at the top, and arms overlaid.

    Densities are averaged over trials (and samples). They are drawn from all singular values or from the nodes of a
    quadrature, whichever a spectrum has, smoothed alike (see ``drawing.ridges.smoothed``).

    Args:
        experiment: Its ``runs`` and ``spectra`` are used.
        map: Which derivative.
        layer: Only this layer; by default all, but at most 20, spread evenly.
        batch_mode: ``batch`` or ``sample``; by default ``batch`` where it was measured.
        steps: How many of the measured steps to show at most, spread evenly in their logarithm.
        scale: Horizontal axes: ``linear``, ``log``, or ``auto``, which is log where the values of a layer span orders
            of magnitude.
        lr: Learning rate; by default the largest at which no run diverged.

    Raises:
        NothingToDrawError: The tables hold no such singular values or densities.
        InputError: An option has an impossible value.
    """
    selection.check_option("scale", scale, SCALES)
    if steps < 1:
        raise InputError(f"the number of steps to show must be 1 or more, not {steps}")
    rate, runs = selection.chosen_lr(selection.described_runs(experiment), lr)
    spectra = selection.select_spectra(experiment, map, batch_mode).merge(runs[["run_id", "arm", "trial"]], on="run_id")
    if layer is not None:
        _, spectra = selection.of_layer(spectra, layer)
    points = with_points(spectra)
    if points.empty:
        raise NothingToDrawError(
            f"no singular values of map {map!r} at {style.lr_label(rate)} were kept, nor their density"
        )
    layers, shown = spread_layers(list(points["layer"].unique())), spread_steps(np.unique(points["step"]), steps)
    drawn = points[points["layer"].isin(layers) & points["step"].isin(shown)]
    arms = [[pooled(rows) for _, rows in drawn[drawn["layer"] == name].groupby("arm")] for name in layers]
    log = scale == "log" or (scale == "auto" and any(spans_decades(values, _LOG_RATIO) for values in arms))
    styles = {arm: arm_style for arm, arm_style in style.arm_styles(runs["arm"]).items() if (drawn["arm"] == arm).any()}

    columns = _columns(len(layers))
    figure, axes = _panels(len(layers), columns, len(shown))
    ridges: list[Ridge] = []
    top = 1.0
    for axis, name in zip(axes, layers, strict=True):
        rows = drawn[drawn["layer"] == name]
        sigma_axis = fitting_axis(rows, log)
        panel = {key: ridge_of(group, sigma_axis) for key, group in rows.groupby(["arm", "step"])}
        top = max(top, _draw_panel(axis, panel, shown, styles, sigma_axis))
        sigma_axis.apply(axis, most_ticks=4 if columns > 2 else 6)
        axis.set_title(_panel_title(name, panel, columns), fontsize=9)
        ridges += panel.values()
    axes[0].set_ylim(0.85 - len(shown), top + 0.1)
    axes[0].set_yticks(-np.arange(len(shown)), [style.number(step) for step in shown])
    figure.supylabel("step", fontsize=10)
    figure.supxlabel(style.value_name(map) + _caption(log, points, ridges), fontsize=9, linespacing=1.3)
    handles = _legend(styles, any(ridge.under > 0 for ridge in ridges))
    legend = figure.legend(
        handles=handles, loc="outside upper center", ncols=style.legend_columns(handles), title_fontsize=10,
        title=_title(map, layer, spectra, points, layers, shown, rate),
    )  # fmt: skip
    legend.get_title().set_multialignment("center")
    return figure


def elided(layer: str, longest: int) -> str:
    """A layer's name, without its beginning where the name is too long."""
    return layer if len(layer) <= longest else f"…{layer[1 - longest :]}"


def _columns(layers: int) -> int:
    """Columns of the grid of panels: one row of up to 3, two rows of up to 5, then more rows."""
    return layers if layers <= 3 else min(-(-layers // 2), 5)


def _panels(layers: int, columns: int, steps: int) -> tuple[Figure, list[Axes]]:
    rows = -(-layers // columns)
    figure = style.new_figure(1.35 + rows * (0.75 + 0.25 * (steps + 1)))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis in axes[layers:]:
        axis.remove()
    return figure, list(axes[:layers])


def _panel_title(layer: str, ridges: dict, columns: int) -> str:
    """The layer, as much of its name as fits, and the largest share of a ridge's values under their floor."""
    under = max(ridge.under for ridge in ridges.values())
    note = f"\nunder floor: ≤ {style.percentage(max(under, 0.001))}" if under > 0 else ""
    return elided(layer, 85 // columns) + note


def _draw_panel(
    axis: Axes, ridges: dict, steps: np.ndarray, styles: dict[str, style.ArmStyle], sigma_axis: SigmaAxis
) -> float:
    """Draw the ridges of one layer, later ones in front; returns how high they reach."""
    peaks = [ridge.density.max() for ridge in ridges.values()]
    unit = max(max(peaks) / _TALLEST, float(np.median(peaks)) / _TYPICAL) or 1.0
    sigma = sigma_axis.at((np.arange(CELLS) + 0.5) / CELLS)
    columns = sigma_axis.columns(len(styles))
    for rank, step in enumerate(steps):
        axis.axhline(-rank, color="0.8", linewidth=0.5, zorder=2 * rank + 1)
        here = {arm: ridges[arm, step] for arm in styles if (arm, step) in ridges}
        if here:
            # What lies behind shines through a little, so that a ridge hidden by a taller one is not lost.
            top = np.max([ridge.density for ridge in here.values()], axis=0) / unit
            axis.fill_between(sigma, -rank, top - rank, color="white", alpha=0.7, linewidth=0, zorder=2 * rank + 1)
        for position, (arm, arm_style) in enumerate(styles.items()):
            if arm not in here:
                continue
            heights = here[arm].density / unit - rank
            if len(styles) <= _MOST_FILLED:
                axis.fill_between(
                    sigma, -rank, heights, color=arm_style.colour, alpha=0.25, linewidth=0, zorder=2 * rank + 1
                )
            axis.plot(
                sigma, heights, color=arm_style.colour, linestyle=arm_style.line, linewidth=1.2, zorder=2 * rank + 2,
                gid=f"{arm} step {step}",
            )  # fmt: skip
            if here[arm].under > 0:
                axis.stairs(
                    [here[arm].under - rank], columns[position : position + 2], baseline=-rank, fill=True,
                    color=arm_style.colour, zorder=2 * rank + 2, gid=f"{arm} step {step} under",
                )  # fmt: skip
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    return max(float(ridge.density.max()) / unit - list(steps).index(step) for (_, step), ridge in ridges.items())


def _caption(log: bool, points: pd.DataFrame, ridges: list[Ridge]) -> str:
    """Lines under the axes that say what a ridge is, and what it does not show."""
    estimated = points["values"].isna()
    kind = "quadrature nodes" if estimated.all() else "values and quadrature nodes" if estimated.any() else "values"
    beyond = max(ridge.beyond for ridge in ridges)
    note = f"; up to {style.percentage(beyond)} of a ridge lies beyond the axis" if beyond > 1e-6 else ""
    return (
        f"\nridges: density over {'log σ' if log else 'σ'}, one scale per panel{note}\n"
        f"{kind} smoothed by Gaussians about as wide as the distance to their neighbours"
    )


def _title(
    map: str, layer: str | None, spectra: pd.DataFrame, points: pd.DataFrame, layers: list[str], steps: np.ndarray,
    rate: float,
) -> str:  # fmt: skip
    """What is shown: map, trials and learning rate, and which part of what was measured."""
    trials = style.counted(list(points.groupby("arm")["trial"].nunique()), "trial")
    title = style.fitted(style.map_label(map, layer), f"{trials}, {style.lr_label(rate)}", ": ")
    parts = []
    if points["step"].nunique() > len(steps):
        spread = ", spread evenly in log(step)" if len(steps) > 1 else ""
        parts.append(f"{len(steps)} of {points['step'].nunique()} measured steps{spread}")
    if points["layer"].nunique() > len(layers):
        parts.append(f"{len(layers)} of {points['layer'].nunique()} layers")
    missing = len(spectra) - len(points)
    if missing:
        parts.append(f"not shown: {missing} {'spectrum' if missing == 1 else 'spectra'} without singular values")
    return title + ("\n" + "; ".join(parts) if parts else "")


def _legend(styles: dict[str, style.ArmStyle], some_under: bool) -> list[Artist]:
    handles = style.arm_keys(styles)
    if some_under:
        handles.append(Patch(color=style.GREY, linewidth=0, label="bar: share under floor (next line up: 100 %)"))
    return handles
