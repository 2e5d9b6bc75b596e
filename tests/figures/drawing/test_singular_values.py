import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.tables import spectra_frame
from skip_conditioning.figures.drawing.singular_values import pooled, weighted_quantile, with_points


def table() -> pd.DataFrame:
    """An exact row, one with neither values nor a density, and a density."""
    common = {"run_id": "a", "step": 0, "map": "tail", "rows": 6, "cols": 3}
    return spectra_frame(
        [
            {**common, "values": [3.0, 2.0, 1.0], "floor": 0.1},
            {**common, "floor": 0.2},
            {**common, "nodes": [2.0, 0.5], "weights": [0.25, 0.75], "floor": 1.0},
        ]
    )


def test_nodes_stand_for_their_share_of_the_values() -> None:
    rows = with_points(table())
    assert rows.index.tolist() == [0, 2]
    assert [list(points) for points in rows["points"]] == [[3, 2, 1], [2, 0.5]]
    assert [list(counts) for counts in rows["counts"]] == [[1, 1, 1], [0.75, 2.25]]


def test_pooled_points_keep_the_floors_of_their_spectra() -> None:
    values = pooled(with_points(table()))
    assert values.values.tolist() == [3, 2, 1, 2, 0.5]
    assert values.resolved.tolist() == [True, True, True, True, False]
    assert (values.size, values.unresolved) == (6, 2.25)


@pytest.mark.parametrize("kind", ["exact", "densities", "neither"])
def test_tables_of_one_kind(kind: str) -> None:
    rows = table()
    chosen = {"exact": rows[:1], "densities": rows[2:], "neither": rows[1:2]}[kind]
    assert len(with_points(chosen)) == (0 if kind == "neither" else 1)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
def test_quantile_of_values_that_count_the_same_is_that_of_numpy(share: float) -> None:
    values = np.random.default_rng(0).random(11)
    assert weighted_quantile(values, np.full(11, 3.0), share) == np.quantile(values, share)


@pytest.mark.parametrize(
    ("share", "quantile"),
    # 80 % lie at 1 (their middle at 40 %), 10 % at 2 (at 85 %) and 10 % at 4 (at 95 %).
    [(0, 1), (0.4, 1), (0.625, 1.5), (0.85, 2), (0.9, 3), (0.95, 4), (1, 4)],
)
def test_weighted_quantile_by_hand(share: float, quantile: float) -> None:
    assert weighted_quantile(np.array([4.0, 1.0, 2.0]), np.array([1.0, 8.0, 1.0]), share) == pytest.approx(quantile)
