import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch

from diagnostics.errors import InputError
from diagnostics.tables import Experiment
from figures import singular_value_histograms
from figures.singular_value_histograms import order_statistics


def stairs(axis: Axes, arm: str) -> StepPatch:
    (found,) = [patch for patch in axis.patches if isinstance(patch, StepPatch) and patch.get_label() == arm]
    return found


def test_order_statistics_by_hand() -> None:
    spectra = pd.DataFrame({"arm": ["a", "a", "b"], "values": [[4.0, 2.0, 0.0], [2.0, 1.0, 1.0], [5.0, 5.0, 5.0]]})
    means = order_statistics(spectra)
    np.testing.assert_array_equal(means["a"], [3.0, 1.5, 0.5])
    np.testing.assert_array_equal(means["b"], [5.0, 5.0, 5.0])


def test_panels_hold_averaged_and_pooled_values(fake_experiment: Experiment) -> None:
    figure = singular_value_histograms(fake_experiment, lr=0.1, steps=2, bins=8, range=(0, 2), layer="block2")
    rows = fake_experiment.spectra.query(
        "run_id.str.startswith('chain-lr0.1-') and layer == 'block2' and step in [0, 3]"
    )
    values = np.stack(list(rows["values"]))
    assert len(values) == 8  # 4 trials, 2 steps
    averaged, edges = np.histogram(values.mean(axis=0), 8, (0, 2))
    pooled = 100 * np.histogram(values, edges)[0] / values.size
    left, right = (stairs(axis, "chain").get_data() for axis in figure.axes)
    np.testing.assert_allclose(left.values, averaged)
    np.testing.assert_allclose(left.edges, edges)
    np.testing.assert_allclose(right.values, pooled)


def test_values_beyond_the_axis_are_declared(fake_experiment: Experiment) -> None:
    figure = singular_value_histograms(fake_experiment, range=(0, 0.5))
    assert "beyond the axis" in figure.axes[0].texts[0].get_text()


def test_default_range_holds_nearly_all(fake_experiment: Experiment) -> None:
    figure = singular_value_histograms(fake_experiment)
    assert np.sum(stairs(figure.axes[1], "chain").get_data().values) >= 99


def test_default_learning_rate_is_the_largest_without_divergence(fake_experiment: Experiment) -> None:
    assert "learning rate 0.05" in singular_value_histograms(fake_experiment).get_suptitle()


@pytest.mark.parametrize("options", [{"bins": 0}, {"range": (1.0, 1.0)}, {"lr": 0.3}, {"steps": 0}])
def test_impossible_options(fake_experiment: Experiment, options: dict) -> None:
    with pytest.raises(InputError):
        singular_value_histograms(fake_experiment, **options)


def test_spectra_of_different_sizes_are_not_averaged() -> None:
    with pytest.raises(InputError, match="1 and 2 values"):
        order_statistics(pd.DataFrame({"arm": "a", "values": [[1.0], [2.0, 1.0]]}))
