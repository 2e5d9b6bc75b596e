import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from diagnostics.errors import InputError
from diagnostics.tables import Experiment, read_experiment
from figures import conditioning_heat_map
from figures.step_axis import cell_edges


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
    left, right = figure.axes[1].transData.transform([(edge, 0) for edge in cell_edges(np.array(steps))])[[0, -1], 0]
    widths = np.diff(figure.axes[1].transData.transform([(edge, 0) for edge in cell_edges(np.array(steps))])[:, 0])
    assert widths.min() > 0.05 * (right - left)


@pytest.mark.parametrize(
    ("steps", "edges"), [([5], [4.5, 5.5]), ([0, 2, 4], [-1, 1, 3, 5]), ([0, 1, 4], [-0.5, 0.5, 2.5, 4.5])]
)
def test_cell_edges_lie_halfway(steps: list[int], edges: list[float]) -> None:
    np.testing.assert_allclose(cell_edges(np.array(steps)), edges)


def test_unknown_trial_names_those_there_are(fake_experiment: Experiment) -> None:
    with pytest.raises(InputError, match="there are 0, 1, 2, 3"):
        conditioning_heat_map(fake_experiment, trial=9)
