import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from skip_conditioning import SpectrumMonitor
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import METRICS, SPECTRA, TableWriter, read_experiment
from skip_conditioning.experiments.paired_ratios import paired_ratios
from skip_conditioning.experiments.speed import write_speed
from skip_conditioning.experiments.summary import print_summary, summary_table
from skip_conditioning.figures.__main__ import main as main_of_figures

# Losses of three trials; the threshold is 0.5.
LOSSES = {
    ("chain", 0.1): [[2, 1, 1], [2, 0.4, 0.3], [2, 1, 0.5]],
    ("residual", 0.1): [[2, 1, 0.2], [2, 0.4, 0.1], [2, 0.4, 0.3]],
    ("chain", 1.0): [[2, np.nan], [2, np.inf], [2, 0.4, 0.2]],
}
KAPPA = {"chain": 1000.0, "residual": 10.0}


@pytest.fixture
def experiment(tmp_path):
    """Runs whose rates are not in order; arms in order of the first trial."""
    for (arm, lr), trials in reversed(LOSSES.items()):
        for trial, losses in enumerate(trials):
            write_run(tmp_path / "runs" / f"{arm}-lr{lr:g}-trial{trial:02d}", arm, lr, trial, losses)
    write_speed(tmp_path)
    return tmp_path


def write_run(run, arm, lr, trial, losses):
    metrics, spectra = TableWriter(run / "metrics", METRICS), TableWriter(run / "spectra", SPECTRA)
    for step, loss in enumerate(losses):
        metrics.append({"run_id": run.name, "step": step, "split": "train", "loss": loss})
        for layer, factor in (("stem", 1), ("head", 100)):
            kappa = KAPPA[arm] * (trial + 1) * (step + 1) * factor
            row = {"run_id": run.name, "step": step, "map": "tail", "layer": layer, "batch_mode": "batch"}
            resolved = (arm, trial) != ("chain", 1)
            spectra.append({**row, "condition_number": kappa, "sigma_mean": 1 / kappa, "resolved": resolved})
    metrics.flush()
    spectra.flush()
    described = {"run_id": run.name, "arm": arm, "lr": lr, "trial": trial, "loss_threshold": 0.5}
    (run / "config.json").write_text(json.dumps(described))
    status = "finished" if np.isfinite(losses).all() else "diverged"
    (run / "status.json").write_text(json.dumps({"status": status, "diagnostics_share": 0.25}))


def test_rows_are_medians_over_trials_in_order_of_the_rates(experiment):
    table = summary_table(experiment)
    assert table[["lr", "arm"]].to_numpy().tolist() == [["0.1", "chain"], ["0.1", "residual"], ["1", "chain"]]
    assert table["runs"].tolist() == [3, 3, 3]
    assert table["diverged"].tolist() == [0, 0, 2]
    assert table["never reached"].tolist() == [1, 0, 0]
    assert table["final loss"].tolist() == ["0.5", "0.2", "–"]


def test_runs_that_never_reached_the_threshold_or_diverged_count_as_slowest(experiment):
    # chain: never, 1, 2 → 2; residual: 2, 1, 1 → 1; chain at 1.0: diverged twice.
    assert summary_table(experiment)["steps to loss ≤ 0.5"].tolist() == ["2", "1", "–"]


def test_conditioning_is_of_the_first_spectrum_of_the_first_layer(experiment):
    table = summary_table(experiment)
    assert table["first κ"].tolist() == ["≥2e+03", "20", "≥2e+03"]
    assert table["first σ mean"].tolist() == ["0.0005", "0.05", "0.0005"]


def test_without_diagnostics_there_is_no_conditioning(experiment):
    for part in experiment.glob("runs/*/spectra/*"):
        part.unlink()
    assert "first κ" not in summary_table(experiment)


def test_threshold_is_that_of_the_speed_table(experiment):
    write_speed(experiment, loss_threshold=0.25)
    assert summary_table(experiment)["steps to loss ≤ 0.25"].tolist() == ["–", "2", "–"]


def test_printed_on_standard_output(experiment, capsys):
    print_summary(experiment)
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert summary_table(experiment).to_string(index=False) in printed
    assert "diagnostics took 25.0% of the training time" in printed
    assert str(experiment / "runs") in printed
    assert str(experiment / "speed.parquet") in printed
    assert pd.read_parquet(experiment / "speed.parquet")["run_id"].nunique() == 9


@pytest.fixture(params=["runs", "."])
def own_runs(tmp_path, request):
    """Two arms in two trials of somebody's own loop; one run says nothing of itself."""
    for arm in ("base", "skip"):
        for trial in range(2):
            torch.manual_seed(trial)
            options = {"arm": arm, "trial": trial, "max_overhead": None} | ({"lr": 0.1} if arm == "skip" else {})
            out = tmp_path / request.param / f"{arm}-{trial}"
            with SpectrumMonitor(nn.Linear(3, 2), torch.randn(4, 3), out, maps="network", **options) as monitor:
                for step in range(4):
                    monitor.step(step, loss=2.0**-step * (1 + (arm == "base")), lr=0.1 if step else 0.01)
    with SpectrumMonitor(nn.Linear(3, 2), torch.randn(4, 3), tmp_path / request.param / "other", maps=()) as monitor:
        monitor.step(0, loss=1.0)
    return tmp_path


def test_a_folder_of_ones_own_runs_is_summarised_compared_and_drawn(own_runs, capsys):
    print_summary(own_runs)
    assert "the loss to reach is the lowest that every run reached" in capsys.readouterr().out
    table = summary_table(own_runs)
    assert table[["lr", "arm", "runs"]].to_numpy().tolist() == [
        ["0.1", "base", 2],
        ["0.1", "skip", 2],
        ["–", "other", 1],
    ]
    assert table["steps to loss ≤ 1"].tolist() == ["1", "0", "0"]
    ratios = paired_ratios(read_experiment(own_runs), ["base", "skip"], ["sigma_max"], 1, [2])
    assert ratios["skip / base"].tolist()[::2] == ["1.00, < 1 in 0 of 2", "0.50, < 1 in 2 of 2"]
    assert main_of_figures([str(own_runs), "--only", "loss_curves"]) == 0
    write_speed(own_runs)
    print_summary(own_runs)
    assert "the loss to reach" not in capsys.readouterr().out


def test_runs_that_the_speed_table_lacks_are_named(experiment):
    write_run(experiment / "runs" / "new", "chain", 0.1, 3, [1.0])
    with pytest.raises(InputError, match=r"speed.parquet lacks run 'new'; write it again with: .* speed"):
        summary_table(experiment)
    (experiment / "speed.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"speed.parquet cannot be read"):
        summary_table(experiment)
