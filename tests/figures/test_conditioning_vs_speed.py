import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError, UnknownLayerError
from skip_conditioning.diagnostics.tables import Experiment, read_experiment
from skip_conditioning.figures import conditioning_vs_speed
from skip_conditioning.figures.drawing.rank_correlation import rank_correlation


@pytest.fixture(scope="module")
def speed(fake_directory: Path) -> pd.DataFrame:
    return pd.read_parquet(fake_directory / "speed.parquet")


@pytest.fixture(scope="module")
def figure(fake_experiment: Experiment, speed: pd.DataFrame) -> Figure:
    return conditioning_vs_speed(fake_experiment, speed)


def points(figure: Figure, panel: int, kind: str) -> np.ndarray:
    """Sorted (x, y) of the scatter of one arm and fate."""
    scatters = [c for c in figure.axes[panel].collections if isinstance(c, PathCollection)]
    offsets = [np.asarray(scatter.get_offsets()) for scatter in scatters if scatter.get_gid() == kind]
    return np.array(sorted(map(tuple, np.concatenate(offsets)))) if offsets else np.empty((0, 2))


def expected(experiment: Experiment, speed: pd.DataFrame, lr: float) -> pd.DataFrame:
    start = experiment.spectra.query("layer == 'block1' and step == 0")
    runs = experiment.runs[experiment.runs["lr"] == lr]
    return runs.merge(start[["run_id", "condition_number"]], on="run_id").merge(speed, on="run_id")


def test_points_are_the_tables_values(fake_experiment: Experiment, speed: pd.DataFrame, figure: Figure) -> None:
    for panel, lr in enumerate((0.02, 0.05, 0.1)):
        table = expected(fake_experiment, speed, lr)
        for arm, rows in table[~table["censored"] & ~table["diverged"]].groupby("arm"):
            pairs = sorted(zip(rows["condition_number"], rows["steps_to_threshold"], strict=True))
            np.testing.assert_allclose(points(figure, panel, f"{arm} reached"), pairs)


def test_every_run_has_a_point(figure: Figure) -> None:
    scatters = [c for axis in figure.axes for c in axis.collections if isinstance(c, PathCollection)]
    assert sum(len(np.asarray(scatter.get_offsets())) for scatter in scatters) == 36


def test_censored_and_diverged_runs_stay_above_all_others(figure: Figure, speed: pd.DataFrame) -> None:
    slowest = speed.loc[~speed["censored"] & ~speed["diverged"], "steps_to_threshold"].max()
    censored, diverged = points(figure, 0, "chain censored"), points(figure, 2, "residual diverged")
    assert (len(censored), len(diverged)) == (2, 1)
    assert slowest < censored[0, 1] < diverged[0, 1] < figure.axes[0].get_ylim()[1]
    ticks = dict(zip(figure.axes[0].get_yticks(), figure.axes[0].yaxis.get_major_formatter().seq, strict=True))
    assert ticks[censored[0, 1]] == "never"
    assert ticks[diverged[0, 1]] == "diverged"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"chain", "residual", "modified", "never reached", "diverged", "lower bound"} <= set(labels)


def test_unresolved_condition_number_is_marked_as_a_bound(figure: Figure, fake_experiment: Experiment) -> None:
    arrows = [line for axis in figure.axes for line in axis.lines if line.get_gid() == "bound above"]
    (unresolved,) = fake_experiment.spectra.query("layer == 'block1' and step == 0 and not resolved")[
        "condition_number"
    ]
    assert [line.get_xdata() for line in arrows] == [pytest.approx([unresolved])]


def test_a_line_joins_the_arms_of_one_trial_in_their_order(
    fake_experiment: Experiment, speed: pd.DataFrame, figure: Figure
) -> None:
    lines = [line.get_xdata() for line in figure.axes[1].lines if line.get_gid() == "pair"]
    table = expected(fake_experiment, speed, 0.05).set_index(["trial", "arm"])["condition_number"]
    arms = ["chain", "residual", "modified"]
    np.testing.assert_allclose(lines, [[table[trial, arm] for arm in arms] for trial in range(4)])


