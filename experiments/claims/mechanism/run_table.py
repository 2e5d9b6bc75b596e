"""One row for each run of an experiment on the mechanism: its speed, and the state that it started from.

All that the verdict on the mechanism rests on is in this table, which is written into the claim's folder.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.mechanism.design import AtRate
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, RateSweep
from skip_conditioning.experiments.claims.verdict.rate_sweep import (
    best_rates,
    restricted_log_steps,
    sweep_table,
    sweep_thresholds,
)
from skip_conditioning.experiments.claims.verdict.run_measures import Reading, measure


def run_table(inputs: ClaimInputs, name: str, arms: Sequence[str], sweep: RateSweep) -> pd.DataFrame:
    """The runs at the base arm's best rate and at each arm's own.

    Args:
        inputs: Tables of the runs and of the pilot runs, and the initial states.
        name: Of the plan.
        arms: Which, in the order of the rows.
        sweep: How the rates were chosen.

    Returns:
        Columns ``rate`` (``equal`` or ``best``), ``arm``, ``trial``, ``lr``, ``log_steps`` (mean over the thresholds of
        the logarithm of the steps, +inf if diverged), ``reached`` (thresholds), ``diverged``, ``final_loss``,
        ``stable_rate`` (the largest at and below which the arm's pilot runs learn), and the columns of the initial
        states. A run at both rates is in two rows.

    Raises:
        InputError: An initial state is missing.
    """
    tables, pilots = inputs.experiments[name], inputs.pilots[name]
    thresholds = sweep_thresholds(pilots, sweep)
    rates_tried = sweep_table(pilots, thresholds)
    own = best_rates(rates_tried)
    speeds = _speeds(tables, thresholds)
    chosen = []
    for rate, rates in ((AtRate.EQUAL, dict.fromkeys(own, own[sweep.base])), (AtRate.BEST, own)):
        wanted = speeds["arm"].map(rates).astype(float)
        rows = speeds[np.isclose(speeds["lr"], wanted, rtol=1e-9, atol=0) & speeds["arm"].isin(arms)]
        chosen.append(rows.assign(rate=rate.value))
    stable = _stable_rates(rates_tried)
    runs = pd.concat(chosen, ignore_index=True).assign(stable_rate=lambda rows: rows["arm"].map(stable))
    states = inputs.initial_states[name]
    merged = runs.merge(states, on=["arm", "trial"], how="left", validate="many_to_one", indicator=True)
    lacking = merged[merged["_merge"] == "left_only"]
    if len(lacking):
        first = lacking.iloc[0]
        raise InputError(f"no initial state of arm {first['arm']!r}, trial {first['trial']}; repeat the command")
    columns = ["rate", "arm", "trial", "lr", "log_steps", "reached", "diverged", "final_loss", "stable_rate"]
    others = [column for column in states.columns if column not in ("arm", "trial")]
    order = {arm: position for position, arm in enumerate(arms)}
    return merged[[*columns, *others]].sort_values(
        ["rate", "arm", "trial"], key=lambda values: values.map(order) if values.name == "arm" else values,
        kind="stable", ignore_index=True,
    )  # fmt: skip


def matrix(runs: pd.DataFrame, rate: AtRate, column: str, *, log: bool = False) -> pd.DataFrame:
    """A column of the run table, a row for each arm and a column for each trial.

    Args:
        runs: From ``run_table``.
        rate: At which rates.
        column: Which.
        log: Whether to take its logarithm; what is not positive becomes NaN.
    """
    rows = runs[runs["rate"] == rate.value]
    values = rows.pivot(index="arm", columns="trial", values=column).reindex(rows["arm"].unique()).astype(float)
    return pd.DataFrame(np.log(values.where(values > 0))) if log else values


def _speeds(tables: Experiment, thresholds: tuple[float, ...]) -> pd.DataFrame:
    reading = Reading(tables, thresholds)
    runs = tables.runs[["run_id", "arm", "trial", "lr"]]
    bounds = measure("steps", reading)
    final = np.exp(measure("final_loss", reading).low[0])
    return pd.DataFrame(
        {
            "arm": runs["arm"].to_numpy(),
            "trial": runs["trial"].astype(int).to_numpy(),
            "lr": runs["lr"].astype(float).to_numpy(),
            "log_steps": restricted_log_steps(reading).reindex(runs["run_id"]).to_numpy(float),
            "reached": np.isfinite(bounds.high).sum(axis=1).reindex(runs["run_id"]).to_numpy(int),
            "diverged": reading.diverged.reindex(runs["run_id"]).to_numpy(bool),
            "final_loss": final.reindex(runs["run_id"]).to_numpy(float),
        }
    )


def _stable_rates(sweep: pd.DataFrame) -> dict[str, float]:
    """The largest rate of each arm at and below which all pilot runs learn."""
    stable = {}
    for arm, rows in sweep.groupby("arm"):
        unstable = rows.loc[~rows["is_stable"], "lr"]
        usable = rows.loc[rows["is_stable"], "lr"]
        too_large = unstable[unstable > usable.min()].min() if len(usable) else np.nan
        below = usable if np.isnan(too_large) else usable[usable < too_large]
        stable[str(arm)] = float(below.max()) if len(below) else float(rows["lr"].min()) / np.sqrt(2)
    return stable
