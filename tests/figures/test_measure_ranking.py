from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.drawing.saving import NothingToDrawError, save
from skip_conditioning.figures.drawing.style import HOVER
from skip_conditioning.figures.measure_ranking import measure_ranking


def table(count=5):
    skill = 0.8 - 0.1 * np.arange(count)
    rows = pd.DataFrame({"measure": [f"measure {place}" for place in range(count)], "skill": skill})
    rows = rows.assign(skill_low=skill - 0.1, skill_high=skill + 0.05, skill_seed_out=skill - 0.02)
    return rows.assign(p_corrected=0.01 * np.arange(1, count + 1) ** 2, first_share=0.5 ** np.arange(1, count + 1))[
        ::-1
    ]


def of(figure, measure):
    return [line for line in figure.axes[0].lines if str(line.get_gid()).startswith(f"{HOVER}{measure}:")]


def names(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_the_best_is_on_top_and_every_number_is_the_tables():
    figure = measure_ranking(table())
    axis = figure.axes[0]
    assert names(figure) == [f"measure {place}" for place in range(5)]
    assert np.all(np.diff(axis.get_yticks()) > 0)
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
    for _, row in table().iterrows():
        interval, point, seed_out = of(figure, row["measure"])
        np.testing.assert_allclose(interval.get_xdata(), [row["skill_low"], row["skill_high"]])
        assert (point.get_xdata()[0], seed_out.get_xdata()[0]) == (row["skill"], row["skill_seed_out"])
        assert (point.get_markerfacecolor() != "white") == (row["p_corrected"] < 0.05)
    texts = [text.get_text() for text in axis.texts]
    assert texts == [
        "ranks\nfirst", "50 %", "25 %", "12 %", "6.2 %", "3.1 %",
        "corrected\np", "0.010", "0.040", "0.090", "0.16", "0.25",
    ]  # fmt: skip


def test_what_is_left_out_is_counted():
    rows = table(30)
    rows.loc[rows.index[:3], "skill"] = np.nan
    figure = measure_ranking(rows)
    assert names(figure) == [f"measure {place}" for place in range(25)]
    assert figure.axes[0].get_xlabel().endswith("(the best 25 of 27 measures, 2 left out; 3 without a skill not shown)")
    assert "(" not in measure_ranking(table()).axes[0].get_xlabel()


def test_useless_measures_do_not_squash_the_rest(tmp_path):
    rows = table(6).assign(measure=lambda rows: "a very long name of $ & < " * 4 + rows["measure"])
    rows.iloc[0, 1:5] = -50.0
    rows.iloc[1, 1:3] = -np.inf
    rows.iloc[2, 2:] = np.nan
    rows.iloc[3, 3] = np.inf
    figure = measure_ranking(rows)
    left, right = figure.axes[0].get_xlim()
    assert -1.2 < left < right < 1.2
    assert {line.get_marker() for line in of(figure, rows["measure"].iloc[0])} >= {"<"}
    assert "–" in [text.get_text() for text in figure.axes[0].texts]
    ElementTree.parse(save(figure, tmp_path / "figure", ["svg"])[0])


@pytest.mark.parametrize("rows", [table(1), table(1).assign(skill=-np.inf)])
def test_one_row_is_drawn(rows, tmp_path):
    assert len(names(measure_ranking(rows))) == 1
    save(measure_ranking(rows), tmp_path / "figure", ["svg"])


def test_nothing_to_draw_is_an_error():
    for rows in (table(0), table().assign(skill=np.nan)):
        with pytest.raises(NothingToDrawError, match="no measure"):
            measure_ranking(rows)
