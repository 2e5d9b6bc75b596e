"""A folder holds one run: refused, resumed or replaced; written by one monitor at a time; nothing lost by a kill."""

import itertools
import json
import os
import random
import signal
import time

import pandas as pd
import pytest
import torch
from torch import nn

from skip_conditioning import SpectrumMonitor
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import read_experiment

X = torch.ones(2, 3)


@pytest.fixture
def run(tmp_path):
    """Log some steps of a run in a folder."""

    def log(steps, loss=1.0, out="mine", **options):
        with SpectrumMonitor(
            nn.Linear(3, 2), X, tmp_path / out, maps="network", max_overhead=None, **options
        ) as monitor:
            for step in steps:
                monitor.step(step, loss=loss)
        return read_experiment(tmp_path / out)

    return log


def test_a_folder_that_holds_a_run_is_refused_before_any_step(run, tmp_path):
    run(range(4))
    for options in ({}, {"schedule": lambda step: False}, {"name": "other"}):
        with pytest.raises(
            InputError,
            match=r"mine holds a run up to step 3 already; give resume=True .*, overwrite=True .*, or another out",
        ):
            run([], **options)
    with pytest.raises(InputError, match="resume keeps the run that overwrite deletes; give one of them"):
        run([], resume=True, overwrite=True)
    assert not list(tmp_path.rglob(".*.lock"))


def test_a_resumed_run_goes_on_and_drops_what_comes_after(run):
    run(range(4), name="other", arm="skip")
    tables = run([2, 3, 5], loss=2.0, resume=True)  # 3 is on the schedule, 2 too
    assert tables.metrics.step.tolist() == [0, 1, 2, 3, 5]
    assert tables.metrics.loss.tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert set(tables.metrics.run_id) == {"other"}
    # The first step is measured whatever the schedule, but only that of the run.
    tables = run([5, 6], resume=True, schedule=lambda step: False)
    assert tables.spectra.step.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="mine holds a run of arm 'skip', not 'base'; give the same"):
        run([7], resume=True, arm="base")
    assert run([100, 101], resume=True, out="new", schedule=lambda step: False).spectra.step.tolist() == [100]


def test_overwriting_deletes_the_tables_and_nothing_else(run, tmp_path):
    run(range(4), arm="skip", trial=1)
    kept = [tmp_path / "mine" / name for name in ("model.pt", "metrics/notes.txt", "spectra/table.csv", "plots/a.png")]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    tables = run([0, 1], loss=3.0, overwrite=True)
    assert tables.metrics.loss.tolist() == [3.0, 3.0]
    assert tables.runs[["arm", "trial"]].to_numpy().tolist() == [["mine", 0]]
    assert [path.read_text() for path in kept] == ["mine"] * 4


def test_somebody_elses_config_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"hidden_size": 8}')
    run([0])
    run([0], overwrite=True)
    with pytest.raises(InputError, match=r"config.json describes no run; choose another out, or leave out arm"):
        run([0], overwrite=True, arm="skip")
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == {"hidden_size": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arm": 3}, "arm must be a text that can be printed; it is 3"),
        ({"name": "a\nb"}, "name must be a text that can be printed; it is 'a.*b'"),
        ({"trial": 0.5}, "trial must be a whole number from 0; it is 0.5"),
        ({"trial": True}, "trial must be a whole number from 0; it is True"),
        ({"lr": float("nan")}, "lr must be a number from 0; it is nan"),
        ({"lr": "0.1"}, "lr must be a number from 0; it is '0.1'"),
    ],
)
def test_a_bad_description_is_refused_before_anything_is_written(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run([0], **options)
    assert not list(tmp_path.iterdir())


def test_two_monitors_do_not_write_into_one_folder_at_a_time(run, tmp_path):
    first = SpectrumMonitor(nn.Linear(3, 2), X, tmp_path / "mine", maps="network")
    said = rf"mine is being written by another monitor \(pid {os.getpid()} on host .*\); close that one, or choose"
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match=said):
            run([0], **options)
    first.step(0, loss=1.0)
    first.close()
    assert run([1], resume=True).metrics.step.tolist() == [0, 1]
    first.log(0, split="test", loss=1.0)  # it may be used after it was closed, and holds the folder again
    with pytest.raises(InputError, match=said):
        run([2], resume=True)
    first.close()
    assert read_experiment(tmp_path).metrics.split.tolist() == ["train", "test", "train"]


def test_what_waits_is_written_when_the_monitor_is_dropped_but_not_by_a_fork(tmp_path):
    monitor = SpectrumMonitor(nn.Linear(3, 2), X, tmp_path, maps=())
    monitor.step(0, loss=1.0)
    child = os.fork()
    if child == 0:
        del monitor
        os._exit(0)
    os.waitpid(child, 0)
    assert not list(tmp_path.glob("metrics/part-*"))
    with pytest.raises(InputError, match="is being written by another monitor"):
        SpectrumMonitor(nn.Linear(3, 2), X, tmp_path, maps=(), resume=True)
    del monitor
    assert pd.read_parquet(tmp_path / "metrics").step.tolist() == [0]
    assert not list(tmp_path.rglob(".*.lock"))


class OnDevice:
    """Stands for a number on a GPU; says when it is waited for."""

    device, is_complex, detach = torch.device("cuda"), lambda self: False, lambda self: self
    numel, clone, is_meta = lambda self: 1, lambda self: self, False

    def __init__(self, fetched):
        self.item = lambda: fetched.append(self) or 1.0


def test_numbers_on_a_device_are_waited_for_once_a_second(tmp_path, monkeypatch):
    now, fetched = 0.0, []
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monitor = SpectrumMonitor(nn.Linear(3, 2), X, tmp_path, maps=())
    for step in range(8):
        now += 0.3
        monitor.log(step, split="train", loss=OnDevice(fetched))
        assert len(read_experiment(tmp_path).metrics) == len(fetched) == (step + 1) // 4 * 4
    now += 10.0  # slow steps do not wait at all
    monitor.log(8, split="train", loss=OnDevice(fetched))
    assert len(read_experiment(tmp_path).metrics) == len(fetched) == 9


def log_until_killed(out, first, pipe, pause):
    """What a forked process does: log every step, and say so once it is logged."""
    monitor = SpectrumMonitor(nn.Linear(3, 2), X, out, maps="network", max_overhead=None, resume=True)
    for step in itertools.count(first):
        monitor.step(step, loss=torch.tensor(float(step)))
        os.write(pipe, f"{step}\n".encode())
        time.sleep(pause)


@pytest.mark.parametrize("pause", [0.0, 0.03])
def test_a_kill_loses_no_row_and_does_not_block_the_folder(tmp_path, pause):
    """Not even rows of the last second, as their numbers are not on a device."""
    first, chance = 0, random.Random(0)
    for _ in range(5):
        logged, pipe = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                log_until_killed(tmp_path, first, pipe, pause)
            finally:
                os._exit(1)
        os.close(pipe)
        with os.fdopen(logged) as lines:
            assert lines.readline() == f"{first}\n"
            time.sleep(chance.uniform(0, 0.4))
            os.kill(process, signal.SIGKILL)
            last = max([first, *map(int, lines.read().split("\n")[:-1])])
        os.waitpid(process, 0)
        assert read_experiment(tmp_path).metrics.step.tolist()[: last + 1] == list(range(last + 1))
        first = last  # what is logged once more counts once
    with SpectrumMonitor(nn.Linear(3, 2), X, tmp_path, maps=(), resume=True) as monitor:
        monitor.step(last, loss=float(last))
    assert pd.read_parquet(tmp_path / "metrics").loss.tolist() == list(range(last + 1))
