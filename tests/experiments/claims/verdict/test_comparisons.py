"""Comparisons judged on the tables of an experiment: findings, notes, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.verdict.claim import Comparison, DecisionRule
from skip_conditioning.experiments.claims.verdict.comparisons import in_words, judge_comparisons
from skip_conditioning.experiments.claims.verdict.formatting import effect
from skip_conditioning.experiments.claims.verdict.run_measures import MEASURES, NAMES

RULE = DecisionRule()
TRIALS = 20
LOSS = Comparison("final_loss", "skip", "chain", "smaller")
KAPPA = Comparison("condition_number", "skip", "chain", "smaller")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def experiment(losses, *, kappa=None, resolved=True, threshold=1.0):
    """An experiment whose final losses, and condition numbers, are given by arm and trial; a NaN diverged."""
    runs, metrics, spectra = [], [], []
    for arm, trials in losses.items():
        for trial, loss in enumerate(trials):
            run_id, status = f"{arm}-lr0.1-trial{trial:02d}", "diverged" if np.isnan(loss) else "finished"
            runs.append({"run_id": run_id, "arm": arm, "trial": trial, "lr": 0.1, "status": status})
            curve = np.geomspace(4.0, loss, 21) if status == "finished" else [4.0, np.nan]
            metrics += [{"run_id": run_id, "step": k, "split": "train", "loss": x} for k, x in enumerate(curve)]
            if kappa:
                own = resolved if isinstance(resolved, bool) else np.broadcast_to(resolved[arm], len(trials))[trial]
                row = {"run_id": run_id, "step": 0, "map": "tail", "layer": "stem", "resolved": bool(own)}
                spectra.append(row | {"condition_number": kappa[arm][trial]})
    return Experiment(
        pd.DataFrame(runs).assign(loss_threshold=threshold),
        pd.DataFrame(metrics),
        spectra_frame(spectra),
        empty_frame("skipped"),
    )


def world(rng, effect=-0.5, trials=TRIALS):
    luck = rng.normal(size=trials)
    return {arm: np.exp(luck + rng.normal(shift, 0.1, trials)) for arm, shift in (("skip", effect), ("chain", 0))}


def without(tables, keep):
    return Experiment(tables.runs[keep], tables.metrics, tables.spectra, tables.skipped)


def judge(tables, *comparisons):
    return judge_comparisons(tables, comparisons or (LOSS,), RULE, 0)


def test_a_real_effect_is_supported_with_its_size(rng):
    verdict, (finding,) = judge(experiment(world(rng)))
    assert (verdict, finding.verdict) == ("supported", "supported")
    assert finding.what == "training loss at the end: skip below chain"
    numbers = finding.numbers
    assert numbers["ratio_low"] < np.exp(-0.5) < numbers["ratio_high"] < 1
    assert numbers["ratio_exact_low"] <= numbers["ratio"] <= numbers["ratio_exact_high"]
    assert (numbers["pairs"], numbers["smaller"], numbers["missing"]) == (TRIALS, TRIALS, 0)
    assert judge(experiment(world(np.random.default_rng(7)))) == (verdict, (finding,))


def test_swapped_arms_contradict_and_shuffled_ones_decide_nothing(rng):
    losses = world(rng)
    swapped, (finding,) = judge(experiment({"skip": losses["chain"], "chain": losses["skip"]}))
    assert (swapped, finding.note) == ("contradicted", "reversed")
    heads = np.arange(TRIALS) % 2 == 0
    pairs = losses["skip"], losses["chain"]
    shuffled = {"skip": np.where(heads, *pairs), "chain": np.where(heads, *pairs[::-1])}
    verdict, (finding,) = judge(experiment(shuffled))
    assert verdict == "inconclusive"
    assert "trials would give a power of 80 %" in finding.note
    assert finding.numbers["trials_needed"] > TRIALS


@pytest.mark.parametrize(
    ("ratio", "direction"), [(1.001, ", though in the direction predicted"), (0.999, ", reversed")]
)
def test_equal_arms_are_a_finding(rng, ratio, direction):
    losses = world(rng)
    verdict, (finding,) = judge(experiment({"skip": losses["skip"], "chain": losses["skip"] * ratio}))
    assert (verdict, finding.note.split(";")[0]) == ("contradicted", f"no effect larger than 5 %{direction}")


def test_dropping_diverged_runs_is_refused_and_would_turn_the_verdict(rng):
    losses = world(rng, trials=24)
    losses["skip"] = np.where(np.arange(24) < 6, losses["skip"], np.nan)
    tables = experiment(losses)
    assert judge(tables)[0] == "contradicted"
    kept = (tables.runs["status"] != "diverged").to_numpy()
    assert judge(experiment({arm: values[:6] for arm, values in losses.items()}))[0] == "supported"
    with pytest.raises(InputError, match=r"18 of 48 runs .*skip at 0.1, trial 6 \(missing\).* and 10 more; finish"):
        judge(without(tables, kept))
    # Whole pairs of them too, as long as a later trial is there.
    pair = ~tables.runs["trial"].isin([7])
    with pytest.raises(InputError, match=r"2 of 48 runs .*chain at 0.1, trial 7 \(missing\), skip at 0.1, trial 7"):
        judge(without(tables, pair))


def test_an_experiment_that_is_not_over_is_refused_by_name(rng):
    tables = experiment(world(rng))
    tables.runs.loc[[3, 25], "status"] = ["running", "failed"]
    with pytest.raises(InputError, match=r"2 of 40 runs .*chain at 0.1, trial 5 \(failed\), .*trial 3 \(running\)"):
        judge(tables)


def test_a_missing_arm_is_named_with_what_is_near(rng):
    with pytest.raises(InputError, match=r"no runs of arm 'chian'.*Did you mean 'chain'"):
        judge(experiment(world(rng)), Comparison("final_loss", "skip", "chian", "smaller"))


@pytest.mark.parametrize(("trials", "comparisons", "needed"), [(5, 1, 6), (6, 2, 7), (8, 8, 9)])
def test_too_few_trials_are_refused_with_how_many_it_takes(trials, comparisons, needed, rng):
    with pytest.raises(InputError, match=rf"{trials} trials are too few.*--trials {needed}"):
        judge(experiment(world(rng, trials=trials)), *[LOSS] * comparisons)
    assert judge(experiment(world(rng, trials=needed)), *[LOSS] * comparisons)[0] == "supported"


def test_nothing_to_compare_is_vacuous(rng):
    high = {arm: np.full(TRIALS, loss) for arm, loss in (("skip", 2.0), ("chain", 3.0))}
    steps = Comparison("steps_to_threshold", "skip", "chain", "smaller")
    unresolved = experiment(high, kappa={"skip": [1e6] * TRIALS, "chain": [1e8] * TRIALS}, resolved=False)
    for tables, comparison, note in (
        (experiment(high), steps, "never reached the threshold"),
        (experiment(high), KAPPA, "measured in no pair"),
        (unresolved, KAPPA, "unresolved in most pairs"),
        (experiment({arm: np.full(TRIALS, np.nan) for arm in high}), LOSS, "both runs diverged"),
    ):
        verdict, (finding,) = judge(tables, comparison)
        assert verdict == "vacuous"
        assert note in finding.note
    assert judge(experiment(high), steps, LOSS)[0] == "inconclusive"
    resolved = experiment(high, kappa={"skip": [1e6] * TRIALS, "chain": [1e8] * TRIALS})
    assert judge(resolved, KAPPA)[0] == "supported"


@pytest.mark.parametrize(("bounded", "side"), [("chain", 1), ("skip", -1)])
def test_a_ratio_of_bounds_is_one_and_its_interval_reaches_as_far_as_the_truth_may(bounded, side, rng):
    exact, bounds = np.exp(rng.normal(size=TRIALS)), np.exp(20 + rng.normal(size=TRIALS))
    kappa = {arm: bounds if arm == bounded else exact for arm in ("skip", "chain")}
    tables = experiment(world(rng), kappa=kappa, resolved={arm: arm != bounded for arm in kappa})
    comparison = Comparison("condition_number", "chain", "skip", "larger")
    _, (finding,) = judge(tables, comparison)
    assert finding.verdict == ("supported" if side == 1 else "contradicted")
    numbers = finding.numbers
    assert (numbers["bounded"], numbers["ratio_bound"]) == (TRIALS, side)
    assert effect(finding).startswith("≥ " if side == 1 else "≤ ")
    assert numbers["ratio_high" if side == 1 else "ratio_low"] == (np.inf if side == 1 else 0)
    assert np.isfinite(np.log(numbers["ratio_low" if side == 1 else "ratio_high"]))
    assert "20 ratios are bounds" in finding.note
    _, (whole,) = judge(experiment(world(rng), kappa=kappa), comparison)
    assert "ratio_bound" not in whole.numbers
    assert whole.numbers["ratio"] == pytest.approx(numbers["ratio"])


def test_bounds_beyond_the_median_leave_it_exact(rng):
    kappa = {"skip": np.ones(TRIALS), "chain": np.exp(np.linspace(1, 3, TRIALS))}
    tables = experiment(world(rng), kappa=kappa, resolved={"skip": True, "chain": kappa["chain"] < 10})
    _, (finding,) = judge(tables, Comparison("condition_number", "chain", "skip", "larger"))
    assert finding.numbers["bounded"] > 0
    assert "ratio_bound" not in finding.numbers
    assert effect(finding)[0].isdigit()


def test_every_measure_has_a_name():
    assert set(MEASURES) <= set(NAMES)
    comparison = Comparison("loss_at_step_2", "residual", "chain", "smaller")
    assert in_words(comparison) == "training loss at step 2: residual below chain"
    assert in_words(Comparison("sigma_min", "a", "b", "larger")) == "smallest singular value: a above b"


def test_runs_that_never_reach_the_threshold_are_slower_than_those_that_do(rng):
    verdict, (finding,) = judge(
        experiment({"skip": np.full(TRIALS, 0.5), "chain": np.full(TRIALS, 2.0)}),
        Comparison("steps_to_threshold", "skip", "chain", "smaller"),
    )
    assert verdict == "supported"
    assert finding.numbers["median_steps_arm"] == 14
    assert finding.numbers["median_steps_other"] == np.inf
    assert finding.numbers["ratio"] == 0


def test_every_learning_rate_is_judged_and_corrected_for(rng):
    slow, quick = experiment(world(rng)), experiment(world(rng, effect=0.5))
    for name in ("runs", "metrics"):
        frame = getattr(quick, name)
        frame["run_id"] = frame["run_id"].str.replace("0.1", "0.5")
    quick.runs["lr"] = 0.5
    both = Experiment(
        *(pd.concat([getattr(slow, n), getattr(quick, n)], ignore_index=True) for n in ("runs", "metrics")),
        spectra_frame([]),
        empty_frame("skipped"),
    )
    verdict, findings = judge(both)
    assert [f.verdict for f in findings] == ["supported", "contradicted"]
    assert verdict == "contradicted"
    assert findings[0].what.endswith("at learning rate 0.1")
    assert findings[0].numbers["p_sign_corrected"] == pytest.approx(2 * findings[0].numbers["p_sign"])


def test_missing_measurements_are_counted_and_too_few_left_decide_nothing(rng):
    kappa = {"skip": [1.0] * TRIALS, "chain": [2.0] * 5 + [np.nan] * 15}
    verdict, (finding,) = judge(experiment(world(rng), kappa=kappa), KAPPA)
    assert verdict == "inconclusive"
    assert finding.numbers["missing"] == 15
    assert "only 5 pairs can be compared" in finding.note
    assert "trial 5 (chain)" in finding.note
