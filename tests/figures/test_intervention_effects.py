from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.drawing.saving import NothingToDrawError, save
from skip_conditioning.figures.drawing.style import HOVER
from skip_conditioning.figures.intervention_effects import KIND_STYLES, intervention_effects


def table(arms=14, **changes):
    ratios = np.geomspace(0.05, 1.2, arms)
    rows = pd.DataFrame({"arm": [f"arm {place}" for place in range(arms)], "mediator_is_bound": False})
    rows["kind"] = [list(KIND_STYLES)[place % len(KIND_STYLES)] for place in range(arms)]
    for side, middle in (("mediator", ratios), ("speed", np.sqrt(ratios))):
        rows[f"{side}_ratio"], rows[f"{side}_low"], rows[f"{side}_high"] = middle, 0.9 * middle, 1.1 * middle
    return rows.assign(verdict="supported", **changes)


def drawn(figure, arm, size):
    """Lines with that many points that show one arm."""
    lines = [line for line in figure.axes[0].lines if str(line.get_gid()).startswith(f"{HOVER}{arm}:")]
    return [line for line in lines if len(line.get_xdata()) == size]


def test_points_and_intervals_are_the_tables():
    rows = table()
    figure = intervention_effects(rows, mediator="κ", equivalent=1.05)
    for row in rows.itertuples():
        (point,) = drawn(figure, row.arm, 1)
        assert (point.get_xdata()[0], point.get_ydata()[0]) == (row.mediator_ratio, row.speed_ratio)
        assert point.get_marker() == KIND_STYLES[row.kind].marker
        across, along = drawn(figure, row.arm, 2)
        np.testing.assert_allclose(across.get_xdata(), [row.mediator_low, row.mediator_high])
        np.testing.assert_allclose(along.get_ydata(), [row.speed_low, row.speed_high])
    labels = {text.get_text(): text.xy for text in figure.axes[0].texts if hasattr(text, "xy")}
    assert labels["arm 3"] == tuple(rows.loc[3, ["mediator_ratio", "speed_ratio"]])
    (band,) = [patch for patch in figure.axes[0].patches if patch.get_gid() == "equivalence band"]
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [1 / 1.05, 1.05])


@pytest.mark.parametrize("rows", [table(16), table(1)])
def test_labels_lie_apart_and_inside(rows):
    figure = intervention_effects(rows, mediator="κ")
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == len(rows) + 1 + 4  # the chain and the quadrants
    overlaps = [(a, b) for place, a in enumerate(boxes) for b in boxes[:place] if a.overlaps(b)]
    frame = figure.axes[0].get_window_extent().padded(2)
    assert not overlaps
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 <= frame.y1 for box in boxes)


def test_bounds_are_hollow_and_hover_says_so():
    figure = intervention_effects(table(3).assign(mediator_is_bound=[True, False, False]), mediator="κ")
    (bound,), (value,) = drawn(figure, "arm 0", 1), drawn(figure, "arm 1", 1)
    assert bound.get_markerfacecolor() == "white" != value.get_markerfacecolor()
    assert "κ ×0.05 [0.045, 0.055] (a bound), slowness" in bound.get_gid()
    assert "hollow: conditioning is a bound" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_what_has_no_place_becomes_an_arrow_or_a_note(tmp_path):
    rows = table(6)
    rows["arm"] = "a long arm with $ & < in its name, " + rows["arm"]
    rows.loc[0, "speed_ratio"] = rows.loc[0, "speed_high"] = np.inf
    rows.loc[1, ["mediator_ratio", "mediator_low"]] = 0
    rows.loc[2, ["mediator_low", "speed_high"]] = np.nan
    rows.loc[3, "speed_ratio"] = np.nan
    rows.loc[4, "mediator_high"] = 1e30
    figure = intervention_effects(rows, mediator="a long mediator " * 10)
    axis = figure.axes[0]
    assert drawn(figure, rows["arm"][0], 1)[-1].get_ydata() == axis.get_ylim()[1]
    assert drawn(figure, rows["arm"][1], 1)[-1].get_xdata() == axis.get_xlim()[0]
    assert not drawn(figure, rows["arm"][2], 2)
    assert "name, arm 3" in axis.get_xlabel().replace("\n", " ")
    assert axis.get_xlim()[1] < 1e3
    ElementTree.parse(save(figure, tmp_path / "figure", ["svg"])[0])


def test_nothing_to_draw_is_an_error():
    for rows in (table(0), table(2).assign(speed_ratio=np.nan)):
        with pytest.raises(NothingToDrawError, match="no arm"):
            intervention_effects(rows, mediator="κ")
