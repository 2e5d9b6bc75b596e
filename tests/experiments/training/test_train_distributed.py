"""Training in two processes, from the command line on: the tables and weights of one, one voice, and clear ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.records.directory import read_status
from skip_conditioning.experiments.train import main
from tests.experiments.conftest import SMALL, timeless
from tests.processes import run_forked

ROOT = Path(__file__).parents[3]

#: In float32 training would make the rounding of a sum in two parts large.
FACTORIES = """
import os
import torch
from torch import nn

class Double(nn.Module):
    def __init__(self, *inner):
        super().__init__()
        layers = nn.Linear(784, 16), *inner, nn.Tanh(), nn.Linear(16, 10)
        self.layers = nn.Sequential(nn.Flatten(), *layers).double()

    def forward(self, x):
        return self.layers(x.double())

def plain():
    return Double()

def norm():
    return Double(nn.BatchNorm1d(16))

def dropout():
    return Double(nn.Dropout(0.5))

def fails_in_second():
    if os.environ.get("RANK") == "1":
        raise RuntimeError("no such luck")
    return Double()
"""

#: Trains one experiment after another; the processes meet for each at a port of its own.
PROGRAM = """
import json, os, signal, sys
import skip_conditioning.experiments.processes.group
from skip_conditioning import experiments
from skip_conditioning.experiments.train import main
from skip_conditioning.experiments.training.trainer import Trainer

experiments.processes.group._PATIENCE = 0
for arguments, port, killed_at in json.loads(sys.argv[1]):
    def step(self, network, number, whole=Trainer._step):
        if number == killed_at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, network, number)
    if killed_at is not None:
        Trainer._step = step
    os.environ["MASTER_PORT"] = str(port)
    for stream in (sys.stdout, sys.stderr):
        print("begin", arguments[arguments.index("--out") + 1], file=stream, flush=True)
    code = main(arguments)
    print("code", code, flush=True)
os._exit(code)  # gloo's threads have been seen to abort while the interpreter ends
"""

#: 41 images in batches of 17, 17 and 7, of which the second process takes 9, 9 and 4.
UNEVEN = ("--subset", "41", "--batch-size", "17", "--layers", "layers.1")
EVERYTHING = ("--momentum", "0.9", "--weight-decay", "0.01", "--augment", "crop", "--bounds")

RUNS = {
    "frozen": ("--model", "theirs:norm", *UNEVEN, *EVERYTHING, "--batch-norm", "frozen"),
    "synchronised": ("--model", "theirs:norm", *UNEVEN, "--sync-batch-norm"),
    "plain": ("--model", "theirs:plain", *UNEVEN, *EVERYTHING),
    "unmeasured": ("--model", "theirs:plain", *UNEVEN, *EVERYTHING[:-1], "--no-diagnostics"),
    "diverging": ("--model", "theirs:plain", *UNEVEN, "--lr", "1e308"),
    "few": ("--model", "theirs:plain", *UNEVEN, "--batch-size", "3"),
    "wrong": ("--model", "theirs:plain", *UNEVEN, "--lr", "-1"),
    "second": ("--model", "theirs:fails_in_second", *UNEVEN),
    "dropout": ("--model", "theirs:dropout", *UNEVEN, *EVERYTHING),
    "board": ("--model", "theirs:plain", *UNEVEN, "--log", "tensorboard"),
}

TOGETHER = tuple(name for name in RUNS if name != "dropout")


def arguments(name):
    return [*SMALL, "--arms", "default", "--lr", "0.05", *RUNS[name], "--out"]


def free_ports(count):
    taken = [socket.socket() for _ in range(count)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()


def environment(folder):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


def in_two_processes(folder, *experiments, killed_at=None):
    """Exit code, standard output and standard error of both; both have to end in time."""
    ports = free_ports(len(experiments))
    plan = json.dumps([(one, port, killed_at) for one, port in zip(experiments, ports, strict=True)])
    variables = [
        {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)
    ]
    imports = ("torch._dynamo", "skip_conditioning.experiments.train", "skip_conditioning.diagnostics.measure")
    return run_forked(PROGRAM, [[plan]] * 2, folder, imports=imports, variables=variables, directory=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where experiments are, and a user's module ``theirs``, importable here too."""
    place = tmp_path_factory.mktemp("distributed")
    (place / "theirs.py").write_text(FACTORIES)
    before = Path.cwd()
    os.chdir(place)
    sys.path.insert(0, str(place))
    yield place
    os.chdir(before)
    sys.path.remove(str(place))


@pytest.fixture(scope="module")
def shared(folder):
    """What each of two processes said of each of ``TOGETHER``: pairs of its standard output and error, by name."""
    both = in_two_processes(folder, *([*arguments(name), name] for name in TOGETHER))
    parts = [[re.split(r"^begin \w+\n", text, flags=re.M)[1:] for text in texts] for _, *texts in both]
    assert [[len(one) for one in streams] for streams in parts] == [[len(TOGETHER)] * 2] * 2, both
    return {name: [(out[place], error[place]) for out, error in parts] for place, name in enumerate(TOGETHER)}


def by_one(folder, name):
    out = folder / f"{name}-alone"
    if not out.exists():
        assert main([*arguments(name), str(out)]) == 0
    return out


def weights(directory):
    (run,) = directory.glob("runs/*")
    files = sorted(run.glob("checkpoints/step_*.safetensors"))
    assert files
    return {(file.name, name): tensor for file in files for name, tensor in load_file(file).items()}


