"""One curve for each family of arms matched in conditioning."""

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.matched_conditioning import matched_conditioning


def curves(**changes):
    rows = [
        {"rate": rate, "family": family, "is_copy": is_copy, "level": level, "arm": f"{family}-{level}",
         "conditioning": 200.0 * 1.2**level, "steps": 20.0 / (1 + level), "steps_low": 15.0, "steps_high": np.inf}
        for rate in ("equal", "best") for family in ("gain", "chain") for is_copy in (False, True) for level in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


def test_a_panel_for_each_choice_of_rates_and_a_line_for_each_family_and_its_copies():
    figure = matched_conditioning(curves(), conditioning="effective rank")
    assert [axis.get_title() for axis in figure.axes] == [
        "all arms at one learning rate",
        "each arm at its own best rate",
    ]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
    assert lines[0].get_ydata().tolist() == [20.0, 10.0, 20 / 3]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["gain", "chain", "dashed: ‖J‖_F equal too"]


def test_nothing_that_was_reached_is_nothing_to_draw():
    with pytest.raises(NothingToDrawError):
        matched_conditioning(curves(steps=np.inf), conditioning="effective rank")
