import functools
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from pyarrow import parquet

from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.data import datasets
from skip_conditioning.experiments.train import main

NETS = """
import torch
from torch import nn

def layers(*inner, width=16, classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), *inner, nn.ReLU(), nn.Linear(width, classes))

def batch_norm(arm="plain"):
    model = layers(nn.BatchNorm1d(16))
    if arm == "shrunk":
        with torch.no_grad():
            model[1].weight.mul_(0.5)
    return model
batch_norm.arms = ("plain", "shrunk")

def dropout():
    return layers(nn.Dropout(0.5), nn.Linear(16, 16), nn.Dropout(0.5))

def bad(kind="nan"):
    if kind == "raises":
        raise RuntimeError("no such luck\\nat all")
    model = layers()
    if kind == "nan":
        model[1].weight.data[3, 5] = torch.nan
    elif kind == "few":
        model = layers(classes=7)
    elif kind == "flat":
        model.append(nn.Flatten(0))
    elif kind == "tuple":
        model.append(TupleOf())
    elif kind == "wide":
        model[1] = nn.Linear(785, 16)
    return model

class Greedy(nn.Module):
    def forward(self, x):
        if len(x) > 12 and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return x

def greedy():
    return layers(Greedy())

class TupleOf(nn.Module):
    def forward(self, x):
        return x, x
"""


@pytest.fixture(scope="session", autouse=True)
def _digits_are_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_load_digits", functools.cache(datasets._load_digits))
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks here are too small to gain from more, and other tests' processes would suffer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A user's module ``nets`` with factories, importable here and from its folder, the working directory."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


SMALL = (
    *("paper-mnist", "--dataset", "digits", "--model", "nets:batch_norm", "--arms", "plain", "--layers", "1"),
    *("--trials", "1", "--steps", "6", "--subset", "40", "--batch-size", "16", "--probe-size", "3"),
    *("--checkpoints", "2", "--evaluate-epochs", "1", "--limit-test", "30", "--device", "cpu"),
)


@pytest.fixture
def small(nets):
    """Options of an experiment of one run of 6 steps, two epochs, that takes a moment."""
    return SMALL


@pytest.fixture
def train(nets):
    """Train here, and return the experiment's directory."""

    def run(out, *options):
        assert main([*SMALL, "--out", str(out), *options]) == 0
        return Path(out)

    return run


def timeless(frame):
    """A table without what a clock, the memory's state or somebody who edits this checkout meanwhile decides."""
    others = ("peak_bytes", "diagnostics_share", "git_revision")
    return frame.drop(columns=[c for c in frame if "seconds" in c or c in others])


@pytest.fixture
def same_results():
    """Compare two experiments: all tables and, to the bit, all checkpoints of weights."""

    def compare(first, second):
        one, other = read_experiment(first), read_experiment(second)
        for name in ("runs", "metrics", "spectra", "skipped"):
            tables = [timeless(getattr(tables, name)) for tables in (one, other)]
            pd.testing.assert_frame_equal(*tables, check_exact=True, obj=name)
            if name != "runs":
                parts = [parquet.ParquetFile(part) for part in second.glob(f"runs/*/{name}/*.parquet")]
                assert sum(part.metadata.num_rows for part in parts) == len(tables[1]), f"{name} has rows twice"
        assert weights(first) == weights(second)
        speeds = [pd.read_parquet(directory / "speed.parquet") for directory in (first, second)]
        pd.testing.assert_frame_equal(*speeds, check_exact=True)

    return compare


def weights(directory):
    files = sorted(directory.glob("runs/*/checkpoints/step_*.safetensors"))
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


@pytest.fixture
def stopped_at_every_file(train, small, same_results, monkeypatch):
    """Stop training just before or after each file that appears, which it does by being renamed, and resume it."""

    def run(*options, fewest):
        rename, count = Path.replace, 0

        def counted(path, target):
            nonlocal count
            count += 1
            if count == stop and before:
                raise KeyboardInterrupt
            rename(path, target)
            if count == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", counted)
        stop, before = -1, False
        whole = train("whole", *options)
        total = count
        assert total > fewest
        for stop in range(1, total + 1):
            count, before, out = 0, stop % 2 == 0, f"stopped-{stop}"
            assert main([*small, "--out", out, *options]) == 130
            count = total  # no further stop
            same_results(whole, train(out, "--resume", *options))
            yield whole, Path(out)

    return run


@pytest.fixture
def real_data():
    if "SKIP_DATA_DIR" not in os.environ:
        pytest.skip("SKIP_DATA_DIR is not set: no real data")
    return Path(os.environ["SKIP_DATA_DIR"])


@pytest.fixture
def start(nets):
    """Start the train command in a process of its own."""

    def run(*args, before="", **options):
        code = f"{before}\nfrom skip_conditioning.experiments.train import main; raise SystemExit(main())"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(nets)}
        command = [sys.executable, "-c", code, *SMALL, *args]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    return run
