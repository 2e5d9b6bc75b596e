import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.verdict import pairs as paired
from skip_conditioning.experiments.claims.verdict.pairs import Differences, paired_differences
from skip_conditioning.experiments.claims.verdict.survival import median_steps

INF = np.inf
SMALL = [[0.3, -1.0, 2.0, 0.7, 1.1], [0.5, 0.5, -0.5, 1.0, 2.0, 2.0], [1.0, INF, INF, -INF, 0.2], [0.0, 0.0, 3.0, 1.0]]


def experiment(losses, *, lr=0.1, status="finished", threshold=1.0, resolved=None):
    """One run per arm and trial; ``losses[arm][trial]`` is its loss from step 0 on, None for no run."""
    runs, metrics, spectra = [], [], []
    for arm, trials in losses.items():
        for trial, values in enumerate(trials):
            if values is None:
                continue
            run_id = f"{arm}-{lr}-{trial}"
            runs.append({"run_id": run_id, "arm": arm, "trial": trial, "lr": lr, "status": status})
            metrics += [{"run_id": run_id, "step": k, "split": "train", "loss": x} for k, x in enumerate(values)]
            bounds = {"condition_number": values[0], "resolved": resolved is None or resolved[arm][trial]}
            spectra.append({"run_id": run_id, "step": 0, "map": "tail", "layer": "stem", **bounds})
    return Experiment(
        pd.DataFrame(runs).assign(loss_threshold=threshold),
        pd.DataFrame(metrics),
        spectra_frame(spectra),
        empty_frame("skipped"),
    )


def of(values):
    return Differences.between(np.array(values), np.zeros(len(values)))


def falling(last):
    return np.linspace(4.0, last, 21)


def signs(values):
    """Every way to give signs to the magnitudes of the non-zero values."""
    magnitudes = np.abs(values)[values != 0]
    return np.array(list(itertools.product([1, -1], repeat=len(magnitudes)))), magnitudes


@pytest.mark.parametrize("values", SMALL)
def test_sign_test_equals_enumeration(values):
    all_signs, _ = signs(np.array(values))
    observed = abs(np.sign(values).sum())
    assert paired.sign_test(of(values)) == pytest.approx((abs(all_signs.sum(axis=1)) >= observed).mean())


@pytest.mark.parametrize("values", SMALL)
def test_signed_rank_test_equals_enumeration_with_ties_zeros_and_infinities(values):
    values = np.array(values)
    all_signs, magnitudes = signs(values)
    ranks = stats.rankdata(magnitudes)
    observed = abs(ranks @ np.sign(values[values != 0]))
    expected = (abs(all_signs @ ranks) >= observed - 1e-9).mean()
    assert paired.signed_rank_test(of(values)) == pytest.approx(expected)


@pytest.mark.parametrize("n", [6, 30, 200])
def test_signed_rank_test_equals_scipy_where_scipy_is_exact(n):
    values = np.random.default_rng(n).normal(0.2, size=n)
    expected = stats.wilcoxon(values, method="exact").pvalue
    assert paired.signed_rank_test(of(values)) == pytest.approx(expected)


@pytest.mark.parametrize("values", [*SMALL, [0.01, -0.02, 0.0, 0.03, 0.01, -0.01], [0.01, 0.1, 0.0, 0.0, 0.0, 0.0]])
def test_equivalence_is_two_one_sided_sign_tests(values):
    bound, values = np.log(1.05), np.array(values)
    lower, upper = (stats.binomtest(int(k), len(values), alternative="greater").pvalue
                    for k in ((values > -bound).sum(), (values < bound).sum()))  # fmt: skip
    assert paired.equivalence_test(of(values), 1.05) == pytest.approx(max(lower, upper))


