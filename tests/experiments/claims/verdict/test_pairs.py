import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.statistics.paired_tests import equivalence_test, sign_test
from skip_conditioning.experiments.claims.verdict.comparisons import median_steps
from skip_conditioning.experiments.claims.verdict.pairs import Differences, paired_differences

INF = np.inf


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


def falling(last):
    return np.linspace(4.0, last, 21)


def test_two_runs_that_never_learn_are_a_tie_and_no_sign_of_equivalence():
    first, second = np.full(20, INF), np.full(20, INF)
    first[0] = 1.0
    measured = Differences.between(first, second)
    assert measured.values.tolist() == [-INF] + [0.0] * 19
    assert sign_test(measured.decided) == 1.0
    assert equivalence_test(measured.values, measured.unknown, 1.05) > 0.9


def test_pairs_are_of_trials_and_ratios_of_the_arm_over_the_other():
    losses = {"a": [falling(1.0), falling(2.0), falling(3.0)], "b": [falling(2.0), falling(2.0), None]}
    measured = paired_differences(experiment(losses), "final_loss", "a", "b")
    assert measured.values.tolist() == pytest.approx([-np.log(2), 0.0])
    assert measured.missing == ("trial 2 (b)",)


def test_diverged_and_censored_runs_come_last_and_two_of_them_tie():
    nan = np.where(np.arange(21) < 3, 0.5, np.nan)
    tables = experiment({"a": [nan, nan, falling(0.5), falling(2.0)], "b": [falling(2.0), nan, nan, falling(0.5)]})
    for measure, expected in (("final_loss", [INF, 0, -INF, np.log(4)]), ("steps_to_threshold", [0, 0, -INF, INF])):
        measured = paired_differences(tables, measure, "a", "b")
        assert measured.values.tolist() == pytest.approx(expected)
        assert measured.undecided.sum() == expected.count(0)


def test_bounds_decide_only_what_lies_beyond_them():
    kappa = {"a": [[9.0], [9.0], [2.0], [9.0]], "b": [[2.0], [2.0], [9.0], [2.0]]}
    resolved = {"a": [False, True, False, False], "b": [True, False, True, False]}
    measured = paired_differences(experiment(kappa, resolved=resolved), "condition_number", "a", "b")
    assert measured.undecided.tolist() == [False, True, True, True]
    assert measured.bounded.tolist() == [True, False, False, False]
    assert measured.decided.tolist() == pytest.approx([np.log(4.5)])


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
    assert median_steps(experiment({"a": [*reached, nan]}), "a", 0.1, 0.95)[0] == 5
    # Censored when it broke off, the diverged run would leave the median at 5 here.
    assert median_steps(experiment({"a": [*reached, nan, nan]}), "a", 0.1, 0.95)[0] == 7
    median, low, high = median_steps(experiment({"a": [reached[0], nan, nan]}), "a", 0.1, 0.95)
    assert median == INF == high
    assert low >= 3
    assert median_steps(experiment({"a": [falling(2.0)] * 3}), "a", 0.1, 0.95)[0] == INF
