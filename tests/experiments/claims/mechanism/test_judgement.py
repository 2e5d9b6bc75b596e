"""The verdict on the mechanism in worlds of known truth, through the tables that a claim is given."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.mechanism.design import AtRate
from skip_conditioning.experiments.claims.mechanism.judgement import judge_experiment
from skip_conditioning.experiments.claims.mechanism.run_table import matrix, run_table
from skip_conditioning.experiments.claims.statistics.model_comparison import M0, M1, M2, M4, Outcome, compare_models
from skip_conditioning.experiments.claims.verdict.claim import DecisionRule
from skip_conditioning.experiments.claims.verdict.outcome import Reason, Verdict
from tests.experiments.claims.mechanism.worlds import ARMS, DESIGN, NAME, RATES, SWEEP, WORLDS, MechanismWorld

RULE = DecisionRule()


def compared(world, seed, trials=20):
    runs = run_table(world.inputs(trials, seed, Path()), NAME, DESIGN.arms, SWEEP)
    slowness = matrix(runs, AtRate.EQUAL, "log_steps")
    rivals = {name: matrix(runs, AtRate.EQUAL, name, log=True).to_numpy() for name in DESIGN.rivals}
    return compare_models(
        slowness.to_numpy(),
        matrix(runs, AtRate.EQUAL, "effective_rank", log=True).to_numpy(),
        np.array([arm in DESIGN.skips for arm in slowness.index]),
        rivals,
        larger_is_better=True,
    )


@pytest.mark.parametrize("name", WORLDS)
def test_no_world_gets_a_false_outcome(name):
    world, is_cause = WORLDS[name]
    outcomes = [compared(world, seed).outcome for seed in range(3)]
    assert (Outcome.A_RIVAL_BETTER if is_cause else Outcome.BETTER) not in outcomes


def test_the_rule_finds_the_cause():
    truths = {"mechanism true, steep": M1, "another path: the skip": M2, "gradient norm as the cause": "grad_norm"}
    for name, cause in truths.items():
        result = compared(WORLDS[name][0], 0)
        best = max((skill, model) for model, skill in result.skills.items() if model != M4)[1]
        assert best == cause
        assert result.skills[M0] == 0


def test_a_steep_mechanism_is_supported_and_without_a_faster_skip_it_is_vacuous(tmp_path):
    steep = MechanismWorld(through=lambda z: -1.5 * z, unexplained=0.02)
    findings, figures = judge_experiment(steep.inputs(12, 0, tmp_path), NAME, DESIGN, SWEEP, RULE)
    assert [finding.verdict for finding in findings if finding.decides] == [Verdict.SUPPORTED] * 2
    assert {path.stem for path in figures} == {"interventions_equal", "interventions_best", "ranking"}
    runs = pd.read_parquet(tmp_path / NAME / "runs.parquet")
    assert set(runs["rate"]) == {"equal", "best"}
    assert len(runs) == 2 * 12 * len(ARMS)
    nothing = WORLDS["no effect"][0].inputs(12, 0, tmp_path / "none")
    findings, _ = judge_experiment(nothing, NAME, DESIGN, SWEEP, RULE, draws=False)
    assert [(each.verdict, each.reason) for each in findings if each.decides] == [
        (Verdict.VACUOUS, Reason.NO_PREMISE)
    ] * 2


def test_a_best_rate_at_an_end_of_the_grid_is_refused(tmp_path):
    inputs = WORLDS["mechanism true, steep"][0].inputs(12, 0, tmp_path)
    pilots = inputs.pilots[NAME]
    short = type(SWEEP)("chain", RATES[:3], 2)
    kept = pilots.runs[pilots.runs["lr"] <= RATES[2]]
    inputs.pilots[NAME] = type(pilots)(kept, pilots.metrics, pilots.spectra, pilots.skipped)
    findings, _ = judge_experiment(inputs, NAME, DESIGN, short, RULE, draws=False)
    best = next(finding for finding in findings if finding.decides and AtRate.BEST.words in finding.what)
    assert (best.verdict, best.reason) == (Verdict.NOT_TESTED, Reason.RATE_AT_END)
    assert "chain" in best.note


def test_what_is_missing_is_named(tmp_path):
    inputs = WORLDS["no effect"][0].inputs(6, 0, tmp_path)
    inputs.initial_states[NAME] = inputs.initial_states[NAME].iloc[1:]
    with pytest.raises(InputError, match="no initial state of arm 'chain', trial 0"):
        run_table(inputs, NAME, DESIGN.arms, SWEEP)
    values = np.zeros((14, 3))
    with pytest.raises(InputError, match="sharpness is not a finite number in 1 runs"):
        compare_models(
            values,
            values,
            np.zeros(14),
            {"sharpness": np.where(np.eye(14, 3) * [1, 0, 0], np.nan, 0)},
            larger_is_better=True,
        )
    with pytest.raises(InputError, match="4 arms are too few"):
        compare_models(values[:4], values[:4], np.zeros(4), {}, larger_is_better=True)
