import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, read_experiment
from skip_conditioning.figures import conditioning_heat_map
from skip_conditioning.figures.conditioning_heat_map import layer_step_grid
from skip_conditioning.figures.drawing.axes import StepAxis
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.selection import measured
from skip_conditioning.figures.drawing.style import with_error


def arrays(figure: Figure) -> list[np.ndarray]:
    """Colour arrays of the heat maps, without that of the colour bar."""
    maps = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    meshes = [mesh for axis in maps for mesh in axis.collections if isinstance(mesh, QuadMesh)]
    return [np.ma.filled(mesh.get_array(), np.nan) for mesh in meshes]


def test_cells_are_geometric_means_over_trials(fake_experiment: Experiment) -> None:
    (_, residual, _) = arrays(conditioning_heat_map(fake_experiment, lr=0.05))
    assert residual.shape == (3, 11)
    rows = fake_experiment.spectra.query(
        "run_id.str.startswith('residual-lr0.05-') and layer == 'block2' and step == 6"
    )
    assert len(rows) == 4
    assert residual[1, 2] == pytest.approx(np.exp(np.log(rows["condition_number"]).mean()))


def test_counts_are_averaged_arithmetically(fake_experiment: Experiment) -> None:
    (_, residual, _) = arrays(conditioning_heat_map(fake_experiment, lr=0.05, measure="effective_rank"))
    rows = fake_experiment.spectra.query(
        "run_id.str.startswith('residual-lr0.05-') and layer == 'block2' and step == 6"
    )
    assert residual[1, 2] == pytest.approx(rows["effective_rank"].mean())


def test_quantile_of_one_trial(fake_experiment: Experiment) -> None:
    (_, residual, _) = arrays(conditioning_heat_map(fake_experiment, lr=0.05, measure="sigma_q25", trial=2))
    (values,) = fake_experiment.spectra.query("run_id == 'residual-lr0.05-t2' and layer == 'block3' and step == 30")[
        "values"
    ]
    assert residual[2, 10] == pytest.approx(np.quantile(values, 0.25))


def test_quantile_of_a_density(mixed_experiment: Experiment) -> None:
    (original, modified) = arrays(conditioning_heat_map(mixed_experiment, measure="sigma_q50", trial=0))
    rows = mixed_experiment.spectra.query("layer == 'block3' and step == 30").set_index("run_id")
    assert original[2, 10] == pytest.approx(np.median(rows.loc["original-lr0.1-t0", "values"]))
    row = rows.loc["modified-lr0.1-t0"]
    nodes, weights = row["nodes"][::-1], row["weights"][::-1]
    assert modified[2, 10] == pytest.approx(np.interp(0.5, np.cumsum(weights) - weights / 2, nodes))


def test_quantile_beyond_the_outermost_node_is_a_bound(mixed_experiment: Experiment) -> None:
    grid = measured(mixed_experiment.spectra, "sigma_q01").set_index(["run_id", "step", "layer"])
    for row in mixed_experiment.spectra.itertuples():
        bound = row.nodes is not None and row.weights[-1] / 2 > 0.01
        assert grid.loc[(row.run_id, row.step, row.layer), "bound"] == ("below" if bound else "")
    assert set(grid["bound"]) == {"", "below"}


def test_estimated_condition_number_is_a_bound_and_estimated_mean_is_not(mixed_experiment: Experiment) -> None:
    for measure, bounds in (("condition_number", {"", "above"}), ("sigma_mean", {""}), ("sigma_gmean", {""})):
        assert set(measured(mixed_experiment.spectra, measure)["bound"]) == bounds
    raised = mixed_experiment.spectra.assign(floor=0.5)
    assert set(measured(raised, "sigma_gmean")["bound"]) == {"", "below"}


def test_error_of_a_mean_over_trials(mixed_experiment: Experiment) -> None:
    spectra = mixed_experiment.spectra.merge(mixed_experiment.runs[["run_id", "arm"]], on="run_id")
    cell = ("block2", 6)
    rows = spectra.query("layer == 'block2' and step == 6").set_index("run_id")
    relative = rows["sigma_mean_se"] / rows["sigma_mean"]
    modified = layer_step_grid(spectra, "modified", "sigma_mean").loc[cell]
    both = np.hypot(*relative[["modified-lr0.1-t0", "modified-lr0.1-t1"]]) / 2
    assert modified["error"] == pytest.approx(modified["value"] * both)
    # The exact trial adds no error.
    original = layer_step_grid(spectra, "original", "sigma_mean").loc[cell]
    assert original["error"] == pytest.approx(original["value"] * relative["original-lr0.1-t1"] / 2)


