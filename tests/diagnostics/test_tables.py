"""Tables on disk: readable at any moment, whole or not there, and clear about what is wrong with them."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

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
    write_json,
    write_parquet,
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


@pytest.fixture
def run(tmp_path):
    """An experiment of one run with a few metrics."""
    path = tmp_path / "experiment" / "runs" / "one"
    writer = TableWriter(path / "metrics", METRICS)
    write_json({"run_id": "one", "arm": "chain", "lr": 0.1, "trial": 0, "width": 8}, path / "config.json")
    write_json({"status": "running"}, path / "status.json")
    for step in range(4):
        writer.append({"run_id": "one", "step": step, "split": "train", "loss": 1.0 / (step + 1)})
        writer.flush()
    return path


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


def test_pandas_reads_a_table_at_any_moment(run):
    (run / "metrics" / ".part-000000004-000000004-000.parquet.tmp").write_bytes(b"half of it")
    assert len(pd.read_parquet(run / "metrics")) == 4
    assert len(read_experiment(run).metrics) == 4


def test_of_two_rows_with_one_key_the_later_written_counts(run):
    writer = TableWriter(run / "metrics", METRICS)
    for loss in (7.0, 8.0):
        writer.append({"run_id": "one", "step": 2, "split": "train", "loss": loss})
    writer.append({"run_id": "one", "step": 2, "split": "test", "loss": 9.0})
    writer.flush()
    found = read_experiment(run).metrics
    assert len(found) == 5
    assert found.query("step == 2 and split == 'train'").loss.item() == 8.0


def test_rows_of_the_spectra_table_keep_the_order_of_the_layers(run):
    writer = TableWriter(run / "spectra", SPECTRA)
    for layer, sample in (("stem", 1), ("block", None), ("stem", 0), ("block", None)):
        writer.append(
            {"run_id": "one", "step": 0, "map": "tail", "layer": layer, "batch_mode": "batch", "sample": sample}
        )
    writer.flush()
    found = read_experiment(run).spectra
    assert found.layer.tolist() == ["stem", "stem", "block"]
    assert found["sample"].tolist()[:2] == [1, 0]
    assert found["sample"].isna().tolist() == [False, False, True]


def test_parts_of_another_writer_are_an_error_at_first_and_a_warning_later(run):
    one, other = (TableWriter(run / "metrics", METRICS) for _ in range(2))
    assert one.last_step == 3
    one.append({"run_id": "a", "step": 10, "split": "train"})
    one.flush()
    assert one.last_step == 10
    other.append({"run_id": "a", "step": 11, "split": "train"})
    with pytest.raises(InputError, match=r"something else writes to .*part-000000010"):
        other.flush()
    other.rewind(10)  # takes the parts for its own
    other.flush()
    one.append({"run_id": "a", "step": 12, "split": "train"})
    with pytest.warns(UserWarning, match=r"something else writes to .*part-000000011"):
        one.flush()


def test_rewind_forgets_what_came_after(run):
    writer = TableWriter(run / "metrics", METRICS)
    for step in range(4, 9):
        writer.append({"run_id": "one", "step": step, "split": "train", "loss": 0.0})
    writer.flush()
    (run / "metrics" / ".part.tmp").write_bytes(b"left over")
    writer.rewind(6)
    assert read_experiment(run).metrics.step.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert not list((run / "metrics").glob(".*"))
    for step in (5, 6, 7):  # the run goes on from step 4, and writes some steps again
        writer.append({"run_id": "one", "step": step, "split": "train", "loss": 5.0})
        writer.flush()
    found = read_experiment(run).metrics
    assert found.step.tolist() == list(range(8))
    assert found.loss.tolist()[-3:] == [5.0, 5.0, 5.0]
    writer.rewind(3)
    assert read_experiment(run).metrics.step.tolist() == [0, 1, 2, 3]


def test_a_part_never_replaces_another(run):
    for number in range(2):
        writer = TableWriter(run / "spectra", SPECTRA)
        writer.append({"run_id": "one", "step": 0, "map": "tail", "layer": f"layer{number}", "batch_mode": "batch"})
        writer.flush()
    assert sorted(read_experiment(run).spectra.layer) == ["layer0", "layer1"]


def test_an_unknown_column_is_named(run):
    with pytest.raises(InputError, match="unknown column 'los'; the table has run_id, step, epoch"):
        TableWriter(run / "metrics", METRICS).append({"run_id": "one", "step": 0, "los": 1.0})


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
    part = run / "metrics" / "part-000000001-000000001-007.parquet"
    part.write_bytes(content) if isinstance(content, bytes) else pq.write_table(content, part)
    with pytest.raises(InputError, match=rf"{part.name} is not a readable part of the metrics table .*; remove it"):
        read_experiment(run)


def test_a_truncated_part_is_named_by_rewind_too(run):
    writer = TableWriter(run / "metrics", METRICS)
    part = run / "metrics" / "part-000000001-000000009-000.parquet"
    part.write_bytes(next(run.glob("metrics/part-*")).read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{part.name} is not a readable part of the metrics table"):
        writer.rewind(3)


@pytest.mark.parametrize("content", ["{", "[1, 2]", "", '{"lr": NaN', "\x00"])
def test_a_corrupt_json_file_is_named(run, content):
    (run / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json .*remove the run or restore the file"):
        read_experiment(run)


def test_directories_that_hold_nothing(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a directory; give an experiment or a run"):
        read_experiment(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no runs; give an experiment or a run"):
        read_experiment(tmp_path)


def test_a_folder_that_cannot_be_made_or_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    for place in ("file", "file/metrics"):
        with pytest.raises(InputError, match=r"cannot write .*file.*free some space or choose another path"):
            TableWriter(tmp_path / place, METRICS)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot write .*read-only \(Permission denied\)"):
        TableWriter(tmp_path / "read-only", METRICS)


@pytest.mark.parametrize("write", [write_json, write_parquet], ids=["json", "parquet"])
def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(tmp_path, monkeypatch, write):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "content"
    path.write_text("old")
    monkeypatch.setattr(pq, "write_table", full)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"cannot write .*content \(No space left on device\); free some space"):
        write({"a": 1} if write is write_json else pa.table({"a": [1]}), path)
    assert [file.name for file in tmp_path.iterdir()] == ["content"]
    assert path.read_text() == "old"


LIMITED = """
import resource, sys, pathlib
from skip_conditioning.diagnostics.tables import TableWriter, METRICS
from skip_conditioning.diagnostics.errors import InputError
writer = TableWriter(pathlib.Path(sys.argv[1]), METRICS)
for step in range(50_000):
    writer.append({"run_id": "one", "step": step, "loss": step * 0.1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    writer.flush()
except InputError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not list(pathlib.Path(sys.argv[1]).iterdir())
writer.flush()
assert "torch" not in sys.modules
"""


def test_rows_survive_until_the_disk_takes_them(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert len(pd.read_parquet(tmp_path)) == 50_000


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"loss": float("nan")}, tmp_path / "status.json")
    assert not list(tmp_path.iterdir())
    write_json({"lr": 0.1}, tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text()) == {"lr": 0.1}


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
