"""The runs of an experiment that are compared: those of an arm at a learning rate, all of them over."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict.wording import some

#: One learning rate for both arms, or one for each by name; None where the experiment has only one.
LearningRate = float | Mapping[str, float] | None


def arm_runs(tables: Experiment, arm: str, lr: LearningRate = None) -> pd.DataFrame:
    """The runs of an arm at one learning rate.

    Args:
        tables: The experiment.
        arm: The arm.
        lr: The learning rate, or that of each arm by name.

    Raises:
        InputError: There are none, several learning rates to choose from, or several runs of one trial.
    """
    runs = tables.runs[tables.runs["arm"] == arm]
    if runs.empty:
        arms = sorted(tables.runs["arm"].dropna().unique())
        raise InputError(f"no runs of arm {arm!r}; there are {', '.join(arms)}.{near_matches(arm, arms)}")
    rates = sorted(runs["lr"].unique())
    wanted = lr.get(arm) if isinstance(lr, Mapping) else lr
    if wanted is None and len(rates) > 1:
        raise InputError(f"arm {arm!r} ran at learning rates {_listed(rates)}; choose one")
    chosen = runs if wanted is None else runs[np.isclose(runs["lr"].astype(float), wanted, rtol=1e-9, atol=0)]
    if chosen.empty:
        raise InputError(f"arm {arm!r} has no runs at learning rate {wanted:g}, only at {_listed(rates)}")
    if chosen["trial"].duplicated().any():
        twice = ", ".join(chosen.loc[chosen["trial"].duplicated(keep=False), "run_id"])
        raise InputError(f"several runs of one trial of arm {arm!r}: {twice}; give the tables of one experiment")
    return chosen


def with_runs(tables: Experiment, run_ids: set[str]) -> Experiment:
    """The rows of some runs only."""
    frames = {name: getattr(tables, name) for name in ("runs", "metrics", "spectra", "skipped")}
    return Experiment(**{name: rows[rows["run_id"].isin(run_ids)] for name, rows in frames.items()})


def check_complete(tables: Experiment, arms: Sequence[str]) -> None:
    """Check that every arm has a finished or diverged run of every trial at every one of its learning rates.

    A verdict on the runs that are over would favour the fast.

    Raises:
        InputError: Some are missing or not over.
    """
    runs = tables.runs[tables.runs["arm"].isin(arms)]
    states = {
        (arm, float(lr), int(trial)): status if isinstance(status, str) else "not begun"
        for arm, lr, trial, status in runs[["arm", "lr", "trial", "status"]].itertuples(index=False)
    }
    # Trials are numbered from 0 in all arms alike, so that the absence of a whole pair shows as well.
    trials = range(int(tables.runs["trial"].astype(int).max()) + 1)
    rates = {arm: sorted({lr for name, lr, _ in states if name == arm}) or [float("nan")] for arm in arms}
    wanted = [(arm, lr, trial) for arm in arms for lr in rates[arm] for trial in trials]
    not_over = [
        f"{arm} at {lr:g}, trial {trial} ({states.get((arm, lr, trial), 'missing')})"
        for arm, lr, trial in wanted
        if states.get((arm, lr, trial)) not in ("finished", "diverged")
    ]
    if not_over:
        raise InputError(
            f"{len(not_over)} of {len(wanted)} runs are missing or not over: {some(not_over)}; finish the experiment "
            "by the command that began it"
        )


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