def test_titles_state_the_rank_correlation(fake_experiment: Experiment, speed: pd.DataFrame, figure: Figure) -> None:
    table = expected(fake_experiment, speed, 0.1)
    slowness = table["steps_to_threshold"].where(~table["diverged"], np.inf)
    correlation = rank_correlation(table["condition_number"].to_numpy(), slowness.to_numpy(), table["trial"].to_numpy())
    assert figure.axes[2].get_title() == f"learning rate 0.1, 12 runs\n{correlation}"


def test_average_over_first_steps_is_geometric(fake_experiment: Experiment, speed: pd.DataFrame) -> None:
    figure = conditioning_vs_speed(fake_experiment, speed, layer="block2", steps=3)
    rows = fake_experiment.spectra.query("run_id == 'modified-lr0.05-t0' and layer == 'block2' and step in [0, 3, 6]")
    mean = np.exp(np.log(rows["condition_number"]).mean())
    assert np.isclose(points(figure, 1, "modified reached")[:, 0], mean).any()
    assert "mean over the 3 measured steps 0–6" in figure.get_supxlabel()


@pytest.mark.parametrize("speed_measure", ["auc_log_loss", "final_loss", "loss_at_step_10", "speed_rank"])
def test_other_speed_measures_keep_the_diverged_run(
    fake_experiment: Experiment, speed: pd.DataFrame, speed_measure: str
) -> None:
    figure = conditioning_vs_speed(fake_experiment, speed, speed_measure=speed_measure)
    assert len(points(figure, 2, "residual diverged")) == 1
    assert len(points(figure, 0, "chain censored")) == 0  # these measures are plain numbers for a slow run
    assert len(points(figure, 0, "chain reached")) == 4


def test_runs_without_a_spectrum_are_counted(fake_experiment: Experiment, speed: pd.DataFrame) -> None:
    spectra = fake_experiment.spectra[fake_experiment.spectra["run_id"] != "chain-lr0.1-t0"]
    figure = conditioning_vs_speed(dataclasses.replace(fake_experiment, spectra=spectra), speed)
    assert "1 of 36 runs lack" in figure.get_supxlabel()


def test_all_diverged_is_said_not_computed(write_fake: Callable[..., Path]) -> None:
    everything = tuple((arm, 0.1, trial) for arm in ("chain", "residual") for trial in range(2))
    directory = write_fake(arms=("chain", "residual"), lrs=(0.1,), trials=2, diverged=everything)
    figure = conditioning_vs_speed(read_experiment(directory), pd.read_parquet(directory / "speed.parquet"))
    assert "ρ undefined: no spread in y" in figure.axes[0].get_title()
    assert [len(points(figure, 0, f"{arm} diverged")) for arm in ("chain", "residual")] == [2, 2]


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"layer": "blok1"}, UnknownLayerError, "Did you mean 'block1'"),
        ({"measure": "condition_numbr"}, InputError, "condition_number"),
        ({"speed_measure": "final_los"}, InputError, "final_loss"),
        ({"map": "kernel"}, InputError, "measured: tail"),
        ({"steps": 0}, InputError, "1 or more"),
    ],
)
def test_impossible_options_name_the_way_out(
    fake_experiment: Experiment, speed: pd.DataFrame, options: dict, error: type[Exception], hint: str
) -> None:
    with pytest.raises(error, match=hint):
        conditioning_vs_speed(fake_experiment, speed, **options)


def test_estimates_have_an_error_bar(mixed_experiment: Experiment) -> None:
    speed = pd.DataFrame({"run_id": mixed_experiment.runs["run_id"], "censored": False, "diverged": False})
    speed = speed.assign(steps_to_threshold=[3.0, 4.0, 5.0, 6.0])
    figure = conditioning_vs_speed(mixed_experiment, speed, measure="sigma_mean")
    (bars,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection) and c.get_gid() == "error"]
    rows = mixed_experiment.spectra.query("layer == 'block1' and step == 0 and sigma_mean_se > 0")
    ends = sorted(tuple(segment[:, 0]) for segment in bars.get_segments())
    error, mean = rows["sigma_mean_se"], rows["sigma_mean"]
    assert len(ends) == 3
    np.testing.assert_allclose(ends, sorted(zip(mean - error, mean + error, strict=True)))
    assert figure.axes[0].get_xlim()[0] < min(ends)[0] < max(high for _, high in ends) < figure.axes[0].get_xlim()[1]
    assert "± standard error" in [text.get_text() for text in figure.legends[0].get_texts()]
