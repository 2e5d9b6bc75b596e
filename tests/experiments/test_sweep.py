"""A sweep whose jobs are processes of this machine, or run in this one: training's tables, whatever becomes of runs."""

import io
import os
import re
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from submitit import DebugExecutor, LocalExecutor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.records.directory import LOCK, check_unlocked, write_status
from skip_conditioning.experiments.sweep import JobOptions, main, parse
from skip_conditioning.experiments.sweeps import jobs as sweep_jobs
from skip_conditioning.experiments.sweeps.jobs import LiveTable, RunState
from skip_conditioning.experiments.train import main as train_main

SLURM_EXECUTOR = sweep_jobs._slurm_executor

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
#: At the end of that module: no job comes further.
DEAD = "if 'SUBMITIT_EXECUTOR' in os.environ: os.kill(os.getpid(), 9)"
KILLED = "failed: fragile-lr0.1-trial00: its process ended without a result; it was killed or could not start"


@pytest.fixture(autouse=True)
def cluster(tmp_path, monkeypatch):
    """The commands of a cluster that takes jobs and forgets them; the folder they are in."""
    commands = tmp_path / "slurm"
    commands.mkdir()
    for name in ("srun", "sbatch"):
        (commands / name).write_text("#!/bin/sh\necho Submitted batch job 12\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    return commands


@pytest.fixture(autouse=True)
def _jobs_here(monkeypatch):
    """Jobs are processes of this machine, of one thread each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sweep_jobs, "_slurm_executor", lambda options, folder, gpus: patient(LocalExecutor(folder)))
    monkeypatch.setattr(sweep_jobs, "_CHECK_EVERY", 0.1)
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # no network file system is late here
    # A job is cancelled by this signal, which what runs in the background of a shell hands down to be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def patient(executor):
    """An executor whose jobs may take as long as they do on a busy machine: after 1.5 minutes it would stop them."""
    executor.update_parameters(timeout_min=30)
    return executor


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


@pytest.mark.parametrize("executor", [pytest.param(LocalExecutor, marks=pytest.mark.slow), DebugExecutor])
def test_tables_are_those_of_training_and_finished_runs_are_not_repeated(
    executor, small, train, same_results, capsys, monkeypatch
):
    monkeypatch.setattr(sweep_jobs, "_slurm_executor", lambda options, folder, gpus: patient(executor(folder)))
    options = ("--model", "nets:batch_norm", "--arms", "shrunk", "--lr", "0.1", "1e30", "--steps", "3")
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
    assert "2 runs: 1 finished, 1 queued" in err
    assert train_main([*small, *options, "--out", "swept", "--resume"]) == 0, "training goes on with a sweep"
    assert main([*small, *options, "--out", "swept", "--resume"]) == 0, "nothing left to do"
    assert len(logs("swept")) == 2


@pytest.mark.slow
def test_failing_run_is_reported_and_the_rest_finish_and_it_can_be_retried(fragile, same_results, capsys):
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


@pytest.mark.slow
def test_killed_run_has_failed_and_not_for_an_earlier_reason(fragile, capsys):
    Path("mood").write_text("dies")
    fragile += ["--arms", "fragile", "--out", "o"]
    assert main(fragile) == 1
    assert statuses("o") == {"fragile-lr0.1-trial00": "failed"}
    assert KILLED in capsys.readouterr().err
    write_status(Path("o/runs/fragile-lr0.1-trial00"), "failed", reason="long ago")
    Path("fragile.py").write_text(FRAGILE + DEAD)
    assert main([*fragile, "--retry"]) == 1
    assert KILLED in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_is_killed_before_it_begins_has_failed(fragile, capsys):
    Path("fragile.py").write_text(FRAGILE + DEAD)
    assert main([*fragile, "--arms", "fragile", "--out", "o"]) == 1
    assert statuses("o") == {"fragile-lr0.1-trial00": "failed"}
    assert KILLED in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_cancels_the_jobs_and_says_how_to_go_on(fragile, same_results, capsys, monkeypatch):
    def interrupt(table, states):
        if any(state.step for state in states):
            assert [state.status for state in states] == ["running"]
            raise KeyboardInterrupt

    Path("mood").write_text("sleeps")
    fragile += ["--arms", "fragile", "--steps", "30"]
    with monkeypatch.context() as patch:
        patch.setattr(LiveTable, "show", interrupt)
        assert main([*fragile, "--out", "o"]) == 130
    said = "interrupted; to go on, repeat the command with --resume (and without --overwrite)\n"
    assert capsys.readouterr().err == said
    wait_until_unlocked(Path("o/runs/fragile-lr0.1-trial00"))
    assert statuses("o") == {"fragile-lr0.1-trial00": "running"}
    Path("mood").write_text("good")
    assert main([*fragile, "--out", "o", "--resume"]) == 0
    assert train_main([*fragile, "--out", "whole"]) == 0
    same_results(Path("whole"), Path("o"))
    assert not [*Path("o").rglob(LOCK)]


def wait_until_unlocked(run):
    """Wait for the job of a run to be gone."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return check_unlocked([run])
        except InputError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.slow
def test_no_more_jobs_at_a_time_than_asked_for(fragile, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(LiveTable, "show", lambda table, states: shown.append([state.status for state in states]))
    assert main([*fragile, "--jobs", "1", "--out", "o"]) == 0
    assert shown[-1] == ["finished"] * 2
    assert all(states.count("running") <= 1 for states in shown)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["name a preset"]),
        (["demo"], ["--out"]),
        (["demo", "--out", "o", "--jobs", "0"], ["--jobs must be at least 1; it is 0"]),
        (["demo", "--out", "o", "--hours", "-1"], ["--hours must be a positive number; it is -1"]),
        (["demo", "--out", "o", "--processes", "2"], ["--processes", "skip-conditioning train"]),
        (["demo", "--out", "o", "--estimate"], ["--estimate", "skip-conditioning train"]),
        (["demo", "--out", "o", "--arms", "chian"], ["'chian'", "Did you mean 'chain'"]),
        (["demo", "--out", "o", "--retry", "--overwrite"], ["--overwrite", "one of them"]),
        (["demo", "--out", "o", "--steps", "3", "--epochs", "2"], ["either --steps or --epochs"]),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(options, words, nets, capsys):
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


def test_without_a_cluster(nets, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["demo", "--out", "o"]) == 2
    assert re.search("needs Slurm, .*srun.* skip-conditioning train here, with --processes", capsys.readouterr().err)
    assert not Path("o").exists()


def test_slurm_is_told_the_options(tmp_path):
    submit = SLURM_EXECUTOR(JobOptions(partition="long", hours=1.5), tmp_path / "jobs", gpus=1).submit
    assert submit(print, "done").job_id == "12"
    (file,) = (tmp_path / "jobs").glob("12_*.sh")
    lines = file.read_text().splitlines()
    assert {"#SBATCH --partition=long", "#SBATCH --time=90", "#SBATCH --gpus-per-node=1"} <= set(lines)


def test_submission_that_is_refused(small, capsys, monkeypatch):
    def refuse(*_):
        raise RuntimeError("queue is closed")

    monkeypatch.setattr("submitit.LocalExecutor.submit", refuse)
    assert main([*small, "--out", "o"]) == 2
    err = capsys.readouterr().err
    assert "the job of plain-lr0.1-trial00 cannot be submitted: queue is closed" in err
    assert not [*Path("o").rglob(".*")]


def test_options_are_trainings_and_the_jobs(capsys):
    config = parse(["paper-cifar10", "--out", "o", "--steps=7", "--jobs", "3", "--lr", "0.5", "0.02"])
    assert (config.train.optimisation.steps, config.train.optimisation.epochs, config.train.optimisation.lr) == (
        7,
        None,
        (0.5, 0.02),
    )
    assert config.jobs == JobOptions(jobs=3)
    with pytest.raises(SystemExit):
        parse(["demo", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{option.name}" in text for option in fields(JobOptions))
    assert "--batch-size" in text


class Terminal(io.StringIO):
    def isatty(self):
        return True


STATES = [RunState("a", "finished", seconds=2.5), RunState("bb", "running", step=3), RunState("c", "queued")]


def test_table_is_redrawn_in_place_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "24")
    stream = Terminal()
    table = LiveTable(stream, 9)
    table.show(STATES)
    first = stream.getvalue()
    assert first.splitlines() == [
        "3 runs: 1 running, ",
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
    LiveTable(stream, 9).show([*STATES, RunState("d", "failed", reason="no luck")])
    assert [line.split() for line in stream.getvalue().splitlines()] == [
        ["4", "runs:", "1", "failed,", "1", "running,", "1", "finished,", "1", "queued"],
        ["bb", "running", "step", "3/9"],
        ["d", "failed", "no", "luck"],
        ["…", "and", "2", "more"],
    ]


def test_elsewhere_it_prints_changes_only():
    stream = io.StringIO()
    table = LiveTable(stream, 9)
    for states in (STATES, STATES, [*STATES[:2], RunState("c", "failed", reason="no luck")]):
        table.show(states)
    assert stream.getvalue() == "3 runs: 1 running, 1 finished, 1 queued\nc  failed  no luck\n"
