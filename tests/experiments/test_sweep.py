"""A sweep by real processes: the tables of training, whatever becomes of single cells."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from diagnostics.tables import read_experiment
from experiments.locks import LOCK, check_unlocked
from experiments.outputs import write_status
from experiments.sweep import JobOptions, main, parse
from experiments.sweep_table import CellState, LiveTable
from experiments.train import main as train_main

FRAGILE = """
import os, signal, time
from torch import nn

class Fragile(nn.Module):
    '''Works for its first forward passes, which check it, and then as the file `mood` says.'''
    passes = 0
    def forward(self, x):
        Fragile.passes += 1
        mood = open("mood").read()
        if os.environ.get("SUBMITIT_EXECUTOR") and Fragile.passes > 2:
            if mood == "raises":
                raise RuntimeError("no such luck")
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


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def fragile(small):
    """Options of an experiment with a sound arm and one whose mood can be set."""
    Path("fragile.py").write_text(FRAGILE)
    Path("mood").write_text("good")
    return [*small, "--model", "fragile:net", "--arms", "fragile", "sound", "--steps", "3", "--no-diagnostics"]


def statuses(out):
    return read_experiment(out).runs.set_index("run_id")["status"].to_dict()


def logs(out):
    return sorted(Path(out).glob("jobs/*/*_log.err"))


def test_tables_are_those_of_training_and_finished_cells_are_not_repeated(small, train, same_results, capsys):
    # Jobs train one by one, and rounding is not compared here.
    alone = ("--together", "no")
    options = ("--model", "nets:batch_norm", "--arms", "shrunk", "--lr", "0.1", "1e30", "--steps", "3", *alone)
    whole = train("whole", *options)
    printed = capsys.readouterr().out
    assert main([*small, *options, "--lr", "0.1", "--out", "swept"]) == 0
    assert len(logs("swept")) == 1
    assert main([*small, *options, "--out", "swept", "--resume"]) == 0
    out, err = capsys.readouterr()
    same_results(whole, Path("swept"))
    assert len(logs("swept")) == 2
    assert not [*Path("swept").rglob(".*")]
    assert printed.partition("diagnostics took")[0] in out
    changes = [line.split()[:2] for line in err.splitlines() if line.startswith("shrunk-lr1e+30")]
    assert changes[-1] == ["shrunk-lr1e+30-trial00", "diverged"]
    assert "2 cells: 1 finished, 1 queued" in err
    assert train_main([*small, *options, "--out", "swept", "--resume"]) == 0, "training goes on with a sweep"
    assert main([*small, *options, "--out", "swept", "--resume"]) == 0, "nothing left to do"
    assert len(logs("swept")) == 2


def test_failing_cell_is_reported_and_the_rest_finish_and_it_can_be_retried(fragile, same_results, capsys):
    Path("mood").write_text("raises")
    assert main([*fragile, "--out", "o"]) == 1
    out, err = capsys.readouterr()
    assert statuses("o") == {"fragile-lr0.1-trial00": "failed", "sound-lr0.1-trial00": "finished"}
    assert "sound" in out
    failed = re.search(r"^failed: fragile-lr0.1-trial00: RuntimeError: no such luck \(log: (.*)\)$", err, re.MULTILINE)
    assert "in forward" in Path(failed[1]).read_text()
    assert "--retry" in err.splitlines()[-1]
    Path("mood").write_text("good")
    assert main([*fragile, "--out", "o", "--resume"]) == 1, "what failed waits for --retry"
    assert len(logs("o")) == 2
    assert main([*fragile, "--out", "o", "--retry"]) == 0
    assert len(logs("o")) == 3
    assert train_main([*fragile, "--out", "whole"]) == 0
    same_results(Path("whole"), Path("o"))


def test_killed_cell_has_failed_and_not_for_an_earlier_reason(fragile, capsys):
    Path("mood").write_text("dies")
    fragile += ["--arms", "fragile", "--out", "o"]
    said = "failed: fragile-lr0.1-trial00: its process ended without a result; it was killed or could not start"
    assert main(fragile) == 1
    assert statuses("o") == {"fragile-lr0.1-trial00": "failed"}
    assert said in capsys.readouterr().err
    write_status(Path("o/runs/fragile-lr0.1-trial00"), "failed", reason="long ago")
    Path("fragile.py").write_text(FRAGILE + "if 'SUBMITIT_EXECUTOR' in os.environ: os.kill(os.getpid(), 9)")
    assert main([*fragile, "--retry"]) == 1
    assert said in capsys.readouterr().err