def close(one, other):
    assert one.keys() == other.keys()
    return all(torch.allclose(one[key], other[key], rtol=1e-9, atol=1e-12) for key in one)


def assert_same_tables(one, other):
    first, second = read_experiment(one), read_experiment(other)
    for name, keys in (
        ("runs", ["run_id"]),
        ("metrics", ["step", "split"]),
        ("spectra", ["step", "map", "layer"]),
        ("skipped", ["step", "map"]),
    ):
        tables = [timeless(getattr(tables, name)).sort_values(keys, ignore_index=True) for tables in (first, second)]
        if name == "spectra":
            # Floors are measured, of rounding, which depends on how the work is shared.
            np.testing.assert_allclose(*(table.pop("floor") for table in tables), rtol=0.5)
            tables = [
                table.drop(columns=["witness", "sigma_min", "sigma_gmean", "condition_number"]) for table in tables
            ]
        pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=1e-8, atol=1e-10, obj=name)
    assert len(first.spectra)
    assert {"train", "test", "probe"} <= set(first.metrics.split)
    speeds = [pd.read_parquet(directory / "speed.parquet") for directory in (one, other)]
    pd.testing.assert_frame_equal(*speeds)


@pytest.mark.parametrize("name", ["frozen", "plain"])
def test_two_processes_train_measure_and_evaluate_as_one(name, folder, shared):
    assert [out.splitlines()[-1] for out, _ in shared[name]] == ["code 0"] * 2, shared[name]
    alone = by_one(folder, name)
    assert_same_tables(alone, folder / name)
    assert close(weights(alone), weights(folder / name))
    assert read_experiment(folder / name).metrics.predicted_decrease.notna().any()


def test_training_is_the_same_without_diagnostics(folder, shared):
    assert [out.splitlines()[-1] for out, _ in shared["unmeasured"]] == ["code 0"] * 2
    one, other = weights(folder / "plain"), weights(folder / "unmeasured")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_experiment(folder / "unmeasured").spectra.empty


def test_the_first_process_alone_shows_progress_and_prints_the_summary(shared):
    for name in ("frozen", "plain", "diverging"):
        (out, error), (other_out, other_error) = shared[name]
        assert "step" in error
        assert len(out.splitlines()) > 2
        assert (other_out, other_error) == ("code 0\n", "")
        assert "find_unused_parameters" not in error


def test_a_diverging_run_ends_in_both(folder, shared):
    assert [out.splitlines()[-1] for out, _ in shared["diverging"]] == ["code 0"] * 2
    (run,) = folder.glob("diverging/runs/*")
    assert read_status(run)["status"] == "diverged"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("few", "error: 2 processes need 4 images a step; there are 3\n"),
        ("wrong", "error: --lr must be a positive"),
        ("synchronised", "error: --sync-batch-norm needs GPUs"),
    ],
)
def test_what_is_wrong_for_both_is_said_once(name, message, folder, shared):
    (out, error), other = shared[name]
    assert out == "code 2\n"
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert other == ("code 2\n", "")
    assert not (folder / name).exists()


@pytest.mark.slow
def test_torchrun_passes_on_one_line_of_bad_input(folder):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "skip_conditioning.experiments.train", *arguments("wrong"), "bad"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stderr.count("error: --lr must be a positive number; it is -1.0\n") == 1


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other_and_the_run_goes_on_to_the_same_bits(folder):
    whole = in_two_processes(folder, [*arguments("dropout"), "dropout"])
    assert [code for code, *_ in whole] == [0, 0], whole
    interrupted = [*arguments("dropout"), "killed"]
    (code, out, error), (other_code, *_) = in_two_processes(folder, interrupted, killed_at=4)
    assert (code, other_code) == (2, -signal.SIGKILL)
    assert "summary" not in out
    lines = [line for line in re.split(r"[\r\n]", error) if line.startswith("error:")]
    assert len(lines) == 1, error
    assert "a process of this run died" in lines[0]
    assert "Traceback" not in error
    resumed = in_two_processes(folder, [*interrupted, "--resume"])
    assert [code for code, *_ in resumed] == [0, 0], resumed
    one, other = weights(folder / "dropout"), weights(folder / "killed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    tables = [read_experiment(folder / name) for name in ("dropout", "killed")]
    for name in ("metrics", "spectra", "skipped"):
        pd.testing.assert_frame_equal(*(timeless(getattr(table, name)) for table in tables), check_exact=True)


def test_resuming_with_another_number_of_processes_is_refused(folder, shared, capsys):
    assert main([*arguments("plain"), "plain", "--resume"]) == 2
    assert "torchrun-processes 2 → 1" in capsys.readouterr().err


def test_what_is_wrong_in_one_process_is_not_lost(shared):
    (out, error), (other_out, other_error) = shared["second"]
    assert out == other_out == "code 2\n"
    assert other_error.startswith("error: model 'theirs:fails_in_second' raised RuntimeError: no such luck (")
    assert "a process of this run died" in error
    assert "Traceback" not in error + other_error


def test_a_service_is_logged_to_by_the_first_process(folder, shared):
    pytest.importorskip("tensorboard")
    assert [out.splitlines()[-1] for out, _ in shared["board"]] == ["code 0"] * 2, shared["board"]
    assert len(list(folder.glob("board/**/events.out.tfevents*"))) == 1
