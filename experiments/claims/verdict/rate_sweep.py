"""Each arm's best learning rate, chosen on pilot runs that take no part in any comparison."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict.claim import RateSweep
from skip_conditioning.experiments.claims.verdict.run_measures import Reading, measure
from skip_conditioning.experiments.claims.verdict.runs import with_runs
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds


def root_two_grid(lowest: float, highest: float) -> tuple[float, ...]:
    """Rates from the lowest to the highest, each √2 times the one before, to three digits."""
    count = int(np.floor(2 * np.log2(highest / lowest) + 1e-9)) + 1
    return tuple(float(f"{lowest * 2 ** (n / 2):.3g}") for n in range(count))


def sweep_thresholds(pilots: Experiment, sweep: RateSweep, window: int = 1) -> tuple[float, ...]:
    """The losses to which steps are counted: from the base arm's pilot runs at its best rate.

    Args:
        pilots: The tables of the pilot runs.
        sweep: How they were planned.
        window: Steps over which losses are averaged.

    Raises:
        InputError: The base arm does not learn at any rate.
    """
    base = pilots.runs[pilots.runs["arm"] == sweep.base]
    logs = measure("mean_log_loss", Reading(with_runs(pilots, set(base["run_id"])))).low[0]
    medians = logs.groupby(base.set_index("run_id")["lr"].astype(float)).median()
    thresholds = Thresholds(sweep.base, sweep.trials, window=window).losses(pilots, float(str(medians.idxmin())))
    if not thresholds:
        raise InputError(f"arm {sweep.base!r} does not learn at any rate of the sweep; give others")
    return thresholds


def restricted_log_steps(reading: Reading) -> pd.Series:
    """Mean over thresholds of the logarithm of the steps to each, or of all steps where it was not reached.

    Args:
        reading: Runs and thresholds.

    Returns:
        By ``run_id``; +inf for runs that diverged, NaN for those without losses. A run that was under a threshold
        before the first step counts as having taken half a step.
    """
    return measure("steps", reading).low.clip(lower=np.log(0.5)).mean(axis=1)


def sweep_table(pilots: Experiment, thresholds: Sequence[float]) -> pd.DataFrame:
    """Median and extremes of the steps by arm and learning rate, and how many runs diverged.

    Args:
        pilots: The tables of the pilot runs.
        thresholds: Losses to reach.

    Returns:
        Columns ``arm, lr, median, low, high`` (of steps, a geometric mean over the thresholds), ``runs, diverged,
        is_stable`` (no run diverged, and all reached the first threshold), ``is_best``.
    """
    reading = Reading(pilots, tuple(thresholds))
    logs = restricted_log_steps(reading)
    learnt = np.isfinite(measure("steps", reading).high[0])
    rows = []
    for (arm, rate), group in pilots.runs.groupby(["arm", "lr"], sort=False):
        values = np.sort(logs.reindex(group["run_id"]).dropna().to_numpy())
        middle = values[len(values) // 2] if len(values) else np.nan
        ends = (middle, values[0], values[-1]) if len(values) else (np.nan,) * 3
        steps = dict(zip(("median", "low", "high"), np.exp(ends), strict=True))
        counts = {"runs": len(group), "diverged": int(np.isinf(values).sum())}
        is_stable = bool(learnt.reindex(group["run_id"]).all())
        rows.append({"arm": arm, "lr": float(str(rate)), **steps, **counts, "is_stable": is_stable})
    table = pd.DataFrame(rows).sort_values(["arm", "lr"], kind="stable", ignore_index=True)
    best = table.sort_values(["median", "lr"]).drop_duplicates("arm").index
    return table.assign(is_best=table.index.isin(best))


def best_rates(table: pd.DataFrame) -> dict[str, float]:
    """The rate of each arm with the smallest median of steps, from a ``sweep_table``; of equal ones the smallest."""
    best = table[table["is_best"]]
    return {str(arm): float(rate) for arm, rate in zip(best["arm"], best["lr"], strict=True)}


def at_ends(rates: Mapping[str, float], sweep: RateSweep) -> list[str]:
    """The arms whose best rate is an end of the grid, so that a better one may lie outside."""
    return [arm for arm, rate in rates.items() if rate in (min(sweep.rates), max(sweep.rates))]


def by_arm(rates: Mapping[str, float]) -> tuple[str, ...]:
    """The option ``--arm-lr`` that gives each arm its rate."""
    return tuple(f"{arm}={rate:g}" for arm, rate in rates.items())