def test_ctrl_c_cancels_the_jobs_and_says_how_to_go_on(fragile, same_results, capsys):
    Path("mood").write_text("sleeps")
    fragile += ["--arms", "fragile", "--steps", "30"]
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from experiments.sweep import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *fragile, "--out", "o"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    status = Path("o/runs/fragile-lr0.1-trial00/status.json")
    while not (status.exists() and "step" in status.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    assert json.loads(status.read_text())["status"] == "running"
    # As a terminal does: to the command and all its jobs.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; to go on, repeat the command with --resume (and without --overwrite)"
    assert "Traceback" not in err
    assert statuses("o") == {"fragile-lr0.1-trial00": "running"}
    check_unlocked(Path("o/runs").glob("*"))
    Path("mood").write_text("good")
    assert main([*fragile, "--out", "o", "--resume"]) == 0
    assert train_main([*fragile, "--out", "whole"]) == 0
    same_results(Path("whole"), Path("o"))
    assert not [*Path("o").rglob(LOCK)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["name a preset"]),
        (["demo"], ["--out"]),
        (["demo", "--out", "o", "--jobs", "0"], ["--jobs must be at least 1; it is 0"]),
        (["demo", "--out", "o", "--hours", "-1"], ["--hours must be a positive number; it is -1"]),
        (["demo", "--out", "o", "--executor", "cloud"], ["--executor", "cloud", "slurm"]),
        (["demo", "--out", "o", "--executor", "slurm"], ["--executor slurm", "srun"]),
        (["demo", "--out", "o", "--partition", "gpu"], ["--partition gpu", "--executor slurm"]),
        (["demo", "--out", "o", "--arms", "chian"], ["'chian'", "Did you mean 'chain'"]),
        (["demo", "--out", "o", "--retry", "--overwrite"], ["--overwrite", "one of them"]),
        (["demo", "--out", "o", "--steps", "3", "--epochs", "2"], ["either --steps or --epochs"]),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(options, words, nets, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(options) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert all(word in err for word in words), err
    assert not Path("o").exists()


def test_missing_submitit(nets, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["demo", "--out", "o"]) == 2
    assert "pip install skip-conditioning[sweep]" in capsys.readouterr().err
    assert not Path("o").exists()


def test_submission_that_is_refused(small, capsys, monkeypatch):
    def refuse(*_):
        raise RuntimeError("queue is closed")

    monkeypatch.setattr("submitit.LocalExecutor.submit", refuse)
    monkeypatch.setattr("submitit.AutoExecutor.submit", refuse)
    assert main([*small, "--out", "o"]) == 2
    err = capsys.readouterr().err
    assert "the job of plain-lr0.1-trial00 cannot be submitted: queue is closed" in err
    assert not [*Path("o").rglob(".*")]


def test_options_are_trainings_and_the_jobs(capsys):
    config = parse(["paper-cifar10", "--out", "o", "--steps=7", "--jobs", "3", "--lr", "0.5", "0.02"])
    assert (config.train.steps, config.train.epochs, config.train.lr) == (7, None, (0.5, 0.02))
    assert config.jobs == JobOptions(jobs=3)
    with pytest.raises(SystemExit):
        parse(["demo", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{option.name}" in text for option in fields(JobOptions))
    assert "--batch-size" in text


class Terminal(io.StringIO):
    def isatty(self):
        return True


STATES = [CellState("a", "finished", seconds=2.5), CellState("bb", "running", step=3), CellState("c", "queued")]


def test_table_is_redrawn_in_place_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "24")
    stream = Terminal()
    table = LiveTable(stream, 9)
    table.show(STATES)
    first = stream.getvalue()
    assert first.splitlines() == [
        "3 cells: 1 running,",
        "a   finished  2.5 s",
        "bb  running   step "[:19],
        "c   queued  ",
    ]
    table.show(STATES)
    assert stream.getvalue() == f"{first}\x1b[4F\x1b[J{first}"


def test_table_longer_than_the_terminal_shows_what_matters(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "5")
    stream = Terminal()
    LiveTable(stream, 9).show([*STATES, CellState("d", "failed", reason="no luck")])
    assert [line.split() for line in stream.getvalue().splitlines()] == [
        ["4", "cells:", "1", "failed,", "1", "running,", "1", "finished,", "1", "queued"],
        ["bb", "running", "step", "3/9"],
        ["d", "failed", "no", "luck"],
        ["…", "and", "2", "more"],
    ]


def test_elsewhere_it_prints_changes_only():
    stream = io.StringIO()
    table = LiveTable(stream, 9)
    for states in (STATES, STATES, [*STATES[:2], CellState("c", "failed", reason="no luck")]):
        table.show(states)
    assert stream.getvalue() == "3 cells: 1 running, 1 finished, 1 queued\nc  failed  no luck\n"
