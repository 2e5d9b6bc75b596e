"""Two arms compared in pairs: every trial is one initialisation and one data order, given to both.

The *effect* is the median over pairs of the log-ratio ``log(arm / other)``. What decides is drawn from the order of
numbers alone (``statistics.paired_tests``), so a run that diverged or never reached the threshold takes part as what it
is, slower than all others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.statistics.median_intervals import median
from skip_conditioning.experiments.claims.verdict.formatting import some
from skip_conditioning.experiments.claims.verdict.run_measures import (
    BOUNDS,
    MEASURES,
    OF_WHOLE_RUN,
    train_steps,
    unresolved,
)

#: One learning rate for both arms, or one for each by name; None where the experiment has only one.
LearningRate = float | Mapping[str, float] | None


@dataclass(frozen=True)
class Differences:
    """Log-ratios of the pairs that have a measure, ``n`` of them.

    Attributes:
        values: ``log(arm / other)``, shape ``(n,)``; ±inf where one run's logarithm is infinite, 0 where both are.
        undecided: Shape ``(n,)``; pairs that do not say which run is larger, their value being 0: both diverged or
            never reached the threshold, or a bound in place of a value leaves it open.
        bounded: Shape ``(n,)``; pairs whose order is sure, but whose true log-ratio lies further from 0 than the value.
        missing: Pairs without the measure, in words.
    """

    values: np.ndarray
    undecided: np.ndarray
    bounded: np.ndarray
    missing: tuple[str, ...] = ()

    @classmethod
    def between(
        cls,
        first: np.ndarray,
        second: np.ndarray,
        at_bound: tuple[np.ndarray, np.ndarray] | None = None,
        beyond: int = 1,
    ) -> "Differences":
        """Of two arrays of logarithms, shapes ``(n,)``, that may hold ±inf.

        Args:
            first: Of the numerator.
            second: Of the denominator.
            at_bound: Where each is a bound in place of the value; by default nowhere.
            beyond: On which side of its bound the true value lies, 1 above or -1 below.
        """
        nowhere = np.zeros(len(first), dtype=bool)
        first_bound, second_bound = at_bound or (nowhere, nowhere)
        equal = first == second  # inf - inf is NaN
        with np.errstate(invalid="ignore"):
            values = np.where(equal, 0.0, first - second)
        # One bound beyond the other run's value settles the order; short of it, and for two bounds, nothing is known.
        sure = (first_bound ^ second_bound) & (np.sign(values) == np.where(first_bound, beyond, -beyond))
        undecided = (equal & (first == np.inf)) | ((first_bound | second_bound) & ~sure)
        return cls(np.where(undecided, 0.0, values), undecided, sure)

    @property
    def decided(self) -> np.ndarray:
        """The values of all pairs but the undecided."""
        return self.values[~self.undecided]

    @property
    def unknown(self) -> np.ndarray:
        """Pairs whose ratio could be any, shape ``(n,)``: that neither arm learnt does not show that they are alike."""
        return self.undecided | self.bounded

    @property
    def pairs(self) -> int:
        """All pairs, those without the measure among them."""
        return len(self.values) + len(self.missing)

    @property
    def effect(self) -> float:
        """Median of the decided log-ratios, NaN without any; ±inf where at least half of them are."""
        return median(self.decided)


def paired_differences(tables: Experiment, measure: str, arm: str, other: str, lr: LearningRate = None) -> Differences:
    """Log-ratios of a measure between two arms, paired by trial (and learning rate).

    Runs that never reached the threshold are ordered after all that did. That is valid only if all were trained for
    equally many steps, which is checked, as it is for all measures of a whole run.

    Args:
        tables: The experiment.
        measure: A name in ``MEASURES``.
        arm: The numerator.
        other: The denominator.
        lr: Learning rate of both, or of each by name.

    Raises:
        InputError: The measure, an arm or a learning rate is unknown or ambiguous, or runs differ in length.
    """
    if measure not in MEASURES:
        raise InputError(
            f"unknown measure {measure!r}; known are {', '.join(MEASURES)}.{near_matches(measure, MEASURES)}"
        )
    sides = [arm_runs(tables, name, lr) for name in (arm, other)]
    runs = pd.concat(sides)
    both = replace(
        tables,
        runs=runs,
        metrics=tables.metrics[tables.metrics["run_id"].isin(runs["run_id"])],
        spectra=tables.spectra[tables.spectra["run_id"].isin(runs["run_id"])],
    )
    if measure in OF_WHOLE_RUN:
        _check_lengths(both, measure)
    logs = MEASURES[measure](both)
    bounds = unresolved(both) if measure in BOUNDS else pd.Series(False, index=logs.index)
    trials = sorted(set(sides[0]["trial"]) | set(sides[1]["trial"]))
    ids = [side.set_index("trial")["run_id"].reindex(trials) for side in sides]
    first, second = (logs.reindex(run_ids).to_numpy(dtype=float) for run_ids in ids)
    measured = ~(np.isnan(first) | np.isnan(second))
    missing = tuple(
        f"trial {trial} ({' and '.join(name for name, value in ((arm, a), (other, b)) if np.isnan(value))})"
        for trial, a, b in zip(trials, first, second, strict=True)
        if np.isnan(a) or np.isnan(b)
    )
    at_bound = [bounds.reindex(run_ids).eq(True).to_numpy()[measured] for run_ids in ids]
    differences = Differences.between(
        first[measured], second[measured], (at_bound[0], at_bound[1]), BOUNDS.get(measure, 1)
    )
    return replace(differences, missing=missing)


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
    """Check that every arm has a finished or diverged run of every trial at every learning rate of these arms.

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
    wanted = [(arm, lr, trial) for arm in arms for lr in sorted({lr for _, lr, _ in states}) for trial in trials]
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


def _check_lengths(tables: Experiment, measure: str) -> None:
    finished = tables.runs.loc[tables.runs["status"] != "diverged", "run_id"]
    steps = train_steps(tables).reindex(finished).dropna()
    if steps.nunique() > 1:
        raise InputError(
            f"{measure} compares runs of equal length, but {steps.idxmin()} was trained for {steps.min():.0f} steps "
            f"and {steps.idxmax()} for {steps.max():.0f}; finish the shorter, or compare losses at fixed steps"
        )


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
