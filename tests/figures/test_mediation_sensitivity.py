from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.drawing.saving import NothingToDrawError, save
from skip_conditioning.figures.mediation_sensitivity import mediation_sensitivity, zero_crossings

RHO = np.linspace(-0.9, 0.9, 37)


def table(indirect):
    return pd.DataFrame({"rho": RHO, "indirect": indirect})


def artists(figure, gid):
    return [artist for artist in figure.axes[0].get_children() if artist.get_gid() == gid]


def test_curve_total_and_crossing_are_drawn():
    figure = mediation_sensitivity(table(RHO - 0.33).sample(frac=1, random_state=0), total=-0.5)
    ((curve,), (total,)) = (artists(figure, gid) for gid in ("indirect", "total"))
    np.testing.assert_allclose(curve.get_xydata(), np.column_stack([RHO, RHO - 0.33]))
    assert list(total.get_ydata()) == [-0.5, -0.5]
    (crossing,) = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert crossing.get_xdata()[0] == pytest.approx(0.33)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0 at ρ = 0.33"]
    (kept,) = artists(figure, "keeps its sign")
    np.testing.assert_allclose([kept.get_x(), kept.get_x() + kept.get_width()], [-0.9, 0.33])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["indirect effect", "total effect −0.5", "keeps its sign", "without confounding: −0.33"]


@pytest.mark.parametrize(
    ("indirect", "expected"),
    [([1, 2, 1], []), ([-1, 1, -3], [0.5, 1.25]), ([-1, 0, 1], [1]), ([0, 0, 1], [0, 1]), ([1], [])],
)
def test_zero_crossings_are_linear_between_neighbours(indirect, expected):
    values = np.array(indirect, float)
    np.testing.assert_allclose(zero_crossings(np.arange(len(values)), values), expected)


def test_without_a_crossing_the_figure_says_so():
    figure = mediation_sensitivity(table(0.3), total=np.nan)
    assert "does not cross 0 from ρ = −0.9 to 0.9" in figure.axes[0].get_xlabel()
    assert not artists(figure, "total")


@pytest.mark.parametrize(
    "curve",
    [table(np.where(RHO > 0.5, np.inf, np.sin(9 * RHO))), table(0.0), table(RHO)[:1], table(RHO / (1 - RHO**2) ** 9)],
)
def test_odd_curves_are_drawn(curve, tmp_path):
    figure = mediation_sensitivity(curve, total=np.inf)
    ElementTree.parse(save(figure, tmp_path / "figure", ["svg"])[0])
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_a_curve_that_explodes_leaves_the_rest_readable():
    figure = mediation_sensitivity(table(0.4 + RHO / (1.0001 - np.abs(RHO) / 0.9)), total=0.6)
    assert figure.axes[0].get_ylim()[1] < 10


def test_nothing_to_draw_is_an_error():
    for curve in (table(np.nan), table(np.inf), table(0.0)[:0]):
        with pytest.raises(NothingToDrawError, match="no finite value"):
            mediation_sensitivity(curve, total=1.0)
