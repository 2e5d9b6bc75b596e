"""Steps to thresholds: exact on exponential losses, bounds where a run ended before or diverged."""

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.experiments.claims.verdict.step_thresholds import SHARES, Thresholds, log_steps, smoothed
from tests.experiments.claims.worlds import World, tables_of


def curve(scale, length=80):
    return pd.Series(2.0 * np.exp(-np.arange(length + 1) / scale))


def steps_to(losses, thresholds, window=1, diverged=False):
    return log_steps(losses, thresholds, window=window, diverged=diverged)


def test_the_ratio_of_steps_is_that_of_the_time_scales():
    thresholds = [1.5, 1.0, 0.5]
    fast, slow = steps_to(curve(10.0), thresholds), steps_to(curve(15.0), thresholds)
    assert slow[0] - fast[0] == pytest.approx(np.log(1.5), abs=2e-3)  # a loss is linear between two steps
    assert np.array_equal(fast[0], fast[1])


def test_a_run_that_ended_before_is_known_to_take_longer():
    low, high = steps_to(curve(40.0, 10), [1.8, 0.1])
    assert low[0] == high[0] < np.log(10)
    assert (low[1], high[1]) == (np.log(10), np.inf)


def test_a_run_that_diverged_is_the_slowest_of_all():
    losses = curve(10.0)
    assert np.isposinf(steps_to(losses, [1.0], diverged=True)).all()
    losses.iloc[5] = np.nan
    assert np.isposinf(steps_to(losses, [1.0])).all()


def test_a_run_under_a_threshold_from_the_start_takes_no_steps_and_one_without_losses_is_unknown():
    assert np.isneginf(steps_to(curve(10.0), [3.0])).all()
    assert np.isnan(steps_to(pd.Series(dtype=float), [1.0])).all()


def test_a_centred_window_does_not_shrink_a_ratio_as_a_trailing_one_does():
    thresholds, window = [1.2, 0.8], 9
    fast, slow = curve(10.0), curve(15.0)
    centred = np.mean(steps_to(slow, thresholds, window)[0] - steps_to(fast, thresholds, window)[0])
    trailing = [steps_to(losses.rolling(window, min_periods=1).mean(), thresholds)[0] for losses in (slow, fast)]
    assert centred == pytest.approx(np.log(1.5), abs=0.01)
    assert np.mean(trailing[0] - trailing[1]) < 0.85 * np.log(1.5)
    assert len(smoothed(fast, window)) == len(fast)


def test_thresholds_are_shares_of_the_fall_of_the_pilot_runs_of_the_base_arm():
    tables = tables_of({"chain": np.array([0.0, 0.0, 9.0]), "skip": np.array([-1.0, -1.0, -1.0])}, length=20)
    losses = Thresholds("chain", 2).losses(tables, 0.1)
    assert losses == pytest.approx([2.3 - share * 0.9 * 2.3 for share in SHARES])
    assert Thresholds("chain", 2).losses(tables, None) == losses


@pytest.mark.parametrize("slowness", [[9.0, 9.0], [np.inf, np.inf]], ids=["hardly falls", "diverged"])
def test_a_base_arm_that_does_not_learn_gives_no_thresholds(slowness):
    assert Thresholds("chain", 2).losses(tables_of({"chain": np.array(slowness)}), 0.1) == ()


def test_worlds_repeat():
    first, second = (World({"a": 0.0, "b": -1.0}).tables(3, 7).metrics["loss"] for _ in range(2))
    assert first.equals(second)
