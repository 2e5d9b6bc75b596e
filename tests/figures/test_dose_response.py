from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.dose_response import dose_response
from skip_conditioning.figures.drawing.saving import NothingToDrawError, save
from skip_conditioning.figures.drawing.style import HOVER

GAINS = (0, 0.25, 0.5, 1, 2)


def table(trials=5, gains=GAINS):
    rows = [
        {"gain": gain, "trial": trial, "mediator": 100 / (1 + gain) * 1.3**trial}
        for trial in range(trials)
        for gain in gains
    ]
    return pd.DataFrame(rows, columns=["gain", "trial", "mediator"]).assign(
        speed=lambda rows: 3 * rows["mediator"] ** 0.5
    )


def line(axis, gid):
    (measured,) = [line for line in axis.lines if line.get_gid() == gid]
    return measured


def test_medians_quartiles_and_trials_are_the_tables():
    rows = table()
    figure = dose_response(rows, mediator="κ")
    panels = dict(zip(("mediator", "both", "speed"), figure.axes, strict=False))
    for side in ("mediator", "speed"):
        axis = panels[side]
        np.testing.assert_allclose(line(axis, "median").get_ydata(), rows.groupby("gain")[side].median())
        (band,) = axis.collections
        corners = band.get_paths()[0].vertices
        start = corners[corners[:, 0] == 0, 1]
        np.testing.assert_allclose(
            [start.min(), start.max()], np.quantile(rows.loc[rows["gain"] == 0, side], [0.25, 0.75])
        )
        trial = rows[rows["trial"] == 3].sort_values("gain")
        np.testing.assert_allclose(line(axis, f"{HOVER}trial 3").get_ydata(), trial[side])
    clouds = {cloud.get_gid(): np.asarray(cloud.get_offsets()) for cloud in panels["both"].collections}
    np.testing.assert_allclose(clouds["α = 0.5"], rows.loc[rows["gain"] == 0.5, ["mediator", "speed"]])
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == [f"{gain:g}" for gain in GAINS]
    assert panels["mediator"].get_ylabel() == panels["both"].get_xlabel() == "κ"


def test_infinite_values_lie_at_the_edge_and_medians_count_them(tmp_path):
    rows = table()
    rows.loc[rows["gain"] == 0, "speed"] = np.inf
    rows.loc[(rows["gain"] == 1) & (rows["trial"] < 2), "mediator"] = np.inf
    rows.loc[0, "mediator"], rows.loc[4, "speed"] = 0, np.nan
    figure = dose_response(rows, mediator="a long mediator with $ & < " * 8)
    axes = dict(zip(("mediator", "both", "speed"), figure.axes, strict=False))
    assert line(axes["speed"], "median").get_ydata()[0] == axes["speed"].get_ylim()[1]
    assert line(axes["mediator"], "median").get_ydata()[3] == pytest.approx(50 * 1.3**4)
    assert (
        figure.get_supxlabel() == "at the edge of an axis: infinite or 0; 1 of 25 runs lack a value and are not shown"
    )
    ElementTree.parse(save(figure, tmp_path / "figure", ["svg"])[0])


@pytest.mark.parametrize("rows", [table(1, (1,)), table(3, np.linspace(0, 1, 20)), table(8, (0, 1e-3, 1e3))])
def test_few_and_many_gains_are_drawn(rows, tmp_path):
    figure = dose_response(rows, mediator="κ")
    assert len(line(figure.axes[0], "median").get_xdata()) == rows["gain"].nunique()
    assert len(figure.axes[-1].get_yticks()) <= 16
    save(figure, tmp_path / "figure", ["svg"])


def test_nothing_to_draw_is_an_error():
    for rows in (table(0), table().assign(speed=np.inf), table().assign(mediator=np.nan)):
        with pytest.raises(NothingToDrawError, match="no gain"):
            dose_response(rows, mediator="κ")
