"""Whole experiments whose runs are trained together: the numbers, what is refused, and kills at any moment."""

import json
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from diagnostics.tables import read_experiment
from experiments.train import main
from experiments.training import Trainer
from tests.experiments.joint_results import checkpoints, timeless

EXPERIMENT = (
    *("--together", "yes", "--trials", "2", "--lr", "0.1", "1e30", "--arms", "plain", "shrunk"),
    *("--momentum", "0.9", "--steps", "8"),
)


@pytest.fixture
def double(nets):
    """A user's factory of networks in float64, some of which cannot be vmapped."""
    (nets / "double.py").write_text(
        """
import torch
from torch import nn
from nets import layers

class Double(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner.double()

    def forward(self, x):
        return self.inner(x.double())

def network(arm="plain"):
    model = layers(nn.BatchNorm1d(16))
    if arm == "shrunk":
        model[1].weight.data.mul_(0.5)
    if arm == "dropout":
        model.insert(1, nn.Dropout(0.1))
    if arm == "tanh":
        model[3] = nn.Tanh()
    return Double(model)
network.arms = ("plain", "shrunk", "dropout", "tanh")
"""
    )
    return ("--model", "double:network", "--layers", "inner.1")


def records(out):
    return {path.parent.name: json.loads(path.read_text())["together"] for path in out.glob("runs/*/config.json")}


def test_an_experiment_has_the_numbers_of_one_whose_runs_are_trained_one_by_one(train, double, monkeypatch):
    monkeypatch.setattr("experiments.grouping._FASTER_TOGETHER", {"cpu"})
    options = (*EXPERIMENT, *double, "--arms", "plain", "dropout", "shrunk", "tanh", "--augment", "crop")
    options += ("--lr", "0.1", "0.05", "--steps", "6")
    joint, single = train("joint", *options, "--together", "auto"), train("single", *options, "--together", "no")
    groups = {together for together in records(joint).values() if together}
    assert sorted(sorted({name.partition("-")[0] for name in group.split("\n")}) for group in groups) == [
        ["plain", "shrunk"],
        ["tanh"],
    ]
    assert all(len(group.split("\n")) == (8 if "plain" in group else 4) for group in groups)
    assert {name for name, group in records(joint).items() if not group} == {
        name for name in records(joint) if name.startswith("dropout")
    }
    assert set(records(single).values()) == {""}
    one, other = read_experiment(single), read_experiment(joint)
    for name in ("metrics", "spectra"):
        tables = [timeless(getattr(found, name)) for found in (one, other)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-8, atol=1e-10, obj=name)
    for run in (path.name for path in joint.glob("runs/*")):
        first, second = (checkpoints(out / "runs" / run) for out in (single, joint))
        assert first.keys() == second.keys()
        for file in first:
            for key in first[file]:
                torch.testing.assert_close(first[file][key], second[file][key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "nets:dropout", "--arms", "default"), ["default: its forward pass draws random numbers"]),
        (("--compile",), ["--compile"]),
    ],
)
def test_what_cannot_be_trained_together_is_refused_on_demand(small, options, words, capsys):
    assert main([*small, "--out", "o", *options, "--together", "yes"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ["--together no", *words]), said
    assert not Path("o").exists()


def test_stopped_before_or_after_writing_any_file_it_resumes_to_the_same_bits(stopped_at_every_file):
    options = (*EXPERIMENT, "--trials", "1", "--arms", "plain", "--steps", "2", "--checkpoints", "2")
    for whole, out in stopped_at_every_file(*options, fewest=20):
        assert records(whole) == records(out)


KILLED = (*EXPERIMENT, "--arms", "plain", "--steps", "30", "--evaluate-epochs", "3")


def test_killed_at_any_moment_it_resumes_to_the_same_bits(train, start, same_results):
    whole = train("whole", *KILLED)
    assert sorted(read_experiment(whole).runs["status"]) == ["diverged"] * 2 + ["finished"] * 2
    moments = random.Random(1)
    for number in range(2):
        process = start("--out", "killed", "--resume", *KILLED)
        goal = files("killed") + moments.choice([5, 20, 40, 80])
        while process.poll() is None and files("killed") < goal:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), number
    over = {
        path: path.read_bytes() for path in Path("killed").glob("runs/*/status.json") if b'ed"' in path.read_bytes()
    }
    same_results(whole, train("killed", "--resume", *KILLED))
    assert {path: path.read_bytes() for path in over} == over, "a run that was over was repeated"
    assert not [*Path("killed").rglob(".*")]
    metrics = read_experiment("killed").metrics
    assert not metrics.duplicated(["run_id", "step", "split"]).any()


def files(directory):
    return sum(1 for path in Path(directory).rglob("*") if not path.name.startswith("."))


def interrupt(monkeypatch, small, *options, at):
    """Train until so many checkpoints have been saved."""
    save, count = Trainer.save, 0

    def counted(self, step):
        nonlocal count
        count += 1
        if count > at:
            raise KeyboardInterrupt
        save(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", counted)
        assert main([*small, *options]) == 130


def test_resuming_with_more_trials_adds_a_group_and_leaves_the_finished_one_alone(train, small):
    out = train("out", *EXPERIMENT)
    before = {path: path.stat() for path in out.glob("runs/**/*") if path.is_file()}
    train("out", *EXPERIMENT, "--trials", "3", "--resume")
    assert {path: path.stat() for path in before} == before
    added = records(out)["plain-lr0.1-trial02"].split("\n")
    assert sorted(added) == sorted(name for name in records(out) if "trial02" in name)
    assert len(added) == 4


def test_a_group_begun_is_finished_whole_with_fewer_arms_or_more_trials(train, small, same_results, monkeypatch):
    whole = train("whole", *EXPERIMENT)
    for number, options in enumerate([("--arms", "plain"), ("--trials", "3")]):
        out = Path(f"out{number}")
        interrupt(monkeypatch, small, "--out", str(out), *EXPERIMENT, at=20)
        train(out, *EXPERIMENT, *options, "--resume")
        for path in out.glob("runs/*trial02"):
            assert "trial00" not in records(out)[path.name]
            for table in sorted(path.rglob("*"), reverse=True):
                table.rmdir() if table.is_dir() else table.unlink()
            path.rmdir()
        assert records(out) == records(whole)
        train(out, *EXPERIMENT, "--resume")
        same_results(whole, out)
