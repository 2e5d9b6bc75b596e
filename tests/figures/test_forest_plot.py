import math

import pandas as pd
import pytest
from matplotlib.figure import Figure

from skip_conditioning.figures.drawing.style import HOVER
from skip_conditioning.figures.forest_plot import forest_plot

NAN, INF = math.nan, math.inf


def rows(**changes: list) -> pd.DataFrame:
    columns = {
        "what": ["a", "$b$", "c", "d"],
        "verdict": ["supported", "reversed", "undecided", "vacuous"],
        "ratio": [0.5, INF, 1.0, NAN],
    }
    ends = {"low": [0.4, 1.2, NAN, NAN], "high": [0.7, INF, NAN, NAN], "label": ["0.5", "∞", "1", "–"]}
    return pd.DataFrame(columns | ends | changes)


def drawn(figure: Figure, name: str) -> list:
    return [line for line in figure.axes[0].lines if str(line.get_gid()).startswith(f"{HOVER}{name}:")]


def test_forest_plot_shows_ratios_intervals_and_the_band() -> None:
    figure = forest_plot(rows(), equivalent=1.25)
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "$b$", "c"]
    interval, point = drawn(figure, "a")
    assert interval.get_xdata().tolist() == [0.4, 0.7]
    assert list(point.get_xdata()) == [0.5]
    (alone,) = drawn(figure, "c")  # no interval, no line
    assert list(alone.get_xdata()) == [1.0]
    (band,) = [patch for patch in axis.patches if patch.get_gid() == "equivalence band"]
    assert [band.get_x(), band.get_x() + band.get_width()] == pytest.approx([0.8, 1.25])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "supported",
        "reversed",
        "undecided",
        "equal",
        "counts as none: 0.8–1.25",
        "beyond any axis",
    ]


def test_infinite_ratios_are_arrows_at_the_edge() -> None:
    figure = forest_plot(rows())
    edge = figure.axes[0].get_xlim()[1]
    interval, arrow = drawn(figure, "$b$")
    assert arrow.get_marker() == ">"
    assert list(arrow.get_xdata()) == [edge]
    assert interval.get_xdata().tolist() == pytest.approx([1.2, edge])
