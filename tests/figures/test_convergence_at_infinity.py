import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.convergence_at_infinity import convergence_at_infinity
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.style import arm_styles

STEPS = np.array([0, 1, 10, 100])


def frames(datasets: tuple[str, ...] = ("digits",)) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = [
        (dataset, cost, arm, gain, initialisation)
        for dataset in datasets
        for cost in ("cross-entropy", "mean square")
        for arm, gain in [("residual", 0.5), ("chain", 0.5), ("residual", 0.01)]
        for initialisation in ("default", "zero head")
    ]
    keys = ["dataset", "cost", "arm", "gain", "initialisation"]
    curves = [
        pd.DataFrame(
            {
                **dict(zip(keys, run, strict=True)),
                "step": STEPS,
                "loss": 1 / (1.0 + STEPS),
                "guarantee": 2 / (1.0 + STEPS),
                "parameter_norm": 1 + np.log(1 + STEPS),
            }
        )
        for run in runs
    ]
    fits = pd.DataFrame(runs, columns=keys).assign(exponent=np.linspace(0.5, 1, len(runs)))
    return pd.concat(curves, ignore_index=True), fits


def test_every_run_and_its_guarantee_is_a_line_of_its_arms_colour() -> None:
    figure = convergence_at_infinity(*frames())
    losses, mean_square, norms = figure.axes
    assert (len(losses.lines), len(mean_square.lines), len(norms.lines)) == (12, 12, 6)
    colours = {style.colour for style in arm_styles(["residual", "chain", "residual, γ = 0.01"]).values()}
    assert {line.get_color() for line in losses.lines} == colours
    assert sum(line.get_linestyle() == "--" for line in losses.lines) == 6
    solid = losses.lines[0]
    np.testing.assert_array_equal(solid.get_xdata(), STEPS[1:])
    np.testing.assert_allclose(solid.get_ydata(), 1 / (1.0 + STEPS[1:]))


def test_axes_are_logarithmic_and_named_and_data_sets_have_rows() -> None:
    figure = convergence_at_infinity(*frames(("digits", "mnist")))
    assert len(figure.axes) == 6
    assert all(axis.get_xscale() == axis.get_yscale() == "log" for axis in figure.axes)
    assert [axis.get_title() for axis in figure.axes[3:5]] == ["mnist, cross-entropy", "mnist, mean square"]
    assert all(axis.get_ylabel() for axis in figure.axes)
    assert all(axis.get_xlabel() == "step" for axis in figure.axes[3:])


def test_the_legend_tells_arms_and_their_exponents() -> None:
    (legend,) = convergence_at_infinity(*frames()).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0].startswith("residual, p = 0.50 to ")
    assert labels[2].startswith("residual, γ = 0.01, p = ")
    assert labels[-1] == "guaranteed loss"


def test_an_empty_table_is_an_error() -> None:
    curves, fits = frames()
    with pytest.raises(NothingToDrawError):
        convergence_at_infinity(curves.iloc[:0], fits)
