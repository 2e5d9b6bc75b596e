"""Files are written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import (
    write_json,
    write_parquet,
)


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


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"loss": float("nan")}, tmp_path / "status.json")
    assert not list(tmp_path.iterdir())
    write_json({"lr": 0.1}, tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text()) == {"lr": 0.1}
