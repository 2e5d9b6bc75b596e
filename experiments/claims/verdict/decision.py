"""From paired log-ratios to a verdict, which is read from one interval.

The interval is that of the median log-ratio, between two order statistics, at level ``1 − level / k`` for a claim of k
comparisons (Bonferroni): all of them contain the true medians at once with probability ``1 − level``. It is the exact
sign test inverted, so that interval, test and verdict cannot disagree. With a margin m, of 10 %, a comparison is

- *supported* if the interval lies on the side of 0 that was predicted, *supported, small* if it also lies within ±m;
- *reversed* if it lies on the other side;
- *no effect* if it contains 0 and lies within ±m;
- *undecided* otherwise.

Where the two are predicted to be equal it is *supported* if the interval lies within ±m, *reversed* if it lies wholly
outside, and *undecided* otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skip_conditioning.experiments.claims.statistics.median_intervals import fewest_values, median_interval, sign_test
from skip_conditioning.experiments.claims.verdict.claim import DecisionRule
from skip_conditioning.experiments.claims.verdict.differences import Differences
from skip_conditioning.experiments.claims.verdict.outcome import Direction, Reason, Verdict


@dataclass(frozen=True)
class Decision:
    """The verdict on one comparison, and what it follows from.

    Attributes:
        verdict: Read from the interval.
        low: Lower end of the interval of the median log-ratio; -inf if open.
        high: Upper end.
        level: Of the interval.
        p: Of the exact two-sided sign test, uncorrected: below ``1 − level`` if and only if the interval excludes 0.
        reason: Why it is vacuous or undecided, where the numbers do not say it.
    """

    verdict: Verdict
    low: float
    high: float
    level: float
    p: float
    reason: Reason | None = None


def decide(differences: Sequence[Differences], predicted: Sequence[Direction], rule: DecisionRule) -> list[Decision]:
    """The decision on each of several comparisons, corrected for their number, vacuous ones among them.

    Args:
        differences: Log-ratios, one for each comparison.
        predicted: The direction of each.
        rule: Fixed beforehand.
    """
    level = 1 - rule.level / max(len(differences), 1)
    return [_decide(logs, direction, level, rule) for logs, direction in zip(differences, predicted, strict=True)]


def verdict_of(low: float, high: float, predicted: Direction, margin: float) -> Verdict:
    """The verdict that an interval of a log-ratio gives.

    Args:
        low: Lower end.
        high: Upper end.
        predicted: The direction.
        margin: Logarithm of the smallest ratio above 1 that counts.
    """
    within = low > -margin and high < margin
    if predicted is Direction.EQUAL:
        if within:
            return Verdict.SUPPORTED
        return Verdict.REVERSED if low > margin or high < -margin else Verdict.UNDECIDED
    below, above = high < 0, low > 0
    if (below and predicted is Direction.SMALLER) or (above and predicted is Direction.LARGER):
        return Verdict.SUPPORTED_SMALL if within else Verdict.SUPPORTED
    if below or above:
        return Verdict.REVERSED
    return Verdict.NO_EFFECT if within else Verdict.UNDECIDED


def _decide(logs: Differences, predicted: Direction, level: float, rule: DecisionRule) -> Decision:
    low, high = median_interval(logs.low, logs.high, level)
    p = sign_test(logs.low, logs.high)
    reason = _why_open(logs, level)
    if reason in (Reason.NOT_MEASURED, Reason.UNKNOWN_ORDER):
        return Decision(Verdict.VACUOUS, low, high, level, p, reason)
    verdict = verdict_of(low, high, predicted, float(np.log(rule.margin)))
    return Decision(verdict, low, high, level, p, reason if verdict is Verdict.UNDECIDED else None)


def _why_open(logs: Differences, level: float) -> Reason | None:
    if not len(logs.low):
        return Reason.NOT_MEASURED
    if 2 * logs.unknown.sum() > logs.pairs:
        return Reason.UNKNOWN_ORDER
    return Reason.TOO_FEW_PAIRS if len(logs.low) < fewest_values(level) else None
