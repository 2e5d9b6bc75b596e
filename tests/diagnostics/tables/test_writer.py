"""The writer of a table: parts that are whole or not there, rows that survive a kill and a full disk."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import METRICS, SPECTRA, TableWriter, read_experiment
from skip_conditioning.diagnostics.tables.parts import last_step


def test_pandas_reads_a_table_at_any_moment(run):
    (run / "metrics" / ".part-000004-000000004-000000004.parquet.tmp").write_bytes(b"half of it")
    assert len(pd.read_parquet(run / "metrics")) == 4
    assert len(read_experiment(run).metrics) == 4


def test_of_two_rows_with_one_key_the_later_written_counts(run):
    writer = TableWriter(run / "metrics", METRICS)
    for loss in (7.0, 8.0):
        writer.append({"run_id": "one", "step": 2, "split": "train", "loss": loss})
    writer.append({"run_id": "one", "step": 2, "split": "test", "loss": 9.0})
    writer.flush()
    measured = read_experiment(run).metrics
    assert len(measured) == 5
    assert measured.query("step == 2 and split == 'train'").loss.item() == 8.0


def test_parts_of_another_writer_are_an_error(run):
    one, other = (TableWriter(run / "metrics", METRICS) for _ in range(2))
    one.append({"run_id": "one", "step": 10, "split": "train"})
    one.flush()
    other.append({"run_id": "one", "step": 11, "split": "train"})
    with pytest.raises(InputError, match=r"something else writes to .*part-000004-000000010-000000010.parquet"):
        other.flush()
    assert read_experiment(run).metrics.step.tolist() == [0, 1, 2, 3, 10]


def test_order_of_writing_decides_between_rows_and_survives_a_copy(run, tmp_path):
    """Not the times of files, which a copy changes, nor the steps that their names begin with."""
    writer = TableWriter(run / "metrics", METRICS)
    for last, loss in ((30, 7.0), (20, 8.0)):
        for step in (2, last):
            writer.append({"run_id": "one", "step": step, "split": "train", "loss": loss})
        writer.flush()
    writer.append({"run_id": "one", "step": 3, "split": "train", "loss": 9.0})
    writer.save()
    copy = shutil.copytree(run, tmp_path / "copy")
    for age, part in enumerate(sorted(copy.glob("metrics/*"))):
        os.utime(part, (1e9 - age, 1e9 - age))
    for path in (run, copy):
        assert read_experiment(path).metrics.loss.tolist() == [1.0, 0.5, 8.0, 9.0, 8.0, 7.0]


def test_rows_in_the_journal_are_read_and_go_into_the_next_part(run):
    writer = TableWriter(run / "metrics", METRICS)
    for step in (4, 5):
        writer.append({"run_id": "one", "step": step, "split": "train", "loss": float("nan"), "lr": float("inf")})
        writer.save()
    (journal,) = run.glob("metrics/_part-*.jsonl")
    with journal.open("a") as file:
        file.write('{"run_id": "one", "st')  # cut short by a kill
    assert len(pd.read_parquet(run / "metrics")) == 4
    rows = read_experiment(run).metrics
    assert rows.step.tolist() == [0, 1, 2, 3, 4, 5]
    assert rows.lr.tolist()[-1] == float("inf")
    resumed = TableWriter(run / "metrics", METRICS)
    assert last_step(run / "metrics", METRICS) == 5
    resumed.append({"run_id": "one", "step": 6, "split": "train"})
    resumed.save()
    assert not journal.exists()
    assert pd.read_parquet(run / "metrics").step.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_a_journal_that_has_become_a_part_does_not_count(run):
    writer = TableWriter(run / "metrics", METRICS)
    writer.append({"run_id": "one", "step": 4, "split": "train", "loss": 4.0})
    writer.save()
    (journal,) = run.glob("metrics/_part-*.jsonl")
    content = journal.read_bytes()
    writer.flush()
    assert not journal.exists()
    journal.write_bytes(content)  # its writer was killed before it could remove it
    assert len(read_experiment(run).metrics) == 5
    TableWriter(run / "metrics", METRICS).rewind(3)
    assert read_experiment(run).metrics.step.tolist() == [0, 1, 2, 3]
    assert not journal.exists()


def test_rewind_forgets_what_came_after(run):
    writer = TableWriter(run / "metrics", METRICS)
    for step in range(4, 9):
        writer.append({"run_id": "one", "step": step, "split": "train", "loss": 0.0})
    writer.flush()
    (run / "metrics" / ".part-000009-000000004-000000008.parquet.tmp").write_bytes(b"left over")
    writer.rewind(6)
    assert read_experiment(run).metrics.step.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert not list((run / "metrics").glob(".*"))
    for step in (5, 6, 7):  # the run goes on from step 4, and writes some steps again
        writer.append({"run_id": "one", "step": step, "split": "train", "loss": 5.0})
        writer.flush()
    measured = read_experiment(run).metrics
    assert measured.step.tolist() == list(range(8))
    assert measured.loss.tolist()[-3:] == [5.0, 5.0, 5.0]
    writer.rewind(3)
    assert read_experiment(run).metrics.step.tolist() == [0, 1, 2, 3]


def test_a_part_never_replaces_another(run):
    for number in range(2):
        writer = TableWriter(run / "spectra", SPECTRA)
        writer.append({"run_id": "one", "step": 0, "map": "tail", "layer": f"layer{number}", "batch_mode": "batch"})
        writer.flush()
    assert sorted(read_experiment(run).spectra.layer) == ["layer0", "layer1"]


def test_a_truncated_part_is_named_by_rewind_too(run):
    writer = TableWriter(run / "metrics", METRICS)
    part = run / "metrics" / "part-000009-000000001-000000009.parquet"
    part.write_bytes(next(run.glob("metrics/part-*")).read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{part.name} is not a readable part of the metrics table"):
        writer.rewind(3)


def test_a_folder_that_cannot_be_made_or_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    for place in ("file", "file/metrics"):
        with pytest.raises(InputError, match=r"cannot write .*file.*free some space or choose another path"):
            TableWriter(tmp_path / place, METRICS)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot write .*read-only \(Permission denied\)"):
        TableWriter(tmp_path / "read-only", METRICS)


LIMITED = """
import resource, sys, pathlib
from skip_conditioning.diagnostics.tables import TableWriter, METRICS
from skip_conditioning.diagnostics.errors import InputError
writer = TableWriter(pathlib.Path(sys.argv[1]), METRICS)
for step in range(50_000):
    writer.append({"run_id": "one", "step": step, "loss": step * 0.1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for write in (writer.save, writer.flush):
    try:
        write()
    except InputError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not sum(path.stat().st_size for path in pathlib.Path(sys.argv[1]).iterdir())
writer.save()
writer.flush()
assert "torch" not in sys.modules
"""


def test_rows_survive_until_the_disk_takes_them(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert done.stdout.count("File too large") == 2
    assert len(pd.read_parquet(tmp_path)) == 50_000
