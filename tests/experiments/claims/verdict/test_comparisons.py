"""Comparisons judged on the tables of an experiment: findings with their numbers, and claims as a whole."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict.claim import DecisionRule
from skip_conditioning.experiments.claims.verdict.comparisons import judge_comparisons
from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Reason, Verdict
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds
from skip_conditioning.experiments.claims.verdict.wording import effect
from tests.experiments.claims.worlds import World, tables_of

RULE = DecisionRule()
PILOTS = 2
STEPS = Comparison("steps", "skip", "chain", "smaller")


def judge(tables, *comparisons, rule=RULE):
    return judge_comparisons(tables, comparisons or (STEPS,), rule, Thresholds("chain", PILOTS))


def world(effect, trials=22, **options):
    return World({"chain": 0.0, "skip": effect}, **options).tables(trials, 0)


@pytest.mark.parametrize(
    ("effect_size", "noise", "verdict"),
    [(-0.5, 0.1, Verdict.SUPPORTED), (np.log(0.8), 0.05, Verdict.SUPPORTED), (-0.04, 0.02, Verdict.SUPPORTED_SMALL),
     (0.0, 0.03, Verdict.NO_EFFECT), (0.3, 0.1, Verdict.REVERSED), (0.0, 0.4, Verdict.UNDECIDED)],
)  # fmt: skip
def test_an_effect_on_the_time_axis_gets_its_verdict_and_size(effect_size, noise, verdict):
    (finding,) = judge(world(effect_size, noise=noise))
    assert finding.verdict is verdict
    numbers = finding.numbers
    assert numbers["ratio_low"] <= np.exp(effect_size) <= numbers["ratio_high"]
    assert (numbers["pairs"], numbers["level"]) == (20, 0.95)
    assert ("trials_needed" in numbers) == (verdict is Verdict.UNDECIDED)


def test_a_faster_decay_counts_by_its_time_and_not_by_the_loss_that_a_short_run_can_gain():
    """A quarter faster is a fifth of the steps, and less of the mean log loss the shorter the run."""
    tables = world(np.log(0.8), noise=0.02, length=12)
    steps, mean = judge(tables, STEPS, Comparison("mean_log_loss", "skip", "chain", "smaller"))
    assert steps.verdict is Verdict.SUPPORTED
    assert steps.numbers["ratio"] == pytest.approx(0.8, abs=0.02)
    assert steps.numbers["ratio"] + 0.03 < mean.numbers["ratio"] < 1


def test_one_run_that_never_learns_makes_a_bound_of_its_pair_alone():
    slowness = {"chain": np.zeros(12), "skip": np.full(12, 0.7)}
    slowness["skip"][5:9] = 3.0
    (finding,) = judge(tables_of(slowness))
    assert finding.verdict is Verdict.REVERSED
    assert "ratio_bound" not in finding.numbers
    slowness["skip"][2:] = 3.0
    (finding,) = judge(tables_of(slowness))
    assert finding.numbers["ratio_bound"] == 1
    assert effect(finding).startswith("≥ ")
    assert finding.numbers["ratio_high"] == np.inf


def test_diverged_runs_stay_and_turn_the_verdict():
    (finding,) = judge(world(-0.5, diverging={"skip": 0.9}))
    assert finding.verdict is Verdict.REVERSED
    assert finding.numbers["diverged_arm"] > 14


def test_a_base_arm_that_does_not_learn_leaves_it_untested():
    (finding,) = judge(tables_of({"chain": np.full(10, 9.0), "skip": np.zeros(10)}))
    assert (finding.verdict, finding.reason) == (Verdict.NOT_TESTED, Reason.NO_FALL)


def test_every_learning_rate_is_judged_by_its_own_thresholds_and_corrected_for():
    slow, quick = world(-0.5), World({"chain": 0.0, "skip": 0.5}).tables(22, 1, lr=0.5)
    both = Experiment(
        *(pd.concat([getattr(slow, n), getattr(quick, n)]) for n in ("runs", "metrics", "spectra", "skipped"))
    )
    findings = judge(both)
    assert [finding.verdict for finding in findings] == [Verdict.SUPPORTED, Verdict.REVERSED]
    assert [finding.lr for finding in findings] == [0.1, 0.5]
    assert findings[0].what.endswith("at learning rate 0.1")
    assert findings[0].numbers["level"] == 0.975


def test_swapped_arms_reverse_and_shuffled_ones_decide_nothing():
    losses = World({"chain": 0.0, "skip": -0.5}).draw(22, np.random.default_rng(0))
    (swapped,) = judge(tables_of({"chain": losses["skip"], "skip": losses["chain"]}))
    assert swapped.verdict is Verdict.REVERSED
    heads = np.arange(22) % 2 == 0
    pairs = losses["skip"], losses["chain"]
    (shuffled,) = judge(tables_of({"skip": np.where(heads, *pairs), "chain": np.where(heads, *pairs[::-1])}))
    assert shuffled.verdict is Verdict.UNDECIDED
    assert shuffled.numbers["trials_needed"] > 22


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="at least one comparison"):
        judge_comparisons(world(0.0), (), RULE)
    with pytest.raises(InputError, match="no runs of arm 'chian'"):
        judge(world(0.0), replace(STEPS, other="chian"))