def test_few_cells_hold_their_standard_errors(mixed_experiment: Experiment) -> None:
    spectra = mixed_experiment.spectra[mixed_experiment.spectra["step"].isin([0, 15, 30])]
    figure = conditioning_heat_map(
        dataclasses.replace(mixed_experiment, spectra=spectra), measure="sigma_mean", trial=0
    )
    original, modified = figure.axes[2:4]
    assert not [text for text in original.texts if text.get_gid() == "error"]  # this trial is exact
    texts = {text.get_position(): text.get_text() for text in modified.texts if text.get_gid() == "error"}
    assert len(texts) == 9
    (row,) = spectra.query("run_id == 'modified-lr0.1-t0' and layer == 'block2' and step == 15").itertuples()
    assert texts[15, 1] == with_error(row.sigma_mean, row.sigma_mean_se)
    assert "estimates: standard error" in figure.get_suptitle()


def test_large_standard_errors_of_many_cells_are_dots(mixed_experiment: Experiment) -> None:
    spectra = mixed_experiment.spectra.copy()
    estimated = spectra["nodes"].notna()
    large = spectra["run_id"].eq("modified-lr0.1-t0") & spectra["layer"].eq("block3") & spectra["step"].eq(12)
    spectra["sigma_mean_se"] = (spectra["sigma_mean"] * np.where(large, 0.11, 0.09)).where(estimated)
    figure = conditioning_heat_map(
        dataclasses.replace(mixed_experiment, spectra=spectra), measure="sigma_mean", trial=0
    )
    dots = [(axis, line) for axis in figure.axes for line in axis.lines if line.get_gid() == "large error"]
    assert [(axis, *line.get_xydata()[0]) for axis, line in dots] == [(figure.axes[3], 12, 2)]
    assert not [text for axis in figure.axes for text in axis.texts]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["standard error above 10 %"]
    assert "standard error 9 % (median), at most 11 %" in figure.get_suptitle()


def test_a_measure_that_no_spectrum_has(fake_experiment: Experiment) -> None:
    for change, measure in (({"sigma_gmean": np.nan}, "sigma_gmean"), ({"values": None}, "sigma_q10")):
        experiment = dataclasses.replace(fake_experiment, spectra=fake_experiment.spectra.assign(**change))
        with pytest.raises(NothingToDrawError, match=measure):
            conditioning_heat_map(experiment, measure=measure)


def test_unresolved_cell_is_hatched(fake_experiment: Experiment) -> None:
    figure = conditioning_heat_map(fake_experiment, lr=0.05)
    hatched = [patch for axis in figure.axes for patch in axis.patches if patch.get_gid() == "bound"]
    assert [(patch.get_xy(), patch.get_hatch()) for patch in hatched] == [((-1.5, -0.5), "////")]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lower bound: unresolved in some run"]


def test_unmeasured_cells_stay_empty(fake_experiment: Experiment) -> None:
    spectra = fake_experiment.spectra
    gap = spectra["run_id"].str.startswith("chain-lr0.05") & (spectra["layer"] == "block3") & (spectra["step"] == 9)
    figure = conditioning_heat_map(dataclasses.replace(fake_experiment, spectra=spectra[~gap]), lr=0.05)
    assert np.argwhere(np.isnan(arrays(figure)[0])).tolist() == [[2, 3]]
    assert "not measured" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_loss_is_above_each_map_on_the_same_steps(fake_experiment: Experiment) -> None:
    figure = conditioning_heat_map(fake_experiment, lr=0.05)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["chain", "residual", "modified"]
    for above, below in zip(figure.axes[:3], figure.axes[3:6], strict=True):
        assert above.get_xlim() == below.get_xlim()
        assert len(above.lines[0].get_xdata()) == 31


def test_log_spaced_steps_get_cells_of_similar_width(write_fake: Callable[..., Path]) -> None:
    steps = (0, 1, 3, 10, 30, 100, 300, 1000)
    figure = conditioning_heat_map(read_experiment(write_fake(arms=("chain",), lrs=(0.1,), trials=1, steps=steps)))
    edges = figure.axes[1].transData.transform([(edge, 0) for edge in StepAxis(np.array(steps)).edges])[:, 0]
    assert np.diff(edges).min() > 0.05 * (edges[-1] - edges[0])


def test_unknown_trial_names_those_there_are(fake_experiment: Experiment) -> None:
    with pytest.raises(InputError, match="there are 0, 1, 2, 3"):
        conditioning_heat_map(fake_experiment, trial=9)
