"""From paired log-ratios to a verdict.

Each comparison has two null hypotheses that exclude each other: the median ratio is 1, and it lies outside of the
equivalence margin. Both are tested by the order of numbers alone (``statistics.paired_tests``), each with Holm's
correction over all comparisons of the claim, at the rule's level. A comparison is

- *vacuous* if no pair can be compared, or most have bounds that leave their order open;
- *contradicted* if the second is rejected ("no effect larger than 5 %", even one that is surely not 0), or the first
  with the effect reversed;
- *supported* if the first alone is rejected and the effect has the predicted direction;
- *inconclusive* otherwise.

The claim is contradicted if any comparison is, supported or vacuous if all are, and inconclusive otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from skip_conditioning.experiments.claims.statistics.paired_tests import equivalence_test, holm, sign_test
from skip_conditioning.experiments.claims.verdict.claim import Comparison, DecisionRule, Verdict
from skip_conditioning.experiments.claims.verdict.pairs import Differences
from skip_conditioning.experiments.claims.verdict.run_measures import BOUNDS, NAMES


@dataclass(frozen=True)
class Decision:
    """The verdict on one comparison, and what it follows from.

    Attributes:
        verdict: After the correction.
        p: Of the exact sign test, uncorrected.
        p_corrected: The same after Holm's correction.
        p_not_equivalent: Of the median ratio lying outside of the equivalence margin, after Holm's correction.
        note: The reason, where the verdict alone does not say it.
    """

    verdict: Verdict
    p: float
    p_corrected: float
    p_not_equivalent: float
    note: str = ""


def decide(differences: Sequence[Differences], comparisons: Sequence[Comparison], rule: DecisionRule) -> list[Decision]:
    """The decision on each of several comparisons, corrected for their number, vacuous ones among them.

    Args:
        differences: Log-ratios, one for each comparison.
        comparisons: What is predicted.
        rule: Fixed beforehand.
    """
    p_values = [sign_test(logs.decided) for logs in differences]
    corrected = holm(p_values)
    outside = holm([equivalence_test(logs.values, logs.unknown, rule.equivalence_margin) for logs in differences])
    decisions = []
    for logs, comparison, p, p_corrected, p_outside in zip(
        differences, comparisons, p_values, corrected, outside, strict=True
    ):
        verdict, note = _verdict(logs, comparison, rule, p_corrected < rule.level, p_outside < rule.level)
        decisions.append(Decision(verdict, p, float(p_corrected), float(p_outside), note))
    return decisions


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim from those on its comparisons."""
    if "contradicted" in verdicts:
        return "contradicted"
    for verdict in ("supported", "vacuous"):
        if verdicts and all(each == verdict for each in verdicts):
            return verdict
    return "inconclusive"


def _verdict(
    logs: Differences, comparison: Comparison, rule: DecisionRule, significant: bool, is_equivalent: bool
) -> tuple[Verdict, str]:
    reason = _why_vacuous(logs, comparison)
    if reason:
        return "vacuous", reason
    if len(logs.decided) < rule.min_pairs:
        return "inconclusive", f"only {len(logs.decided)} pairs can be compared"
    as_predicted = logs.effect < 0 if comparison.predicted == "smaller" else logs.effect > 0
    is_reversed = significant and logs.effect != 0 and not as_predicted
    if is_equivalent:
        size = f"no effect larger than {100 * (rule.equivalence_margin - 1):.3g} %"
        if significant and as_predicted:
            return "contradicted", f"{size}, though in the direction predicted"
        return "contradicted", f"{size}, reversed" if is_reversed else size
    if is_reversed:
        return "contradicted", "reversed"
    return ("supported", "") if significant and as_predicted else ("inconclusive", "")


def _why_vacuous(logs: Differences, comparison: Comparison) -> str:
    """The reason why no pair can be compared; empty if some can."""
    if not len(logs.values):
        return f"the {NAMES[comparison.measure]} was measured in no pair"
    if comparison.measure in BOUNDS and 2 * logs.undecided.sum() > logs.pairs:
        return "the smallest singular value is unresolved in most pairs"
    if not len(logs.decided):
        reached = ", or never reached the threshold" if comparison.measure == "steps_to_threshold" else ""
        return f"in every pair both runs diverged{reached}"
    return ""
