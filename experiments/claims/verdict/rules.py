"""From paired comparisons to a verdict.

Each comparison has two null hypotheses that exclude each other: the median ratio is 1, and it lies outside of
``1 / equivalent … equivalent``. Both are tested by the order of numbers alone (``paired``), each with Holm's correction
over all comparisons of the claim, at the rule's level. A comparison is

- *vacuous* if no pair can be compared, or most have bounds that leave their order open;
- *contradicted* if the second is rejected ("no effect larger than 5 %", even one that is surely not 0), or the first
  with the effect reversed;
- *supported* if the first alone is rejected and the effect has the predicted direction;
- *inconclusive* otherwise.

The claim is contradicted if any comparison is, supported or vacuous if all are, and inconclusive otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict import pairs as paired
from skip_conditioning.experiments.claims.verdict.claim import Contrast, Finding, Rule, Verdict
from skip_conditioning.experiments.claims.verdict.measures import BOUNDS
from skip_conditioning.experiments.claims.verdict.pairs import Differences
from skip_conditioning.experiments.claims.verdict.survival import median_steps
from skip_conditioning.experiments.claims.verdict.wording import comparison, measure_words

#: Power that ``seeds_needed`` plans for.
POWER: Final = 0.8
_MOST_SEEDS = 5000
_NAMED = 8  # runs in a message


@dataclass(frozen=True)
class Decision:
    """A verdict on one comparison and why.

    Attributes:
        verdict: After the correction.
        p: Exact sign test, uncorrected.
        p_corrected: The same after Holm's correction.
        p_not_equivalent: Of the median ratio lying outside of the equivalence bounds, after Holm's correction.
        note: The reason where the verdict alone does not say it.
    """

    verdict: Verdict
    p: float
    p_corrected: float
    p_not_equivalent: float
    note: str = ""


def judge_contrasts(
    tables: Experiment, contrasts: Sequence[Contrast], rule: Rule, seed: int
) -> tuple[Verdict, tuple[Finding, ...]]:
    """Verdict on a claim that says all of some contrasts, and one finding for each at every learning rate.

    Args:
        tables: The experiment, finished.
        contrasts: What is compared; all of them, at all learning rates, are corrected for together.
        rule: Fixed beforehand.
        seed: Of the bootstrap, which describes and does not decide.

    Raises:
        InputError: An arm is missing, runs are missing or not over, or there are too few seeds to decide anything.
    """
    if not contrasts:
        raise InputError("a claim needs at least one contrast")
    arms = sorted({name for contrast in contrasts for name in (contrast.arm, contrast.other)})
    rates = _learning_rates(tables, arms)
    _refuse_unfinished(tables, arms, rates)
    cases = [(contrast, rate) for contrast in contrasts for rate in rates]
    differences = [paired.paired_differences(tables, c.measure, c.arm, c.other, rate) for c, rate in cases]
    _refuse_few(differences, rule)
    findings = []
    for (contrast, rate), found, decision in zip(
        cases, differences, decide(differences, [c for c, _ in cases], rule), strict=True
    ):
        at = f" at learning rate {rate:g}" if len(rates) > 1 else ""
        what = comparison(contrast) + at
        numbers = describe(found, decision, rule, seed, len(cases))
        if contrast.measure == "steps_to_threshold":
            for side, arm in (("arm", contrast.arm), ("other", contrast.other)):
                ends = median_steps(tables, arm, rate, confidence=1 - rule.level)
                numbers |= dict(zip((f"median_steps_{side}{end}" for end in ("", "_low", "_high")), ends, strict=True))
        findings.append(Finding(what, decision.verdict, numbers, _note(found, decision, rule, numbers)))
    return combine([finding.verdict for finding in findings]), tuple(findings)


def decide(differences: Sequence[Differences], contrasts: Sequence[Contrast], rule: Rule) -> list[Decision]:
    """Verdicts on comparisons from their log-ratios, corrected for their number, vacuous ones among them."""
    p_values = [paired.sign_test(found) for found in differences]
    corrected = paired.holm(p_values)
    outside = paired.holm([paired.equivalence_test(found, rule.equivalent) for found in differences])
    decisions = []
    for found, contrast, p, p_corrected, p_outside in zip(
        differences, contrasts, p_values, corrected, outside, strict=True
    ):
        verdict, note = _verdict(found, contrast, rule, p_corrected < rule.level, p_outside < rule.level)
        decisions.append(Decision(verdict, p, float(p_corrected), float(p_outside), note))
    return decisions


def _verdict(
    found: Differences, contrast: Contrast, rule: Rule, significant: bool, is_equivalent: bool
) -> tuple[Verdict, str]:
    why_not = _nothing_to_compare(found, contrast)
    if why_not:
        return "vacuous", why_not
    if len(found.decided) < rule.fewest_seeds:
        return "inconclusive", f"only {len(found.decided)} pairs can be compared"
    as_predicted = found.effect < 0 if contrast.predicted == "smaller" else found.effect > 0
    is_reversed = significant and found.effect != 0 and not as_predicted
    if is_equivalent:
        size = f"no effect larger than {100 * (rule.equivalent - 1):.3g} %"
        if significant and as_predicted:
            return "contradicted", f"{size}, though in the direction predicted"
        return "contradicted", f"{size}, reversed" if is_reversed else size
    if is_reversed:
        return "contradicted", "reversed"
    return ("supported", "") if significant and as_predicted else ("inconclusive", "")


def _nothing_to_compare(found: Differences, contrast: Contrast) -> str:
    pairs = len(found.values) + len(found.missing)
    if not len(found.values):
        return f"the {measure_words(contrast.measure)} was measured in no pair"
    if contrast.measure in BOUNDS and 2 * found.undecided.sum() > pairs:
        return "the smallest singular value is unresolved in most pairs"
    if not len(found.decided):
        reached = ", or never came to the threshold" if contrast.measure == "steps_to_threshold" else ""
        return f"in every pair both runs diverged{reached}"
    return ""


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim from those on its comparisons."""
    if "contradicted" in verdicts:
        return "contradicted"
    for verdict in ("supported", "vacuous"):
        if verdicts and all(each == verdict for each in verdicts):
            return verdict
    return "inconclusive"


