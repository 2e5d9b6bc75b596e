"""Runs trained together: the numbers of each are those it has alone, whatever becomes of the others."""

import json
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diagnostics.monitor import Measurement, SpectrumMonitor
from diagnostics.schedule import every
from diagnostics.tables import read_experiment
from experiments.batches import Batches, BatchOrder, HeldImages, Pixels
from experiments.data import Split
from experiments.frozen_batch_norm import freeze_batch_norms
from experiments.presets import PRESETS
from experiments.step_log import Block
from experiments.together import JointTrainer, Member, obstacle
from experiments.training import Trainer
from tests.experiments.joint_networks import NETS, Net
from tests.experiments.joint_results import checkpoints, timeless

PIXELS = Pixels((0.4,), (0.3,))
RTOL = 1e-9


def split(n, seed):
    chosen = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, 4, 4), dtype=torch.uint8, generator=chosen)
    return Split(images, torch.randint(3, (n,), generator=chosen))


def trainers(directory, make, runs, *, n=14, steps=10, measured=True, bounds=False, **options):
    """A trainer for each learning rate and seed; 4 batches an epoch, the last one of 2 images."""
    config = replace(PRESETS["demo"][1], out=directory, **{"batch_size": 4, "checkpoints": 3, **options})
    probe = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 2]))
    maps = [Measurement("tail", "first", schedule=every(2))] if measured else []
    made = []
    for number, (lr, seed) in enumerate(runs):
        torch.manual_seed(seed)
        model, place = make(), directory / f"run{number}"
        monitor = SpectrumMonitor(model, probe, place, maps=maps, max_overhead=None, schedule=1, bounds=bounds)
        batches = Batches(split(n, 1), PIXELS, BatchOrder(n, config.batch_size, seed, config.augment))
        made.append(Trainer(config, model, batches, HeldImages(split(7, 2), PIXELS), monitor, place, lr, steps))
    return made


def together(directory, make, runs, *, block=1, stop=None, **options):
    """Train jointly; returns how each run ended.

    Args:
        stop: Called for every step of every run.
    """
    made = trainers(directory, make, runs, **options)
    for one in made:
        one.block = Block(block)
    members = [Member(one.model, one, stop or (lambda *_: None)) for one in made]
    return JointTrainer(members, [one.lr for one in made]).run()


def alone(directory, make, runs, *, block=1, **options):
    """Train one by one; returns how each run ended."""
    made = trainers(directory, make, runs, **options)
    for one in made:
        one.block = Block(block)
    return {number: one.run(lambda *_: None) for number, one in enumerate(made)}


def assert_same(one, other, rtol):
    """All tables and checkpoints of two directories of runs, to a tolerance or (0) to the bit."""
    exact = {"check_exact": True} if rtol == 0 else {"rtol": rtol, "atol": rtol}
    runs = sorted(path.name for path in one.glob("run*"))
    assert runs
    assert runs == sorted(path.name for path in other.glob("run*"))
    for run in runs:
        tables = [read_experiment(directory / run) for directory in (one, other)]
        for name in ("metrics", "spectra", "skipped"):
            first, second = (timeless(getattr(found, name)) for found in tables)
            assert name == "skipped" or len(first) > 0
            pd.testing.assert_frame_equal(first, second, obj=f"{run}: {name}", **exact)
        contents = [checkpoints(directory / run) for directory in (one, other)]
        assert contents[0].keys() == contents[1].keys()
        for name, first in contents[0].items():
            second = contents[1][name]
            assert first.keys() == second.keys(), name
            for key, tensor in first.items():
                torch.testing.assert_close(
                    tensor, second[key], rtol=rtol, atol=rtol, equal_nan=True, msg=f"{run}: {name}: {key}"
                )


RUNS = [(0.3, 1), (0.3, 2), (0.1, 1), (0.1, 2), (0.02, 3)]
FULL = {
    **{"momentum": 0.9, "weight_decay": 0.01, "decay_epochs": 1, "decay_factor": 0.5},
    **{"augment": "crop", "evaluate_epochs": 1},
}


