"""The decision rule in synthetic worlds of known truth: how often it is wrong, and how often it finds an effect."""

import numpy as np
import pytest
from scipy import stats

from skip_conditioning.experiments.claims.statistics.paired_tests import (
    equivalence_test,
    pairs_needed,
    sign_test,
    sign_test_power,
    signed_rank_test,
)
from skip_conditioning.experiments.claims.verdict.claim import Comparison, DecisionRule
from skip_conditioning.experiments.claims.verdict.decision import combine, decide
from skip_conditioning.experiments.claims.verdict.pairs import Differences

RULE = DecisionRule()
TRIALS, WORLDS = 20, 200
LOSS = Comparison("final_loss", "skip", "chain", "smaller")
BOUND = np.log(RULE.equivalence_margin)


def judged(skip, chain):
    """Decisions on worlds of one comparison, from logarithms of shape ``(worlds, trials)``."""
    return [decide([Differences.between(a, b)], [LOSS], RULE)[0] for a, b in zip(skip, chain, strict=True)]


def verdicts(skip, chain):
    return np.array([decision.verdict for decision in judged(skip, chain)])


def is_at_most(events, rate):
    """Whether so many events are no sign of a larger rate, at 0.001."""
    return stats.binomtest(int(np.sum(events)), len(events), rate, alternative="greater").pvalue > 1e-3


def is_about(events, rate):
    return stats.binomtest(int(np.sum(events)), len(events), rate).pvalue > 1e-3


def power(share, trials=TRIALS):
    return float(sign_test_power(np.array([trials]), share, RULE.level)[0])


@pytest.fixture
def rng():
    return np.random.default_rng(7)


NOISES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - np.log(2),
}
POSITIVE = {"normal": stats.norm.sf, "heavy tails": stats.cauchy.sf, "skewed": lambda x: stats.expon.sf(x + np.log(2))}


@pytest.mark.parametrize("noise", NOISES)
def test_no_effect_is_seldom_called_one(noise, rng):
    measured = judged(NOISES[noise](rng, (WORLDS, TRIALS)), np.zeros((WORLDS, TRIALS)))
    assert is_at_most([d.verdict == "supported" or "reversed" in d.note for d in measured], RULE.level)
    assert any(d.p < 0.2 for d in measured)


@pytest.mark.parametrize(("noise", "effect"), [("normal", -0.7), ("heavy tails", 0.7), ("skewed", -0.7)])
def test_an_effect_is_found_with_the_power_stated_and_hardly_ever_the_wrong_way_round(noise, effect, rng):
    measured = verdicts(effect + NOISES[noise](rng, (WORLDS, TRIALS)), np.zeros((WORLDS, TRIALS)))
    right, wrong = ("supported", "contradicted") if effect < 0 else ("contradicted", "supported")
    larger = POSITIVE[noise](-effect)
    assert is_about(measured == right, power(max(larger, 1 - larger)))
    assert is_at_most(measured == wrong, RULE.level / 2)
    assert is_about(measured == "inconclusive", 1 - power(max(larger, 1 - larger)))


def test_what_pairs_share_cancels_and_what_they_do_not_share_hides_the_effect(rng):
    luck = rng.normal(scale=3, size=(WORLDS, TRIALS))
    skip, chain = (luck + rng.normal(shift, 0.1, size=luck.shape) for shift in (-0.3, 0))
    assert (verdicts(skip, chain) == "supported").mean() > 0.95
    unpaired = verdicts(rng.permuted(skip, axis=1), chain)
    assert (unpaired == "supported").mean() < 0.15


@pytest.mark.parametrize("effect", [0.0, -1.5])
def test_half_of_the_runs_of_either_arm_diverge(effect, rng):
    skip, chain = rng.normal(effect, 1, (WORLDS, TRIALS)), rng.normal(0, 1, (WORLDS, TRIALS))
    skip, chain = (np.where(rng.random(logs.shape) < 0.5, np.inf, logs) for logs in (skip, chain))
    measured = verdicts(skip, chain)
    assert is_at_most(measured == "contradicted", RULE.level)
    if effect == 0:
        assert is_at_most(measured == "supported", RULE.level)
    else:
        # A quarter of the pairs tie; of the others a third compare losses and two thirds are a coin's.
        share = (stats.norm.cdf(1.5 / np.sqrt(2)) + 1) / 3
        untied = stats.binom.pmf(np.arange(TRIALS + 1), TRIALS, 0.75)
        each = sign_test_power(np.arange(1, TRIALS + 1), share, RULE.level)
        assert is_about(measured == "supported", untied[1:] @ each)


