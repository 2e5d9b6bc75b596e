"""What was read of every run that is compared, so that each number of a verdict can be computed again without us."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict.comparisons import learning_rates, reading_at
from skip_conditioning.experiments.claims.verdict.outcome import Comparison
from skip_conditioning.experiments.claims.verdict.run_measures import measure
from skip_conditioning.experiments.claims.verdict.runs import arm_runs, with_runs
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds


def run_values(
    tables: Experiment, comparisons: Sequence[Comparison], thresholds: Thresholds | None = None, experiment: str = ""
) -> pd.DataFrame:
    """A row for each run and measure; of ``steps`` for each threshold.

    Args:
        tables: The experiment, finished, with its pilot trials, which are left out.
        comparisons: What is compared.
        thresholds: How the thresholds of ``steps`` are fixed.
        experiment: Its name.

    Returns:
        Columns ``experiment, lr, arm, trial, diverged, measure, map, layer, threshold, low, high``. The natural
        logarithm of the measure lies between ``low`` and ``high``; equal ones are its value, infinite ones say that
        nothing bounds it. ``threshold`` is a loss, NaN where the measure has none.

    Raises:
        InputError: An arm or a measure is missing.
    """
    columns = ["experiment", "lr", "arm", "trial", "diverged", "measure", "map", "layer", "threshold", "low", "high"]
    return pd.DataFrame(_rows(tables, comparisons, thresholds, experiment), columns=columns)


def _rows(
    tables: Experiment, comparisons: Sequence[Comparison], thresholds: Thresholds | None, experiment: str
) -> Iterator[tuple[Any, ...]]:
    arms = dict.fromkeys(name for comparison in comparisons for name in (comparison.arm, comparison.other))
    wanted = dict.fromkeys((each.measure, each.map, each.layer) for each in comparisons)
    pilots = thresholds.pilots if thresholds else 0
    for rate in learning_rates(tables, sorted(arms)):
        runs = pd.concat([arm_runs(tables, arm, rate) for arm in arms])
        runs = runs[runs["trial"].astype(int) >= pilots]
        reading = reading_at(tables, thresholds, rate)
        for name, spectrum_map, layer in wanted:
            if name == "steps" and not reading.thresholds:
                continue
            chosen = type(reading)(
                with_runs(tables, set(runs["run_id"])), reading.thresholds, reading.window, spectrum_map, layer
            )
            logs = measure(name, chosen)
            losses = reading.thresholds if name == "steps" else [np.nan] * logs.low.shape[1]
            for run_id, arm, trial in runs[["run_id", "arm", "trial"]].to_numpy():
                about = (experiment, rate, arm, int(trial), bool(chosen.diverged[run_id]))
                for loss, low, high in zip(losses, logs.low.loc[run_id], logs.high.loc[run_id], strict=True):
                    yield (*about, name, spectrum_map, layer, loss, low, high)
