import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

from skip_conditioning.diagnostics.errors import InputError, UnknownLayerError
from skip_conditioning.diagnostics.tables import Experiment, read_experiment, spectra_frame
from skip_conditioning.figures import singular_value_ridges
from skip_conditioning.figures.drawing.ridges import fitting_axis, ridge_of, spread_layers, spread_steps
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.singular_values import with_points
from skip_conditioning.figures.singular_value_ridges import elided


def ridge_lines(axis: Axes) -> dict[str, Line2D]:
    return {str(line.get_gid()): line for line in axis.lines if line.get_gid()}


def heights(line: Line2D, rank: int) -> np.ndarray:
    return np.asarray(line.get_ydata(), dtype=float) + rank


def area(line: Line2D, rank: int, *, log: bool) -> float:
    x = np.asarray(line.get_xdata(), dtype=float)
    cells = np.diff(np.log10(x) if log else x)
    return float(heights(line, rank).sum() * cells.mean())


def title(figure: Figure) -> str:
    return figure.legends[0].get_title().get_text()


def floored(experiment: Experiment, floor: float = 0.2) -> Experiment:
    return dataclasses.replace(experiment, spectra=experiment.spectra.assign(floor=floor))


def test_a_panel_per_layer_and_a_ridge_per_arm_and_step(mixed_experiment: Experiment) -> None:
    figure = singular_value_ridges(mixed_experiment, steps=3)
    assert [axis.get_title() for axis in figure.axes] == ["block1", "block2", "block3"]
    expected = {f"{arm} step {step}" for arm in ("original", "modified") for step in (0, 6, 30)}
    for axis in figure.axes:
        assert set(ridge_lines(axis)) == expected
        assert axis.get_yticks().tolist() == [0, -1, -2]  # the first step at the top
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "6", "30"]
    assert title(figure).endswith("3 of 11 measured steps, spread evenly in log(step)")
    assert "2 trials, learning rate 0.1" in title(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["original", "modified"]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_areas_within_a_panel_are_the_same(mixed_experiment: Experiment, scale: str) -> None:
    for axis in singular_value_ridges(mixed_experiment, steps=3, scale=scale).axes:
        assert axis.get_xscale() == scale
        lines = ridge_lines(axis)
        areas = [
            area(lines[f"{arm} step {step}"], rank, log=scale == "log")
            for arm in ("original", "modified")
            for rank, step in enumerate((0, 6, 30))
        ]
        # All but what lies beyond the axis, at most 1 %.
        np.testing.assert_allclose(areas, max(areas), rtol=0.011)


def test_a_ridge_is_the_mean_over_trials_of_densities_of_unit_area(mixed_experiment: Experiment) -> None:
    spectra = mixed_experiment.spectra.query("layer == 'block2' and step == 6 and run_id.str.startswith('original')")
    rows = with_points(spectra.assign(arm="original"))
    assert rows["nodes"].notna().tolist() == [False, True]
    axis = fitting_axis(rows, log=True)
    both, *single = (ridge_of(chosen, axis) for chosen in (rows, rows[:1], rows[1:]))
    np.testing.assert_allclose(both.density, (single[0].density + single[1].density) / 2)
    decades = np.log10(axis.high / axis.low) / len(both.density)
    for ridge in (both, *single):
        assert ridge.under == 0
        assert ridge.density.sum() * decades + ridge.beyond == pytest.approx(1)


@pytest.mark.parametrize("log", [False, True])
def test_a_density_and_its_values_give_the_same_ridge(log: bool) -> None:
    """All of many evenly spread values, and the Gauss–Legendre rule for them."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    common = {"run_id": "a", "map": "tail", "layer": "a", "rows": 2000, "cols": 3000, "floor": 1e-6}
    exact = {**common, "step": 0, "values": np.linspace(3, 1, 2000)}
    density = {**common, "step": 1, "nodes": 2 + nodes[::-1], "weights": weights[::-1] / 2}
    rows = with_points(spectra_frame([exact, density]).assign(arm="a"))
    axis = fitting_axis(rows, log)
    ridges = [ridge_of(row, axis) for _, row in rows.groupby("step")]
    cell = (np.log10(axis.high / axis.low) if log else axis.high - axis.low) / len(ridges[0].density)
    assert np.abs(ridges[0].density - ridges[1].density).sum() * cell < 0.08


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_share_under_the_floor_is_a_bar_at_the_left(mixed_experiment: Experiment, scale: str) -> None:
    figure = singular_value_ridges(floored(mixed_experiment), steps=3, scale=scale)
    axis = figure.axes[0]
    spectra = with_points(floored(mixed_experiment).spectra.query("layer == 'block1'"))
    shares = spectra.apply(lambda row: row["counts"][row["points"] <= 0.2].sum() / row["counts"].sum(), axis=1)
    arms = spectra["run_id"].str.split("-").str[0]
    bars = {str(patch.get_gid()): patch for patch in axis.patches if isinstance(patch, StepPatch)}
    for arm in ("original", "modified"):
        for rank, step in enumerate((0, 6, 30)):
            bar = bars[f"{arm} step {step} under"].get_data()
            share = shares[(arms == arm) & (spectra["step"] == step)].mean()
            assert share > 0.1
            np.testing.assert_allclose(bar.values + rank, share)
            line = ridge_lines(axis)[f"{arm} step {step}"]
            assert axis.get_xlim()[0] < bar.edges[0] < bar.edges[1] < np.asarray(line.get_xdata())[0]
    assert "under floor" in " ".join(label.get_text().replace("\n", " ") for label in axis.get_xticklabels())
    shown = spectra["step"].isin([0, 6, 30])
    largest = shares[shown].groupby([arms[shown], spectra.loc[shown, "step"]]).mean().max()
    assert axis.get_title() == f"block1\nunder floor: ≤ {100 * largest:.0f} %"
    assert "share under floor" in figure.legends[0].get_texts()[-1].get_text()


def test_spectra_wholly_under_their_floor_are_drawn(mixed_experiment: Experiment) -> None:
    for axis in singular_value_ridges(floored(mixed_experiment, 1e3)).axes:
        assert axis.get_title().endswith("under floor: ≤ 100 %")
        bars = [patch for patch in axis.patches if isinstance(patch, StepPatch)]
        assert len(bars) == 12


def test_the_caption_says_what_was_smoothed(mixed_experiment: Experiment, fake_experiment: Experiment) -> None:
    densities = mixed_experiment.spectra[mixed_experiment.spectra["nodes"].notna()]
    for experiment, kind in (
        (fake_experiment, "values smoothed"),
        (mixed_experiment, "values and quadrature nodes smoothed"),
        (dataclasses.replace(mixed_experiment, spectra=densities), "quadrature nodes smoothed"),
    ):
        assert singular_value_ridges(experiment).get_supxlabel().split("\n")[-1].startswith(kind)


def test_values_beyond_the_axis_are_declared(fake_experiment: Experiment) -> None:
    spectra = fake_experiment.spectra.query("run_id.str.contains('lr0.05')").copy()
    spectra["values"] = [np.concatenate([[1e9], np.ones(399), [1e-3]]) for _ in range(len(spectra))]
    figure = singular_value_ridges(dataclasses.replace(fake_experiment, spectra=spectra))
    assert "up to 0.25 % of a ridge lies beyond the axis" in figure.get_supxlabel()


def test_scale_is_chosen_by_the_spread_within_layers(fake_experiment: Experiment) -> None:
    spectra = fake_experiment.spectra
    wide = spectra.assign(values=[values**4 for values in spectra["values"]], floor=1e-12)
    narrow = spectra.assign(values=[1 + values for values in spectra["values"]])
    scales = [
        {axis.get_xscale() for axis in singular_value_ridges(dataclasses.replace(fake_experiment, spectra=rows)).axes}
        for rows in (wide, narrow)
    ]
    assert scales == [{"log"}, {"linear"}]


def test_one_layer(fake_experiment: Experiment) -> None:
    figure = singular_value_ridges(fake_experiment, layer="block2")
    assert [axis.get_title() for axis in figure.axes] == ["block2"]
    with pytest.raises(UnknownLayerError, match="Did you mean 'block2'"):
        singular_value_ridges(fake_experiment, layer="blok2")


def test_many_layers_are_thinned_and_counted(write_fake: Callable[..., Path]) -> None:
    layers = tuple(f"stage.block{number:02d}" for number in range(23))
    figure = singular_value_ridges(
        read_experiment(write_fake(arms=("chain",), lrs=(0.1,), trials=1, steps=(0, 30), layers=layers))
    )
    titles = [axis.get_title() for axis in figure.axes]
    assert (len(titles), titles[0], titles[-1]) == (20, layers[0], layers[-1])
    assert "20 of 23 layers" in title(figure)


@pytest.mark.parametrize(
    ("steps", "most", "shown"),
    [
        (range(4), 6, [0, 1, 2, 3]),
        ([0, 1, 3, 10, 30, 100, 300, 1000], 4, [0, 10, 100, 1000]),
        (range(0, 1001, 100), 3, [0, 100, 1000]),
        (range(500), 1, [499]),
    ],
)
def test_steps_are_spread_evenly_in_their_logarithm(steps: list[int], most: int, shown: list[int]) -> None:
    assert spread_steps(np.array(steps), most).tolist() == shown


def test_layers_are_spread_evenly() -> None:
    layers = [str(number) for number in range(39)]
    assert spread_layers(layers) == layers[::2]
    assert spread_layers(layers[:20]) == layers[:20]


def test_long_names_lose_their_beginning() -> None:
    assert elided("layer1.0", 8) == "layer1.0"
    assert elided("network.layer1.0", 9) == "…layer1.0"


def test_spectra_without_values_or_density(mixed_experiment: Experiment) -> None:
    spectra = mixed_experiment.spectra.copy()
    spectra["values"] = None
    figure = singular_value_ridges(dataclasses.replace(mixed_experiment, spectra=spectra))
    assert f"not shown: {11 * 3} spectra without singular values" in title(figure)
    spectra["nodes"] = None
    with pytest.raises(
        NothingToDrawError, match=r"no singular values of map 'tail' at .* were kept, nor their density"
    ):
        singular_value_ridges(dataclasses.replace(mixed_experiment, spectra=spectra))
    with pytest.raises(NothingToDrawError, match=r"measured: tail \(batch\)"):
        singular_value_ridges(mixed_experiment, map="layer")


@pytest.mark.parametrize("options", [{"steps": 0}, {"scale": "logg"}, {"lr": 0.3}])
def test_impossible_options(fake_experiment: Experiment, options: dict) -> None:
    with pytest.raises(InputError):
        singular_value_ridges(fake_experiment, **options)
