"""The decision rules on synthetic worlds whose truth is known: how often they are wrong, and how often they find it."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.verdict import pairs as paired
from skip_conditioning.experiments.claims.verdict import wording
from skip_conditioning.experiments.claims.verdict.claim import Contrast, Rule
from skip_conditioning.experiments.claims.verdict.measures import MEASURES
from skip_conditioning.experiments.claims.verdict.pairs import Differences
from skip_conditioning.experiments.claims.verdict.presentation import effect
from skip_conditioning.experiments.claims.verdict.rules import (
    combine,
    decide,
    judge_contrasts,
    seeds_needed,
    sign_test_power,
)

RULE = Rule()
SEEDS, WORLDS = 20, 400
LOSS = Contrast("final_loss", "skip", "chain", "smaller")
KAPPA = Contrast("condition_number", "skip", "chain", "smaller")
BOUND = np.log(RULE.equivalent)


def judged(skip, chain):
    """Decisions on worlds of one contrast, from logarithms of shape ``(worlds, seeds)``."""
    return [decide([Differences.between(a, b)], [LOSS], RULE)[0] for a, b in zip(skip, chain, strict=True)]


def verdicts(skip, chain):
    return np.array([decision.verdict for decision in judged(skip, chain)])


def is_at_most(events, rate):
    """Whether so many events are no sign of a larger rate, at 0.001."""
    return stats.binomtest(int(np.sum(events)), len(events), rate, alternative="greater").pvalue > 1e-3


def is_about(events, rate):
    return stats.binomtest(int(np.sum(events)), len(events), rate).pvalue > 1e-3


def power(share, seeds=SEEDS):
    return float(sign_test_power(np.array([seeds]), share, RULE.level)[0])


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
    found = judged(NOISES[noise](rng, (WORLDS, SEEDS)), np.zeros((WORLDS, SEEDS)))
    assert is_at_most([d.verdict == "supported" or "reversed" in d.note for d in found], RULE.level)
    assert any(d.p < 0.2 for d in found)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("effect", [-0.7, 0.7])
def test_an_effect_is_found_with_the_power_stated_and_hardly_ever_the_wrong_way_round(noise, effect, rng):
    found = verdicts(effect + NOISES[noise](rng, (WORLDS, SEEDS)), np.zeros((WORLDS, SEEDS)))
    right, wrong = ("supported", "contradicted") if effect < 0 else ("contradicted", "supported")
    larger = POSITIVE[noise](-effect)
    assert is_about(found == right, power(max(larger, 1 - larger)))
    assert is_at_most(found == wrong, RULE.level / 2)
    assert is_about(found == "inconclusive", 1 - power(max(larger, 1 - larger)))


def test_what_pairs_share_cancels_and_what_they_do_not_share_hides_the_effect(rng):
    luck = rng.normal(scale=3, size=(WORLDS, SEEDS))
    skip, chain = (luck + rng.normal(shift, 0.1, size=luck.shape) for shift in (-0.3, 0))
    assert (verdicts(skip, chain) == "supported").mean() > 0.95
    unpaired = verdicts(rng.permuted(skip, axis=1), chain)
    assert (unpaired == "supported").mean() < 0.15


@pytest.mark.parametrize("effect", [0.0, -1.5])
def test_half_of_the_runs_of_either_arm_diverge(effect, rng):
    skip, chain = rng.normal(effect, 1, (WORLDS, SEEDS)), rng.normal(0, 1, (WORLDS, SEEDS))
    skip, chain = (np.where(rng.random(logs.shape) < 0.5, np.inf, logs) for logs in (skip, chain))
    found = verdicts(skip, chain)
    assert is_at_most(found == "contradicted", RULE.level)
    if effect == 0:
        assert is_at_most(found == "supported", RULE.level)
    else:
        # A quarter of the pairs tie; of the others a third compare losses and two thirds are a coin's.
        share = (stats.norm.cdf(1.5 / np.sqrt(2)) + 1) / 3
        untied = stats.binom.pmf(np.arange(SEEDS + 1), SEEDS, 0.75)
        each = sign_test_power(np.arange(1, SEEDS + 1), share, RULE.level)
        assert is_about(found == "supported", untied[1:] @ each)


@pytest.mark.parametrize(("where", "right"), [("chain", "supported"), ("skip", "contradicted")])
def test_half_of_the_runs_of_one_arm_diverge_and_count_as_slowest(where, right, rng):
    logs = {arm: rng.normal(size=(WORLDS, SEEDS)) for arm in ("skip", "chain")}
    bad = rng.random((WORLDS, SEEDS)) < 0.5
    found = verdicts(**{**logs, where: np.where(bad, np.inf, logs[where])})
    assert is_about(found == right, power(0.75))
    assert is_at_most(found == ({"supported", "contradicted"} - {right}).pop(), RULE.level / 2)
    # Dropped, they take the effect with them.
    dropped = [
        decide([Differences.between(a[~b], c[~b])], [LOSS], RULE)[0].verdict == right
        for a, b, c in zip(logs["skip"], bad, logs["chain"], strict=True)
    ]
    assert np.mean(dropped) < 0.1


def test_equivalence_is_found_where_it_is_and_seldom_on_the_border(rng):
    for centre, spread in ((0.0, 0.02), (BOUND, 0.02), (-BOUND, 0.02)):
        found = judged(rng.normal(centre, spread, (WORLDS, SEEDS)), np.zeros((WORLDS, SEEDS)))
        equivalent = [d.note.startswith("no effect larger than 5 %") for d in found]
        assert all(d.verdict == "contradicted" for d, it in zip(found, equivalent, strict=True) if it)
        assert np.mean(equivalent) > 0.95 if centre == 0 else is_at_most(equivalent, RULE.level)


@pytest.mark.parametrize("truth", ["no effect", "border"])
def test_several_comparisons_together_are_wrong_as_seldom_as_one(truth, rng):
    contrasts, centre, spread = [LOSS] * 5, *((0, 1) if truth == "no effect" else (-BOUND, 0.02))
    found, uncorrected = [], []
    for _ in range(WORLDS):
        logs = rng.normal(centre, spread, (5, SEEDS))
        decisions = decide([Differences.between(x, 0 * x) for x in logs], contrasts, RULE)
        decided = [d.p_corrected if centre == 0 else d.p_not_equivalent for d in decisions]
        found.append(min(decided) < RULE.level)
        alone = [d.p if centre == 0 else paired.equivalence_test(Differences.between(x, 0 * x), RULE.equivalent)
                 for d, x in zip(decisions, logs, strict=True)]  # fmt: skip
        uncorrected.append(min(alone) < RULE.level)
    assert is_at_most(found, RULE.level)
    assert not is_at_most(uncorrected, RULE.level)  # so the correction is what holds the level


def test_wilcoxon_does_not_decide_as_it_sees_skewness_for_an_effect(rng):
    logs = NOISES["skewed"](rng, (200, 60))
    wilcoxon = [paired.signed_rank_test(Differences.between(x, 0 * x)) < RULE.level for x in logs]
    assert not is_at_most(wilcoxon, RULE.level)
    assert is_at_most([paired.sign_test(Differences.between(x, 0 * x)) < RULE.level for x in logs], RULE.level)


@pytest.mark.parametrize(("share", "n"), [(0.75, 12), (0.8, 30), (0.6, 50)])
def test_power_is_what_simulation_finds(share, n, rng):
    wins = rng.binomial(n, share, 1000)
    found = [stats.binomtest(int(k), n).pvalue < RULE.level and k > n / 2 for k in wins]
    assert is_about(found, power(share, n))


def test_seeds_needed_give_the_power_they_promise(rng):
    pilot = Differences.between(0.5 + stats.norm.ppf((np.arange(1, 16) - 0.5) / 15), np.zeros(15))
    needed = int(seeds_needed(pilot, RULE.level, RULE.equivalent))
    assert 30 < needed < 100
    found = verdicts(rng.normal(-0.5, 1, (300, needed)), np.zeros((300, needed)))
    assert 0.72 < (found == "supported").mean() < 0.9
    fewer = verdicts(rng.normal(-0.5, 1, (300, needed // 2)), np.zeros((300, needed // 2)))
    assert (fewer == "supported").mean() < 0.65


@pytest.mark.parametrize("values", [[0.0] * 8, [np.inf, -np.inf] * 4, [0.2, -0.1, 0.0, np.inf, np.inf, np.inf, -1, 0]])
def test_seeds_needed_is_a_number_whatever_the_data(values):
    values = np.array(values)
    assert seeds_needed(Differences.between(values, 0 * np.sign(values)), 0.05, 1.05) > len(values)


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


def world(rng, effect=-0.5, seeds=SEEDS):
    luck = rng.normal(size=seeds)
    return {arm: np.exp(luck + rng.normal(shift, 0.1, seeds)) for arm, shift in (("skip", effect), ("chain", 0))}


def without(tables, keep):
    return Experiment(tables.runs[keep], tables.metrics, tables.spectra, tables.skipped)


def judge(tables, *contrasts):
    return judge_contrasts(tables, contrasts or (LOSS,), RULE, 0)


def test_a_real_effect_is_supported_with_its_size(rng):
    verdict, (finding,) = judge(experiment(world(rng)))
    assert (verdict, finding.verdict) == ("supported", "supported")
    assert finding.what == "training loss at the end: skip below chain"
    numbers = finding.numbers
    assert numbers["ratio_low"] < np.exp(-0.5) < numbers["ratio_high"] < 1
    assert numbers["ratio_exact_low"] <= numbers["ratio"] <= numbers["ratio_exact_high"]
    assert (numbers["pairs"], numbers["smaller"], numbers["missing"]) == (SEEDS, SEEDS, 0)
    assert judge(experiment(world(np.random.default_rng(7)))) == (verdict, (finding,))


def test_swapped_arms_contradict_and_shuffled_ones_decide_nothing(rng):
    losses = world(rng)
    swapped, (finding,) = judge(experiment({"skip": losses["chain"], "chain": losses["skip"]}))
    assert (swapped, finding.note) == ("contradicted", "reversed")
    heads = np.arange(SEEDS) % 2 == 0
    pairs = losses["skip"], losses["chain"]
    shuffled = {"skip": np.where(heads, *pairs), "chain": np.where(heads, *pairs[::-1])}
    verdict, (finding,) = judge(experiment(shuffled))
    assert verdict == "inconclusive"
    assert "seeds would give 80 % power" in finding.note
    assert finding.numbers["seeds_needed"] > SEEDS


@pytest.mark.parametrize(
    ("ratio", "direction"), [(1.001, ", though in the direction predicted"), (0.999, ", reversed")]
)
def test_equal_arms_are_a_finding(rng, ratio, direction):
    losses = world(rng)
    verdict, (finding,) = judge(experiment({"skip": losses["skip"], "chain": losses["skip"] * ratio}))
    assert (verdict, finding.note.split(";")[0]) == ("contradicted", f"no effect larger than 5 %{direction}")


def test_dropping_diverged_runs_is_refused_and_would_turn_the_verdict(rng):
    losses = world(rng, seeds=24)
    losses["skip"] = np.where(np.arange(24) < 6, losses["skip"], np.nan)
    tables = experiment(losses)
    assert judge(tables)[0] == "contradicted"
    kept = (tables.runs["status"] != "diverged").to_numpy()
    assert judge(experiment({arm: values[:6] for arm, values in losses.items()}))[0] == "supported"
    with pytest.raises(InputError, match=r"18 of 48 runs .*skip trial 6 \(missing\).* and 10 more; finish"):
        judge(without(tables, kept))
    # Whole pairs of them too, as long as a later trial is there.
    pair = ~tables.runs["trial"].isin([7])
    with pytest.raises(InputError, match=r"2 of 48 runs .*chain trial 7 \(missing\), skip trial 7 \(missing\)"):
        judge(without(tables, pair))


def test_an_experiment_that_is_not_over_is_refused_by_name(rng):
    tables = experiment(world(rng))
    tables.runs.loc[[3, 25], "status"] = ["running", "failed"]
    with pytest.raises(
        InputError, match=r"2 of 40 runs .*skip-lr0.1-trial03 \(running\), chain-lr0.1-trial05 \(failed"
    ):
        judge(tables)


def test_a_missing_arm_is_named_with_what_is_near(rng):
    with pytest.raises(InputError, match=r"no runs of arm 'chian'.*Did you mean 'chain'"):
        judge(experiment(world(rng)), Contrast("final_loss", "skip", "chian", "smaller"))


@pytest.mark.parametrize(("seeds", "contrasts", "needed"), [(5, 1, 6), (6, 2, 7), (8, 8, 9)])
def test_too_few_seeds_are_refused_with_how_many_it_takes(seeds, contrasts, needed, rng):
    with pytest.raises(InputError, match=rf"{seeds} seeds are too few.*--seeds {needed}"):
        judge(experiment(world(rng, seeds=seeds)), *[LOSS] * contrasts)
    assert judge(experiment(world(rng, seeds=needed)), *[LOSS] * contrasts)[0] == "supported"


def test_nothing_to_compare_is_vacuous(rng):
    high = {arm: np.full(SEEDS, loss) for arm, loss in (("skip", 2.0), ("chain", 3.0))}
    steps = Contrast("steps_to_threshold", "skip", "chain", "smaller")
    unresolved = experiment(high, kappa={"skip": [1e6] * SEEDS, "chain": [1e8] * SEEDS}, resolved=False)
    for tables, contrast, note in (
        (experiment(high), steps, "never came to the threshold"),
        (experiment(high), KAPPA, "measured in no pair"),
        (unresolved, KAPPA, "unresolved in most pairs"),
        (experiment({arm: np.full(SEEDS, np.nan) for arm in high}), LOSS, "both runs diverged"),
    ):
        verdict, (finding,) = judge(tables, contrast)
        assert verdict == "vacuous"
        assert note in finding.note
    assert judge(experiment(high), steps, LOSS)[0] == "inconclusive"
    resolved = experiment(high, kappa={"skip": [1e6] * SEEDS, "chain": [1e8] * SEEDS})
    assert judge(resolved, KAPPA)[0] == "supported"


@pytest.mark.parametrize(("bounded", "side"), [("chain", 1), ("skip", -1)])
def test_a_ratio_of_bounds_is_one_and_its_interval_reaches_as_far_as_the_truth_may(bounded, side, rng):
    exact, bounds = np.exp(rng.normal(size=SEEDS)), np.exp(20 + rng.normal(size=SEEDS))
    kappa = {arm: bounds if arm == bounded else exact for arm in ("skip", "chain")}
    tables = experiment(world(rng), kappa=kappa, resolved={arm: arm != bounded for arm in kappa})
    contrast = Contrast("condition_number", "chain", "skip", "larger")
    _, (finding,) = judge(tables, contrast)
    assert finding.verdict == ("supported" if side == 1 else "contradicted")
    numbers = finding.numbers
    assert (numbers["bounded"], numbers["ratio_bound"]) == (SEEDS, side)
    assert effect(finding).startswith("≥ " if side == 1 else "≤ ")
    assert numbers["ratio_high" if side == 1 else "ratio_low"] == (np.inf if side == 1 else 0)
    assert np.isfinite(np.log(numbers["ratio_low" if side == 1 else "ratio_high"]))
    assert "20 ratios are bounds" in finding.note
    _, (whole,) = judge(experiment(world(rng), kappa=kappa), contrast)
    assert "ratio_bound" not in whole.numbers
    assert whole.numbers["ratio"] == pytest.approx(numbers["ratio"])


def test_bounds_beyond_the_median_leave_it_exact(rng):
    kappa = {"skip": np.ones(SEEDS), "chain": np.exp(np.linspace(1, 3, SEEDS))}
    tables = experiment(world(rng), kappa=kappa, resolved={"skip": True, "chain": kappa["chain"] < 10})
    _, (finding,) = judge(tables, Contrast("condition_number", "chain", "skip", "larger"))
    assert finding.numbers["bounded"] > 0
    assert "ratio_bound" not in finding.numbers
    assert effect(finding)[0].isdigit()


def test_every_measure_has_words():
    assert set(MEASURES) <= set(wording.MEASURES)
    said = wording.comparison(Contrast("loss_at_step_2", "residual", "chain", "smaller"))
    assert said == "training loss at step 2: residual below chain"
    assert wording.comparison(Contrast("sigma_min", "a", "b", "larger")) == "smallest singular value: a above b"


def test_runs_that_never_reach_the_threshold_are_slower_than_those_that_do(rng):
    verdict, (finding,) = judge(
        experiment({"skip": np.full(SEEDS, 0.5), "chain": np.full(SEEDS, 2.0)}),
        Contrast("steps_to_threshold", "skip", "chain", "smaller"),
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
    kappa = {"skip": [1.0] * SEEDS, "chain": [2.0] * 5 + [np.nan] * 15}
    verdict, (finding,) = judge(experiment(world(rng), kappa=kappa), KAPPA)
    assert verdict == "inconclusive"
    assert finding.numbers["missing"] == 15
    assert "only 5 pairs can be compared" in finding.note
    assert "trial 5 (chain)" in finding.note
