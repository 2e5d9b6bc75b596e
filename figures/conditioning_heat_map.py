"""Heat map of a conditioning measure, layer by step, under the loss curve; one panel per arm.

Estimates show their standard error: as a number in the cell where all cells are wide enough, else as a dot where it
exceeds 10 % of the value.
"""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures.drawing import selection, style
from skip_conditioning.figures.drawing.axes import StepAxis
from skip_conditioning.figures.drawing.losses import draw_losses, set_loss_limits, split_losses, windowed
from skip_conditioning.figures.drawing.saving import NothingToDrawError

_UNMEASURED = "0.88"
_HATCH = "////"
#: The hatch must be seen on the end of the colour scale where unresolved values lie.
_HATCH_COLOURS = {"above": "0.1", "below": "0.9"}
#: Inches that a value with its error needs, and what colour bar and layer names leave of the figure's width.
_ERROR_WIDTH, _MAPS_WIDTH = 0.72, style.WIDTH - 2.0
_LARGE_ERROR = 0.1
#: Viridis is dark up to here.
_DARK = 0.55
_DOT: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4, "color": "0.1", "markeredgecolor": "white"}


@matplotlib.rc_context(style.SETTINGS)
def conditioning_heat_map(
    experiment: Experiment,
    *,
    measure: str = "condition_number",
    map: str = "tail",
    batch_mode: str | None = None,
    lr: float | None = None,
    trial: int | None = None,
    split: str = "train",
) -> Figure:
    """Layer × step under the loss curve, one panel per arm, averaged over trials geometrically.

    With ``measure="sigma_mean"`` it is the map of the mean singular value.

    Args:
        experiment: Its ``runs``, ``metrics`` and ``spectra`` are used.
        measure: A statistic of the spectra table, or ``sigma_qNN``.
        map: Which derivative.
        batch_mode: ``batch`` or ``sample``; by default ``batch`` where it was measured.
        lr: Learning rate; by default the largest at which no run diverged.
        trial: Only this trial, instead of the average over all.
        split: Which loss to show.

    Raises:
        NothingToDrawError: The tables hold no such spectra, or no loss.
        InputError: An option has an impossible value.
    """
    styles = style.arm_styles(selection.described_runs(experiment)["arm"])
    rate, runs = selection.chosen_lr(selection.described_runs(experiment), lr)
    runs = runs if trial is None else _of_trial(runs, trial)
    spectra = selection.select_spectra(experiment, map, batch_mode).merge(runs[["run_id", "arm"]], on="run_id")
    if spectra.empty:
        raise NothingToDrawError(f"no spectra of map {map!r} were measured at {style.lr_label(rate)}")
    step_axis = StepAxis(np.unique(spectra["step"]))
    losses, _ = windowed(split_losses(experiment, split), log_steps=not step_axis.linear)
    losses = losses[losses["run_id"].isin(runs["run_id"])]
    grids = {arm: layer_step_grid(spectra, arm, measure) for arm in styles if (spectra["arm"] == arm).any()}
    norm = _norm(grids, measure)
    columns = min(len(grids), 3)
    errors = "numbers" if step_axis.narrowest_cell * _MAPS_WIDTH / columns >= _ERROR_WIDTH else "dots"

    figure, panels = _panels(len(grids), spectra["layer"].nunique())
    for (above, below), (arm, grid) in zip(panels, grids.items(), strict=True):
        draw_losses(above, losses, runs[runs["arm"] == arm], {arm: styles[arm]})
        above.set_title(arm)
        mesh = _draw_grid(below, grid, norm)
        (_write_errors if errors == "numbers" else _mark_large_errors)(below, grid, norm)
        set_loss_limits(above, losses, runs)
    for above, _ in panels[::columns]:
        above.set_ylabel(f"{split} loss")
    step_axis.apply(panels[0][1])
    bar = figure.colorbar(
        mesh,
        ax=[axis for pair in panels for axis in pair],
        label=style.measure_label(measure, map),
        aspect=8 * figure.get_figheight(),
    )
    if isinstance(norm, LogNorm):
        style.log_axis(bar.ax.yaxis, *mesh.get_clim())
    trials = style.counted(list(runs.groupby("arm")["trial"].nunique()), "trial") if trial is None else f"trial {trial}"
    figure.suptitle(f"{style.map_label(map, None)}: {style.lr_label(rate)}, {trials}{_error_note(grids)}", fontsize=10)
    handles = _legend(grids, dots=errors == "dots")
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def layer_step_grid(spectra: pd.DataFrame, arm: str, measure: str) -> pd.DataFrame:
    """One arm's measure, averaged over its runs.

    Args:
        spectra: Rows of one map with the column ``arm``, of all arms: their layers and steps span the grid.
        arm: Which arm.
        measure: As in ``selection.measured``.

    Returns:
        Columns ``value`` (NaN where nothing was measured), ``error`` and ``bound``, as in ``selection.measured``,
        indexed by every layer, in the order of the table, and step, ascending.
    """
    values = selection.averaged(selection.measured(spectra[spectra["arm"] == arm], measure), ["layer", "step"], measure)
    cells = pd.MultiIndex.from_product([spectra["layer"].unique(), np.unique(spectra["step"])], names=["layer", "step"])
    grid = values.set_index(["layer", "step"]).reindex(cells)
    return grid.assign(bound=grid["bound"].fillna(""))


