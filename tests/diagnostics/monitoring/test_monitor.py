"""The monitor in a training loop: schedules, overhead, tables, and trouble half way."""

import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from skip_conditioning import SpectrumMonitor, diagnostics, spectra
from skip_conditioning.diagnostics.errors import InputError, LayerCallError
from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.tables import read_experiment

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1, 0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Clock:
    """Time that passes only when told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock in place of the real one; a measurement takes a second of it."""
    clock = Clock()

    def slow(*args, **options):
        clock.now += 1.0
        return spectra(*args, **options)

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(diagnostics.monitoring.probe_measurements, "spectra", slow)
    monkeypatch.setattr(diagnostics.monitoring.probe_measurements, "forecast", lambda *args, **options: 1.0)
    return clock


def test_each_map_is_measured_on_its_own_schedule(model, tmp_path):
    maps = ["tail", Measurement("network", schedule=4), Measurement("layer", "2", "sample", schedule=lambda s: s == 5)]
    with SpectrumMonitor(model, X, tmp_path, maps=maps, layers=["0"], schedule=3, max_overhead=None) as monitor:
        result = {step: sorted(monitor.step(step)) for step in range(8)}
    assert result[0] == [*(f"layer:2[{sample}]" for sample in range(6)), "network:network", "tail:0"]
    assert result[4] == ["network:network"]
    assert result[5] == [f"layer:2[{sample}]" for sample in range(6)]
    assert (result[1], result[2], result[6]) == ([], [], ["tail:0"])
    table = read_experiment(tmp_path).spectra
    assert table.groupby("map").step.unique().map(list).to_dict() == {
        "layer": [0, 5],
        "network": [0, 4],
        "tail": [0, 3, 6],
    }


def test_the_default_is_the_layer_map_on_a_logarithmic_schedule(model, tmp_path):
    with SpectrumMonitor(model, X, tmp_path, max_overhead=None) as monitor:
        assert [step for step in range(12) if monitor.step(step)] == [0, 1, 2, 3, 4, 6, 10]
        assert list(monitor.latest) == []
    assert set(read_experiment(tmp_path).spectra["map"]) == {"layer"}


def test_tables_hold_what_was_measured(model, tmp_path):
    with SpectrumMonitor(model, (X, Y), tmp_path / "mine", maps="tail", max_overhead=None) as monitor:
        result = monitor.step(0, loss=torch.tensor(2.5, requires_grad=True), lr=0.1, epoch=1)
        monitor.log(0, split="test", accuracy=np.float32(0.5), loss=None)
    tables = read_experiment(tmp_path / "mine")
    (row,) = tables.spectra.to_dict("records")
    assert (row["run_id"], row["step"], row["map"], row["layer"]) == ("mine", 0, "tail", "0")
    np.testing.assert_array_equal(row["values"], result["0"].values)
    assert row["condition_number"] == result["0"].condition_number
    assert row["resolved"] is True
    metrics = tables.metrics.set_index("split")
    assert metrics.loc["train", ["loss", "lr", "epoch"]].tolist() == [2.5, 0.1, 1.0]
    assert metrics.loc["test", "accuracy"] == 0.5
    assert metrics.loc["probe", "loss"] == pytest.approx(nn.functional.cross_entropy(model(X), Y).item())
    assert metrics.loc["probe", "accuracy"] == (model(X).argmax(1) == Y).double().mean().item()


@pytest.mark.parametrize("name", [None, "other"])
def test_a_run_is_named_after_its_folder_unless_given(model, tmp_path, name):
    with SpectrumMonitor(model, X, tmp_path / "runs" / "mine", max_overhead=None, name=name) as monitor:
        monitor.step(0, loss=1.0)
    tables = read_experiment(tmp_path)
    assert set(tables.runs.run_id) == set(tables.spectra.run_id) == set(tables.metrics.run_id) == {name or "mine"}


def test_overhead_never_exceeds_its_share(model, tmp_path, clock):
    with SpectrumMonitor(model, X, tmp_path, schedule=1, max_overhead=0.1) as monitor:
        measured = []
        for step in range(60):
            clock.now += 1.0
            if monitor.step(step):
                measured.append(step)
            assert monitor.overhead <= max(1 / (step + 1), 0.1) + 1e-9
    assert measured == [0, 19, 29, 39, 49, 59]  # the first is made in any case, and counts
    skipped = read_experiment(tmp_path).skipped
    assert sorted(skipped.step) == [step for step in range(60) if step not in measured]
    assert set(skipped.reason) == {"would exceed max_overhead=0.1"}
    assert set(skipped.estimated_seconds) == {1.0}
    assert set(skipped.layers) == {"(default)"}