def describe(found: Differences, decision: Decision, rule: Rule, seed: int, comparisons: int) -> dict[str, float]:
    """Effect, intervals, p values and counts of one comparison, by name; ratios are of the arm over the other.

    ``ratio`` is that of the median, with a bootstrap interval (``_low, _high``) and an exact one (``_exact_low,
    _exact_high``) of coverage ``1 - 2 * level``; ``mean_ratio`` is the geometric mean. All uncorrected. Where bounds
    stand in place of values the intervals reach as far as the truth may; ``ratio_bound`` is there where the ratio then
    is a bound itself, 1 a lower and -1 an upper one.
    """
    least, most = _extremes(found)
    low, high = (paired.bootstrap_interval(one, 1 - rule.level, seed)[end] for end, one in enumerate((least, most)))
    exact_low, exact_high = (paired.exact_interval(x, 1 - 2 * rule.level)[end] for end, x in enumerate((least, most)))
    mean, mean_low, mean_high = paired.mean_interval(found, 1 - rule.level, seed)
    logs = {"ratio": found.effect, "ratio_low": low, "ratio_high": high}
    logs |= {"ratio_exact_low": exact_low, "ratio_exact_high": exact_high}
    logs |= {"mean_ratio": mean, "mean_ratio_low": mean_low, "mean_ratio_high": mean_high}
    counts = {
        "pairs": len(found.values),
        "missing": len(found.missing),
        "smaller": (found.values < 0).sum(),
        "larger": (found.values > 0).sum(),
        "ties": (found.decided == 0).sum(),
        "undecided": found.undecided.sum(),
        "infinite": np.isinf(found.values).sum(),
        "bounded": found.bounded.sum(),
    }
    numbers = {name: float(count) for name, count in counts.items()}
    with np.errstate(over="ignore"):
        numbers |= {name: float(np.exp(value)) for name, value in logs.items()}
    numbers |= {"p_sign": decision.p, "p_sign_corrected": decision.p_corrected}
    numbers |= {"p_wilcoxon": paired.signed_rank_test(found), "p_not_equivalent": decision.p_not_equivalent}
    if (least.effect < found.effect) != (most.effect > found.effect):
        numbers["ratio_bound"] = 1.0 if most.effect > found.effect else -1.0
    if decision.verdict == "inconclusive":
        numbers["seeds_needed"] = seeds_needed(found, rule.level / comparisons, rule.equivalent)
    return numbers


def _extremes(found: Differences) -> tuple[Differences, Differences]:
    """The log-ratios with every bound moved as far down, and as far up, as the truth behind it may lie."""
    low = np.where(found.bounded & (found.values < 0), -np.inf, found.values)
    high = np.where(found.bounded & (found.values > 0), np.inf, found.values)
    return replace(found, values=low), replace(found, values=high)


