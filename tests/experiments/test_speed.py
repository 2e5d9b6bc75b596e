import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import METRICS, TableWriter
from skip_conditioning.experiments.speed import main, speed_table

LOSSES = {
    "fast": [2.0, 1.0, 0.5, 0.25, 0.125],
    "slow": [2.0, 1.5, 1.0, 0.5, 0.4],
    "never": [2.0, 1.9, 1.8, 1.7, 1.6],
    "blown-up": [2.0, 0.1, np.nan, np.inf, np.nan],
}


def runs_of(names, **columns):
    return pd.DataFrame({"run_id": list(names), "status": "finished", **columns})


def metrics_of(losses, split="train"):
    rows = [
        {"run_id": name, "step": step, "split": split, "loss": loss}
        for name, values in losses.items()
        for step, loss in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["run_id", "step", "split", "loss"])


def speeds(losses=LOSSES, threshold=0.5, names=None, **options):
    table = speed_table(runs_of(names or losses), metrics_of(losses), loss_threshold=threshold, **options)
    return table.set_index("run_id")


def test_steps_to_threshold():
    table = speeds()
    assert table["steps_to_threshold"].tolist() == [2, 3, 4, 4]
    assert table["censored"].tolist() == [False, False, True, True]
    assert table["diverged"].tolist() == [False, False, False, True]
    assert table["speed_rank"].tolist() == [1, 2, 3, 4]
    assert table["steps_to_threshold"].dtype == np.int64


def test_a_loss_that_rises_again_has_reached_the_threshold():
    assert speeds({"a": [2.0, 0.5, 3.0]}).loc["a", "steps_to_threshold"] == 1


def test_area_is_the_mean_log_loss_in_step_whatever_the_logging_interval():
    dense = metrics_of({"a": np.exp(-0.3 * np.arange(11))})
    sparse = dense[dense["step"].isin([0, 1, 4, 10])]
    for metrics in (dense, sparse):
        area = speed_table(runs_of(["a"]), metrics, loss_threshold=0.5)["auc_log_loss"]
        assert area.tolist() == pytest.approx([-1.5])


def test_area_of_vanishing_loss_is_finite():
    assert np.isfinite(speeds({"a": [1.0, 0.0]}).loc["a", "auc_log_loss"])
    assert speeds({"a": [np.e]}).loc["a", "auc_log_loss"] == pytest.approx(1)


def test_losses_at_steps():
    table = speeds({**LOSSES, "late": [2.0, 1.0, 1.0, np.inf]})
    assert table["loss_at_step_2"].dropna().tolist() == [0.5, 1.0, 1.8, 1.0]
    assert table.loc["blown-up", "loss_at_step_2":"loss_at_step_5"].isna().all()
    assert table["loss_at_step_20"].isna().all()
    assert table.loc["fast", "final_loss"] == 0.125


def test_diverged_run_has_no_numbers_that_look_fast():
    run = speeds().loc["blown-up"]
    assert run[["auc_log_loss", "final_loss"]].isna().all()
    assert not np.isinf(speeds().select_dtypes("number")).any(axis=None)


def test_status_alone_marks_divergence():
    runs = runs_of(["a", "b"], loss_threshold=0.5).assign(status=["diverged", "finished"])
    table = speed_table(runs, metrics_of({"a": [1.0, 0.1], "b": [1.0, 0.9]}))
    assert table["diverged"].tolist() == [True, False]
    assert table["speed_rank"].tolist() == [2, 1]


def test_ranks_are_shared():
    losses = {
        **LOSSES,
        "as fast": LOSSES["fast"],
        "nor this": [1.0],
        "also blown up": [np.inf],
    }
    ranks = speeds(losses)["speed_rank"]
    assert ranks.to_dict() == {
        **{"fast": 1.5, "as fast": 1.5, "slow": 3},
        **{"never": 4.5, "nor this": 4.5, "blown-up": 6.5, "also blown up": 6.5},
    }


def test_smoothing_is_a_mean_over_the_last_steps():
    losses = {"noisy": [1.0, 0.3, 0.9, 0.4, 0.5, 0.45], "short": [0.1]}
    assert speeds(losses).loc["noisy", "steps_to_threshold"] == 1
    table = speeds(losses, loss_window=3)
    assert table["steps_to_threshold"].tolist() == [5, 0]
    assert table["censored"].tolist() == [False, True]
    assert table.loc["noisy", "final_loss"] == pytest.approx(0.45)
    assert np.isnan(table.loc["short", "loss_at_step_2"])
    assert table.loc["noisy", "loss_at_step_2"] == pytest.approx(2.2 / 3)


def test_smoothing_forgets_huge_losses():
    assert speeds({"a": [1e17, 0.6, 0.6, 0.4, 0.4]}, loss_window=2).loc["a", "steps_to_threshold"] == 3


def test_run_without_metrics_stays():
    table = speeds(names=["fast", "silent"], losses={"fast": LOSSES["fast"]})
    run = table.loc["silent"]
    assert (run["steps_to_threshold"], run["censored"], run["diverged"]) == (0, True, False)
    assert run["speed_rank"] == 2
    empty = speed_table(runs_of(["a"]), metrics_of({}), loss_threshold=1)
    assert empty["speed_rank"].tolist() == [1]


def test_resumed_run_counts_each_step_once_and_order_does_not_matter():
    metrics = metrics_of(LOSSES)
    stale = metrics[metrics["step"] >= 3].assign(loss=77.0)
    shuffled = pd.concat([stale, metrics.sample(frac=1, random_state=0)])
    pd.testing.assert_frame_equal(
        speed_table(runs_of(LOSSES), shuffled, loss_threshold=0.5),
        speed_table(runs_of(LOSSES), metrics, loss_threshold=0.5),
    )