def test_a_skipped_measurement_is_made_as_soon_as_it_can_be_afforded(model, tmp_path, clock):
    def schedule(step):
        return step in (2, 3)

    with SpectrumMonitor(model, X, tmp_path, maps="network", schedule=schedule, max_overhead=0.1) as monitor:
        measured = []
        for step in range(30):
            clock.now += 1.0
            measured += [step] if monitor.step(step) else []
    assert measured == [0, 19]
    tables = read_experiment(tmp_path)
    assert tables.skipped.step.tolist() == [2, 3]
    assert tables.spectra.step.tolist() == [0, 19]


def test_measurements_that_fail_count_as_overhead_too(model, tmp_path, clock, monkeypatch):
    def fail(*args, **options):
        clock.now += 1.0
        raise LayerCallError("layer '0' is never called\nsecond line")

    monkeypatch.setattr(diagnostics.monitoring.probe_measurements, "spectra", fail)
    with SpectrumMonitor(model, X, tmp_path, schedule=1, max_overhead=0.5) as monitor:
        for step in range(20):
            clock.now += 1.0
            assert monitor.step(step) == {}
            assert not step or monitor.overhead <= 0.5
    reasons = read_experiment(tmp_path).skipped.reason
    assert sum(reasons == "layer '0' is never called") == 10


def test_without_a_limit_nothing_is_skipped(model, tmp_path, clock):
    with SpectrumMonitor(model, X, tmp_path, schedule=1, max_overhead=None) as monitor:
        assert all(monitor.step(step) for step in range(5))
    assert read_experiment(tmp_path).skipped.empty


def test_measuring_nothing_but_the_first_step_is_warned_about_once(model, tmp_path, clock):
    monitor = SpectrumMonitor(model, X, tmp_path, schedule=1)
    clock.now += 3.0
    assert monitor.step(0)
    assert not monitor.step(1)
    with pytest.warns(
        UserWarning, match="nothing was measured after the first step: about 1 s .* max_overhead=0.05 .* or pass None"
    ) as caught:
        monitor.close()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.close()
        with SpectrumMonitor(model, X, tmp_path / "other", schedule=1) as monitor:
            monitor.step(0)
            clock.now += 100.0
            monitor.step(1)


def test_two_skipped_measurements_of_one_map_are_both_recorded(model, tmp_path, clock):
    maps = [Measurement("tail", "0"), Measurement("tail", ["0", "1"]), Measurement("tail", "0", "sample")]
    monitor = SpectrumMonitor(model, X, tmp_path, maps=maps)
    for step in range(2):
        monitor.step(step)
    with pytest.warns(UserWarning, match="nothing was measured"):
        monitor.close()
    skipped = read_experiment(tmp_path).skipped
    assert sorted(zip(skipped.layers, skipped.batch_mode, strict=True)) == [
        ("0", "batch"),
        ("0", "sample"),
        ("0, 1", "batch"),
    ]


def test_a_network_that_diverges_is_recorded_and_does_not_stop_training(model, tmp_path):
    with SpectrumMonitor(model, (X, Y), tmp_path, schedule=1, max_overhead=None) as monitor:
        assert monitor.step(0, loss=1.0)
        model[2].weight.data[0, 0] = float("nan")
        assert monitor.step(1, loss=float("nan")) == {}
        assert monitor.latest == {}
    tables = read_experiment(tmp_path)
    assert tables.skipped.reason.item().startswith("2.weight holds 1 NaN or infinite of 8 values")
    assert tables.metrics.query("split == 'train'").loss.isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "fc"}, "layer 'fc' is no module of Sequential"),
        ({"maps": ["tial"]}, "unknown map 'tial'.*Did you mean 'tail'"),
        ({"maps": [Measurement("tail", batch_mode="samples")]}, "unknown batch_mode 'samples'"),
        ({"schedule": 0}, "a schedule of every 0 steps makes no sense"),
        ({"maps": [Measurement("tail", schedule=-1)]}, "a schedule of every -1 steps"),
        ({"max_overhead": 0}, "max_overhead must be a positive share such as 0.05, or None; it is 0"),
        ({"max_overhead": float("nan")}, "max_overhead must be a positive share"),
        ({"memory_budget": 100, "method": "exact"}, "the memory budget is"),
        ({"memory_budget": 100}, "matrix-free .* the memory budget is"),
        ({"method": "exakt"}, "unknown method 'exakt'.*Did you mean 'exact'"),
        ({"tolerance": -1}, "tolerance must be a positive"),
        ({"dtype": torch.int8}, "dtype must be a floating torch.dtype"),
        ({"probe": X * float("inf")}, "the probe holds 18 NaN or infinite"),
        ({"probe": torch.ones(0, 3)}, "with at least one sample"),
        ({"probe": (X, Y, Y)}, "input 2 .*: .*positional argument"),
        ({"probe": (X, Y[:3])}, "the probe's targets do not fit the inputs"),
        ({"probe": (X, Y + 2)}, "the probe's targets do not fit the logits .*out of bounds"),
        ({"probe": (X, torch.rand(6))}, "the probe's targets do not fit the logits"),
        ({"probe": (X, [0, 1])}, "the probe's targets do not fit the logits"),
    ],
)
def test_bad_input_is_met_before_the_first_step_and_leaves_nothing(model, tmp_path, options, message):
    with pytest.raises(InputError, match=message) as caught:
        SpectrumMonitor(model, options.pop("probe", X), tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_met_before_the_first_step(model, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        SpectrumMonitor(model, X, tmp_path / "file")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"los": 1.0}, "unknown column 'los'; the table has run_id, step"),
        ({"loss": torch.ones(3)}, r"column 'loss' must be a single number; it is a Tensor of shape \(3,\)"),
        ({"lr": [0.1]}, r"column 'lr' must be a single number; it is \[0.1\] \(list\)"),
    ],
)
def test_metrics_that_are_not_a_single_number_are_refused_when_they_are_logged(model, tmp_path, metrics, message):
    with SpectrumMonitor(model, X, tmp_path, max_overhead=None) as monitor:
        monitor.step(0, loss=1.0)
        with pytest.raises(InputError, match=message):
            monitor.step(1, **metrics)
        for step in (True, 0.5, -1, "1"):
            with pytest.raises(InputError, match="column 'step' must be a whole number"):
                monitor.step(step, loss=1.0)
        monitor.step(np.int64(2), loss=1.0)
    assert read_experiment(tmp_path).metrics.step.tolist() == [0, 2]


