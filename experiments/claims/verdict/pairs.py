r"""Two arms compared in pairs: every trial is one initialisation and one data order, given to both.

The *effect* is the median over pairs of the log-ratio ``log(arm / other)``. All that decides about it is drawn from the
order of numbers alone, so it needs no variance, and a run that diverged or never came to the threshold takes part as
what it is, slower than all others:

- the sign test is exact for any distribution of independent pairs (Gibbons & Chakraborti 2011, §5.4);
- the interval between two order statistics is that test inverted, so its coverage is exact too;
- equivalence is two one-sided sign tests against ``±log(equivalent)`` (Schuirmann 1987).

The Wilcoxon signed-rank test sees more where log-ratios are symmetric about their median, which is so when arms are
interchangeable, but rejects a median of 0 too often where they are skewed; it is reported and does not decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict.measures import (
    BOUNDS,
    MEASURES,
    OF_WHOLE_RUN,
    train_steps,
    unresolved,
)

#: One learning rate for both arms, or one for each by name; None where the experiment has but one.
LearningRate = float | Mapping[str, float] | None

_RESAMPLES: Final = 9999
# Stands for infinity where order statistics are averaged, which would make NaN of inf - inf; an average of it and any
# log-ratio is beyond the second number, no log-ratio is.
_INFINITE, _BEYOND = 1e300, 1e100


@dataclass(frozen=True)
class Differences:
    """Log-ratios of the pairs that have a measure, ``n`` of them.

    Attributes:
        values: ``log(arm / other)``, shape ``(n,)``; ±inf where one run's logarithm is infinite, 0 where both are.
        undecided: Shape ``(n,)``; pairs that do not say which run is larger, their value being 0: both diverged or
            never came to the threshold, or bounds stand in place of values and leave it open.
        bounded: Shape ``(n,)``; pairs whose order is sure, but the true value lies further from 0 than the one given.
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
            beyond: On which side of its bound the truth lies, 1 above or -1 below.
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
    def effect(self) -> float:
        """Median of the decided log-ratios, NaN without any; ±inf where at least half of them are."""
        return median(self.decided)


def paired_differences(tables: Experiment, measure: str, arm: str, other: str, lr: LearningRate = None) -> Differences:
    """Log-ratios of a measure between two arms, paired by trial (and learning rate).

    Runs that never came to the threshold are ordered after all that did. That is valid only if all were trained for
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
    there = ~(np.isnan(first) | np.isnan(second))
    missing = tuple(
        f"trial {trial} ({' and '.join(name for name, value in ((arm, a), (other, b)) if np.isnan(value))})"
        for trial, a, b in zip(trials, first, second, strict=True)
        if np.isnan(a) or np.isnan(b)
    )
    at_bound = [bounds.reindex(run_ids).eq(True).to_numpy()[there] for run_ids in ids]
    found = Differences.between(first[there], second[there], (at_bound[0], at_bound[1]), BOUNDS.get(measure, 1))
    return replace(found, missing=missing)


def arm_runs(tables: Experiment, arm: str, lr: LearningRate = None) -> pd.DataFrame:
    """The runs of an arm at one learning rate.

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
    found = runs if wanted is None else runs[np.isclose(runs["lr"].astype(float), wanted, rtol=1e-9, atol=0)]
    if found.empty:
        raise InputError(f"arm {arm!r} has no runs at learning rate {wanted:g}, only at {_listed(rates)}")
    if found["trial"].duplicated().any():
        twice = ", ".join(found.loc[found["trial"].duplicated(keep=False), "run_id"])
        raise InputError(f"several runs of one trial of arm {arm!r}: {twice}; give the tables of one experiment")
    return found


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


def sign_test(differences: Differences) -> float:
    """Exact two-sided p value of as many pairs being larger as smaller; ties and undecided pairs say neither."""
    values = differences.decided
    larger, smaller = int((values > 0).sum()), int((values < 0).sum())
    return float(stats.binomtest(larger, larger + smaller).pvalue) if larger + smaller else 1.0


