import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.tables import STATISTICS, Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.verdict.run_measures import BOUNDS, MEASURES, OF_WHOLE_RUN, unresolved

STEPS = np.arange(31)
LOSSES = {
    "fast": 2.0 * np.exp(-0.2 * STEPS),
    "slow": 2.0 * np.exp(-0.01 * STEPS),
    "diverged": np.where(STEPS < 25, 0.1, np.nan),
    "nothing": [],
}


def experiment(losses=LOSSES, spectra=(), threshold=1.0):
    runs = pd.DataFrame({"run_id": list(losses), "status": "finished", "loss_threshold": threshold})
    rows = [
        {"run_id": name, "step": step, "split": "train", "loss": loss}
        for name, values in losses.items()
        for step, loss in enumerate(values)
    ]
    metrics = pd.DataFrame(rows, columns=["run_id", "step", "split", "loss"])
    return Experiment(runs, metrics, spectra_frame(spectra), empty_frame("skipped"))


def spectrum(run, step, layer="stem", **values):
    return {
        "run_id": run,
        "step": step,
        "map": "tail",
        "layer": layer,
        "batch_mode": "batch",
        "resolved": True,
    } | values


@pytest.mark.parametrize(
    ("measure", "fast", "slow"),
    [
        ("loss_at_step_2", np.log(2) - 0.4, np.log(2) - 0.02),
        ("loss_at_step_20", np.log(2) - 4, np.log(2) - 0.2),
        ("final_loss", np.log(2) - 6, np.log(2) - 0.3),
        ("mean_log_loss", np.log(2) - 3, np.log(2) - 0.15),
        ("steps_to_threshold", np.log(4), np.inf),
    ],
)
def test_speed_is_a_logarithm_and_infinite_where_a_run_diverged(measure, fast, slow):
    measured = MEASURES[measure](experiment())
    assert measured[["fast", "slow", "diverged"]].tolist() == pytest.approx([fast, slow, np.inf])
    assert np.isnan(measured["nothing"])


def test_a_diverged_status_without_any_loss_is_the_slowest_too():
    tables = experiment({"a": [], "b": [1.0]})
    tables.runs["status"] = ["diverged", "finished"]
    assert MEASURES["steps_to_threshold"](tables)["a"] == np.inf == MEASURES["loss_at_step_2"](tables)["a"]


def test_losses_at_steps_need_no_threshold_and_a_loss_of_zero_is_finite():
    measured = MEASURES["final_loss"](experiment({"a": [1.0, 0.0]}, threshold=None))
    assert -100 < measured["a"] < -80


def test_conditioning_is_the_geometric_mean_over_the_first_ten_measured_steps_of_the_first_layer():
    first = [spectrum("a", 3 * k, sigma_mean=np.exp(k)) for k in range(12)]
    other = [spectrum("a", 3 * k, layer="head", sigma_mean=1e9) for k in range(12)]
    measured = MEASURES["sigma_mean"](experiment({"a": [1.0], "b": [1.0]}, first + other))
    assert measured["a"] == pytest.approx(np.mean(range(10)))
    assert np.isnan(measured["b"])


@pytest.mark.parametrize("measure", STATISTICS)
def test_conditioning_is_missing_without_spectra(measure):
    assert MEASURES[measure](experiment()).isna().all()
    assert not unresolved(experiment()).any()


def test_a_run_is_unresolved_if_a_step_that_counts_is():
    spectra = [spectrum(run, step) for run in "abc" for step in range(12)]
    spectra[5]["resolved"] = spectra[12 + 11]["resolved"] = False  # of a within the first ten steps, of b after them
    measured = unresolved(experiment({name: [1.0] for name in "abcd"}, spectra))
    assert measured.to_dict() == {"a": True, "b": False, "c": False, "d": False}


def test_special_measures_are_measures():
    assert set(BOUNDS) | OF_WHOLE_RUN <= set(MEASURES)


def test_the_cosine_to_an_isometry_is_the_nuclear_over_the_frobenius_norm():
    random = np.random.default_rng(0)
    J = random.normal(size=(5, 8))
    U, values, Vt = np.linalg.svd(J, full_matrices=False)
    cosine = np.sum(J * (U @ Vt)) / (np.linalg.norm(J) * np.linalg.norm(U @ Vt))
    row = spectrum("a", 0, sigma_mean=values.mean(), sigma_rms=np.sqrt(np.mean(values**2)))
    scaled = spectrum("b", 0, sigma_mean=1.0, sigma_rms=1.0)
    measured = MEASURES["isometry_cosine"](experiment({"a": [1.0], "b": [1.0], "c": [1.0]}, [row, scaled]))
    assert measured[["a", "b"]].tolist() == pytest.approx([np.log(cosine), 0.0])
    assert np.isnan(measured["c"])