def test_equivalence_agrees_with_the_exact_interval():
    rng = np.random.default_rng(0)
    agree = []
    for _ in range(60):
        found = of(rng.normal(0.01, rng.choice([0.02, 0.05, 0.08]), size=20))
        low, high = paired.exact_interval(found, 0.9)
        agree.append((paired.equivalence_test(found, 1.05) <= 0.05) == (-np.log(1.05) < low and high < np.log(1.05)))
        agree.append(paired.equivalence_test(found, 1.05) <= 0.05)
    assert all(agree[::2])
    assert 10 < sum(agree[1::2]) < 50  # both answers occurred


def test_two_runs_that_never_learn_are_a_tie_and_no_sign_of_equivalence():
    first, second = np.full(20, INF), np.full(20, INF)
    first[0] = 1.0
    found = Differences.between(first, second)
    assert found.values.tolist() == [-INF] + [0.0] * 19
    assert paired.sign_test(found) == 1.0
    assert paired.equivalence_test(found, 1.05) > 0.9
    assert paired.equivalence_test(of(np.zeros(20)), 1.05) < 1e-5


def test_exact_interval_keeps_its_coverage_where_tails_are_heavy():
    rng = np.random.default_rng(1)
    intervals = [paired.exact_interval(of(rng.standard_cauchy(12)), 0.9) for _ in range(400)]
    covered = sum(low <= 0 <= high for low, high in intervals)
    assert stats.binomtest(covered, 400, 0.9, alternative="less").pvalue > 1e-3
    assert covered < 400


def test_bootstrap_carries_infinities_to_the_ends_they_reach():
    low, high = paired.bootstrap_interval(of([-1.0, 0.0, 1.0, 2.0, 3.0, INF, INF, INF]), 0.95, 0)
    assert -1.0 <= low < 3.0
    assert high == INF
    assert of([1.0, 2.0, INF, INF]).effect == INF
    assert of([-INF, 2.0, 3.0, INF]).effect == 2.5


def test_intervals_of_finite_values_hold_the_effect_shrink_with_confidence_and_repeat():
    found = of(np.random.default_rng(2).normal(0.5, 1, size=25))
    for interval in (paired.bootstrap_interval, lambda *options: paired.mean_interval(*options)[1:]):
        (low, high), (inner_low, inner_high) = interval(found, 0.95, 0), interval(found, 0.5, 0)
        assert low < inner_low < inner_high < high
        assert interval(found, 0.95, 0) == (low, high)
    assert paired.mean_interval(found, 0.95, 0)[0] == pytest.approx(found.values.mean())
    assert np.isnan(paired.mean_interval(of([1.0, INF]), 0.95, 0)).all()


def test_holm_multiplies_the_smallest_by_their_number():
    assert paired.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    p_values = np.random.default_rng(3).random(20) ** 3
    assert paired.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize(("comparisons", "pairs"), [(1, 6), (2, 7), (4, 8), (8, 9)])
def test_fewest_pairs_are_those_with_which_agreement_is_significant(comparisons, pairs):
    assert paired.fewest_pairs(comparisons, 0.05) == pairs
    p = [paired.sign_test(of(np.ones(n))) for n in (pairs, pairs - 1)]
    assert paired.holm([p[0]] * comparisons).max() < 0.05 <= paired.holm([p[1]] * comparisons).min()


def test_pairs_are_of_trials_and_ratios_of_the_arm_over_the_other():
    losses = {"a": [falling(1.0), falling(2.0), falling(3.0)], "b": [falling(2.0), falling(2.0), None]}
    found = paired_differences(experiment(losses), "final_loss", "a", "b")
    assert found.values.tolist() == pytest.approx([-np.log(2), 0.0])
    assert found.missing == ("trial 2 (b)",)


def test_diverged_and_censored_runs_come_last_and_two_of_them_tie():
    nan = np.where(np.arange(21) < 3, 0.5, np.nan)
    tables = experiment({"a": [nan, nan, falling(0.5), falling(2.0)], "b": [falling(2.0), nan, nan, falling(0.5)]})
    for measure, expected in (("final_loss", [INF, 0, -INF, np.log(4)]), ("steps_to_threshold", [0, 0, -INF, INF])):
        found = paired_differences(tables, measure, "a", "b")
        assert found.values.tolist() == pytest.approx(expected)
        assert found.undecided.sum() == expected.count(0)


