"""Steps whose numbers are fetched in blocks: the tables are those of steps fetched one by one."""

import pandas as pd
import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.monitoring.monitor import Measurement, SpectrumMonitor
from skip_conditioning.diagnostics.monitoring.schedule import every
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.data.batches import Batches, BatchOrder, HeldImages
from skip_conditioning.experiments.training.step_log import Block, DivergedError, StepLog
from skip_conditioning.experiments.training.trainer import Trainer
from tests.experiments.training.test_trainer import PIXELS, split


class Cube(nn.Module):
    def forward(self, x):
        return x**3


def train(directory, block, *, lr=0.2, stop=-1, **options):
    """Train 11 steps, 3 an epoch, with checkpoints, evaluation, bounds and spectra; returns status and calls."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3), Cube())
    options = {"batch_size": 4, "checkpoints": 4, "evaluate_epochs": 2, "momentum": 0.9, **options}
    config = preset("demo", out=directory, **options)
    batches = Batches(split(12, 1), PIXELS, BatchOrder(12, config.optimisation.batch_size, 3, config.data.augment))
    probe = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 2]))
    maps = [Measurement("tail", "1", schedule=every(1))]
    options = {"maps": maps, "schedule": 1, "max_overhead": None, "bounds": True}
    monitor = SpectrumMonitor(model, probe, directory, resume=True, **options)
    trainer = Trainer(config, model, batches, HeldImages(split(7, 2), PIXELS), monitor, directory, lr, 11)
    trainer.block = Block(block)
    calls = []

    def progress(step, loss, spectra):
        if step == stop:
            raise InterruptedError
        calls.append((step, loss, sorted(spectra)))

    return trainer.run(progress), calls


def assert_same(one, other):
    first, second = read_experiment(one), read_experiment(other)
    for name in ("metrics", "spectra", "skipped"):
        tables = []
        for experiment in (first, second):
            frame = getattr(experiment, name)
            frame = frame.drop(columns=[c for c in frame if "seconds" in c or c in ("run_id", "peak_bytes")])
            keys = [key for key in ("step", "split", "map") if key in frame]
            tables.append(frame.sort_values(keys, kind="stable", ignore_index=True))
        pd.testing.assert_frame_equal(*tables, check_exact=True, obj=name)
    files = [{path.name: path.read_bytes() for path in run.glob("checkpoints/*")} for run in (one, other)]
    assert files[0] == files[1]


@pytest.mark.parametrize(("block", "lr", "status"), [(50, 0.05, "finished"), (3, 1e4, "diverged")])
def test_blocks_change_nothing(tmp_path, block, lr, status):
    in_blocks = train(tmp_path / "blocks", block, lr=lr)
    assert in_blocks[0] == status
    assert in_blocks == train(tmp_path / "steps", 1, lr=lr)
    assert_same(tmp_path / "steps", tmp_path / "blocks")
    steps = read_experiment(tmp_path / "blocks").metrics.query("split == 'train'")["step"].tolist()
    assert steps == list(range(len(steps)))
    assert (len(steps) == 12) == (status == "finished")


def test_a_run_in_blocks_that_is_stopped_resumes_to_the_same_bits(tmp_path):
    train(tmp_path / "whole", 1, lr=0.05)
    with pytest.raises(InterruptedError):
        train(tmp_path / "stopped", 50, lr=0.05, stop=7)
    assert train(tmp_path / "stopped", 50, lr=0.05)[0] == "finished"
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_block_gives_back_what_it_held_in_order_and_once():
    block = Block(3)
    assert block.fetch() == []
    for step in range(3):
        assert not block.full
        block.add(step, torch.tensor([[step, 0.5], [torch.inf, -step]], dtype=torch.float64), 0.1 * step)
    assert block.full
    assert block.fetch() == [(step, [[step, 0.5], [torch.inf, -step]], 0.1 * step) for step in range(3)]
    assert not block.full
    assert block.fetch() == []


class Service:
    def __init__(self):
        self.logged, self.closed = [], False

    def log(self, step, scalars):
        self.logged.append((step, sorted(scalars)))

    def close(self):
        self.closed = True


def test_a_step_that_is_not_finite_is_logged_and_later_ones_are_not(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    probe = (torch.rand(2, 1, 4, 4), torch.tensor([0, 2]))
    monitor = SpectrumMonitor(model, probe, tmp_path, maps="layer", layers="1", schedule=1, max_overhead=None)
    service, progress = Service(), []
    log = StepLog(monitor, [service], lambda step, *_: progress.append(step))
    for step in range(4):
        log.measure(step)
    numbers = {"epoch": 0.0, "accuracy": 0.5, "lr": 0.1, "seconds": 0.1}
    log.record(0, loss=1.0, grad_norm=1.0, **numbers)
    with pytest.raises(DivergedError):
        log.record(1, loss=float("inf"), grad_norm=None, **numbers)
    log.close()
    monitor.close()
    tables = read_experiment(tmp_path)
    assert sorted(set(tables.metrics["step"])) == [0, 1]
    assert tables.spectra["step"].tolist() == [0, 1]
    assert progress == [0]
    assert [step for step, _ in service.logged] == [0, 1]
    assert service.closed
