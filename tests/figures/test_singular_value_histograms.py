import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures import singular_value_histograms
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.singular_values import with_points
from skip_conditioning.figures.singular_value_histograms import order_statistics


def stairs(axis: Axes, arm: str) -> StepPatch:
    (measured,) = [patch for patch in axis.patches if isinstance(patch, StepPatch) and patch.get_label() == arm]
    return measured


def stretched(experiment: Experiment) -> Experiment:
    """The same experiment with spectra over six orders of magnitude, of whose values some are under the floor."""
    spectra = experiment.spectra.assign(values=[values**4 for values in experiment.spectra["values"]], floor=1e-4)
    return dataclasses.replace(experiment, spectra=spectra)


def points(arms: list[str], values: list[list[float]], counts: list[list[float]], floors: list[float]) -> pd.DataFrame:
    arrays = {"points": [np.array(row) for row in values], "counts": [np.array(row) for row in counts]}
    return pd.DataFrame({"arm": arms, "floor": floors, **arrays})


def test_order_statistics_by_hand() -> None:
    values = [[4.0, 2.0, 0.0], [2.0, 1.0, 1.0], [5.0, 5.0, 5.0]]
    means = order_statistics(points(["a", "a", "b"], values, 3 * [[1.0, 1.0, 1.0]], [0.2, 1.0, 5.0]))
    np.testing.assert_array_equal(means["a"].values, [3.0, 1.5, 0.5])
    np.testing.assert_array_equal(means["a"].resolved, [True, True, False])  # the mean floor is 0.6
    np.testing.assert_array_equal(means["b"].values, [5.0, 5.0, 5.0])
    assert not means["b"].resolved.any()


def test_order_statistics_of_nodes_and_values() -> None:
    # Two nodes that stand for 1.5 values each, and three values: of the second value each node has one half.
    spectra = points(["a", "a"], [[4.0, 2.0], [8.0, 6.0, 0.0]], [[1.5, 1.5], [1.0, 1.0, 1.0]], [0.0, 0.0])
    means = order_statistics(spectra)["a"]
    np.testing.assert_allclose(means.values, [6.0, 5.0, 4.0, 1.0])
    np.testing.assert_allclose(means.counts, [1.0, 0.5, 0.5, 1.0])


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
    assert "of an arm's values beyond the axis" in figure.axes[0].get_xlabel()


def test_values_over_orders_of_magnitude_are_all_shown_on_a_log_axis(fake_experiment: Experiment) -> None:
    axis = singular_value_histograms(stretched(fake_experiment)).axes[1]
    assert axis.get_xscale() == "log"
    assert axis.get_xlabel() == "singular value"  # nothing beyond the axis
    (under,) = [patch for patch in axis.patches if patch.get_gid() == "chain under"]
    (height,) = under.get_data().values
    assert height > 10
    assert height + np.sum(stairs(axis, "chain").get_data().values) == pytest.approx(100)
    assert axis.get_xlim()[0] < under.get_data().edges[0] < stairs(axis, "chain").get_data().edges[0]


def test_linear_bins_declare_the_values_under_their_floor(fake_experiment: Experiment) -> None:
    figure = singular_value_histograms(stretched(fake_experiment), scale="linear")
    assert figure.axes[1].get_xscale() == "linear"
    assert "under their floor" in figure.axes[1].get_xlabel()


@pytest.mark.parametrize(
    ("layer", "change", "paper"),
    [("block1", {}, False), ("stem", {}, True), ("stem", {"map": "layer"}, False)],
)
def test_the_papers_network_has_the_papers_bins(
    fake_experiment: Experiment, layer: str, change: dict, paper: bool
) -> None:
    spectra = fake_experiment.spectra.query("layer == 'block1'").assign(layer=layer, **change)
    figure = singular_value_histograms(dataclasses.replace(fake_experiment, spectra=spectra), **change)
    edges = stairs(figure.axes[0], "chain").get_data().edges
    assert np.allclose(edges, np.linspace(0, 6, 33)) == paper


def test_many_arms_are_not_filled(fake_experiment: Experiment) -> None:
    def filled(experiment: Experiment) -> int:
        return sum(patch.get_fill() for patch in singular_value_histograms(experiment).axes[0].patches)

    runs = fake_experiment.runs
    renamed = runs.assign(arm=runs["arm"].where(runs["trial"] > 0, "other " + runs["arm"]))
    assert filled(fake_experiment) == 3
    assert filled(dataclasses.replace(fake_experiment, runs=renamed)) == 0


def test_densities_are_counted_by_their_weights(mixed_experiment: Experiment) -> None:
    figure = singular_value_histograms(mixed_experiment, steps=2, bins=8, range=(0, 4), layer="block2")
    rows = mixed_experiment.spectra.query("layer == 'block2' and step in [0, 3]")
    left, right = figure.axes
    for arm, densities in (("original", 2), ("modified", 4)):
        chosen = with_points(rows[rows["run_id"].str.startswith(arm)])
        assert chosen["nodes"].notna().sum() == densities
        values, counts = (np.concatenate(list(chosen[name])) for name in ("points", "counts"))
        assert counts.sum() == pytest.approx(4 * 24)
        pooled = 100 * np.histogram(values, 8, (0, 4), weights=counts)[0] / (4 * 24)
        np.testing.assert_allclose(stairs(right, arm).get_data().values, pooled)
        assert np.sum(stairs(left, arm).get_data().values) == pytest.approx(24)
    assert figure.get_suptitle().endswith("6 of 8 spectra are estimated densities: nodes counted by their weights")
    assert "beyond" not in left.get_xlabel()


def test_spectra_without_values_or_density_are_declared(fake_experiment: Experiment) -> None:
    spectra = fake_experiment.spectra.copy()
    start = spectra["run_id"].eq("chain-lr0.05-t0") & spectra["layer"].eq("block1") & spectra["step"].eq(0)
    spectra["values"] = spectra["values"].where(~start, None)
    figure = singular_value_histograms(dataclasses.replace(fake_experiment, spectra=spectra))
    assert "not shown: 1 spectrum without singular values" in figure.get_suptitle()
    nothing = dataclasses.replace(fake_experiment, spectra=spectra.assign(values=None))
    with pytest.raises(NothingToDrawError, match="nor their density"):
        singular_value_histograms(nothing)


def test_default_range_holds_nearly_all(fake_experiment: Experiment) -> None:
    figure = singular_value_histograms(fake_experiment)
    assert np.sum(stairs(figure.axes[1], "chain").get_data().values) >= 99


def test_default_learning_rate_is_the_largest_without_divergence(fake_experiment: Experiment) -> None:
    assert "learning rate 0.05" in singular_value_histograms(fake_experiment).get_suptitle()


@pytest.mark.parametrize("options", [{"bins": 0}, {"range": (1.0, 1.0)}, {"lr": 0.3}, {"steps": 0}, {"scale": "logg"}])
def test_impossible_options(fake_experiment: Experiment, options: dict) -> None:
    with pytest.raises(InputError):
        singular_value_histograms(fake_experiment, **options)


def test_spectra_of_different_sizes_are_not_averaged() -> None:
    with pytest.raises(InputError, match="1 and 2 values"):
        order_statistics(points(["a", "a"], [[1.0], [2.0, 1.0]], [[1.0], [1.0, 1.0]], [0.0, 0.0]))
