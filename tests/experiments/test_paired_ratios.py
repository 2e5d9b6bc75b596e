import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.tables import METRICS, SPECTRA, TableWriter, read_experiment, write_json
from skip_conditioning.experiments.paired_ratios import _ratio, main, paired_ratios

GAIN = {"chain": 1.0, "residual": 2.0, "modified": 3.0}


def write_run(out, arm, trial, losses):
    run = out / "runs" / f"{arm}-lr0.1-trial{trial:02d}"
    metrics, spectra = TableWriter(run / "metrics", METRICS), TableWriter(run / "spectra", SPECTRA)
    write_json({"run_id": run.name, "arm": arm, "lr": 0.1, "trial": trial}, run / "config.json")
    for step, loss in enumerate(losses):
        metrics.append({"run_id": run.name, "step": step, "split": "train", "loss": loss})
        for layer in ("stem", "head"):
            sigma = GAIN[arm] * (1 + trial) * (10 if layer == "head" else 1) * (100 if step > 1 else 1)
            row = {"run_id": run.name, "step": step, "map": "tail", "layer": layer, "batch_mode": "batch"}
            spectra.append(row | {"sigma_mean": sigma, "condition_number": 1.0})
    metrics.flush(), spectra.flush()


@pytest.fixture
def experiment(tmp_path):
    for trial in range(4):
        write_run(tmp_path, "residual", trial, [2.0, 1.0 + trial, np.nan if trial == 3 else 0.5])
        write_run(tmp_path, "chain", trial, [2.0, 2.0 + 2 * trial, 1.0])
    (tmp_path / "experiment.json").write_text(json.dumps({"network": {"arms": ["chain", "residual"]}}))
    return tmp_path


def test_ratios_are_of_pairs_and_of_the_first_layer_and_steps(experiment):
    tables = read_experiment(experiment)
    table = paired_ratios(tables, ["chain", "residual"], ["sigma_mean"], 2, [1, 2]).set_index("quantity")
    measured = table["residual / chain"]
    # The trials' own factors cancel; the diverged run has no loss at step 2, which shows.
    for quantity, ratio, count in (
        ("sigma_mean", "2.00", "0 of 4"),
        ("training loss at step 1", "0.50", "4 of 4"),
        ("training loss at step 2", "0.50", "3 of 3"),
    ):
        assert re.fullmatch(rf"{ratio}( \[{ratio}, {ratio}\])?, < 1 in {count}", measured[quantity])


@pytest.mark.parametrize(("pairs", "covered"), [(5, True), (4, None)])
def test_students_interval_covers_as_often_as_stated_and_few_pairs_have_none(pairs, covered):
    rng, hits = np.random.default_rng(0), []
    for _ in range(400):
        match = re.match(r"[\d.]+ \[([\d.]+), ([\d.]+)\]", _ratio(pd.Series(rng.normal(2, 0.3, pairs))))
        hits.append(match and float(match[1]) <= np.exp(2) <= float(match[2]))
    assert hits == [None] * 400 if covered is None else 0.92 < np.mean(hits) < 0.98
    assert _ratio(pd.Series([0.5] * pairs)) == f"1.65, < 1 in 0 of {pairs}"


def test_command_line_prints_arms_in_the_order_they_were_asked_for(experiment, capsys):
    for trial in range(4):
        write_run(experiment, "modified", trial, [2.0, 1.0, 1.0])
    (experiment / "experiment.json").write_text(json.dumps({"network": {"arms": ["modified", "residual", "chain"]}}))
    assert main([str(experiment), "--measures", "sigma_mean", "--loss-steps", "1"]) == 0
    heading = capsys.readouterr().out.splitlines()[0]
    assert re.search(r"residual / modified .*chain / residual .*chain / modified", heading)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measures", "sigma_men"], "unknown measure 'sigma_men'.*Did you mean 'sigma_mean'"),
        (["nowhere"], "nowhere is not a directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(experiment, arguments, message, capsys):
    path = [] if arguments[0] == "nowhere" else [str(experiment)]
    assert main([*path, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_single_arm_has_nothing_to_be_compared_with(tmp_path, capsys):
    write_run(tmp_path, "chain", 0, [1.0])
    assert main([str(tmp_path)]) == 2
    assert "one arm only, chain" in capsys.readouterr().err


def test_runs_that_are_the_same_trial_are_named(experiment, capsys):
    shutil.copytree(experiment / "runs" / "chain-lr0.1-trial01", experiment / "runs" / "copy")
    assert main([str(experiment)]) == 2
    assert "chain-lr0.1-trial01 and " in capsys.readouterr().err
    write_json({"run_id": "copy", "arm": "chain", "lr": 0.1, "trial": 1}, experiment / "runs" / "copy" / "config.json")
    for table in ("metrics", "spectra"):
        shutil.rmtree(experiment / "runs" / "copy" / table)
    assert main([str(experiment)]) == 2
    assert "runs 'chain-lr0.1-trial01' and 'copy' are both trial 1 of arm 'chain'" in capsys.readouterr().err
