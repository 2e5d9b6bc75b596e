from itertools import product

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.curvature_growth import curvature_growth
from skip_conditioning.figures.drawing.saving import NothingToDrawError

R = np.logspace(0, 3, 5)


@pytest.fixture
def tables():
    rows, fits = [], []
    for normaliser, activation, cost in product(("weight", "none"), ("tanh",), ("cross-entropy", "mean square")):
        power, gain = {"weight": (0.0, 1.0), "none": (4.0, 0.0)}[normaliser]
        key = {"normaliser": normaliser, "activation": activation, "cost": cost, "scaled": "all parameters"}
        rows += [{**key, "r": r, "norm": r**power, "effective_norm": r ** (power + gain), "converged": True} for r in R]
        exponents = {"exponent": power - 0.001, "exponent_error": 1e-9, "effective_exponent": power + gain}
        fits.append(
            {**key, **exponents, "effective_exponent_error": 0.03, "r_low": R[2], "r_high": R[-1], "unresolved": 0}
        )
    return pd.DataFrame(rows), pd.DataFrame(fits)


def test_every_curve_is_drawn_with_its_exponents(tables):
    figure = curvature_growth(*tables)
    assert [axis.get_title() for axis in figure.axes] == [
        "all parameters × r\ncross-entropy, tanh", "all parameters × r\nmean square, tanh"
    ]  # fmt: skip
    for axis in figure.axes:
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert labels == ["none: p = 4.00", "weight: p = 0.00 (1.00)"]
        assert len(axis.lines) == 3  # the effective norm of the network without a normaliser is the norm
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        drawn = {line.get_label(): line for line in axis.lines}
        np.testing.assert_allclose(drawn[labels[0]].get_ydata(), R**4)
        assert {line.get_color() for line in axis.lines if line.get_label() != labels[0]} == {
            drawn[labels[1]].get_color()
        }


def test_the_window_of_the_fits_is_stated(tables):
    assert "31.6 ≤ r ≤ 1000" in curvature_growth(*tables)._supxlabel.get_text()


def test_what_has_not_converged_is_counted_and_not_drawn(tables):
    table, fits = tables
    table.loc[table["r"] == R[-1], "converged"] = False
    figure = curvature_growth(table, fits.assign(unresolved=1))
    assert all(len(line.get_xdata()) == 4 for line in figure.axes[0].lines)
    assert figure.axes[0].get_title().endswith("(2 unresolved)")


def test_norms_of_zero_are_left_out_and_nothing_to_draw_is_an_error(tables):
    table, fits = tables
    table.loc[table["r"] == R[-1], "norm"] = 0.0
    assert all(len(line.get_xdata()) == 4 for line in curvature_growth(table, fits).axes[0].lines)
    with pytest.raises(NothingToDrawError, match="no positive norm"):
        curvature_growth(table.assign(norm=0.0), fits)
