"""The comparisons of a claim judged on the tables of an experiment: a finding for each, with all its numbers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.statistics.power import (
    pairs_for_equivalence,
    pairs_for_power,
    quartile_spread,
)
from skip_conditioning.experiments.claims.verdict.claim import DecisionRule
from skip_conditioning.experiments.claims.verdict.decision import Decision, decide
from skip_conditioning.experiments.claims.verdict.differences import Differences, paired_differences
from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Direction, Finding, Reason, Verdict
from skip_conditioning.experiments.claims.verdict.run_measures import Reading
from skip_conditioning.experiments.claims.verdict.runs import arm_runs, check_complete
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds
from skip_conditioning.experiments.claims.verdict.wording import in_words, some


def judge_comparisons(
    tables: Experiment,
    comparisons: Sequence[Comparison],
    rule: DecisionRule,
    thresholds: Thresholds | None = None,
    experiment: str = "",
) -> tuple[Finding, ...]:
    """A finding for each of several comparisons at every learning rate, all corrected for together.

    Args:
        tables: The experiment, finished, with its pilot trials.
        comparisons: What is compared.
        rule: Fixed beforehand.
        thresholds: How the thresholds of ``steps`` are fixed; without them no trial is a pilot.
        experiment: Its name, to be told from others.

    Raises:
        InputError: An arm is missing, runs are missing or not over, or steps are compared without thresholds.
    """
    if not comparisons:
        raise InputError("a claim needs at least one comparison")
    arms = sorted({name for comparison in comparisons for name in (comparison.arm, comparison.other)})
    rates = learning_rates(tables, arms)
    check_complete(tables, arms)
    readings = {rate: reading_at(tables, thresholds, rate) for rate in rates}
    cases = [(comparison, rate) for comparison in comparisons for rate in rates]
    pilots = thresholds.pilots if thresholds else 0
    differences = [
        paired_differences(readings[rate], comparison, rate, pilots=pilots)
        if comparison.measure != "steps" or readings[rate].thresholds
        else Differences(np.empty(0), np.empty(0))
        for comparison, rate in cases
    ]
    decisions = decide(differences, [comparison.predicted for comparison, _ in cases], rule)
    findings = []
    for (comparison, rate), logs, decision in zip(cases, differences, decisions, strict=True):
        shown = rate if len(rates) > 1 else None
        if comparison.measure == "steps" and not readings[rate].thresholds:
            decision = replace(decision, verdict=Verdict.NOT_TESTED, reason=Reason.NO_FALL)
        findings.append(finding_of(comparison, logs, decision, rule, lr=shown, experiment=experiment))
    return tuple(findings)


def reading_at(tables: Experiment, thresholds: Thresholds | None, rate: float | None) -> Reading:
    """What measures are taken from at a learning rate, with the thresholds fixed there."""
    if thresholds is None:
        return Reading(tables)
    return Reading(tables, thresholds.losses(tables, rate), thresholds.window)


def finding_of(
    comparison: Comparison,
    logs: Differences,
    decision: Decision,
    rule: DecisionRule,
    *,
    lr: float | None = None,
    experiment: str = "",
) -> Finding:
    """The finding on one comparison.

    Args:
        comparison: What was compared.
        logs: Log-ratios of the pairs.
        decision: On the comparison.
        rule: Fixed beforehand.
        lr: The learning rate, to be told from others.
        experiment: Its name, to be told from others.
    """
    missing = f"not measured in {some(logs.missing)}" if logs.missing else ""
    return Finding(
        in_words(comparison, lr, experiment),
        decision.verdict,
        describe(logs, decision, rule, comparison.predicted),
        decision.reason,
        missing,
        comparison=comparison,
        experiment=experiment,
        lr=lr,
    )


def describe(logs: Differences, decision: Decision, rule: DecisionRule, predicted: Direction) -> dict[str, float]:
    """Effect, interval, p value and counts of one comparison, by name; ratios are of the arm over the other.

    ``ratio`` is that of the median, ``ratio_low`` and ``ratio_high`` are the ends of its interval at ``level``, which
    decides. ``ratio_bound`` says that the ratio is a bound itself, 1 a lower and -1 an upper one. ``p_sign`` is the
    sign test's, uncorrected. ``smaller`` and ``larger`` count pairs, ``open`` those of unknown order. ``trials_needed``
    is the number of pairs that would find an effect of the margin with a power of 80 %, or none as large, if that is
    what is predicted.

    Args:
        logs: Log-ratios of the pairs.
        decision: On the comparison.
        rule: Fixed beforehand.
        predicted: The direction.
    """
    least, most = logs.effect
    numbers: dict[str, float] = {}
    with np.errstate(over="ignore"):
        if least == most or not (np.isfinite(least) or np.isfinite(most)):
            numbers["ratio"] = float(np.exp(least)) if least == most else np.nan
        else:
            is_lower = np.isfinite(least)
            numbers["ratio"] = float(np.exp(least if is_lower else most))
            numbers["ratio_bound"] = 1.0 if is_lower else -1.0
        numbers |= {"ratio_low": float(np.exp(decision.low)), "ratio_high": float(np.exp(decision.high))}
    smaller, larger, pairs = int((logs.high < 0).sum()), int((logs.low > 0).sum()), len(logs.low)
    as_predicted = {Direction.SMALLER: smaller, Direction.LARGER: larger}.get(predicted)
    numbers |= {"level": decision.level, "p_sign": decision.p, "pairs": float(pairs)}
    if as_predicted is not None and pairs:
        numbers["share_as_predicted"] = as_predicted / pairs
    numbers |= {"smaller": float(smaller), "larger": float(larger), "open": float(logs.unknown.sum())}
    numbers |= {"missing": float(len(logs.missing))}
    numbers |= {"diverged_arm": float(logs.diverged[0]), "diverged_other": float(logs.diverged[1])}
    if decision.verdict is Verdict.UNDECIDED:
        numbers["trials_needed"] = _trials_needed(logs, decision.level, rule, predicted)
    return numbers


def _trials_needed(logs: Differences, level: float, rule: DecisionRule, predicted: Direction) -> float:
    known = logs.low[logs.low == logs.high]
    if len(known) < 2:
        return np.inf
    spread, freedom = quartile_spread(known)
    pairs_for = pairs_for_equivalence if predicted is Direction.EQUAL else pairs_for_power
    needed = pairs_for(spread, float(np.log(rule.margin)), 1 - level, freedom=freedom)
    return float(needed) * logs.pairs / len(known)


def learning_rates(tables: Experiment, arms: Sequence[str]) -> list[float]:
    """The learning rates at which all arms ran."""
    rates = []
    for arm in arms:
        arm_runs(tables, arm, {arm: tables.runs.loc[tables.runs["arm"] == arm, "lr"].min()})
        rates.append({float(rate) for rate in tables.runs.loc[tables.runs["arm"] == arm, "lr"].unique()})
    common = set.intersection(*rates)
    if not common:
        raise InputError(f"there is no learning rate at which all of {', '.join(arms)} ran")
    return sorted(common)
