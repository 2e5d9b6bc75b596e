"""Two arms compared in pairs: every trial is one initialisation and one data order, given to both.

The log-ratio of a pair is known to lie between two bounds. That of the steps to several thresholds is their mean over
the thresholds that say anything: one that neither run reached, or both were under from the start, says nothing.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.statistics.median_intervals import median
from skip_conditioning.experiments.claims.verdict.outcome import Comparison
from skip_conditioning.experiments.claims.verdict.run_measures import (
    OF_WHOLE_RUN,
    Reading,
    measure,
    train_steps,
)
from skip_conditioning.experiments.claims.verdict.runs import LearningRate, arm_runs, with_runs


@dataclass(frozen=True)
class Differences:
    """Log-ratios of n pairs, ``log(arm / other)``.

    Attributes:
        low: Lower bounds, shape ``(n,)``; -inf where nothing is known.
        high: Upper bounds; equal to ``low`` where the ratio is known.
        missing: Pairs without the measure, in words.
        diverged: Number of runs of each arm that diverged.
    """

    low: np.ndarray
    high: np.ndarray
    missing: tuple[str, ...] = ()
    diverged: tuple[int, int] = (0, 0)

    @property
    def pairs(self) -> int:
        """All pairs, those without the measure among them."""
        return len(self.low) + len(self.missing)

    @property
    def unknown(self) -> np.ndarray:
        """Pairs of which it is open which run is larger, shape ``(n,)``."""
        return (self.low <= 0) & (self.high >= 0) & (self.low < self.high)

    @property
    def effect(self) -> tuple[float, float]:
        """Median of the lower and of the upper bounds; equal unless bounds stand in place of values."""
        return median(self.low), median(self.high)


def paired_differences(
    reading: Reading, comparison: Comparison, lr: LearningRate = None, *, pilots: int = 0
) -> Differences:
    """Log-ratios of a measure between two arms, paired by trial.

    Args:
        reading: The tables, and the thresholds for steps.
        comparison: Names the measure and the arms; its map and layer count.
        lr: Learning rate of both, or of each by name.
        pilots: Number of trials, the first ones, that are left out.

    Raises:
        InputError: The measure, an arm or a learning rate is unknown or ambiguous, or runs differ in length.
    """
    arms = (comparison.arm, comparison.other)
    sides = [_compared(arm_runs(reading.tables, arm, lr), pilots) for arm in arms]
    both = with_runs(reading.tables, set(pd.concat(sides)["run_id"]))
    if comparison.measure in OF_WHOLE_RUN:
        _check_lengths(both, comparison.measure)
    chosen = replace(reading, tables=both, map=comparison.map, layer=comparison.layer)
    logs = measure(comparison.measure, chosen)
    # Of conditioning, which a run has before it diverges, no bound is infinite from below.
    is_diverged = chosen.diverged & bool(np.isposinf(logs.low.to_numpy()).any())
    trials = sorted(set(sides[0]["trial"]) | set(sides[1]["trial"]))
    ids = [side.set_index("trial")["run_id"].reindex(trials) for side in sides]
    bounds = [(logs.low.reindex(names).to_numpy(float), logs.high.reindex(names).to_numpy(float)) for names in ids]
    first, second = (is_diverged.reindex(names).eq(True).to_numpy() for names in ids)
    low, high = _between(bounds[0], bounds[1], first, second)
    lacking = [np.isnan(own).any(axis=1) for own, _ in bounds]
    missing = tuple(
        f"trial {trial} ({' and '.join(arm for arm, lacks in zip(arms, row, strict=True) if lacks)})"
        for trial, *row in zip(trials, *lacking, strict=True)
        if any(row)
    )
    kept = ~(lacking[0] | lacking[1])
    counts = tuple(int(chosen.diverged[side["run_id"]].sum()) for side in sides)
    return Differences(low[kept], high[kept], missing, (counts[0], counts[1]))


def _between(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    first_diverged: np.ndarray,
    second_diverged: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the log-ratios of pairs, from those of both sides, shapes ``(n, thresholds)``."""
    with np.errstate(invalid="ignore"):
        low, high = first[0] - second[1], first[1] - second[0]
    silent = np.isneginf(low) & np.isposinf(high)
    silent |= np.isneginf(first[1]) & np.isneginf(second[1])
    known = np.where(silent, np.nan, 1.0)
    with np.errstate(invalid="ignore"):
        low, high = low * known, high * known
    counts = (~silent).sum(axis=1)
    share = np.where(counts > 0, counts, 1)
    with np.errstate(invalid="ignore"):  # one threshold reached before the first step, another never: nothing is known
        low_mean = np.where(counts > 0, np.nansum(low, axis=1) / share, -np.inf)
        high_mean = np.where(counts > 0, np.nansum(high, axis=1) / share, np.inf)
    low_mean, high_mean = (
        np.nan_to_num(low_mean, nan=-np.inf, posinf=np.inf, neginf=-np.inf),
        np.nan_to_num(high_mean, nan=np.inf, posinf=np.inf, neginf=-np.inf),
    )
    # A run that diverged is slower than any that did not, however late that one reached its thresholds.
    for only, other, sign in ((first_diverged, second_diverged, 1), (second_diverged, first_diverged, -1)):
        low_mean[only & ~other] = high_mean[only & ~other] = sign * np.inf
    low_mean[first_diverged & second_diverged], high_mean[first_diverged & second_diverged] = -np.inf, np.inf
    return low_mean, high_mean


def _compared(runs: pd.DataFrame, pilots: int) -> pd.DataFrame:
    return runs[runs["trial"].astype(int) >= pilots]


def _check_lengths(tables: Experiment, name: str) -> None:
    finished = tables.runs.loc[tables.runs["status"] != "diverged", "run_id"]
    steps = train_steps(tables).reindex(finished).dropna()
    if steps.nunique() > 1:
        raise InputError(
            f"{name} compares runs of equal length, but {steps.idxmin()} was trained for {steps.min():.0f} steps "
            f"and {steps.idxmax()} for {steps.max():.0f}; finish the shorter, or compare losses at fixed steps"
        )