@pytest.mark.parametrize(("where", "right"), [("chain", "supported"), ("skip", "contradicted")])
def test_half_of_the_runs_of_one_arm_diverge_and_count_as_slowest(where, right, rng):
    logs = {arm: rng.normal(size=(WORLDS, TRIALS)) for arm in ("skip", "chain")}
    bad = rng.random((WORLDS, TRIALS)) < 0.5
    measured = verdicts(**{**logs, where: np.where(bad, np.inf, logs[where])})
    assert is_about(measured == right, power(0.75))
    assert is_at_most(measured == ({"supported", "contradicted"} - {right}).pop(), RULE.level / 2)
    # Dropped, they take the effect with them.
    dropped = [
        decide([Differences.between(a[~b], c[~b])], [LOSS], RULE)[0].verdict == right
        for a, b, c in zip(logs["skip"], bad, logs["chain"], strict=True)
    ]
    assert np.mean(dropped) < 0.1


def test_equivalence_is_found_where_it_is_and_seldom_on_the_border(rng):
    for centre, spread in ((0.0, 0.02), (BOUND, 0.02), (-BOUND, 0.02)):
        measured = judged(rng.normal(centre, spread, (WORLDS, TRIALS)), np.zeros((WORLDS, TRIALS)))
        equivalent = [d.note.startswith("no effect larger than 5 %") for d in measured]
        assert all(d.verdict == "contradicted" for d, it in zip(measured, equivalent, strict=True) if it)
        assert np.mean(equivalent) > 0.95 if centre == 0 else is_at_most(equivalent, RULE.level)


@pytest.mark.parametrize("truth", ["no effect", "border"])
def test_several_comparisons_together_are_wrong_as_seldom_as_one(truth, rng):
    comparisons, centre, spread = [LOSS] * 5, *((0, 1) if truth == "no effect" else (-BOUND, 0.02))
    measured, uncorrected = [], []
    for _ in range(WORLDS):
        logs = rng.normal(centre, spread, (5, TRIALS))
        decisions = decide([Differences.between(x, 0 * x) for x in logs], comparisons, RULE)
        decided = [d.p_corrected if centre == 0 else d.p_not_equivalent for d in decisions]
        measured.append(min(decided) < RULE.level)
        alone = [d.p if centre == 0 else equivalence_test(x, np.zeros(len(x), dtype=bool), RULE.equivalence_margin)
                 for d, x in zip(decisions, logs, strict=True)]  # fmt: skip
        uncorrected.append(min(alone) < RULE.level)
    assert is_at_most(measured, RULE.level)
    assert not is_at_most(uncorrected, RULE.level)  # so the correction is what holds the level


def test_wilcoxon_does_not_decide_as_it_sees_skewness_for_an_effect(rng):
    logs = NOISES["skewed"](rng, (200, 60))
    wilcoxon = [signed_rank_test(x) < RULE.level for x in logs]
    assert not is_at_most(wilcoxon, RULE.level)
    assert is_at_most([sign_test(x) < RULE.level for x in logs], RULE.level)


@pytest.mark.parametrize(("share", "n"), [(0.75, 12), (0.8, 30), (0.6, 50)])
def test_power_is_what_simulation_finds(share, n, rng):
    wins = rng.binomial(n, share, 400)
    measured = [stats.binomtest(int(k), n).pvalue < RULE.level and k > n / 2 for k in wins]
    assert is_about(measured, power(share, n))


def test_pairs_needed_give_the_power_they_promise(rng):
    pilot = 0.5 + stats.norm.ppf((np.arange(1, 16) - 0.5) / 15)
    needed = int(pairs_needed(pilot, len(pilot), RULE.level, RULE.equivalence_margin))
    assert 30 < needed < 100
    measured = verdicts(rng.normal(-0.5, 1, (200, needed)), np.zeros((200, needed)))
    assert 0.72 < (measured == "supported").mean() < 0.9
    fewer = verdicts(rng.normal(-0.5, 1, (200, needed // 2)), np.zeros((200, needed // 2)))
    assert (fewer == "supported").mean() < 0.65


@pytest.mark.parametrize("values", [[0.0] * 8, [np.inf, -np.inf] * 4, [0.2, -0.1, 0.0, np.inf, np.inf, np.inf, -1, 0]])
def test_pairs_needed_is_a_number_whatever_the_data(values):
    assert pairs_needed(np.array(values), len(values), 0.05, 1.05) > len(values)


@pytest.mark.parametrize(
    ("each", "whole"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "vacuous", "contradicted"], "contradicted"),
        (["supported", "vacuous"], "inconclusive"),
        (["vacuous", "vacuous"], "vacuous"),
        (["inconclusive", "supported"], "inconclusive"),
    ],
)
def test_verdicts_on_a_claim(each, whole):
    assert combine(each) == whole
