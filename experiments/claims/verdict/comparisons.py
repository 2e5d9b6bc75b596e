"""The comparisons of a claim judged on the tables of an experiment: a finding for each, with all its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.statistics.median_intervals import (
    bootstrap_interval,
    exact_interval,
    kaplan_meier_median,
    mean_interval,
)
from skip_conditioning.experiments.claims.statistics.paired_tests import (
    MOST_PAIRS,
    POWER,
    fewest_pairs,
    pairs_needed,
    signed_rank_test,
)
from skip_conditioning.experiments.claims.verdict.claim import Comparison, DecisionRule, Finding, Verdict
from skip_conditioning.experiments.claims.verdict.decision import Decision, combine, decide
from skip_conditioning.experiments.claims.verdict.formatting import some
from skip_conditioning.experiments.claims.verdict.pairs import (
    Differences,
    arm_runs,
    check_complete,
    paired_differences,
)
from skip_conditioning.experiments.claims.verdict.run_measures import NAMES
from skip_conditioning.experiments.speed import speed_table

_DIRECTIONS = {"smaller": "below", "larger": "above"}


def judge_comparisons(
    tables: Experiment, comparisons: Sequence[Comparison], rule: DecisionRule, seed: int
) -> tuple[Verdict, tuple[Finding, ...]]:
    """The verdict on a claim that predicts several comparisons, and a finding for each at every learning rate.

    Args:
        tables: The experiment, finished.
        comparisons: All of them, at all learning rates, are corrected for together.
        rule: Fixed beforehand.
        seed: Of the bootstrap, which describes and does not decide.

    Raises:
        InputError: An arm is missing, runs are missing or not over, or there are too few trials to decide anything.
    """
    if not comparisons:
        raise InputError("a claim needs at least one comparison")
    arms = sorted({name for comparison in comparisons for name in (comparison.arm, comparison.other)})
    rates = _learning_rates(tables, arms)
    check_complete(tables, arms)
    cases = [(comparison, rate) for comparison in comparisons for rate in rates]
    differences = [paired_differences(tables, c.measure, c.arm, c.other, rate) for c, rate in cases]
    _refuse_few(differences, rule)
    findings = []
    for (comparison, rate), logs, decision in zip(
        cases, differences, decide(differences, [c for c, _ in cases], rule), strict=True
    ):
        what = in_words(comparison) + (f" at learning rate {rate:g}" if len(rates) > 1 else "")
        numbers = describe(logs, decision, rule, seed, len(cases))
        if comparison.measure == "steps_to_threshold":
            for side, arm in (("arm", comparison.arm), ("other", comparison.other)):
                ends = median_steps(tables, arm, rate, 1 - rule.level)
                numbers |= dict(zip((f"median_steps_{side}{end}" for end in ("", "_low", "_high")), ends, strict=True))
        findings.append(Finding(what, decision.verdict, numbers, _note(logs, decision, rule, numbers)))
    return combine([finding.verdict for finding in findings]), tuple(findings)


def median_steps(tables: Experiment, arm: str, lr: float, confidence: float) -> tuple[float, float, float]:
    """Kaplan-Meier median of an arm's steps to the threshold, and its interval, for the report; pairs decide.

    A diverged run never reaches the threshold, so it is censored last, at the most steps of any run.

    Args:
        tables: The experiment.
        arm: The arm.
        lr: Its learning rate.
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


def in_words(comparison: Comparison) -> str:
    """What a comparison predicts, such as ``condition number: modified below residual``."""
    side = _DIRECTIONS[comparison.predicted]
    return f"{NAMES[comparison.measure]}: {comparison.arm} {side} {comparison.other}"