def test_metrics_are_those_of_the_moment(model, tmp_path):
    loss = torch.tensor([1.0], dtype=torch.bfloat16)
    with SpectrumMonitor(model, X, tmp_path, max_overhead=None) as monitor:
        for step, value in enumerate([1, True, np.int64(3), loss]):
            monitor.step(step, loss=value)
        loss += 5
    assert read_experiment(tmp_path).metrics.loss.tolist() == [1.0, 1.0, 3.0, 1.0]


@pytest.mark.parametrize("shape", ["classes-last", "classes-second", "real", "bytes"])
def test_probe_loss_of_any_kind_of_target(shape, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    if shape == "classes-second":
        model, y = nn.Sequential(nn.Conv2d(3, 5, 1)), torch.randint(5, (2, 4, 4))
        expected = nn.functional.cross_entropy(model(x), y)
    elif shape == "classes-last":
        model, y = nn.Sequential(nn.Linear(4, 5)), torch.randint(5, (2, 3, 4))
        expected = nn.functional.cross_entropy(model(x).flatten(0, 2), y.flatten())
    elif shape == "real":
        model, y = nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), torch.randn(2, dtype=torch.float64)
        expected = (model(x).squeeze() - y).square().mean()
    else:
        model, y = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.tensor([2, 0], dtype=torch.uint8)
        expected = nn.functional.cross_entropy(model(x), y.long())
    with SpectrumMonitor(model, [x, y], tmp_path, maps="network", max_overhead=None) as monitor:
        monitor.step(0)
    assert read_experiment(tmp_path).metrics.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_probe_is_fixed_when_the_monitor_is_made(model, tmp_path):
    x = X.clone()
    with SpectrumMonitor(model, x, tmp_path, maps="network", max_overhead=None, schedule=1) as monitor:
        first = monitor.step(0)["network"]
        x.mul_(100)
        np.testing.assert_array_equal(monitor.step(1)["network"].values, first.values)


def test_tables_can_be_read_while_training_goes_on(model, tmp_path):
    with SpectrumMonitor(model, X, tmp_path, maps="network", schedule=1, max_overhead=None) as monitor:
        for step in range(3):
            monitor.step(step, loss=0.5)
            monitor.flush()
            assert len(pd.read_parquet(tmp_path / "spectra")) == step + 1
            assert len(pd.read_parquet(tmp_path / "metrics")) == step + 1


@pytest.mark.parametrize("rewind", [True, False])
def test_a_run_resumed_from_a_checkpoint_has_each_step_once(model, tmp_path, rewind):
    for first, last in ((0, 7), (4, 9)):
        options = {"maps": "network", "schedule": 1, "max_overhead": None}
        with SpectrumMonitor(model, X, tmp_path, resume=True, **options) as monitor:
            if rewind:
                monitor.rewind(first - 1)
            for step in range(first, last):
                monitor.step(step, loss=float(last))
    tables = read_experiment(tmp_path)
    assert tables.metrics.step.tolist() == tables.spectra.step.tolist() == list(range(9))
    assert tables.metrics.loss.tolist() == [7.0] * 4 + [9.0] * 5


def test_an_error_in_the_loop_still_writes_what_waits(model, tmp_path):
    def interrupted():
        with SpectrumMonitor(model, X, tmp_path, max_overhead=None) as monitor:
            monitor.step(0, loss=1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(read_experiment(tmp_path).metrics) == 1


def test_only_the_first_process_measures_and_writes(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with SpectrumMonitor(model, X, tmp_path / "run", max_overhead=None) as monitor:
        assert monitor.step(0, loss=1.0) == {}
        monitor.rewind(0)
    assert not (tmp_path / "run").exists()
