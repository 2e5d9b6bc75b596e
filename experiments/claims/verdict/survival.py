"""Steps to a threshold that some runs never reach: Kaplan-Meier medians of one arm, for the report.

What decides between arms is the order within pairs (``paired``), in which a censored run comes last. That is valid
because all runs are trained for equally many steps; Kaplan & Meier (1958) need it no more than that.
"""

import warnings

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict.pairs import LearningRate, arm_runs
from skip_conditioning.experiments.records.speed import speed_table


def median_steps(
    tables: Experiment, arm: str, lr: LearningRate = None, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Kaplan-Meier median of an arm's steps to the threshold, and its interval (Brookmeyer & Crowley 1982).

    Args:
        tables: The experiment.
        arm: An arm.
        lr: Learning rate, as for ``paired_differences``.
        confidence: Of the interval.

    Returns:
        Median, lower and upper end; infinity where fewer than half of the runs reached it, NaN without runs.
    """
    runs = arm_runs(tables, arm, lr)
    metrics = tables.metrics[tables.metrics["run_id"].isin(runs["run_id"])]
    speed = speed_table(runs, metrics)
    logged = speed["run_id"].isin(metrics.loc[metrics["split"] == "train", "run_id"]) | speed["diverged"]
    return kaplan_meier_median(speed[logged], confidence)


def kaplan_meier_median(speed: pd.DataFrame, confidence: float) -> tuple[float, float, float]:
    """Median of ``steps_to_threshold``, right-censored where ``censored``, of rows of a speed table."""
    if speed.empty:
        return np.nan, np.nan, np.nan
    steps = speed["steps_to_threshold"].astype(float)
    # A diverged run never reaches it: censored when it broke off, it would count as one that might have.
    steps = steps.mask(speed["diverged"], steps.max())
    if speed["censored"].all():
        return np.inf, float(steps.max()), np.inf
    survival = stats.ecdf(stats.CensoredData(steps[~speed["censored"]], right=steps[speed["censored"]])).sf
    # Where all or none are left the formula has no value: NaN, which counts as above one half.
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings(action="ignore"):
        interval = survival.confidence_interval(confidence, method="log-log")
    curves = (survival.probabilities, interval.low.probabilities, interval.high.probabilities)
    median, low, high = (_falls_to_half(survival.quantiles, curve) for curve in curves)
    return median, low, high


def _falls_to_half(steps: np.ndarray, probabilities: np.ndarray) -> float:
    below = np.flatnonzero(probabilities <= 0.5)
    return float(steps[below[0]]) if len(below) else np.inf
