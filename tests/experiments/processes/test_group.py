"""The analysis in several processes, as ``torchrun`` starts them: one table, printed once, that of a single process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from skip_conditioning.experiments.processes.group import is_first_process, process_group
from skip_conditioning.experiments.processes.machine import own_device
from skip_conditioning.experiments.spectrum_analysis import main

FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Tanh(), nn.Linear(40, 20))
"""


@pytest.fixture
def foreign(tmp_path):
    """A factory, its weights and a probe, in a folder; the options that name them."""
    (tmp_path / "theirs.py").write_text(FACTORY)
    namespace = {}
    exec(FACTORY, namespace)
    torch.manual_seed(0)
    torch.save(namespace["net"]().state_dict(), tmp_path / "weights.pt")
    np.save(tmp_path / "probe.npy", np.random.default_rng(0).normal(size=(5, 6)))
    return ["--model", "theirs:net", "--weights", "weights.pt", "--probe", "probe.npy", "--device", "cpu"]


def two_processes(folder, *options):
    """Run the analysis in a folder, in two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "skip_conditioning", "analyse", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_two_processes_write_and_print_what_one_does_once(foreign, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [*foreign, "--layers", "0", "2", "--map", "tail", "--method", "lanczos", "--spectra-dtype", "float64"]
    assert main([*options, "--out", "alone"]) == 0
    printed = capsys.readouterr().out.replace("alone", "shared")
    done = two_processes(tmp_path, *options, "--out", "shared")
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
    assert printed.count("σ mean") == 1
    assert len(list(tmp_path.glob("shared/spectra/*.parquet"))) == 1
    alone, shared = (pd.read_parquet(tmp_path / name / "spectra") for name in ("alone", "shared"))
    assert list(shared["layer"]) == ["0", "2"]
    pd.testing.assert_frame_equal(alone.drop(columns="seconds"), shared.drop(columns="seconds"), check_exact=True)


def test_a_single_process_is_the_first_and_has_no_group(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert is_first_process()
    with process_group(torch.device("cpu")) as group:
        assert group is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group(torch.device("cpu")) as group:
        assert group is None


def test_of_several_processes_the_one_of_rank_0_is_the_first(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not is_first_process()
    monkeypatch.setenv("RANK", "0")
    assert is_first_process()


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device(torch.device("cuda")) == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(torch.device("cuda")) == torch.device("cuda", 3)
    assert own_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert own_device(torch.device("cpu")) == torch.device("cpu")


def test_a_process_ends_with_the_torchrun_that_started_it(tmp_path):
    child = tmp_path / "child.py"
    child.write_text(
        "import os, pathlib, time\n"
        "from skip_conditioning.experiments.processes.group import _end_with_torchrun\n"
        "_end_with_torchrun()\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(100)\n"
    )
    script = f"import subprocess, sys; subprocess.run([sys.executable, {str(child)!r}])"
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "1"}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists())


def until(happened):
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)
