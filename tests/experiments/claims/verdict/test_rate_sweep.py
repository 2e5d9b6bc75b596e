"""Each arm's best rate from pilot runs; diverged and slow ones are no better for it."""

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.verdict.claim import RateSweep
from skip_conditioning.experiments.claims.verdict.rate_sweep import (
    at_ends,
    best_rates,
    by_arm,
    root_two_grid,
    sweep_table,
    sweep_thresholds,
)
from tests.experiments.claims.worlds import tables_of

RATES = root_two_grid(0.1, 0.4)
SWEEP = RateSweep("chain", RATES, 3)


def pilots(slowness):
    """Tables of pilot runs; ``slowness[arm]`` by rate, the same in all trials."""
    each = [
        tables_of({arm: np.full(3, v[i], float) for arm, v in slowness.items()}, lr=lr) for i, lr in enumerate(RATES)
    ]
    names = ("runs", "metrics", "spectra", "skipped")
    return type(each[0])(*(pd.concat([getattr(tables, name) for tables in each]) for name in names))


def test_the_grid_has_ratio_root_two_and_both_ends():
    assert RATES == (0.1, 0.141, 0.2, 0.283, 0.4)
    assert root_two_grid(0.04, 14.5)[-1] == pytest.approx(14.5, rel=0.01)


def test_best_rates_are_those_with_the_fewest_steps_and_ends_are_named():
    tables = pilots({"chain": [0.4, 0.0, 0.1, 0.5, np.inf], "skip": [0.5, 0.4, 0.3, 0.2, 0.1]})
    table = sweep_table(tables, sweep_thresholds(tables, SWEEP))
    rates = best_rates(table)
    assert rates == {"chain": 0.141, "skip": 0.4}
    assert at_ends(rates, SWEEP) == ["skip"]
    assert by_arm(rates) == ("chain=0.141", "skip=0.4")
    last = table[(table["arm"] == "chain") & (table["lr"] == 0.4)].iloc[0]
    assert (last["diverged"], last["is_stable"]) == (3, False)


def test_thresholds_come_from_the_best_rate_of_the_base_arm():
    tables = pilots({"chain": [9.0, 0.0, 9.0, 9.0, 9.0]})
    assert sweep_thresholds(tables, SWEEP)[-1] == pytest.approx(2.3 * 0.1, abs=0.01)
    with pytest.raises(InputError, match="does not learn at any rate"):
        sweep_thresholds(pilots({"chain": [9.0] * 5}), SWEEP)
