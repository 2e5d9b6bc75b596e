"""Measures of runs: logarithms, infinite where a run diverged, bounds where a value is under its floor."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import STATISTICS, Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.verdict.outcome import Comparison
from skip_conditioning.experiments.claims.verdict.run_measures import BOUNDS, MEASURES, OF_WHOLE_RUN, Reading, measure
from skip_conditioning.experiments.claims.verdict.wording import NAMES, in_words

STEPS = np.arange(31)
LOSSES = {
    "fast": 2.0 * np.exp(-0.2 * STEPS),
    "slow": 2.0 * np.exp(-0.01 * STEPS),
    "diverged": np.where(STEPS < 25, 0.1, np.nan),
    "nothing": [],
}


def experiment(losses=LOSSES, spectra=()):
    runs = pd.DataFrame({"run_id": list(losses), "status": "finished"})
    rows = [
        {"run_id": name, "step": step, "split": "train", "loss": loss, "grad_norm": 2.0}
        for name, values in losses.items()
        for step, loss in enumerate(values)
    ]
    metrics = pd.DataFrame(rows, columns=["run_id", "step", "split", "loss", "grad_norm"])
    return Experiment(runs, metrics, spectra_frame(spectra), empty_frame("skipped"))


def spectrum(run, step, layer="stem", **values):
    row = {"run_id": run, "step": step, "map": "tail", "layer": layer, "batch_mode": "batch", "resolved": True}
    return row | values


def logs(name, tables, **options):
    measured = measure(name, Reading(tables, **options))
    return measured.low[0], measured.high[0]


@pytest.mark.parametrize(
    ("name", "fast", "slow"),
    [
        ("loss_at_step_2", np.log(2) - 0.4, np.log(2) - 0.02),
        ("loss_at_step_17", np.log(2) - 3.4, np.log(2) - 0.17),
        ("final_loss", np.log(2) - 6, np.log(2) - 0.3),
        ("mean_log_loss", np.log(2) - 3, np.log(2) - 0.15),
        ("steps", np.log(5 * np.log(2)), np.log(30)),
    ],
)
def test_speed_is_a_logarithm_and_infinite_where_a_run_diverged(name, fast, slow):
    low, high = logs(name, experiment(), thresholds=(1.0,))
    assert low[["fast", "slow", "diverged"]].tolist() == pytest.approx([fast, slow, np.inf], abs=0.01)
    assert high["slow"] == (np.inf if name == "steps" else low["slow"])
    assert np.isnan(low["nothing"])


def test_a_diverged_status_without_any_loss_is_the_slowest_too():
    tables = experiment({"a": [], "b": [1.0]})
    tables.runs["status"] = ["diverged", "finished"]
    assert logs("steps", tables, thresholds=(0.5,))[0]["a"] == np.inf == logs("loss_at_step_0", tables)[0]["a"]


def test_a_loss_of_zero_is_finite_and_losses_are_averaged_over_a_window():
    assert -100 < logs("final_loss", experiment({"a": [1.0, 0.0]}))[0]["a"] < -80
    values = experiment({"a": [1.0, 2.0, 6.0, 2.0]})
    assert logs("loss_at_step_2", values, window=3)[0]["a"] == pytest.approx(np.log(10 / 3))


def test_conditioning_is_the_geometric_mean_over_the_first_ten_measured_steps_of_the_first_layer():
    first = [spectrum("a", 3 * k, sigma_mean=np.exp(k)) for k in range(12)]
    other = [spectrum("a", 3 * k, layer="head", sigma_mean=np.exp(20.0)) for k in range(12)]
    tables = experiment({"a": [1.0], "b": [1.0]}, first + other)
    low, high = logs("sigma_mean", tables)
    assert low["a"] == high["a"] == pytest.approx(np.mean(range(10)))
    assert np.isnan(low["b"])
    assert logs("sigma_mean", tables, layer="head")[0]["a"] == pytest.approx(20.0)
    with pytest.raises(InputError, match="no layer 'tail' was measured; there are head, stem"):
        logs("sigma_mean", tables, layer="tail")


@pytest.mark.parametrize("name", STATISTICS)
def test_conditioning_is_missing_without_spectra(name):
    assert logs(name, experiment())[0].isna().all()


@pytest.mark.parametrize(("name", "ends"), [("condition_number", (1.0, np.inf)), ("sigma_min", (-np.inf, 1.0))])
def test_a_value_under_its_floor_at_a_step_that_counts_is_a_bound(name, ends):
    spectra = [spectrum(run, step, **{name: np.e}) for run in "ab" for step in range(12)]
    spectra[5]["resolved"] = spectra[12 + 11]["resolved"] = False  # of a within the first ten steps, of b after them
    low, high = logs(name, experiment({run: [1.0] for run in "ab"}, spectra))
    assert (low["a"], high["a"]) == ends
    assert low["b"] == high["b"] == pytest.approx(1.0)


def test_the_cosine_to_an_isometry_is_the_nuclear_over_the_frobenius_norm():
    J = np.random.default_rng(0).normal(size=(5, 8))
    U, values, Vt = np.linalg.svd(J, full_matrices=False)
    cosine = np.sum(J * (U @ Vt)) / (np.linalg.norm(J) * np.linalg.norm(U @ Vt))
    row = spectrum("a", 0, sigma_mean=values.mean(), sigma_rms=np.sqrt(np.mean(values**2)))
    scaled = spectrum("b", 0, sigma_mean=1.0, sigma_rms=1.0)
    low, _ = logs("isometry_cosine", experiment({"a": [1.0], "b": [1.0], "c": [1.0]}, [row, scaled]))
    assert low[["a", "b"]].tolist() == pytest.approx([np.log(cosine), 0.0])
    assert np.isnan(low["c"])


def test_gradient_norm_is_that_of_the_first_step_and_unknown_measures_are_refused():
    assert logs("gradient_norm", experiment())[0]["fast"] == pytest.approx(np.log(2))
    with pytest.raises(InputError, match=r"unknown measure 'final_los'.*Did you mean 'final_loss'"):
        logs("final_los", experiment())


def test_every_measure_has_a_name():
    assert set(BOUNDS) | OF_WHOLE_RUN <= set(MEASURES) <= set(NAMES)
    comparison = Comparison("loss_at_step_2", "residual", "chain", "smaller")
    assert in_words(comparison) == "training loss at step 2: residual below chain"
    placed = Comparison("sigma_min", "a", "b", "larger", map="tail", layer="stem")
    assert in_words(placed, 0.1) == "smallest singular value of the tail of stem: a above b at learning rate 0.1"


def test_the_test_error_is_that_of_the_last_evaluation():
    tables = experiment()
    evaluations = pd.DataFrame(
        [
            {"run_id": run_id, "step": step, "split": "test", "accuracy": accuracy}
            for run_id, accuracies in {"fast": (0.9, 0.5), "slow": (0.2, 0.6), "diverged": (0.1, 0.1)}.items()
            for step, accuracy in zip((30, 10), accuracies, strict=True)
        ]
    )
    tables = replace(tables, metrics=pd.concat([tables.metrics, evaluations], ignore_index=True))
    low, high = logs("test_error", tables)
    assert low[["fast", "slow", "diverged"]].tolist() == pytest.approx([np.log(0.1), np.log(0.8), np.inf])
    assert low.equals(high)
    assert np.isnan(low["nothing"])
