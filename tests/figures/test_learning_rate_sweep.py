from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.drawing.saving import NothingToDrawError, save
from skip_conditioning.figures.drawing.style import HOVER, arm_styles
from skip_conditioning.figures.learning_rate_sweep import learning_rate_sweep

LRS = (0.01, 0.1, 0.2, 1.0)


def table(arms=3, lrs=LRS):
    rows = [
        {"arm": f"arm {arm}", "lr": lr, "median": 100 * (arm + 1) * (1 + np.log10(lr / 0.1) ** 2), "is_best": lr == 0.1}
        for arm in range(arms) for lr in lrs
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["arm", "lr", "median", "is_best"])
    return frame.assign(low=0.8 * frame["median"], high=1.2 * frame["median"], diverged=0, runs=5)


def curves(axis, gid):
    return [line for line in axis.lines if line.get_gid() == gid]


def stars(axis):
    return [line for line in axis.lines if line.get_marker() == "*"]


def test_up_to_six_arms_share_a_panel():
    rows = table(6)
    figure = learning_rate_sweep(rows, measure="steps")
    (axis,) = figure.axes
    for arm, style in arm_styles(rows["arm"]).items():
        (curve,) = curves(axis, arm)
        np.testing.assert_allclose(curve.get_ydata(), rows.loc[rows["arm"] == arm, "median"])
        assert (curve.get_color(), *curve.get_xdata()) == (style.colour, *LRS)
    assert [star.get_xdata()[0] for star in stars(axis)] == [0.1] * 6
    assert {f"arm {arm}" for arm in range(6)} <= {text.get_text() for text in figure.legends[0].get_texts()}
    assert (axis.get_xscale(), axis.get_yscale(), figure.get_supylabel()) == ("log", "log", "steps")


def test_more_arms_get_a_panel_each_with_the_others_in_grey():
    figure = learning_rate_sweep(table(16), measure="steps")
    assert [axis.get_title() for axis in figure.axes] == [f"arm {arm}" for arm in range(16)]
    for place, axis in enumerate(figure.axes):
        colours = {line.get_gid(): line.get_color() for line in axis.lines if not line.get_gid().startswith(HOVER)}
        assert len(colours) == 16
        assert [arm for arm, colour in colours.items() if colour != "0.83"] == [f"arm {place}"]
        assert [star.get_xdata()[0] for star in stars(axis)] == [0.1]


@pytest.mark.parametrize("arms", [2, 7])
def test_diverged_runs_are_counted_over_the_lines(arms):
    rows = table(arms)
    rows.loc[[2, 3, 7], "diverged"] = [1, 4, 2]
    rows.loc[3, ["median", "high"]] = np.inf
    figure = learning_rate_sweep(rows, measure="steps")
    texts = [text for axis in figure.axes for text in axis.texts]
    assert [(text.get_gid(), text.get_position()[0], text.get_text()) for text in texts] == [
        ("diverged arm 0", 0.2, "1"), ("diverged arm 0", 1.0, "4"), ("diverged arm 1", 1.0, "2")
    ]  # fmt: skip
    figure.draw_without_rendering()
    highest = max(line.get_window_extent().y1 for line in curves(figure.axes[0], "arm 0"))
    assert min(text.get_window_extent().y0 for text in figure.axes[0].texts) > highest
    assert {"diverged, of 5 runs", "infinite"} <= {text.get_text() for text in figure.legends[0].get_texts()}


def test_odd_tables_are_drawn(tmp_path):
    rows = table(8).assign(arm=lambda rows: "a very long name of $ & < " * 4 + rows["arm"])
    rows.loc[:3, ["median", "low", "high"]] = np.nan
    rows.loc[4, "low"], rows.loc[5, "high"], rows.loc[6, "low"] = -np.inf, 1e30, np.nan
    figure = learning_rate_sweep(rows, measure="a long measure " * 8)
    assert figure.axes[0].get_ylim()[1] < 1e5
    ElementTree.parse(save(figure, tmp_path / "many", ["svg"])[0])
    signed = table(2).assign(median=[-1, 0, 1, 2] * 2, low=-2, high=3)
    assert learning_rate_sweep(signed, measure="log-loss").axes[0].get_yscale() == "linear"
    save(learning_rate_sweep(table(1, (0.1,)), measure="steps"), tmp_path / "one", ["svg"])


def test_nothing_to_draw_is_an_error():
    for rows in (table(0), table().assign(median=np.inf), table().assign(lr=np.nan)):
        with pytest.raises(NothingToDrawError, match="no arm"):
            learning_rate_sweep(rows, measure="steps")