@pytest.mark.parametrize("net", NETS)
def test_numbers_are_those_one_by_one(tmp_path, net):
    options = FULL | {"bounds": net == "batch-norm"}
    assert together(tmp_path / "joint", NETS[net], RUNS, **options) == dict.fromkeys(range(5), "finished")
    alone(tmp_path / "alone", NETS[net], RUNS, **options)
    assert_same(tmp_path / "alone", tmp_path / "joint", RTOL)


@pytest.mark.parametrize("net", ["batch-norm", "tied", "scalar-unused-frozen"])
def test_numbers_of_steps_of_fixed_length_are_those_one_by_one(tmp_path, net):
    together(tmp_path / "joint", NETS[net], RUNS, fixed_length_steps=True, **FULL)
    alone(tmp_path / "alone", NETS[net], RUNS, fixed_length_steps=True, **FULL)
    assert_same(tmp_path / "alone", tmp_path / "joint", RTOL)


@pytest.mark.parametrize("net", ["batch-norm", "convolution"])
def test_numbers_with_frozen_batch_norm_are_those_one_by_one(tmp_path, net):
    def make():
        made = NETS[net]()
        freeze_batch_norms(made, PIXELS(split(14, 1).images[:4]), net)
        return made

    assert not obstacle([make(), make()], PIXELS(split(14, 1).images))
    together(tmp_path / "joint", make, RUNS, **FULL)
    alone(tmp_path / "alone", make, RUNS, **FULL)
    assert_same(tmp_path / "alone", tmp_path / "joint", RTOL)


def test_numbers_of_full_batches_without_momentum_in_one_learning_rate_are_those_one_by_one(tmp_path):
    runs, options = [(0.3, 1), (0.3, 2)], {"batch_size": None, "steps": 5, "checkpoints": None}
    together(tmp_path / "joint", NETS["batch-norm"], runs, **options)
    alone(tmp_path / "alone", NETS["batch-norm"], runs, **options)
    assert_same(tmp_path / "alone", tmp_path / "joint", RTOL)


@pytest.mark.parametrize("net", ["batch-norm"])
def test_the_observer_changes_nothing(tmp_path, net):
    together(tmp_path / "seen", NETS[net], RUNS, bounds=True, **FULL)
    together(tmp_path / "unseen", NETS[net], RUNS, measured=False, **FULL)
    for number in range(len(RUNS)):
        seen, unseen = (checkpoints(tmp_path / name / f"run{number}") for name in ("seen", "unseen"))
        assert seen.keys() == unseen.keys()
        assert all(torch.equal(seen[name][key], unseen[name][key]) for name in seen for key in seen[name])


@pytest.mark.parametrize("block", [2, 50])
def test_fetching_in_blocks_changes_nothing(tmp_path, block):
    runs = [*RUNS[:4], (1e200, 3)]
    ends = {**dict.fromkeys(range(4), "finished"), 4: "diverged"}
    for size in (1, block):
        assert together(tmp_path / str(size), NETS["batch-norm"], runs, block=size, bounds=True, **FULL) == ends
    assert_same(tmp_path / "1", tmp_path / str(block), 0)


