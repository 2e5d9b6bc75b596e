"""The style shared by all figures: a colour, marker and line per arm, fonts, log axes, names of quantities."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

LineStyle = Literal["-"] | tuple[float, Sequence[float]]

#: Width of every figure; at 200 dpi twice the 800 pixels at which a README shows it.
WIDTH = 8.0
GREY = "0.45"

#: Parts of matplotlib's settings that are not about how a figure looks.
_NOT_LOOKS = ("backend", "interactive", "toolbar", "timezone", "webagg", "tk.", "macosx", "date.epoch", "docstring")

#: For ``matplotlib.rc_context`` while a figure is drawn and while it is saved (ticks are made that late): the library's
#: own defaults, whatever a user's ``matplotlibrc`` says, and what is changed of them.
SETTINGS: dict[Any, Any] = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith(_NOT_LOOKS)},
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}

#: An artist whose id begins so becomes a group of the SVG that shows the rest of its id under the pointer, where a
#: report contains the figure.
HOVER = "hover: "

PALETTE = sns.color_palette("colorblind").as_hex()
# Those that are legible as thin lines on white, as far apart as they go.
_COLOURS = [PALETTE[index] for index in (0, 3, 2, 1, 4, 5, 9)]
_MARKERS = "osD^vPp"
_LINES: tuple[LineStyle, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (7, 1.5, 2, 1.5)),
)
#: Arms of the paper, and the rank of each in the palette.
_PAPER_ARMS = {"chain": 1, "original": 3, "residual": 0, "modified": 2}


@dataclass(frozen=True)
class ArmStyle:
    """How one arm looks in every figure."""

    colour: str
    marker: str
    line: LineStyle


VERDICT_STYLES = {
    "supported": ArmStyle(PALETTE[0], "o", "-"),
    "supported, small": ArmStyle(PALETTE[9], "o", "-"),
    "no effect": ArmStyle(PALETTE[2], "D", "-"),
    "reversed": ArmStyle(PALETTE[3], "X", "-"),
    "undecided": ArmStyle("#767676", "s", "-"),
    "vacuous": ArmStyle(PALETTE[4], "v", "-"),
    "not tested": ArmStyle("#767676", "P", "-"),
}


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """Styles of an experiment's arms, in the order of their first appearance, in which figures show them.

    The paper's arms always look the same; others take the remaining colours in turn. When colours run out they
    return with another marker and line.
    """
    listed = list(dict.fromkeys(arms))
    others = [arm for arm in listed if arm not in _PAPER_ARMS]
    free = [position for position in range(len(_COLOURS)) if position not in {_PAPER_ARMS.get(arm) for arm in listed}]
    positions = _PAPER_ARMS | {
        arm: free[rank % len(free)] + rank // len(free) * len(_COLOURS) for rank, arm in enumerate(others)
    }
    return {arm: _style(positions[arm]) for arm in listed}


def _style(position: int) -> ArmStyle:
    turn = position // len(_COLOURS)
    return ArmStyle(
        colour=_COLOURS[position % len(_COLOURS)],
        marker=_MARKERS[(position + turn) % len(_MARKERS)],
        line=_LINES[(position + turn) % len(_LINES)],
    )


def new_figure(height: float) -> Figure:
    """An empty figure of the common width whose layout keeps labels apart; needs no window system."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def panel_grid(figure: Figure, count: int) -> list[Axes]:
    """Panels with shared axes, row by row; where the last row is shorter the one above is labelled too."""
    columns = panel_columns(count)
    rows = -(-count // columns)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for position, axis in enumerate(axes):
        if position >= count:
            axis.remove()
        elif position + columns >= count:
            axis.tick_params(labelbottom=True)
    return list(axes[:count])


def panel_columns(count: int) -> int:
    """Columns of a grid of panels: as many as stay readable."""
    return 2 if count == 4 else min(count, 3)


def named_lines(axis: Axes, names: Sequence[str], heights: np.ndarray) -> np.ndarray:
    """Lines of a table with their names on the left, from the top of a panel down.

    Args:
        axis: The panel.
        names: One for each line.
        heights: Of the lines, shape ``(n,)``.

    Returns:
        The middle of each line, shape ``(n,)``.
    """
    middles = np.cumsum(heights) - heights / 2
    axis.set_ylim(float(heights.sum()), 0)
    axis.set_yticks(middles, names, parse_math=False)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    return middles


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Logarithmic scale with a handful of ticks, written as plain numbers, between two positive ends."""
    axis.axes.set(**{"xscale" if axis is axis.axes.xaxis else "yscale": "log"})
    axis.set_major_locator(_log_locator(high / low))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def log_ticks(low: float, high: float) -> list[float]:
    """The ticks ``log_axis`` would show between two positive ends."""
    return [float(tick) for tick in _log_locator(high / low).tick_values(low, high) if low <= tick <= high]


def _log_locator(ratio: float) -> LogLocator | MaxNLocator:
    if ratio < 5:
        return MaxNLocator(5, steps=[1, 2, 5, 10])
    return LogLocator(subs=(1, 2, 5), numticks=12) if ratio < 100 else LogLocator(subs=(1,), numticks=6)


def number(value: float) -> str:
    """A tick's label: plain where that is short, else a power of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    factor = value / 10.0**exponent
    return rf"$10^{{{exponent}}}$" if np.isclose(factor, 1) else rf"${factor:.3g}\times10^{{{exponent}}}$"


def digits(value: float, count: int = 3) -> str:
    """A number to so many significant digits, with a true minus sign and ∞."""
    return f"{value:.{count}g}".replace("-", "−").replace("inf", "∞")


def percentage(share: float) -> str:
    """A share as a percentage: two digits under 10 %, else whole."""
    percent = 100 * share
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %"


def with_error(value: float, error: float) -> str:
    """An estimate and its standard error, such as ``1.23 ±0.02``: the error to one digit, the value as far."""
    if not 0.01 <= value < 1e4 or error >= value:
        return f"{value:.2g} ±{percentage(error / value)}"
    decimals = max(0, -int(np.floor(np.log10(float(f"{error:.0e}")))))
    return f"{value:.{decimals}f} ±{error:.{decimals}f}"


def key(label: str, **look: Any) -> Line2D:
    """A legend entry for lines or points of a look."""
    return Line2D([], [], label=label, **look)


def arm_keys(styles: Mapping[str, ArmStyle]) -> list[Artist]:
    """Legend entries of arms that are drawn as lines."""
    return [key(arm, color=style.colour, linestyle=style.line, linewidth=1.8) for arm, style in styles.items()]


def bound_sides(bounds: pd.Series) -> list[tuple[str, str]]:
    """The kinds of bound there are among values, as ``("above", "lower bound")`` for truths above them."""
    return [
        (side, name) for side, name in (("above", "lower bound"), ("below", "upper bound")) if (bounds == side).any()
    ]


def legend_columns(handles: Sequence[Artist]) -> int:
    """Columns of a legend above or below the panels: one line if the labels fit beside each other, else four."""
    width = sum(len(str(handle.get_label())) + 7 for handle in handles)
    return len(handles) if width < 110 else 4


def lr_label(lr: float) -> str:
    """Title of a panel that shows one learning rate."""
    return f"learning rate {lr:g}" if np.isfinite(lr) else "learning rate not recorded"


def counted(numbers: Sequence[int], noun: str) -> str:
    """``4 trials``, ``1 trial`` or ``3–4 trials`` for the numbers of several arms."""
    low, high = min(numbers), max(numbers)
    return f"{low if low == high else f'{low}–{high}'} {noun}{'' if high == 1 else 's'}"


#: The derivatives, as written on an axis: of one layer, and of any.
MAPS = {
    "tail": ("∂logits/∂{}", "∂logits/∂layer"),
    "layer": ("∂output/∂input of {}", "∂output/∂input"),
    "network": ("∂logits/∂input", "∂logits/∂input"),
    "param": ("∂output/∂parameters of {}", "∂output/∂parameters"),
    "kernel": ("tangent kernel of {}", "tangent kernel of layer"),
}
BATCH_MODES = ("batch", "sample")

_MEASURES = {
    "condition_number": "condition number κ",
    "sigma_max": "largest {}",
    "sigma_min": "smallest {}",
    "sigma_mean": "mean {}",
    "sigma_gmean": "geometric mean {}",
    "sigma_median": "median {}",
    "sigma_rms": "rms {}",
    "rank": "numerical rank",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
}


def value_name(map: str) -> str:
    """What the values of a spectrum of this map are."""
    return "eigenvalue" if map == "kernel" else "singular value"


def measure_label(measure: str, map: str) -> str:
    """Name of a conditioning measure on an axis; all are plain numbers without a unit."""
    name = _MEASURES.get(measure) or f"{measure.removeprefix('sigma_q').lstrip('0') or 0} % quantile {{}}"
    return name.format(value_name(map))


def fitted(first: str, second: str, separator: str) -> str:
    """Two parts of a label in one line, or in two where one would be wider than the figure."""
    joined = f"{first}{separator}{second}"
    return joined if len(joined) < 88 else f"{first}\n{second}"


def map_label(map: str, layer: str | None) -> str:
    """The derivative that was measured, such as ``∂logits/∂stem``; without a layer, of any layer."""
    return MAPS[map][0].format(layer) if layer else MAPS[map][1]
