"""Scalars of measurements for loggers beside the tables."""

import pytest
import torch
from torch import nn

from skip_conditioning import Measurement, SpectrumMonitor, read_experiment
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import STATISTICS

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Writer:
    def __init__(self):
        self.rows = {}

    def add_scalar(self, name, value, step):
        self.rows.setdefault(step, {})[name] = value


class LightningLogger(Writer):
    add_scalar = None

    def log_metrics(self, metrics, step=None):
        self.rows[step] = metrics


class Tracker(Writer):
    """As accelerate's ``Accelerator``."""

    add_scalar = None

    def log(self, values, step=None, log_kwargs=None):
        self.rows[step] = values


class Function(Writer):
    add_scalar = None

    def __call__(self, scalars, step):
        self.rows[step] = scalars


class WandbRun:
    """Rows by the run's own count, which a call with a smaller step leaves unchanged."""

    def __init__(self):
        self.step, self.rows = 0, {}

    def define_metric(self, name, step_metric):
        self.defined = (name, step_metric)

    def log(self, data, step=None, commit=None):
        assert step is None or step >= self.step
        self.step = self.step if step is None else step
        self.rows.setdefault(self.step, {}).update(data)
        self.step += commit is not False and step is None


def watch(out, log_to, steps=2, after=lambda step: None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with SpectrumMonitor(model, X, out, log_to=log_to, schedule=1, max_overhead=None, **options) as monitor:
        for step in range(steps):
            monitor.step(step)
            after(step)


@pytest.mark.parametrize("kind", [Writer, LightningLogger, Tracker, Function])
def test_every_statistic_is_sent_at_every_step(kind, tmp_path):
    log = kind()
    watch(tmp_path, log, maps=("layer", "tail"))
    table = read_experiment(tmp_path).spectra
    assert set(log.rows) == {0, 1}
    for row in table.to_dict("records"):
        for name in (*STATISTICS, "resolved"):
            assert log.rows[row["step"]][f"conditioning/{row['map']}/{row['layer']}/{name}"] == row[name]
    assert len(log.rows[0]) == len(table[table.step == 0]) * (len(STATISTICS) + 1)


def test_samples_are_told_apart(tmp_path):
    log = Writer()
    watch(tmp_path, log, steps=1, maps=Measurement("tail", "0", "sample"))
    layers = {name.split("/")[2] for name in log.rows[0]}
    assert layers == {f"0[{sample}]" for sample in range(4)}


def test_a_run_of_wandb_keeps_its_own_count_of_steps(tmp_path):
    alone, beside = WandbRun(), WandbRun()
    watch(tmp_path / "alone", alone, steps=3)
    assert [row["conditioning/step"] for row in alone.rows.values()] == [0, 1, 2]
    watch(tmp_path / "beside", beside, steps=3, after=lambda step: beside.log({"loss": 0.0}, step=step))
    assert [(row["conditioning/step"], row["loss"]) for row in beside.rows.values()] == [(0, 0), (1, 0), (2, 0)]
    assert beside.defined == ("conditioning/*", "conditioning/step")


@pytest.mark.parametrize("log_to", ["trainer", 3, Writer, object()])
def test_what_cannot_log_is_refused(log_to, tmp_path):
    with pytest.raises(InputError, match=r"log_to must be a TensorBoard writer, .*; it is"):
        watch(tmp_path / "run", log_to)
    assert not (tmp_path / "run").exists()


def test_a_logger_that_fails_does_not_stop_the_training(tmp_path):
    def fails(scalars, step):
        raise ConnectionError("no network")

    with pytest.warns(UserWarning, match="log_to failed at step 1.*ConnectionError: no network"):
        watch(tmp_path, fails)
    assert set(read_experiment(tmp_path).spectra.step) == {0, 1}