def signed_rank_test(differences: Differences) -> float:
    """Exact two-sided p value of the Wilcoxon signed-rank test, also with ties; ±inf rank beyond all finite values.

    Zeros are left out, equal magnitudes share their mean rank, and the distribution over all ``2**n`` signs is built up
    rank by rank (Hollander, Wolfe & Chicken 2014, §3.1). scipy's is exact without ties only.
    """
    values = differences.decided[differences.decided != 0]
    ranks = (2 * stats.rankdata(np.abs(values))).astype(int)  # doubled, so that mean ranks are whole numbers
    chances = np.ones(1)
    for rank in ranks:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    positive = int(ranks[values > 0].sum())
    return float(min(1.0, 2 * min(chances[: positive + 1].sum(), chances[positive:].sum())))


def equivalence_test(differences: Differences, equivalent: float) -> float:
    """Exact p value of the median ratio lying outside of ``1 / equivalent … equivalent``.

    The larger of those of two one-sided sign tests. Pairs that are undecided, or bounds, could lie anywhere and count
    as lying outside on both sides: that neither arm learnt is no sign of their being equally fast.
    """
    known = ~(differences.undecided | differences.bounded)
    bound, n = np.log(equivalent), len(differences.values)
    inside = (differences.values > -bound, differences.values < bound)
    return max(float(stats.binom.sf((side & known).sum() - 1, n, 0.5)) for side in inside) if n else 1.0


def exact_interval(differences: Differences, confidence: float) -> tuple[float, float]:
    """Interval of the median log-ratio, between order statistics; ±inf where there are too few pairs for its coverage.

    Zero-width ties and ±inf need no care here, as only the order counts. Undecided pairs are left out.
    """
    if not len(differences.decided):
        return -np.inf, np.inf
    interval = stats.quantile_test(differences.decided, q=0.0, p=0.5).confidence_interval(confidence)
    low, high = float(interval.low), float(interval.high)
    return (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)


def bootstrap_interval(differences: Differences, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the median log-ratio (Efron & Tibshirani 1993, §13); NaN without pairs.

    Percentiles ask only for the order of the resampled medians, so ±inf is carried through: an end is ±inf where the
    medians of so many resamples are. (A correction for bias, as in BCa, would need finite influence values.)
    """
    values = differences.decided
    if not len(values):
        return np.nan, np.nan
    if len(np.unique(values)) == 1:
        return float(values[0]), float(values[0])
    with np.errstate(over="ignore"):  # in its standard error, which is not used
        interval = stats.bootstrap(
            (np.clip(values, -_INFINITE, _INFINITE),),
            np.median,
            confidence_level=confidence,
            n_resamples=_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return _unclip(interval.low), _unclip(interval.high)


def mean_interval(differences: Differences, confidence: float, seed: int) -> tuple[float, float, float]:
    """Mean log-ratio and its bootstrap (BCa) interval; NaN where a value is infinite or a bound, or there is none."""
    values = differences.decided
    if not len(values) or not np.isfinite(values).all() or differences.bounded.any():
        return np.nan, np.nan, np.nan
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        return mean, mean, mean
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=_RESAMPLES, rng=np.random.default_rng(seed)
    ).confidence_interval
    return mean, float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P values after Holm's (1979) step-down correction for their number, shape as given.

    As ``statsmodels.stats.multitest.multipletests``, which takes a tenth of a second.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return corrected


def fewest_pairs(comparisons: int, level: float) -> int:
    """The fewest pairs with which any of some comparisons can be significant after Holm: if all have one sign."""
    pairs = 1
    while comparisons * 2.0 ** (1 - pairs) >= level:
        pairs += 1
    return pairs


def median(values: np.ndarray) -> float:
    """Median of numbers that may be infinite; NaN of none, 0 between -inf and inf."""
    return _unclip(np.median(np.clip(values, -_INFINITE, _INFINITE))) if len(values) else np.nan


def _unclip(value: float) -> float:
    return float(np.sign(value) * np.inf) if abs(value) > _BEYOND else float(value)
