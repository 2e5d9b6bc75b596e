"""The mechanism's rules in worlds where it is known what makes runs fast, and one experiment judged whole."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.mechanism import interventions
from skip_conditioning.experiments.claims.mechanism.design import MEDIATORS
from skip_conditioning.experiments.claims.mechanism.dose_response import dose_response
from skip_conditioning.experiments.claims.mechanism.interventions import compare, differences, mechanism_verdict
from skip_conditioning.experiments.claims.mechanism.judgement import judge_experiment
from skip_conditioning.experiments.claims.mechanism.learning_rates import learning_rate_sweep
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, DecisionRule
from skip_conditioning.experiments.claims.verdict.pairs import Differences, with_runs
from tests.experiments.claims.mechanism.worlds import DESIGN, KAPPAS, LRS, SKIPS, World

RULE = DecisionRule(level=0.05)
MEDIATOR = "condition_number"
PAIRS, WORLDS = 30, 40
BEST = dict.fromkeys(KAPPAS, LRS[1])


@pytest.fixture(autouse=True)
def _no_bootstraps(request, monkeypatch):
    """Intervals describe and do not decide; hundreds of worlds do without them."""
    if "whole" not in request.fixturenames:
        monkeypatch.setattr(interventions, "describe", lambda *_: {})
        monkeypatch.setattr(interventions, "_effect", lambda *_: {})


def simulated(world, random):
    """Log-ratios of conditioning and of slowness for each comparison, drawn without any tables."""
    error = random.standard_cauchy if world.heavy else random.standard_normal
    kappa = {arm: level + world.noise * random.standard_normal(PAIRS) for arm, level in KAPPAS.items()}
    slow = {
        arm: world.through * kappa[arm] + world.direct * (arm in SKIPS) + world.noise * error(PAIRS) for arm in KAPPAS
    }
    if world.diverging:
        slow[world.diverging] = np.where(random.random(PAIRS) < 0.5, np.inf, slow[world.diverging])
    return tuple(
        [Differences.between(logs[arm], logs[other]) for arm, other in DESIGN.comparisons] for logs in (kappa, slow)
    )


def verdicts(world, worlds=WORLDS, seed=0):
    random = np.random.default_rng(seed)
    outcomes = [compare(DESIGN, MEDIATOR, *simulated(world, random), RULE, 0) for _ in range(worlds)]
    return np.array([mechanism_verdict(comparisons, []) for comparisons in outcomes])


def is_at_most(events, rate):
    return stats.binomtest(int(np.sum(events)), len(events), rate, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("heavy", [False, True])
def test_a_real_mechanism_is_found_and_hardly_ever_contradicted(heavy):
    reached = verdicts(World(through=0.3, noise=0.01, heavy=heavy))
    assert is_at_most(reached == "contradicted", RULE.level)
    assert np.mean(reached == "supported") > (0.5 if heavy else 0.9)


@pytest.mark.parametrize("heavy", [False, True])
def test_a_skip_that_helps_by_another_path_is_hardly_ever_taken_for_it(heavy):
    reached = verdicts(World(direct=-0.5, noise=0.05, heavy=heavy))
    assert is_at_most(reached == "supported", RULE.level)
    assert np.mean(reached == "contradicted") > 0.9


@pytest.mark.parametrize("heavy", [False, True])
def test_without_any_effect_nothing_is_supported(heavy):
    reached = verdicts(World(noise=0.3, heavy=heavy))
    assert is_at_most(reached == "supported", RULE.level)
    assert is_at_most(reached == "contradicted", RULE.level)


@pytest.mark.parametrize("world", [World(through=-0.3), World(noise=0.001)], ids=["slows", "does nothing"])
def test_a_skip_that_surely_does_not_speed_training_leaves_nothing_to_explain(world):
    assert set(verdicts(world, worlds=10)) == {"vacuous"}


@pytest.mark.slow
def test_half_an_arms_runs_diverging_costs_power_and_makes_no_false_support():
    world = World(direct=-0.5, noise=0.05, diverging="orthogonal chain")
    assert is_at_most(verdicts(world) == "supported", RULE.level)
    real = verdicts(replace(world, through=0.3, direct=0.0))
    assert np.mean(real == "supported") < np.mean(verdicts(World(through=0.3, noise=0.05)) == "supported") + 0.05


def test_what_is_predicted_follows_the_conditioning_that_was_measured():
    conditioning, speed = simulated(World(through=0.3, noise=0.01), np.random.default_rng(0))
    outcomes = {(each.arm, each.other): each for each in compare(DESIGN, MEDIATOR, conditioning, speed, RULE, 0)}
    assert outcomes["scaled", "chain"].change == "alike"
    assert outcomes["scaled", "residual"].change == "worse"
    assert outcomes["half", "residual"].change == "worse"
    assert outcomes["orthogonal chain", "residual"].change == "better"
    assert all(each.finding.verdict == "supported" for each in outcomes.values())


def test_shuffling_the_arms_changes_the_verdict():
    conditioning, speed = simulated(World(through=0.3, noise=0.01), np.random.default_rng(0))
    shuffled = [speed[place] for place in (1, 0, 2, 4, 3, 6, 5, 8, 7)]
    intact, other = (
        mechanism_verdict(compare(DESIGN, MEDIATOR, conditioning, logs, RULE, 0), []) for logs in (speed, shuffled)
    )
    assert intact == "supported" != other


def test_unmeasured_conditioning_predicts_nothing():
    conditioning, speed = simulated(World(through=0.3), np.random.default_rng(0))
    nothing = Differences(np.zeros(0), np.zeros(0, bool), np.zeros(0, bool), ("trial 0 (chain)",))
    comparisons = compare(DESIGN, MEDIATOR, [conditioning[0], nothing, *conditioning[2:]], speed, RULE, 0)
    assert comparisons[1].change == "unclear"
    assert comparisons[1].finding.verdict == "vacuous"


@pytest.mark.parametrize(("through", "expected"), [(0.3, "supported"), (-0.3, "contradicted"), (0.0, "inconclusive")])
def test_the_dose_response_has_the_sign_of_the_mechanism(through, expected):
    tables = World(through=through).tables(20, 0)
    finding = dose_response(tables, DESIGN, MEDIATOR, BEST, 0.01)
    assert finding.verdict == expected
    assert np.sign(finding.numbers["kendall_tau"]) == np.sign(through) or through == 0


@pytest.mark.parametrize("mediator", MEDIATORS)
def test_every_mediator_reads_better_conditioning_from_the_spectra(mediator):
    tables = World(through=0.3).tables(20, 0)
    outcomes = compare(
        DESIGN, mediator, differences(tables, DESIGN, mediator, BEST),
        differences(tables, DESIGN, "mean_log_loss", BEST), RULE, 0,
    )  # fmt: skip
    assert outcomes[0].change == "better"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A world with a real mechanism, judged whole; the directory and what came of it."""
    directory = tmp_path_factory.mktemp("mechanism")
    tables = World(through=0.3, noise=0.01).tables(34, 0)
    design = replace(DESIGN, mediators=(MEDIATOR,))
    return directory, tables, judge_experiment(tables, design, 4, RULE, ClaimInputs({}, directory))


