"""A run on disk that the tests of tables read and write."""

import pytest

from skip_conditioning.diagnostics.tables import METRICS, TableWriter, write_json


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