def _note(found: Differences, decision: Decision, rule: Rule, numbers: Mapping[str, float]) -> str:
    notes = [decision.note] if decision.note else []
    if decision.verdict == "inconclusive":
        needed = numbers["seeds_needed"]
        about = f"about {needed:.0f}" if np.isfinite(needed) else f"more than {_MOST_SEEDS}"
        notes.append(f"{about} seeds would give {POWER:.0%} power".replace("%", " %"))
    if decision.verdict != "vacuous" and (decision.p < rule.level) != (numbers["p_wilcoxon"] < rule.level):
        notes.append("the sign test, which decides, and Wilcoxon's disagree")
    if found.undecided.any() and decision.verdict != "vacuous":
        notes.append(f"{found.undecided.sum()} pairs leave open which is larger")
    if found.bounded.any() and decision.verdict != "vacuous":
        notes.append(f"{found.bounded.sum()} ratios are bounds: one side's smallest singular value is under its floor")
    if found.missing:
        notes.append(f"not measured in {_some(found.missing)}")
    return "; ".join(notes)


def seeds_needed(found: Differences, level: float, equivalent: float) -> float:
    """How many seeds give the sign test 80 % power for an effect as large as the one seen.

    An effect smaller than ``equivalent`` counts as that. The chance that a pair shows it is taken from a normal
    distribution with the median absolute deviation as its spread or, where half of the pairs are infinite or equal,
    from the share of pairs that do. Ties need more seeds in proportion. An estimate after the event is for planning.

    Returns:
        More than the number of pairs there are; infinity when over 5000, or nothing can be compared.
    """
    pairs = len(found.values) + len(found.missing)
    untied = found.decided[found.decided != 0]
    if not len(untied):
        return np.inf
    effect = max(abs(paired.median(untied)), float(np.log(equivalent)))
    deviations = np.abs(untied - paired.median(untied)) if np.isfinite(effect) else np.zeros(1)
    spread = paired.median(deviations) / stats.norm.ppf(0.75)
    if np.isfinite(spread) and spread > 0:
        share = float(stats.norm.cdf(effect / spread))
    else:
        share = float(max((untied > 0).mean(), (untied < 0).mean()))
    share = min(share, 1 - 1 / (len(untied) + 2))  # so few pairs cannot rule out more
    short = np.flatnonzero(sign_test_power(np.arange(1, _MOST_SEEDS + 1), share, level) < POWER)
    needed = short[-1] + 2  # the power of a discrete test is a sawtooth: from here on it stays above
    return np.inf if needed > _MOST_SEEDS else float(max(np.ceil(needed * pairs / len(untied)), pairs + 1))


def sign_test_power(pairs: np.ndarray, share: float, level: float) -> np.ndarray:
    """Chance that the exact two-sided sign test finds a direction that a share of the pairs has, shape of ``pairs``."""
    critical = stats.binom.isf(level / 2, pairs, 0.5) + 1  # the fewest pairs with a tail of less than level / 2
    return np.asarray(stats.binom.sf(critical - 1, pairs, share))


def _refuse_few(differences: Sequence[Differences], rule: Rule) -> None:
    pairs = min(len(found.values) + len(found.missing) for found in differences)
    fewest = max(rule.fewest_seeds, paired.fewest_pairs(len(differences), rule.level))
    if pairs < fewest:
        raise InputError(
            f"{pairs} seeds are too few: {len(differences)} comparisons at level {rule.level:g} need "
            f"{fewest} or more to decide anything (the rule asks for {rule.fewest_seeds}); "
            f"run again with --seeds {fewest}"
        )


def _learning_rates(tables: Experiment, arms: Sequence[str]) -> list[float]:
    for arm in arms:
        paired.arm_runs(tables, arm, {arm: tables.runs.loc[tables.runs["arm"] == arm, "lr"].min()})
    return [float(rate) for rate in sorted(tables.runs.loc[tables.runs["arm"].isin(arms), "lr"].unique())]


def _refuse_unfinished(tables: Experiment, arms: Sequence[str], rates: Sequence[float]) -> None:
    """Refuse an experiment without all runs, over: verdicts on the fast half of the runs would favour the fast."""
    runs = tables.runs[tables.runs["arm"].isin(arms)]
    left = runs[~runs["status"].isin(["finished", "diverged"])]
    open_runs = [
        f"{run_id} ({status if isinstance(status, str) else 'not begun'})"
        for run_id, status in zip(left["run_id"], left["status"], strict=True)
    ]
    present = {(arm, float(lr), int(t)) for arm, lr, t in runs[["arm", "lr", "trial"]].itertuples(index=False)}
    # Trials are numbered from 0, in all arms alike, so that a whole pair left out shows as well.
    trials = range(int(pd.to_numeric(tables.runs["trial"]).max()) + 1)
    wanted = [(arm, rate, trial) for arm in arms for rate in rates for trial in trials]
    absent = [f"{arm} trial {trial} (missing)" for arm, rate, trial in wanted if (arm, rate, trial) not in present]
    if open_runs or absent:
        raise InputError(
            f"{len(open_runs) + len(absent)} of {len(wanted)} runs are not there or not over: "
            f"{_some([*open_runs, *absent])}; finish the experiment by the command that began it"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