def test_an_experiment_judged_whole(whole):
    directory, _, judged = whole
    assert judged.verdicts == {MEDIATOR: "supported"}
    what = [finding.what for finding in (*judged.findings, *judged.secondary)]
    for part in ("residual against chain", "dose–response", "mediation", "learning rate 0.1", "partial", "rank 1 of"):
        assert any(part in words for words in what), part
    assert all(path.exists() and path.suffix == ".svg" for path in judged.figures)
    for name in ("measure_ranking", "learning_rates", f"{MEDIATOR}_interventions", f"{MEDIATOR}_doses"):
        assert len(pd.read_parquet(directory / f"{name}.parquet"))


def test_pilots_choose_the_rate_and_are_not_compared(whole):
    directory, _, judged = whole
    sweep = pd.read_parquet(directory / "learning_rates.parquet")
    assert set(sweep.loc[sweep["is_best"], "lr"]) == {LRS[1]}
    assert set(sweep["runs"]) == {30}
    assert judged.findings[0].numbers["pairs"] == 30


def test_a_best_rate_at_the_end_of_a_sweep_is_said(whole):
    *_, judged = whole
    (finding,) = [finding for finding in judged.secondary if "inside the sweep" in finding.what]
    assert (finding.verdict, finding.numbers["inside"]) == ("inconclusive", 0)
    assert f"chain {LRS[1]:g}" in finding.note


def test_a_sweep_counts_diverged_runs_as_the_slowest():
    tables = World(diverging="half").tables(12, 0)
    sweep = learning_rate_sweep(tables, "mean_log_loss").set_index(["arm", "lr"])
    counts = tables.runs[tables.runs["status"] == "diverged"].groupby(["arm", "lr"]).size()
    assert sweep["diverged"].sum() == counts.sum() > 0
    assert (sweep.loc["half", "high"] == np.inf).all()
    assert np.isfinite(sweep.drop("half", level="arm")["high"]).all()


def test_dropped_runs_and_missing_arms_are_refused(tmp_path):
    tables = World(diverging="half").tables(12, 0)
    kept = tables.runs.loc[tables.runs["status"] != "diverged", "run_id"]
    with pytest.raises(InputError, match=r"missing or not over: .*half at 0.\d+, trial"):
        judge_experiment(with_runs(tables, set(kept)), DESIGN, 2, RULE, ClaimInputs({}, tmp_path))
    others = tables.runs.loc[tables.runs["arm"] != "scaled", "run_id"]
    with pytest.raises(InputError, match="scaled"):
        judge_experiment(with_runs(tables, set(others)), DESIGN, 2, RULE, ClaimInputs({}, tmp_path))
    with pytest.raises(InputError, match="more --trials"):
        judge_experiment(tables, DESIGN, 12, RULE, ClaimInputs({}, tmp_path))
