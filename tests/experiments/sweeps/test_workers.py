"""Runs trained by several processes: the tables of one, whatever becomes of the processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.monitor import Measurement
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.experiments.records.directory import LOCK, check_unlocked
from skip_conditioning.experiments.sweeps import workers as parallel
from skip_conditioning.experiments.sweeps.workers import run_in_processes
from skip_conditioning.experiments.train import main, parse
from skip_conditioning.experiments.training.runner import Runner

FRAGILE = """
import multiprocessing, os, signal, time
from pathlib import Path
from torch import nn

class Fragile(nn.Module):
    '''Is as the file `mood` says where a process trains that another one started.'''
    def forward(self, x):
        mood = open("mood").read() if multiprocessing.parent_process() else "good"
        if mood == "raises":
            while not any('"finished"' in path.read_text() for path in Path("o/runs").glob("sound-*/status.json")):
                time.sleep(0.01)
            raise RuntimeError("no such luck\\nat all")
        if mood == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if mood == "sleeps":
            time.sleep(0.5)
        return x

def net(arm="sound"):
    layers = [nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10)]
    return nn.Sequential(*layers, *([Fragile()] if arm == "fragile" else []))
net.arms = ("sound", "fragile")
"""

#: One without a guard.
SCRIPT = """
import signal
from skip_conditioning.experiments.config.command_line import run_command
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.sweeps.workers import run_in_processes
from skip_conditioning.experiments.train import parse

signal.signal(signal.SIGINT, signal.default_int_handler)
raise SystemExit(run_command(lambda config: run_in_processes(Runner(config), 2), parse))
"""

RUNS = ("--arms", "plain", "shrunk", "--lr", "0.1", "1e30", "--trials", "2", "--steps", "3")


@pytest.fixture
def fragile(small):
    """Options of an experiment with two sound runs, and two whose mood can be set."""
    Path("fragile.py").write_text(FRAGILE)
    return [*small, "--model", "fragile:net", "--arms", "sound", "fragile", "--trials", "2", "--no-diagnostics"]


@pytest.fixture
def script(fragile):
    """Start a script that trains fragile runs for long, in a process group of its own, and wait until it does."""
    Path("mood").write_text("sleeps")
    Path("script.py").write_text(SCRIPT.replace(", parse)", f", lambda: parse({[*fragile, '--out', 'o']!r}))"))
    paths = os.pathsep.join([str(Path(__file__).parents[3]), "."])
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len([*Path("o/runs").glob("fragile-*/status.json")]) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


def run(options, processes=2):
    run_in_processes(Runner(parse([*options, "--out", "o"])), processes)


def statuses():
    return read_experiment("o").runs.set_index("run_id")["status"].to_dict()


def written():
    return {path: path.stat().st_mtime_ns for path in Path("o").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_results_are_those_of_one_process_to_the_bit(train, same_results, capsys):
    whole = train("whole", *RUNS)
    capsys.readouterr()
    same_results(whole, train("o", *RUNS, "--processes", "2"))
    assert sorted(set(statuses().values())) == ["diverged", "finished"]
    assert not [*Path("o").rglob(".*")]
    assert "8/8" in capsys.readouterr().err  # runs, where one process alone counts steps


def test_processes_of_the_training_command_that_make_no_sense(small, capsys, monkeypatch):
    assert main([*small, "--out", "o", "--processes", "0"]) == 2
    assert "--processes must be at least 1; it is 0" in capsys.readouterr().err
    monkeypatch.setattr(Ranks, "count", 2)
    assert main([*small, "--out", "o", "--processes", "3"]) == 2
    assert "--processes 3 trains 3 runs at once, and torchrun each run in 2 processes" in capsys.readouterr().err
    assert not Path("o").exists()


@pytest.mark.slow
def test_only_what_is_not_over_is_trained(train, small, same_results):
    whole = train("whole", *RUNS)
    run([*small, *RUNS, "--trials", "1"], processes=1)
    before = {path: when for path, when in written().items() if "runs" in path.parts}
    run([*small, *RUNS, "--resume"])
    same_results(whole, Path("o"))
    assert {path: when for path, when in written().items() if path in before} == before


@pytest.mark.slow
def test_run_that_raises_is_named_and_can_be_repeated_and_those_before_it_are_those_of_one_process(
    fragile, same_results
):
    Path("mood").write_text("raises")
    said = r"run fragile-lr0.1-trial0[01] failed: RuntimeError: no such luck \(fragile.py, line 13\); runs that are"
    with pytest.raises(InputError, match=said) as caught:
        run(fragile)
    assert "in forward" in caught.value.__notes__[0]
    assert {"failed", "finished"} <= set(statuses().values())
    run([*fragile, "--resume"], processes=1)
    assert main([*fragile, "--out", "whole"]) == 0
    same_results(Path("whole"), Path("o"))


@pytest.mark.slow
def test_killed_process_is_reported_with_its_run(fragile):
    Path("mood").write_text("dies")
    with pytest.raises(InputError, match=r"that trained fragile-lr0.1-trial0[01] \(exit code -9\).* were killed"):
        run(fragile)
    assert "failed" in statuses().values()
    check_unlocked([Path("o"), *Path("o/runs").glob("*")])
    run([*fragile, "--resume"], processes=1)
    assert set(statuses().values()) == {"finished"}


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_says_how_to_go_on(script):
    os.killpg(script.pid, signal.SIGINT)  # as a terminal does
    _, err = script.communicate(timeout=10)
    assert script.returncode == 130
    assert err.splitlines()[-1] == "interrupted; to go on, repeat the command with --resume (and without --overwrite)"
    assert "Traceback" not in err
    assert {statuses()[f"fragile-lr0.1-trial0{trial}"] for trial in (0, 1)} == {"running"}
    assert not [*Path("o").rglob(LOCK)]


@pytest.mark.slow
def test_processes_end_when_the_one_that_started_them_is_killed(script):
    script.kill()
    script.communicate(timeout=10)  # until none has its stderr any more
    check_unlocked([Path("o"), *Path("o/runs").glob("*")])
    assert not [*Path("o").rglob(LOCK)]


@pytest.mark.parametrize(
    ("options", "processes", "changes"),
    [
        (RUNS, 1, {}),
        (("--trials", "3"), None, {}),
        (RUNS, 2, {"measurements": (Measurement("tail", schedule=lambda step: step == 2),)}),
    ],
    ids=["one process", "few runs", "measurements that cannot be sent"],
)
def test_otherwise_this_process_trains(small, monkeypatch, options, processes, changes):
    monkeypatch.setattr(parallel, "_Worker", None)
    run_in_processes(Runner(parse([*small, *options, "--out", "o"]).changed(**changes)), processes)
    assert set(statuses().values()) <= {"finished", "diverged"}
