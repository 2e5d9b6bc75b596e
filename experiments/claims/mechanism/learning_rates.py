"""The best learning rate of each arm, chosen on pilot trials that take no part in any comparison."""

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict.pairs import with_runs
from skip_conditioning.experiments.claims.verdict.run_measures import MEASURES

_NAMED = 6


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


def at_rates(tables: Experiment, rates: dict[str, float]) -> Experiment:
    """The runs of each arm at its own learning rate."""
    runs = tables.runs
    wanted = runs["arm"].map(rates).astype(float)
    return with_runs(tables, set(runs.loc[np.isclose(runs["lr"].astype(float), wanted, rtol=1e-9, atol=0), "run_id"]))


def check_balanced(tables: Experiment, arms: tuple[str, ...]) -> None:
    """Check that every arm has a finished or diverged run of every trial at every learning rate.

    Raises:
        InputError: Some are missing or not over.
    """
    runs = tables.runs
    rates = sorted(runs["lr"].astype(float).unique())
    trials = range(int(runs["trial"].astype(int).max()) + 1) if len(runs) else range(0)
    over = runs[runs["status"].isin(["finished", "diverged"])]
    present = {(arm, float(lr), int(t)) for arm, lr, t in over[["arm", "lr", "trial"]].itertuples(index=False)}
    absent = [
        f"{arm} at {lr:g}, trial {trial}"
        for arm in arms for lr in rates for trial in trials
        if (arm, lr, trial) not in present
    ]  # fmt: skip
    if absent or not len(runs):
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        raise InputError(
            f"runs are missing or not over: {', '.join(absent[:_NAMED]) or 'all'}{more}; finish the experiment by "
            "the command that began it"
        )