def _of_trial(runs: pd.DataFrame, trial: int) -> pd.DataFrame:
    chosen = runs[runs["trial"] == trial]
    if chosen.empty:
        trials = ", ".join(str(number) for number in sorted(runs["trial"].unique()))
        raise InputError(f"no run is trial {trial}; there are {trials}")
    return chosen


def _norm(grids: dict[str, pd.DataFrame], measure: str) -> Normalize:
    """One colour scale for all panels."""
    values = np.concatenate([grid["value"].dropna() for grid in grids.values()])
    if measure in selection.COUNTS or not (values > 0).any():
        low, high = float(values.min()), float(values.max())
        return Normalize(low, high if high > low else low + 1)
    low, high = float(values[values > 0].min()), float(values.max())
    # Clipped, so that a singular value of exactly 0 gets the darkest colour and not that of a missing cell.
    return LogNorm(low, max(high, 1.05 * low), clip=True)


def _panels(count: int, layers: int) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Pairs of a loss panel over a heat map panel, up to three beside each other; all share the step axis."""
    columns = min(count, 3)
    blocks = -(-count // columns)
    heights = [1.1, max(1.0, 0.21 * layers)]
    figure = style.new_figure(1.1 + blocks * (0.35 + sum(heights)))
    axes = figure.subplots(
        2 * blocks, columns, sharex=True, sharey="row", squeeze=False, height_ratios=heights * blocks
    )
    pairs = [
        (axes[2 * block, column], axes[2 * block + 1, column]) for block in range(blocks) for column in range(columns)
    ]
    for position, (above, below) in enumerate(pairs):
        if position >= count:
            above.remove()
            below.remove()
        elif position + columns >= count:
            below.tick_params(labelbottom=True)
            below.set_xlabel("step")
    return figure, pairs[:count]


def _draw_grid(axis: Axes, grid: pd.DataFrame, norm: Normalize) -> QuadMesh:
    layers, steps = grid.index.unique("layer"), grid.index.unique("step")
    shape = len(layers), len(steps)
    x, y = StepAxis(steps.to_numpy()).edges, np.arange(len(layers) + 1) - 0.5
    axis.set_facecolor(_UNMEASURED)
    # Rasterised: an SVG of thousands of rectangles is slow, and viewers show hairlines between them.
    mesh = axis.pcolormesh(x, y, grid["value"].to_numpy().reshape(shape), norm=norm, cmap="viridis", rasterized=True)
    bounds = grid["bound"].to_numpy().reshape(shape)
    for row, column in zip(*np.nonzero(bounds != ""), strict=True):
        axis.add_patch(
            Rectangle(
                (x[column], y[row]), x[column + 1] - x[column], 1, fill=False, linewidth=0, hatch=_HATCH,
                edgecolor=_HATCH_COLOURS[bounds[row, column]], gid="bound",
            )
        )  # fmt: skip
    axis.set_yticks(range(len(layers)), list(layers))
    axis.set_ylim(len(layers) - 0.5, -0.5)
    return mesh


def _write_errors(axis: Axes, grid: pd.DataFrame, norm: Normalize) -> None:
    """Write each estimate with its standard error into its cell."""
    steps = grid.index.unique("step")
    middles = StepAxis(steps.to_numpy()).middles
    for position, (value, error, bound) in enumerate(zip(grid["value"], grid["error"], grid["bound"], strict=True)):
        row, column = divmod(position, len(steps))
        if not error > 0:
            continue
        # Text on a hatched bound stands on a plate of the cell's colour.
        colour = matplotlib.colormaps["viridis"](norm(value))
        plate = {"boxstyle": "square,pad=0.1", "linewidth": 0, "facecolor": colour} if bound else None
        axis.text(
            middles[column], row, style.with_error(value, error), fontsize=7, ha="center", va="center", gid="error",
            color="white" if norm(value) < _DARK else "black", bbox=plate,
        )  # fmt: skip


def _mark_large_errors(axis: Axes, grid: pd.DataFrame, _: Normalize) -> None:
    """A dot in each cell whose standard error exceeds 10 % of its value."""
    steps = grid.index.unique("step")
    middles = StepAxis(steps.to_numpy()).middles
    for position in np.flatnonzero(grid["error"] > _LARGE_ERROR * grid["value"]):
        row, column = divmod(int(position), len(steps))
        axis.plot(middles[column], row, gid="large error", **_DOT)


def _error_note(grids: dict[str, pd.DataFrame]) -> str:
    """A line of the title that says how well the estimates are known."""
    cells = pd.concat(grids.values())
    known = cells[cells["error"] > 0]
    errors = known["error"] / known["value"]
    if errors.empty:
        return ""
    median, most = style.percentage(errors.median()), style.percentage(errors.max())
    return f"\nestimates: standard error {median} (median), at most {most}"


def _legend(grids: dict[str, pd.DataFrame], *, dots: bool) -> list[Artist]:
    cells = pd.concat(grids.values())
    handles: list[Artist] = []
    if dots and (cells["error"] > _LARGE_ERROR * cells["value"]).any():
        handles.append(style.key(f"standard error above {style.percentage(_LARGE_ERROR)}", **_DOT))
    for _, name in style.bound_sides(cells["bound"]):
        label = f"{name}: unresolved in some run"
        handles.append(Patch(facecolor="white", edgecolor="0.1", linewidth=0, hatch=_HATCH, label=label))
    if cells["value"].isna().any():
        handles.append(Patch(color=_UNMEASURED, label="not measured"))
    return handles