def describe(
    logs: Differences, decision: Decision, rule: DecisionRule, seed: int, comparisons: int
) -> dict[str, float]:
    """Effect, intervals, p values and counts of one comparison, by name; ratios are of the arm over the other.

    ``ratio`` is that of the median, with a bootstrap interval (``_low, _high``) and an exact one (``_exact_low,
    _exact_high``) of coverage ``1 - 2 * level``; ``mean_ratio`` is the geometric mean. All are uncorrected. Where
    bounds stand in place of values, intervals reach as far as the true values may; ``ratio_bound`` says that the ratio
    is then a bound itself, 1 a lower and -1 an upper one.

    Args:
        logs: Log-ratios of the pairs.
        decision: On the comparison.
        rule: Fixed beforehand.
        seed: Of the bootstrap.
        comparisons: How many are corrected for.
    """
    lowest, highest = _extremes(logs)
    low = bootstrap_interval(lowest.decided, 1 - rule.level, seed)[0]
    high = bootstrap_interval(highest.decided, 1 - rule.level, seed)[1]
    exact_low = exact_interval(lowest.decided, 1 - 2 * rule.level)[0]
    exact_high = exact_interval(highest.decided, 1 - 2 * rule.level)[1]
    mean, mean_low, mean_high = np.nan, np.nan, np.nan
    if not logs.bounded.any():
        mean, mean_low, mean_high = mean_interval(logs.decided, 1 - rule.level, seed)
    log_ratios = {"ratio": logs.effect, "ratio_low": low, "ratio_high": high}
    log_ratios |= {"ratio_exact_low": exact_low, "ratio_exact_high": exact_high}
    log_ratios |= {"mean_ratio": mean, "mean_ratio_low": mean_low, "mean_ratio_high": mean_high}
    counts = {
        "pairs": len(logs.values),
        "missing": len(logs.missing),
        "smaller": (logs.values < 0).sum(),
        "larger": (logs.values > 0).sum(),
        "ties": (logs.decided == 0).sum(),
        "undecided": logs.undecided.sum(),
        "infinite": np.isinf(logs.values).sum(),
        "bounded": logs.bounded.sum(),
    }
    numbers = {name: float(count) for name, count in counts.items()}
    with np.errstate(over="ignore"):
        numbers |= {name: float(np.exp(value)) for name, value in log_ratios.items()}
    numbers |= {"p_sign": decision.p, "p_sign_corrected": decision.p_corrected}
    numbers |= {"p_wilcoxon": signed_rank_test(logs.decided), "p_not_equivalent": decision.p_not_equivalent}
    if (lowest.effect < logs.effect) != (highest.effect > logs.effect):
        numbers["ratio_bound"] = 1.0 if highest.effect > logs.effect else -1.0
    if decision.verdict == "inconclusive":
        level = rule.level / comparisons
        numbers["trials_needed"] = pairs_needed(logs.decided, logs.pairs, level, rule.equivalence_margin)
    return numbers


def _extremes(logs: Differences) -> tuple[Differences, Differences]:
    """The log-ratios with every bound moved as far down, and as far up, as the true value may lie."""
    low = np.where(logs.bounded & (logs.values < 0), -np.inf, logs.values)
    high = np.where(logs.bounded & (logs.values > 0), np.inf, logs.values)
    return replace(logs, values=low), replace(logs, values=high)


def _note(logs: Differences, decision: Decision, rule: DecisionRule, numbers: Mapping[str, float]) -> str:
    notes = [decision.note] if decision.note else []
    if decision.verdict == "inconclusive":
        needed = numbers["trials_needed"]
        about = f"about {needed:.0f}" if np.isfinite(needed) else f"more than {MOST_PAIRS}"
        notes.append(f"{about} trials would give a power of {100 * POWER:.0f} %")
    if decision.verdict != "vacuous":
        if (decision.p < rule.level) != (numbers["p_wilcoxon"] < rule.level):
            notes.append("the sign test, which decides, and Wilcoxon's disagree")
        if logs.undecided.any():
            notes.append(f"in {logs.undecided.sum()} pairs it is open which is larger")
        if logs.bounded.any():
            notes.append(
                f"{logs.bounded.sum()} ratios are bounds: one side's smallest singular value is under its floor"
            )
    if logs.missing:
        notes.append(f"not measured in {some(logs.missing)}")
    return "; ".join(notes)


def _refuse_few(differences: Sequence[Differences], rule: DecisionRule) -> None:
    trials = min(logs.pairs for logs in differences)
    fewest = max(rule.min_pairs, fewest_pairs(len(differences), rule.level))
    if trials < fewest:
        raise InputError(
            f"{trials} trials are too few: {len(differences)} comparisons at level {rule.level:g} need "
            f"{fewest} or more to decide anything (the rule asks for {rule.min_pairs}); "
            f"run again with --trials {fewest}"
        )


def _learning_rates(tables: Experiment, arms: Sequence[str]) -> list[float]:
    for arm in arms:
        arm_runs(tables, arm, {arm: tables.runs.loc[tables.runs["arm"] == arm, "lr"].min()})
    return [float(rate) for rate in sorted(tables.runs.loc[tables.runs["arm"].isin(arms), "lr"].unique())]
