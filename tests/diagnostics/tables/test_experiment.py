"""Experiments and folders of runs: readable at any moment, and clear about what is wrong with them."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import (
    METRICS,
    RUN_COLUMNS,
    SKIPPED,
    SPECTRA,
    TableWriter,
    read_experiment,
    spectra_frame,
)

DESIGN_METRICS = (
    "run_id, step, epoch, split, loss, accuracy, lr, grad_norm, seconds, grad_squared, cost_grad_squared, pl_floor, "
    "pl_floor_centred, rayleigh, pl_ceiling, predicted_decrease, observed_decrease, pl_verdict"
)
DESIGN_RUNS = "run_id, experiment, dataset, model, arm, trial, seed, lr, status, device, versions, git_revision"
DESIGN_SPECTRA = (
    "run_id, step, map, layer, batch_mode, sample, sigma_max, sigma_min, sigma_mean, sigma_gmean, sigma_median, "
    "sigma_rms, condition_number, rank, effective_rank, stable_rank, rows, cols, method, floor, seconds, peak_bytes, "
    "values, nodes, weights"
)


def test_columns_are_those_of_the_design(run):
    tables = read_experiment(run.parent.parent)
    assert set(DESIGN_SPECTRA.split(", ")) <= set(tables.spectra.columns)
    assert ", ".join(tables.metrics.columns) == DESIGN_METRICS
    assert ", ".join(tables.runs.columns[: len(RUN_COLUMNS)]) == DESIGN_RUNS
    assert tables.runs.loc[0, "width"] == 8
    assert tables.runs.loc[0, "status"] == "running"
    assert list(tables.skipped.columns) == SKIPPED.names
    assert len(tables.metrics) == 4
    assert tables.spectra["sample"].dtype == "Int64"


def test_one_run_reads_as_an_experiment(run):
    pd.testing.assert_frame_equal(read_experiment(run).metrics, read_experiment(run.parent.parent).metrics)


def test_rows_of_the_spectra_table_keep_the_order_of_the_layers(run):
    writer = TableWriter(run / "spectra", SPECTRA)
    for layer, sample in (("stem", 1), ("block", None), ("stem", 0), ("block", None)):
        writer.append(
            {"run_id": "one", "step": 0, "map": "tail", "layer": layer, "batch_mode": "batch", "sample": sample}
        )
    writer.flush()
    measured = read_experiment(run).spectra
    assert measured.layer.tolist() == ["stem", "stem", "block"]
    assert measured["sample"].tolist()[:2] == [1, 0]
    assert measured["sample"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1 but not really",
        pa.table({"run_id": ["one"], "step": [0]}),
        pa.table({name: [["a"]] for name in METRICS.names}),
        pa.table({name: ["text"] for name in METRICS.names}),
    ],
    ids=["empty", "garbage", "columns", "lists", "text"],
)
def test_a_corrupt_part_is_named(run, content):
    part = run / "metrics" / "part-000007-000000001-000000001.parquet"
    part.write_bytes(content) if isinstance(content, bytes) else pq.write_table(content, part)
    with pytest.raises(InputError, match=rf"{part.name} is not a readable part of the metrics table .*; remove it"):
        read_experiment(run)


HUGE = f"1{400 * '0'}"


@pytest.mark.parametrize(
    "content", ["{", "[1, 2]", "", '{"lr": NaN', "\x00", f'{{"lr": {HUGE}}}', f'{{"trial": {HUGE}}}', 9999 * "["]
)
def test_a_corrupt_json_file_is_named(run, content):
    (run / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json.*remove the run or restore the file"):
        read_experiment(run)


def test_directories_that_hold_nothing(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a directory; give an experiment, a run or a folder of runs"):
        read_experiment(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no runs; give an experiment, a run or a folder of runs"):
        read_experiment(tmp_path)


def test_frame_of_rows_has_the_tables_types():
    frame = spectra_frame([{"run_id": "one", "step": 0, "rank": 3, "values": [1.0, 0.5], "sample": None}])
    assert list(frame.columns) == SPECTRA.names
    assert frame["sample"].dtype == "Int64"
    assert frame.loc[0, "values"].tolist() == [1.0, 0.5]


def test_a_part_that_lacks_a_column_is_named(tmp_path):
    row = dict.fromkeys(SPECTRA.names) | {"run_id": "a", "step": 0, "map": "tail", "layer": "stem"}
    writer = TableWriter(tmp_path / "runs" / "a" / "spectra", SPECTRA)
    writer.append(row)
    writer.flush()
    (part,) = (tmp_path / "runs" / "a" / "spectra").glob("part-*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["layer"]), part)
    with pytest.raises(InputError, match="layer"):
        read_experiment(tmp_path)
