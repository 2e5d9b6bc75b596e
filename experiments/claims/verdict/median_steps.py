"""Median steps to the threshold of one arm, for the report; what decides between arms is the order within pairs."""

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.statistics.kaplan_meier import kaplan_meier_median
from skip_conditioning.experiments.claims.verdict.pairs import LearningRate, arm_runs
from skip_conditioning.experiments.speed import speed_table


def median_steps(
    tables: Experiment, arm: str, lr: LearningRate = None, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Kaplan-Meier median of an arm's steps to the threshold, and its interval.

    A diverged run never reaches the threshold, so it is censored last, at the most steps of any run.

    Args:
        tables: The experiment.
        arm: The arm.
        lr: Learning rate, as for ``paired_differences``.
        confidence: Of the interval.

    Returns:
        Median, lower and upper end; infinity where fewer than half of the runs reached it, NaN without runs.
    """
    runs = arm_runs(tables, arm, lr)
    metrics = tables.metrics[tables.metrics["run_id"].isin(runs["run_id"])]
    speed = speed_table(runs, metrics)
    logged = speed["run_id"].isin(metrics.loc[metrics["split"] == "train", "run_id"]) | speed["diverged"]
    speed = speed[logged]
    steps = speed["steps_to_threshold"].astype(float)
    steps = steps.mask(speed["diverged"], steps.max())
    return kaplan_meier_median(steps.to_numpy(), speed["censored"].to_numpy(dtype=bool), confidence)
