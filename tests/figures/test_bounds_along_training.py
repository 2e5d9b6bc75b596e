"""The figure of the PŁ chain: which runs it shows, that lines are the table's, and gaps where a floor is vacuous."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, empty_frame
from skip_conditioning.figures.bounds_along_training import bounds_along_training
from skip_conditioning.figures.drawing.saving import NothingToDrawError


def run_rows(run_id, steps=6, verdict="holds", split="probe"):
    step = np.arange(steps)
    frame = pd.DataFrame(
        {
            "run_id": run_id,
            "step": step,
            "split": split,
            "loss": 2.0 * 0.5**step,
            "grad_squared": 0.3 * 0.5**step,
            "cost_grad_squared": 0.1 * 0.5**step,
            "pl_floor": 0.01 * 0.5**step,
            "pl_floor_centred": 0.02 * 0.5**step,
            "pl_ceiling": 5.0 * 0.5**step,
            "pl_verdict": verdict,
            "predicted_decrease": 0.03 * 0.5**step,
            "observed_decrease": [*(0.02 * 0.5 ** step[:-1]), np.nan],
        }
    )
    return frame.reindex(columns=empty_frame("metrics").columns.union(frame.columns, sort=False))


@pytest.fixture
def experiment():
    arms = ["chain", "residual"]
    runs = pd.DataFrame(
        [
            {"run_id": f"{arm}-{lr}-{trial}", "arm": arm, "lr": lr, "trial": trial, "status": "finished"}
            for arm in arms
            for lr in (0.1, 0.5)
            for trial in (0, 1)
        ]
    )
    for column in ("experiment", "dataset", "model"):
        runs[column] = "x"
    metrics = pd.concat([run_rows(run) for run in runs["run_id"]], ignore_index=True)
    return Experiment(runs, metrics, empty_frame("spectra"), empty_frame("skipped"))


def lines(figure, row, column, columns=2):
    return [np.asarray(line.get_ydata()) for line in figure.axes[row * columns + column].lines]


def test_one_column_for_each_arm_at_one_learning_rate_and_trial(experiment):
    figure = bounds_along_training(experiment)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["chain", "residual"]
    assert [len(axis.lines) for axis in figure.axes] == [1, 1, 4, 4, 2, 2]


def test_lines_are_the_tables(experiment):
    figure = bounds_along_training(experiment)
    ceiling, felt, centred, floor = lines(figure, 1, 0)
    assert ceiling == pytest.approx(50)
    assert felt == pytest.approx(3)
    assert centred == pytest.approx(0.2)
    assert floor == pytest.approx(0.1)
    predicted, observed = lines(figure, 2, 1)
    assert predicted[0] == pytest.approx(0.03)
    assert np.isnan(observed[-1])


@pytest.mark.parametrize(
    ("verdict", "gaps"),
    [
        ("vacuous: PŁ floor (10 parameters, 20 outputs)", [False, True]),
        ("vacuous: PŁ floor, centred (10 parameters, 18 contrasts of outputs)", [True, False]),
        ("holds", [False, False]),
    ],
)
def test_a_vacuous_floor_is_a_gap(experiment, verdict, gaps):
    metrics = experiment.metrics.assign(pl_verdict=verdict)
    _, _, *floors = lines(bounds_along_training(dataclasses.replace(experiment, metrics=metrics)), 1, 0)
    assert [bool(np.isnan(floor).all()) for floor in floors] == gaps


def test_a_step_that_lost_ground_and_a_loss_of_zero_can_be_drawn(experiment):
    metrics = experiment.metrics.assign(observed_decrease=-0.1, loss=0.0)
    figure = bounds_along_training(dataclasses.replace(experiment, metrics=metrics))
    figure.draw_without_rendering()
    (loss,), (_, observed) = lines(figure, 0, 0), lines(figure, 2, 0)
    assert np.isnan(loss).all()
    assert np.isnan(observed).all()


def test_runs_without_bounds_are_nothing_to_draw(experiment):
    metrics = experiment.metrics.assign(pl_ceiling=np.nan)
    with pytest.raises(NothingToDrawError, match="--bounds"):
        bounds_along_training(dataclasses.replace(experiment, metrics=metrics))
    with pytest.raises(NothingToDrawError, match="another trial"):
        bounds_along_training(experiment, trial=7)
    with pytest.raises(InputError):
        bounds_along_training(experiment, lr=3.0)
