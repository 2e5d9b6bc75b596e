"""Do interventions on conditioning, or on the skip, change the speed as the conditioning they lead to predicts?

What an arm predicts follows from the conditioning that was measured, not from the purpose of the arm: better
conditioned than the arm that it is compared with, it has to train faster, whether or not it has a skip; no better
conditioned, no faster; worse, slower. All comparisons are paired, each arm at its own best learning rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.mechanism.design import MEDIATORS, Design
from skip_conditioning.experiments.claims.statistics.median_intervals import bootstrap_interval
from skip_conditioning.experiments.claims.verdict.claim import Comparison, DecisionRule, Finding, Verdict
from skip_conditioning.experiments.claims.verdict.comparisons import describe
from skip_conditioning.experiments.claims.verdict.decision import Decision, combine, decide
from skip_conditioning.experiments.claims.verdict.formatting import SYMBOLS
from skip_conditioning.experiments.claims.verdict.pairs import Differences, paired_differences
from skip_conditioning.experiments.claims.verdict.run_measures import NAMES

Change = Literal["better", "worse", "alike", "unclear"]

_CHANGES: Final[Mapping[Change, str]] = {
    "better": "better",
    "worse": "worse",
    "alike": "alike",
    "unclear": "not told apart",
}
_PREDICTIONS: Final[Mapping[Change, str]] = {
    "better": "faster",
    "worse": "slower",
    "alike": "as fast",
    "unclear": "nothing is predicted",
}
_NOTES: Final[Mapping[Change, str]] = {
    "better": "",
    "worse": "",
    "alike": "contradicted if the speed differs by more than the equivalence margin",
    "unclear": "the conditioning of the two is not told apart, so no speed is predicted",
}


@dataclass(frozen=True)
class Outcome:
    """An arm against another: how the conditioning changed, and whether the speed followed.

    Attributes:
        arm: The numerator.
        other: The denominator.
        change: Of the conditioning.
        finding: On the speed, given that change.
        conditioning: Effect on conditioning: ratio, ends of its interval, and number of ``bounded`` pairs.
    """

    arm: str
    other: str
    change: Change
    finding: Finding
    conditioning: Mapping[str, float]


def differences(tables: Experiment, design: Design, measure: str, rates: Mapping[str, float]) -> list[Differences]:
    """Log-ratios of a measure for each comparison of a design.

    Args:
        tables: The experiment.
        design: What is compared.
        measure: A name in ``run_measures.MEASURES``.
        rates: Learning rate of each arm.
    """
    return [paired_differences(tables, measure, arm, other, rates) for arm, other in design.comparisons]


def compare(
    design: Design,
    mediator: str,
    conditioning: Sequence[Differences],
    speed: Sequence[Differences],
    rule: DecisionRule,
    seed: int,
) -> list[Outcome]:
    """All comparisons of a design.

    Args:
        design: What is compared.
        mediator: The measure of conditioning.
        conditioning: Its log-ratios, one for each comparison.
        speed: Those of the measure of speed.
        rule: Half of its level goes to conditioning, for which ``design.alike`` is the margin, and half to speed.
        seed: Of the bootstrap, which describes and does not decide.
    """
    half = replace(rule, level=rule.level / 2)
    better = [Comparison(mediator, arm, other, MEDIATORS[mediator]) for arm, other in design.comparisons]
    decisions = decide(conditioning, better, replace(half, equivalence_margin=design.alike[mediator]))
    changes = [_change(decision) for decision in decisions]
    faster = [
        Comparison(design.speed, arm, other, "larger" if change == "worse" else "smaller")
        for (arm, other), change in zip(design.comparisons, changes, strict=True)
    ]
    outcomes = []
    for (arm, other), change, logs, decision, conditioning_logs in zip(
        design.comparisons, changes, speed, decide(speed, faster, half), conditioning, strict=True
    ):
        verdict = decision.verdict
        if change == "alike":
            verdict = _verdict_alike(logs, decision, half)
        elif change == "unclear":
            verdict = "vacuous"
        numbers = describe(logs, replace(decision, verdict=verdict), half, seed, len(faster))
        effect = _effect(conditioning_logs, half, seed)
        numbers |= {f"conditioning_{name}": value for name, value in effect.items()}
        what = f"{arm} against {other}: {NAMES[mediator]} {_CHANGES[change]}, so {_PREDICTIONS[change]}"
        finding = Finding(what, verdict, numbers, _NOTES[change] or decision.note)
        outcomes.append(Outcome(arm, other, change, finding, effect))
    return outcomes


def _change(decision: Decision) -> Change:
    """How the conditioning changed, from the decision on its being better."""
    if decision.verdict == "supported":
        return "better"
    if decision.verdict == "contradicted":
        return "worse" if decision.note == "reversed" else "alike"
    return "unclear"


def _verdict_alike(logs: Differences, decision: Decision, rule: DecisionRule) -> Verdict:
    """The verdict on equal speed: significantly equivalent, or significantly different by more than the margin."""
    if decision.p_not_equivalent < rule.level:
        return "supported"
    differs = decision.p_corrected < rule.level and abs(logs.effect) > np.log(rule.equivalence_margin)
    return "contradicted" if differs else "inconclusive"


def _effect(logs: Differences, rule: DecisionRule, seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(logs.decided, 1 - rule.level, seed)
    with np.errstate(over="ignore"):
        ratio, low, high = (float(np.exp(value)) for value in (logs.effect, low, high))
    return {"ratio": ratio, "ratio_low": low, "ratio_high": high, "bounded": float(logs.bounded.sum())}


class Effects:
    """Log-ratios of an experiment's comparisons; those of speed are computed once for all mediators.

    Args:
        tables: The experiment, without its pilot trials.
        design: What is compared.
    """

    def __init__(self, tables: Experiment, design: Design) -> None:
        self.tables, self.design = tables, design
        self._speed: dict[tuple[float, ...], list[Differences]] = {}

    def compare(self, mediator: str, rates: Mapping[str, float], rule: DecisionRule, seed: int) -> list[Outcome]:
        """All comparisons, as the function ``compare``.

        Args:
            mediator: The measure of conditioning.
            rates: Learning rate of each arm.
            rule: Fixed beforehand.
            seed: Of the bootstrap.
        """
        conditioning = differences(self.tables, self.design, mediator, rates)
        key = tuple(rates[arm] for arm in self.design.arms)
        if key not in self._speed:
            self._speed[key] = differences(self.tables, self.design, self.design.speed, rates)
        return compare(self.design, mediator, conditioning, self._speed[key], rule, seed)


def mechanism_verdict(outcomes: Sequence[Outcome], others: Sequence[Finding]) -> Verdict:
    """The verdict on the mechanism from an experiment's comparisons, its dose–response and its mediation.

    Unless the skip is better conditioned and faster there is nothing to explain: vacuous where either is surely not so,
    inconclusive where it is unclear. Otherwise contradicted if any test is, and supported if all are that are not
    vacuous.

    Args:
        outcomes: Of the comparisons, the skip against the base first.
        others: Findings of dose–response and mediation.
    """
    premise, *rest = outcomes
    if premise.change != "better":
        return "inconclusive" if premise.change == "unclear" else "vacuous"
    if premise.finding.verdict != "supported":
        return "vacuous" if premise.finding.verdict == "contradicted" else "inconclusive"
    findings = (*(outcome.finding for outcome in rest), *others)
    verdicts = [finding.verdict for finding in findings if finding.verdict != "vacuous"]
    return combine(verdicts) if verdicts else "inconclusive"


def findings_at_each_rate(effects: Effects, mediator: str, rule: DecisionRule, seed: int) -> list[Finding]:
    """The comparisons repeated at every learning rate, the same for all arms: the number with each verdict.

    Args:
        effects: Of the experiment.
        mediator: The measure of conditioning.
        rule: Fixed beforehand.
        seed: Of the bootstrap.
    """
    findings = []
    for lr in sorted(effects.tables.runs["lr"].astype(float).unique()):
        outcomes = effects.compare(mediator, dict.fromkeys(effects.design.arms, float(lr)), rule, seed)
        verdicts = [outcome.finding.verdict for outcome in outcomes]
        counts = {str(name): float(verdicts.count(name)) for name in SYMBOLS}
        against = [f"{each.arm} against {each.other}" for each in outcomes if each.finding.verdict == "contradicted"]
        verdict = mechanism_verdict(outcomes, [])
        note = f"contradicted: {', '.join(against)}" if against else ""
        findings.append(Finding(f"{NAMES[mediator]}, all arms at learning rate {lr:g}", verdict, counts, note))
    return findings