@pytest.mark.parametrize(("lr", "block"), [(3e5, 1), (1e100, 3), (1e308, 1), (3e5, 50)])
def test_a_run_that_diverges_has_its_rows_until_then_and_leaves_the_others_alone(tmp_path, lr, block):
    """Without batch norm and with a last layer that nothing bounds."""

    def make():
        return nn.Sequential(Net(), nn.Linear(3, 3).double(), Cube())

    wild, tame = ([(0.3, 1), (lr_, 2), (0.1, 1)] for lr_ in (lr, 1e-3))
    options = {"momentum": 0.9, "checkpoints": 4, "measured": False, "evaluate_epochs": 1}
    ends = together(tmp_path / "wild", make, wild, block=block, **options)
    assert ends == {0: "finished", 1: "diverged", 2: "finished"}
    together(tmp_path / "tame", make, tame, block=block, **options)
    alone(tmp_path / "alone", make, wild, **options)
    for run in ("run0", "run2"):
        first, second = (timeless(read_experiment(tmp_path / name / run).metrics) for name in ("wild", "tame"))
        pd.testing.assert_frame_equal(first, second, check_exact=True)
        kept = [checkpoints(tmp_path / name / run) for name in ("wild", "tame")]
        assert kept[0].keys() == kept[1].keys()
        assert all(torch.equal(kept[0][name][key], kept[1][name][key]) for name in kept[0] for key in kept[0][name])
    rows, expected = (timeless(read_experiment(tmp_path / name / "run1").metrics) for name in ("wild", "alone"))
    losses = rows[rows["split"] == "train"].set_index("step")["loss"]
    assert losses.index.tolist() == list(range(len(losses)))
    assert losses.map(lambda loss: abs(loss) < float("inf")).tolist() == [True] * (len(losses) - 1) + [False]
    assert rows["step"].max() == losses.index[-1]
    assert rows[["step", "split"]].equals(expected[["step", "split"]])
    assert json.loads((tmp_path / "wild/run1/status.json").read_text())["status"] == "diverged"
    assert checkpoints(tmp_path / "wild/run1").keys() == checkpoints(tmp_path / "alone/run1").keys()


class Cube(nn.Module):
    def forward(self, x):
        return x**3


@pytest.mark.parametrize("block", [1, 50])
def test_spectra_after_the_divergence_are_forgotten(tmp_path, block):
    runs = [(0.3, 1), (1e308, 2)]
    for size in (1, block):
        together(tmp_path / str(size), Net, runs, block=size, bounds=True, steps=12)
    assert_same(tmp_path / "1", tmp_path / str(block), 0)
    tables = read_experiment(tmp_path / str(block) / "run1")
    last = tables.metrics.query("split == 'train'")["step"].max()
    assert last < 12
    assert max(tables.metrics["step"].max(), tables.spectra["step"].max(), tables.skipped["step"].max()) <= last


def test_a_run_that_diverged_is_silent_and_the_group_ends_when_all_have(tmp_path):
    made = trainers(tmp_path / "some", NETS["batch-norm"], [(0.1, 1), (1e308, 2)], momentum=0.9)
    joint = JointTrainer([Member(one.model, one, lambda *_: None) for one in made], [0.1, 1e308])
    joint.run()
    assert all(tensor.isfinite().all() for tensor in made[1].model.state_dict().values())
    for stack, place in joint.network.places(1).values():
        assert joint.optimizer.state[stack]["momentum_buffer"][place].isfinite().all()
    ends = together(tmp_path / "all", Net, [(1e308, 1), (1e308, 2)], measured=False, steps=10**9)
    assert ends == {0: "diverged", 1: "diverged"}
    # Within a block that a checkpoint ends.
    ends = together(tmp_path / "block", Net, [(1e308, 1), (1e308, 2)], block=50, checkpoints=3, measured=False)
    assert ends == {0: "diverged", 1: "diverged"}


# Resuming


def test_stopped_at_any_step_it_resumes_to_the_same_bits(tmp_path):
    runs = [*RUNS[:3], (1e100, 2)]
    options = {**FULL, "bounds": True}
    together(tmp_path / "whole", NETS["batch-norm"], runs, **options)
    for stopped in (0, 3, 7, 10):

        def stop(step, *_, stopped=stopped):
            if step == stopped:
                raise InterruptedError

        directory = tmp_path / f"stopped-{stopped}"
        with pytest.raises(InterruptedError):
            together(
                directory, NETS["batch-norm"], runs, block=random.Random(stopped).choice([1, 50]), stop=stop, **options
            )
        resume(directory, NETS["batch-norm"], runs, **options)
        assert_same(tmp_path / "whole", directory, 0)