def test_test_split_does_not_count():
    metrics = pd.concat([metrics_of(LOSSES), metrics_of({"never": [0.0] * 5, "fast": [np.nan] * 5}, "test")])
    table = speed_table(runs_of(LOSSES), metrics, loss_threshold=0.5).set_index("run_id")
    pd.testing.assert_frame_equal(table, speeds())


def test_without_a_threshold_it_is_the_loss_that_every_run_reached():
    losses = {"a": [2.0, 0.5, 0.9], "b": [2.0, 1.0, 0.8], "c": [2.0, np.nan], "d": [2.0, 1.5, 1.2]}
    table = speed_table(runs_of(losses, loss_threshold=[np.nan, np.nan, np.nan, 1.0]), metrics_of(losses))
    assert table["loss_threshold"].tolist() == [1.2, 1.2, 1.2, 1.0]
    assert table["steps_to_threshold"].tolist() == [1, 1, 1, 2]
    assert table["censored"].tolist() == [False, False, True, True]


def test_threshold_of_each_run():
    runs = runs_of(LOSSES, loss_threshold=[1.0, 0.4, 1.7, 0.1])
    table = speed_table(runs, metrics_of(LOSSES))
    assert table["steps_to_threshold"].tolist() == [1, 4, 3, 4]
    assert table["loss_threshold"].tolist() == [1.0, 0.4, 1.7, 0.1]


def test_window_of_each_run():
    losses = {"a": [1.0, 0.3, 0.9, 0.4, 0.5, 0.45], "b": [1.0, 0.3, 0.9, 0.4, 0.5, 0.45]}
    runs = runs_of(losses, loss_threshold=0.5, loss_window=[3, 1])
    assert speed_table(runs, metrics_of(losses))["steps_to_threshold"].tolist() == [5, 1]
    assert speed_table(runs, metrics_of(losses), loss_window=1)["steps_to_threshold"].tolist() == [1, 1]
    runs["loss_window"] = [np.nan, 3]
    assert speed_table(runs, metrics_of(losses))["steps_to_threshold"].tolist() == [1, 5]


@pytest.mark.parametrize(
    ("runs", "metrics", "options", "message"),
    [
        (runs_of(["a"]), metrics_of({}), {}, "run 'a' was configured without a loss_threshold"),
        (runs_of(["a", "b"], loss_threshold=[1, np.nan]), metrics_of({}), {}, "run 'b'"),
        (runs_of(["a"]), metrics_of({}), {"loss_threshold": np.nan}, "finite number"),
        (runs_of(["a"]), metrics_of({}), {"loss_threshold": 1, "loss_window": 0}, "loss window is 0"),
    ],
)
def test_bad_tables(runs, metrics, options, message):
    with pytest.raises(InputError, match=message):
        speed_table(runs, metrics, **options)


# The command line


@pytest.fixture
def experiment(tmp_path):
    for name, losses in LOSSES.items():
        run = tmp_path / "runs" / name
        writer = TableWriter(run / "metrics", METRICS)
        for step, loss in enumerate(losses):
            writer.append({"run_id": name, "step": step, "split": "train", "loss": loss})
        writer.flush()
        (run / "config.json").write_text(json.dumps({"run_id": name, "loss_threshold": 0.5}))
        (run / "status.json").write_text(json.dumps({"status": "finished"}))
    return tmp_path


def test_command_line(experiment, capsys):
    assert main([str(experiment)]) == 0
    table = pd.read_parquet(experiment / "speed.parquet").set_index("run_id")
    pd.testing.assert_frame_equal(table.loc[list(LOSSES)], speeds(), check_names=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[0] == "fast"
    assert printed[4].split()[0] == "blown-up"
    assert not list(experiment.glob(".*"))


def test_command_line_threshold(experiment):
    assert main([str(experiment), "--loss-threshold", "1.7"]) == 0
    table = pd.read_parquet(experiment / "speed.parquet").set_index("run_id")
    assert table.loc["never", "steps_to_threshold"] == 3
    assert table["loss_threshold"].tolist() == [1.7] * 4


def test_command_line_averages_as_the_runs_were_configured(experiment):
    for config in experiment.glob("runs/*/config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "loss_window": 3}))
    assert main([str(experiment)]) == 0
    table = pd.read_parquet(experiment / "speed.parquet").set_index("run_id")
    pd.testing.assert_frame_equal(table.loc[list(LOSSES)], speeds(loss_window=3), check_names=False)
    assert main([str(experiment), "--loss-window", "1"]) == 0
    table = pd.read_parquet(experiment / "speed.parquet").set_index("run_id")
    pd.testing.assert_frame_equal(table.loc[list(LOSSES)], speeds(), check_names=False)


@pytest.mark.parametrize(
    "options", [["--loss-window", "0"], ["--loss-threshold", "nan"], ["--treshold", "1"], ["--loss-window", "x"]]
)
def test_command_line_bad_options(experiment, options, capsys):
    assert main([str(experiment), *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (experiment / "speed.parquet").exists()


def test_command_line_bad_input(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "nowhere") in line


def test_command_line_damaged_part(experiment, capsys):
    part = next((experiment / "runs" / "slow" / "metrics").glob("*.parquet"))
    pa.OSFile(str(part), "wb").close()
    assert main([str(experiment)]) == 2
    assert str(part) in capsys.readouterr().err
    assert not (experiment / "speed.parquet").exists()
