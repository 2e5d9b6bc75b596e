"""From log-ratios to a verdict: one interval decides, and the sign test never disagrees with it."""

import numpy as np
import pytest

from skip_conditioning.experiments.claims.verdict.claim import DecisionRule
from skip_conditioning.experiments.claims.verdict.decision import decide, verdict_of
from skip_conditioning.experiments.claims.verdict.differences import Differences
from skip_conditioning.experiments.claims.verdict.outcome import Direction, Reason, Verdict, combine

RULE = DecisionRule()
INF = np.inf
SMALLER, LARGER, EQUAL = Direction.SMALLER, Direction.LARGER, Direction.EQUAL


def known(values):
    values = np.asarray(values, float)
    return Differences(values, values)


@pytest.mark.parametrize(
    ("low", "high", "predicted", "verdict"),
    [
        (-0.5, -0.3, SMALLER, Verdict.SUPPORTED),
        (-0.5, -0.02, SMALLER, Verdict.SUPPORTED),
        (-0.05, -0.02, SMALLER, Verdict.SUPPORTED_SMALL),
        (-0.05, 0.02, SMALLER, Verdict.NO_EFFECT),
        (0.02, 0.05, SMALLER, Verdict.REVERSED),
        (0.3, 0.5, SMALLER, Verdict.REVERSED),
        (-0.5, 0.02, SMALLER, Verdict.UNDECIDED),
        (0.3, 0.5, LARGER, Verdict.SUPPORTED),
        (-INF, INF, LARGER, Verdict.UNDECIDED),
        (-0.05, 0.05, EQUAL, Verdict.SUPPORTED),
        (0.05, 0.2, EQUAL, Verdict.UNDECIDED),
        (0.12, 0.2, EQUAL, Verdict.REVERSED),
    ],
)
def test_a_verdict_is_read_from_the_interval(low, high, predicted, verdict):
    assert verdict_of(low, high, predicted, np.log(1.1)) is verdict


def test_interval_and_sign_test_never_disagree():
    rng = np.random.default_rng(0)
    for _ in range(300):
        logs = [known(np.round(rng.normal(rng.normal(0, 0.3), 0.5, rng.integers(3, 30)), 1)) for _ in range(4)]
        for decision in decide(logs, [SMALLER] * 4, RULE):
            assert (decision.p <= 0.05 / 4) == (decision.low > 0 or decision.high < 0)


def test_a_run_that_never_learnt_counts_as_the_slower_and_two_of_them_against_both_directions():
    slower = Differences(np.full(20, 0.5), np.full(20, INF))
    assert decide([slower], [LARGER], RULE)[0].verdict is Verdict.SUPPORTED
    unknown = np.arange(20) < 9
    mixed = Differences(np.where(unknown, -INF, 0.5), np.where(unknown, INF, 0.5))
    (decision,) = decide([mixed], [LARGER], RULE)
    assert decision.verdict is Verdict.UNDECIDED
    mostly = Differences(np.full(20, -INF), np.full(20, INF))
    assert decide([mostly], [LARGER], RULE)[0].reason is Reason.UNKNOWN_ORDER


def test_nothing_to_compare_is_vacuous_and_few_pairs_leave_it_undecided():
    empty, few = decide([known([]), known([-1.0] * 5)], [SMALLER] * 2, RULE)
    assert (empty.verdict, empty.reason) == (Verdict.VACUOUS, Reason.NOT_MEASURED)
    assert (few.verdict, few.reason) == (Verdict.UNDECIDED, Reason.TOO_FEW_PAIRS)


def test_more_comparisons_widen_every_interval():
    values = known(np.linspace(-1, 0.2, 21))
    (alone,), many = decide([values], [SMALLER], RULE), decide([values] * 10, [SMALLER] * 10, RULE)
    assert many[0].low < alone.low < alone.high < many[0].high
    assert (alone.level, many[0].level) == (0.95, 0.995)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ("supported supported", "supported"),
        ("supported supported,small", "supported"),
        ("supported,small supported,small", "supported, small"),
        ("supported reversed undecided", "reversed"),
        ("supported no-effect", "no effect"),
        ("supported undecided", "undecided"),
        ("supported vacuous", "undecided"),
        ("vacuous not-tested", "vacuous"),
        ("not-tested", "not tested"),
        ("", "not tested"),
    ],
)
def test_a_claim_needs_all_its_parts(verdicts, whole):
    parts = [Verdict(name.replace("-", " ").replace(",", ", ")) for name in verdicts.split()]
    assert combine(parts).value == whole


@pytest.mark.parametrize("effect", [0.0, np.log(1.1), -np.log(1.1)])
def test_false_verdicts_are_as_rare_as_stated(effect):
    """Of heavy-tailed log-ratios with a median of 0, or as large as the margin, at most 5 % get a false verdict."""
    rng, false, draws = np.random.default_rng(1), 0, 2000
    for _ in range(draws):
        (decision,) = decide([known(effect + 0.05 * rng.standard_t(2, 30))], [SMALLER], RULE)
        wrong = {Verdict.SUPPORTED, Verdict.SUPPORTED_SMALL, Verdict.REVERSED}
        if effect:
            wrong = {Verdict.NO_EFFECT, Verdict.SUPPORTED_SMALL}
            wrong |= {Verdict.REVERSED} if effect < 0 else {Verdict.SUPPORTED}
        false += decision.verdict in wrong
    assert false / draws < 0.055