def resume(directory, make, runs, **options):
    """Go on with a group as an experiment does: runs that are over are computed along."""
    made = trainers(directory, make, runs, **options)
    over = [(one.directory / "status.json").exists() for one in made]
    assert not all(over)
    members = [
        Member(one.model, None if is_over else one, lambda *_: None) for one, is_over in zip(made, over, strict=True)
    ]
    JointTrainer(members, [one.lr for one in made]).run()


@pytest.mark.parametrize("saved", [1, 3, 5, 11])
def test_stopped_between_two_runs_checkpoints_it_resumes_to_the_same_bits(tmp_path, monkeypatch, saved):
    runs = RUNS[:3]
    together(tmp_path / "whole", NETS["batch-norm"], runs, **FULL)
    save, count = Trainer.save, 0

    def counted(self, step):
        nonlocal count
        if count == saved:
            raise InterruptedError
        count += 1
        save(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", counted)
        with pytest.raises(InterruptedError):
            together(tmp_path / "killed", NETS["batch-norm"], runs, **FULL)
    resume(tmp_path / "killed", NETS["batch-norm"], runs, **FULL)
    assert_same(tmp_path / "whole", tmp_path / "killed", 0)


@pytest.mark.parametrize("ended", [0, 2])
def test_stopped_between_the_last_step_and_the_statuses_it_resumes_to_the_same_bits(tmp_path, monkeypatch, ended):
    runs = RUNS[:3]
    together(tmp_path / "whole", NETS["batch-norm"], runs, **FULL)
    finish, count = Trainer.finish, 0

    def counted(self, *args):
        nonlocal count
        if count == ended:
            raise InterruptedError
        count += 1
        finish(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "finish", counted)
        with pytest.raises(InterruptedError):
            together(tmp_path / "killed", NETS["batch-norm"], runs, **FULL)
    assert len([*(tmp_path / "killed").glob("*/status.json")]) == ended
    resume(tmp_path / "killed", NETS["batch-norm"], runs, **FULL)
    assert_same(tmp_path / "whole", tmp_path / "killed", 0)


def test_runs_that_have_no_checkpoint_in_common_start_anew(tmp_path):
    runs = RUNS[:3]
    together(tmp_path / "whole", NETS["batch-norm"], runs, **FULL)

    def stop(at):
        def raise_at(step, *_):
            if step == at:
                raise InterruptedError

        return raise_at

    with pytest.raises(InterruptedError):
        together(tmp_path / "killed", NETS["batch-norm"], runs, stop=stop(5), **FULL)
    # As a sweep does, which trains each run alone.
    with pytest.raises(InterruptedError):
        trainers(tmp_path / "killed", NETS["batch-norm"], runs, **FULL)[1].run(stop(9))
    found = [sorted((tmp_path / f"killed/run{number}").rglob("state_*"))[-1].stem for number in range(3)]
    assert found == ["state_000000003", "state_000000009", "state_000000003"]
    resume(tmp_path / "killed", NETS["batch-norm"], runs, **FULL)
    assert_same(tmp_path / "whole", tmp_path / "killed", 0)


@pytest.mark.parametrize("mode", ["joint", "alone"])
def test_killed_after_saving_weights_that_are_not_finite_it_resumes_and_has_diverged(tmp_path, monkeypatch, mode):
    runs, options = [(0.3, 1), (1e308, 2)], {"checkpoints": 1, "momentum": 0.9, "weight_decay": 10.0, "steps": 6}
    train = together if mode == "joint" else alone
    ends = train(tmp_path / "whole", Net, runs, **options)
    assert ends == {0: "finished", 1: "diverged"}
    last = sorted((tmp_path / "whole/run1/checkpoints").glob("step_*"))[-1]
    assert not all(tensor.isfinite().all() for tensor in load_file(last).values())

    def fail(self, status, *args):
        if status == "diverged":
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "finish", fail)
        with pytest.raises(InterruptedError):
            train(tmp_path / "killed", Net, runs, **options)
    assert train(tmp_path / "killed", Net, runs, **options)[1] == "diverged"
    assert_same(tmp_path / "whole", tmp_path / "killed", 0)