def test_bounds_decide_only_what_lies_beyond_them():
    kappa = {"a": [[9.0], [9.0], [2.0], [9.0]], "b": [[2.0], [2.0], [9.0], [2.0]]}
    resolved = {"a": [False, True, False, False], "b": [True, False, True, False]}
    found = paired_differences(experiment(kappa, resolved=resolved), "condition_number", "a", "b")
    assert found.undecided.tolist() == [False, True, True, True]
    assert found.bounded.tolist() == [True, False, False, False]
    assert found.decided.tolist() == pytest.approx([np.log(4.5)])


def test_learning_rates_may_differ_by_arm_but_must_be_chosen():
    slow, quick = (experiment({name: [falling(last)] * 2 for name, last in losses.items()}, lr=lr)
                   for lr, losses in ((0.1, {"a": 1.0, "b": 2.0}), (0.5, {"a": 3.0, "b": 0.5})))  # fmt: skip
    both = Experiment(*(pd.concat([getattr(slow, name), getattr(quick, name)], ignore_index=True)
                        for name in ("runs", "metrics", "spectra", "skipped")))  # fmt: skip
    for lr, ratio in ((0.1, 0.5), (0.5, 6.0), ({"a": 0.1, "b": 0.5}, 2.0)):
        assert np.exp(paired_differences(both, "final_loss", "a", "b", lr).effect) == pytest.approx(ratio)
    with pytest.raises(InputError, match=r"'a' ran at learning rates 0.1, 0.5; choose one"):
        paired_differences(both, "final_loss", "a", "b")
    with pytest.raises(InputError, match=r"no runs at learning rate 0.2, only at 0.1, 0.5"):
        paired_differences(both, "final_loss", "a", "b", 0.2)


@pytest.mark.parametrize(
    ("measure", "arm", "message"),
    [
        ("final_los", "long", "unknown measure 'final_los'.*Did you mean 'final_loss'"),
        ("final_loss", "lon", "no runs of arm 'lon'; there are long, short. Did you mean 'long'"),
        ("steps_to_threshold", "long", "equal length, but short-0.1-0 was trained for 10 steps and long-0.1-0 for 20"),
    ],
)
def test_bad_input_is_named(measure, arm, message):
    tables = experiment({"long": [falling(1.0)], "short": [falling(1.0)[:11]]})
    with pytest.raises(InputError, match=message):
        paired_differences(tables, measure, arm, "short")


def test_runs_of_different_length_can_be_compared_at_a_step():
    tables = experiment({"long": [falling(1.0)], "short": [falling(1.0)[:11]]})
    assert paired_differences(tables, "loss_at_step_5", "long", "short").values.tolist() == [0.0]


def test_two_runs_of_one_trial_are_refused():
    one = experiment({"a": [falling(1.0)], "b": [falling(1.0)]})
    twice = Experiment(pd.concat([one.runs, one.runs.iloc[:1]]), one.metrics, one.spectra, one.skipped)
    with pytest.raises(InputError, match="several runs of one trial of arm 'a'"):
        paired_differences(twice, "final_loss", "a", "b")


def test_median_steps_is_kaplan_meiers_with_diverged_runs_censored_last():
    nan = np.where(np.arange(21) < 2, 4.0, np.nan)
    reached = [np.where(np.arange(21) < k, 4.0, 0.5) for k in (3, 5, 7)]
    assert median_steps(experiment({"a": [*reached, nan]}), "a")[0] == 5
    # Censored when it broke off, the diverged run would leave the median at 5 here.
    assert median_steps(experiment({"a": [*reached, nan, nan]}), "a")[0] == 7
    median, low, high = median_steps(experiment({"a": [reached[0], nan, nan]}), "a")
    assert median == INF == high
    assert low >= 3
    assert median_steps(experiment({"a": [falling(2.0)] * 3}), "a")[0] == INF
