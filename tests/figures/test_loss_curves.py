import numpy as np
import pytest

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures import loss_curves
from skip_conditioning.figures.drawing.saving import NothingToDrawError


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


def test_unknown_split_names_those_there_are(fake_experiment: Experiment) -> None:
    with pytest.raises(NothingToDrawError, match="splits: train"):
        loss_curves(fake_experiment, split="test")
