"""Pairs of runs: log-ratios, what is known of them, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.verdict.differences import paired_differences
from skip_conditioning.experiments.claims.verdict.outcome import Comparison
from skip_conditioning.experiments.claims.verdict.run_measures import Reading
from skip_conditioning.experiments.claims.verdict.runs import arm_runs, check_complete, with_runs
from tests.experiments.claims.worlds import tables_of

INF = np.inf


def between(slowness, measure="steps", length=80, thresholds=(1.5, 0.5), **options):
    reading = Reading(tables_of({arm: np.array(v, float) for arm, v in slowness.items()}, length=length), thresholds)
    return paired_differences(reading, Comparison(measure, "a", "b", "smaller"), **options)


def test_pairs_are_of_trials_and_pilots_are_left_out():
    logs = between({"a": [0.0, 0.0, -0.5], "b": [0.0, 0.5, 0.0]}, pilots=1)
    assert logs.low == pytest.approx([-0.5, -0.5], abs=0.01)
    assert np.array_equal(logs.low, logs.high)
    assert logs.pairs == 2


def test_a_run_that_ended_before_a_threshold_gives_a_bound_and_two_say_nothing_of_it():
    logs = between({"a": [0.0], "b": [1.5]}, thresholds=(1.5, 0.05))
    assert logs.low == -INF
    assert logs.high == pytest.approx((-1.5 + np.log(33.3 / 80)) / 2, abs=0.05)
    both = between({"a": [1.0], "b": [1.5]}, thresholds=(1.5, 0.05), length=40)
    assert both.low == both.high == pytest.approx(-0.5, abs=0.02)  # from the threshold that was reached


def test_a_run_that_diverged_is_slower_and_two_tell_nothing():
    logs = between({"a": [INF, 0.0, INF, 9.0], "b": [0.0, INF, INF, INF]})
    assert logs.low.tolist() == [INF, -INF, -INF, -INF]
    assert logs.high.tolist() == [INF, -INF, INF, -INF]
    assert logs.diverged == (2, 3)
    assert logs.unknown.tolist() == [False, False, True, False]


def test_under_a_threshold_from_the_start_both_say_nothing_and_one_is_faster():
    logs = between({"a": [0.0], "b": [0.5]}, thresholds=(3.0, 0.5))
    assert logs.low == logs.high == pytest.approx(-0.5, abs=0.01)


@pytest.mark.parametrize(("side", "low", "high"), [("a", 0.0, INF), ("b", -INF, 0.0), ("ab", -INF, INF)])
def test_a_condition_number_under_its_floor_is_a_bound(side, low, high):
    tables = tables_of({"a": np.zeros(1), "b": np.zeros(1)})
    rows = [
        {
            "run_id": run,
            "step": 0,
            "map": "tail",
            "layer": "stem",
            "condition_number": 5.0,
            "resolved": run[0] not in side,
        }
        for run in tables.runs["run_id"]
    ]
    tables = Experiment(tables.runs, tables.metrics, spectra_frame(rows), empty_frame("skipped"))
    logs = paired_differences(Reading(tables), Comparison("condition_number", "a", "b", "smaller"))
    assert (logs.low[0], logs.high[0]) == (low, high)


def test_what_was_not_measured_is_named():
    tables = tables_of({"a": np.zeros(2), "b": np.zeros(2)})
    row = {"run_id": tables.runs["run_id"][0], "step": 0, "map": "tail", "layer": "stem", "sigma_mean": 2.0}
    tables = Experiment(tables.runs, tables.metrics, spectra_frame([row]), empty_frame("skipped"))
    logs = paired_differences(Reading(tables), Comparison("sigma_mean", "a", "b", "smaller"))
    assert logs.missing == ("trial 0 (b)", "trial 1 (a and b)")
    assert (len(logs.low), logs.pairs) == (0, 2)


def test_runs_of_other_lengths_are_not_compared_over_their_whole():
    tables = tables_of({"a": np.zeros(1)}, length=10), tables_of({"b": np.zeros(1)}, length=20)
    joined = Experiment(
        *(pd.concat([getattr(t, n) for t in tables]) for n in ("runs", "metrics", "spectra", "skipped"))
    )
    with pytest.raises(InputError, match=r"was trained for 10 steps and b-lr0.1-trial00 for 20"):
        paired_differences(Reading(joined), Comparison("mean_log_loss", "a", "b", "smaller"))
    assert len(paired_differences(Reading(joined), Comparison("loss_at_step_5", "a", "b", "smaller")).low) == 1


def test_arms_and_rates_that_are_not_there_are_named():
    tables = tables_of({"chain": np.zeros(2), "skip": np.zeros(2)})
    with pytest.raises(InputError, match="Did you mean 'chain'"):
        arm_runs(tables, "chian")
    with pytest.raises(InputError, match=r"no runs at learning rate 0.2, only at 0.1"):
        arm_runs(tables, "chain", 0.2)
    twice = tables.runs.assign(lr=[0.1, 0.2, 0.1, 0.1])
    with pytest.raises(InputError, match=r"ran at learning rates 0\.1, 0\.2; choose one"):
        arm_runs(Experiment(twice, tables.metrics, tables.spectra, tables.skipped), "chain")


def test_runs_that_are_missing_or_not_over_are_refused_by_name():
    tables = tables_of({"chain": np.zeros(3), "skip": np.zeros(3)})
    kept = set(tables.runs["run_id"]) - {"skip-lr0.1-trial01"}
    with pytest.raises(InputError, match=r"1 of 6 runs .*skip at 0.1, trial 1 \(missing\); finish"):
        check_complete(with_runs(tables, kept), ("chain", "skip"))
    tables.runs.loc[1, "status"] = "failed"
    with pytest.raises(InputError, match=r"chain at 0.1, trial 1 \(failed\)"):
        check_complete(tables, ("chain", "skip"))
