import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures import loss_curves
from skip_conditioning.figures.drawing.errors import NothingToDrawError
from skip_conditioning.figures.loss_curves import mean_curve, windowed


def test_mean_and_band_are_those_of_the_log_loss() -> None:
    losses = pd.DataFrame({"run_id": ["a", "b"] * 2, "step": [0, 0, 1, 1], "loss": [1.0, 4.0, 0.01, 100.0]})
    curve = mean_curve(losses)
    deviation = np.std(np.log([1, 4]), ddof=1)
    np.testing.assert_allclose(curve.loc[0], [2, 2 * np.exp(-deviation), 2 * np.exp(deviation)])
    assert (curve["low"] > 0).all()  # an arithmetic mean − std would be negative at step 1


def test_one_trial_has_a_curve_and_no_band() -> None:
    curve = mean_curve(pd.DataFrame({"run_id": "a", "step": [0, 1], "loss": [1.0, 0.0]}))
    assert curve["mean"].tolist() == pytest.approx([1, 1e-12])
    assert curve["low"].isna().all()


def test_curves_are_the_tables_losses(fake_experiment: Experiment) -> None:
    figure = loss_curves(fake_experiment)
    (line,) = [line for line in figure.axes[1].lines if line.get_label() == "residual"]
    rows = fake_experiment.metrics[fake_experiment.metrics["run_id"].str.match("residual-lr0.05-")]
    expected = np.exp(np.log(rows["loss"]).groupby(rows["step"]).mean())
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected)
    np.testing.assert_array_equal(line.get_xdata(), expected.index)


def test_diverged_run_is_drawn_to_its_end_and_counted(fake_experiment: Experiment) -> None:
    axis = loss_curves(fake_experiment).axes[2]
    (end,) = [line for line in axis.lines if line.get_gid() == "end"]
    (curve,) = [line for line in axis.lines if line.get_gid() == "broken"]
    rows = fake_experiment.metrics.query("run_id == 'residual-lr0.1-t1'")
    last = rows.loc[np.isfinite(rows["loss"]), "step"].max()
    assert end.get_xdata()[0] == curve.get_xdata()[-1] == last
    assert axis.get_ylim()[0] < end.get_ydata()[0] <= axis.get_ylim()[1]
    assert axis.get_title() == "learning rate 0.1\n4 trials, 1 of 12 runs diverged"


@pytest.mark.parametrize("log_steps", [False, True])
def test_long_curves_are_averaged_over_windows(log_steps: bool) -> None:
    steps = np.arange(20_000)
    losses = pd.DataFrame({"run_id": "a", "step": steps, "loss": np.exp(-steps / 5000)})
    curve, widest = windowed(losses, log_steps=log_steps)
    assert 100 < len(curve) <= 251
    assert widest >= 80
    np.testing.assert_allclose(curve["loss"], np.exp(-curve["step"] / 5000), rtol=1e-9)


def test_unknown_split_names_those_there_are(fake_experiment: Experiment) -> None:
    with pytest.raises(NothingToDrawError, match="splits: train"):
        loss_curves(fake_experiment, split="test")
