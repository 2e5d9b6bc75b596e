"""The best learning rate of each arm, chosen on pilot trials that take no part in any comparison; runs at it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.mechanism.design import Design
from skip_conditioning.experiments.claims.verdict.pairs import with_runs
from skip_conditioning.experiments.claims.verdict.run_measures import MEASURES


def best_rates(tables: Experiment, measure: str, pilots: int) -> dict[str, float]:
    """The learning rate of each arm with the smallest median over the pilot trials; of equal ones the smallest.

    Args:
        tables: The experiment.
        measure: A name in ``run_measures.MEASURES`` of which less is better; a diverged run is the worst.
        pilots: Number of pilot trials, the first ones.

    Raises:
        InputError: An arm was measured in none of the pilot trials.
    """
    sweep = learning_rate_sweep(tables, measure, pilots)
    for arm, rows in sweep.groupby("arm", sort=False):
        if rows["median"].isna().all():
            raise InputError(f"{measure} was measured in no run of arm {arm!r} of the first {pilots} trials")
    best = sweep.sort_values(["median", "lr"]).drop_duplicates("arm")
    return {str(arm): float(lr) for arm, lr in zip(best["arm"], best["lr"], strict=True)}


def learning_rate_sweep(tables: Experiment, measure: str, pilots: int | None = None) -> pd.DataFrame:
    """Median and quartiles of a measure by arm and learning rate, and how many runs diverged.

    Args:
        tables: The experiment.
        measure: A name in ``run_measures.MEASURES``.
        pilots: Number of trials, the first ones; None for all.

    Returns:
        Columns ``arm, lr, median, low, high`` (of the measure, not its logarithm), ``runs, diverged``.
    """
    runs = tables.runs if pilots is None else tables.runs[tables.runs["trial"].astype(int) < pilots]
    logs = MEASURES[measure](with_runs(tables, set(runs["run_id"])))
    rows = []
    for (arm, rate), group in runs.groupby(["arm", "lr"], sort=False):
        values = logs.reindex(group["run_id"]).dropna().to_numpy(float)
        # Order statistics: between a number and infinity there is nothing to interpolate.
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75], method="higher") if len(values) else [np.nan] * 3
        diverged = int((group["status"] == "diverged").sum())
        ends = {name: float(np.exp(end)) for name, end in (("median", median), ("low", low), ("high", high))}
        rows.append({"arm": arm, "lr": float(str(rate)), **ends, "runs": len(group), "diverged": diverged})
    return pd.DataFrame(rows)


def after_pilots(tables: Experiment, pilots: int) -> Experiment:
    """The trials that are compared: all but the pilots, which are the first."""
    runs = tables.runs
    return with_runs(tables, set(runs.loc[runs["trial"].astype(int) >= pilots, "run_id"]))


def at_rates(tables: Experiment, rates: Mapping[str, float]) -> Experiment:
    """The runs of each arm at its own learning rate."""
    runs = tables.runs
    wanted = runs["arm"].map(dict(rates)).astype(float)
    return with_runs(tables, set(runs.loc[np.isclose(runs["lr"].astype(float), wanted, rtol=1e-9, atol=0), "run_id"]))


def run_table(tables: Experiment, design: Design, mediator: str, rates: Mapping[str, float]) -> pd.DataFrame:
    """The runs of each arm at its learning rate.

    Args:
        tables: The experiment.
        design: Its measure of speed.
        mediator: The measure of conditioning.
        rates: Learning rate of each arm.

    Returns:
        Columns ``run_id, arm, trial, lr, mediator, speed``, the last two logarithms.
    """
    chosen = at_rates(tables, rates)
    runs = chosen.runs[["run_id", "arm", "trial", "lr"]]
    logs = {
        name: MEASURES[measure](chosen).reindex(runs["run_id"]).to_numpy(float)
        for name, measure in (("mediator", mediator), ("speed", design.speed))
    }
    return runs.assign(**logs).reset_index(drop=True)
