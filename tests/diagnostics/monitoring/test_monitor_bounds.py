"""The bounds in the monitor: one row of the probe per step, completed by the step after it."""

import itertools
import time

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from skip_conditioning import SpectrumMonitor, diagnostics
from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.tables import BOUNDS, METRICS, read_experiment
from skip_conditioning.diagnostics.theory.pl_inequality import pl_chain
from tests.unchanged import same

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1, 0])
DECREASES = ["predicted_decrease", "observed_decrease"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def monitored(model, out, **options):
    return SpectrumMonitor(
        model, (X, Y), out, **{"maps": (), "schedule": 1, "max_overhead": None, "bounds": True} | options
    )


def descend(model, rate=0.1):
    """A step of gradient descent on the probe."""
    gradients = torch.autograd.grad(cross_entropy(model(X), Y), [*model.parameters()])
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= rate * gradient


def probe_rows(out):
    metrics = read_experiment(out).metrics
    return metrics[metrics.split == "probe"].set_index("step")


@pytest.mark.parametrize("maps", [(), ("tail",)], ids=["alone", "with spectra"])
def test_a_step_is_one_row(model, tmp_path, maps):
    chains, losses = [], []
    with monitored(model, tmp_path, maps=maps) as monitor:
        for step in range(4):
            chains.append(pl_chain(model, X, Y))
            losses.append(cross_entropy(model.double()(X.double()), Y).item())
            model.float()
            assert sorted(monitor.step(step, loss=1.0)) == ["0"] * len(maps)
            descend(model)
    rows = probe_rows(tmp_path)
    assert rows.index.tolist() == [0, 1, 2, 3]
    assert rows.loss.tolist() == pytest.approx(losses, rel=1e-6)
    assert rows.accuracy.notna().all()
    for name, attribute in {name: name for name in BOUNDS[:-3]}.items():
        assert rows[name].tolist() == [getattr(chain, attribute) for chain in chains]
    assert rows.pl_verdict.tolist() == [chain.verdict for chain in chains]
    assert (rows.pl_floor_centred <= rows.grad_squared).all()
    assert (rows.grad_squared <= rows.pl_ceiling).all()
    observed = [before - after for before, after in itertools.pairwise(losses)]
    assert rows.observed_decrease.tolist()[:-1] == pytest.approx(observed, rel=1e-6)
    assert rows.predicted_decrease.tolist()[:-1] == pytest.approx(
        [0.1 * one.grad_squared for one in chains[:-1]], rel=1e-4
    )
    assert rows[DECREASES].iloc[-1].isna().all()
    train = read_experiment(tmp_path).metrics.query("split == 'train'")
    assert train[list(BOUNDS)].isna().all(axis=None)


def test_bounds_and_spectra_on_schedules_of_their_own(model, tmp_path):
    with monitored(model, tmp_path, maps=[Measurement("tail", "0", schedule=2)], schedule=3) as monitor:
        measured = [step for step in range(7) if monitor.step(step)]
    assert measured == [0, 2, 4, 6]
    rows = probe_rows(tmp_path)
    assert rows.index.tolist() == [0, 2, 3, 4, 6]
    assert rows.index[rows.grad_squared.notna()].tolist() == [0, 3, 6]
    assert rows.index[rows.observed_decrease.notna()].tolist() == [0, 3]
    assert rows.loss.notna().all()


def test_without_the_option_there_are_no_bounds(model, tmp_path):
    with monitored(model, tmp_path, maps=("tail",), bounds=False) as monitor:
        monitor.step(0)
    assert probe_rows(tmp_path)[list(BOUNDS)].isna().all(axis=None)


def test_a_row_waits_for_the_next_step_only(model, tmp_path):
    with monitored(model, tmp_path, schedule=lambda step: step in (0, 5)) as monitor:
        monitor.step(0)
        descend(model)
        monitor.step(2)  # not the one after
        monitor.step(5)
        monitor.flush()
        descend(model)
        monitor.step(6)
    rows = probe_rows(tmp_path)
    assert rows.index.tolist() == [0, 5]
    assert rows[DECREASES].isna().all(axis=None)
    assert rows.grad_squared.notna().all()


@pytest.mark.parametrize(("step", "complete"), [(None, False), (3, False), (4, True), (5, False)])
def test_a_flush_completes_what_waits_for_its_step(model, tmp_path, step, complete):
    with monitored(model, tmp_path) as monitor:
        monitor.step(3)
        descend(model)
        monitor.flush(step)
        row = probe_rows(tmp_path).loc[3]
        assert row[DECREASES].notna().tolist() == [complete] * 2
        assert row.grad_squared > 0
        monitor.step(4)
    assert probe_rows(tmp_path).index.tolist() == [3, 4]


def test_the_monitors_own_flush_leaves_the_row_that_waits(model, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnostics.monitoring.monitor, "_FLUSH_SECONDS", -1.0)
    with monitored(model, tmp_path) as monitor:
        for step in range(3):
            monitor.step(step, loss=1.0)
            written = read_experiment(tmp_path).metrics
            assert written[written.split == "train"].step.tolist() == list(range(step + 1))
            assert written[written.split == "probe"].step.tolist() == list(range(step))
            descend(model)
    rows = probe_rows(tmp_path)
    assert rows.index.tolist() == [0, 1, 2]
    assert rows.observed_decrease.notna().tolist() == [True, True, False]


@pytest.mark.parametrize(("back", "kept"), [(1, [0, 1]), (2, [0, 1, 2])])
def test_rewinding_drops_a_row_that_waits(model, tmp_path, back, kept):
    with monitored(model, tmp_path) as monitor:
        for step in range(3):
            monitor.step(step)
        monitor.rewind(back)
    assert probe_rows(tmp_path).index.tolist() == kept


def test_the_observer_changes_nothing(tmp_path, nothing_changes):
    def train(observe):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))
        optimiser = torch.optim.Adam(model.parameters())
        monitor = monitored(model, tmp_path) if observe else None
        for step in range(5):
            optimiser.zero_grad()
            cross_entropy(model(torch.randn(6, 3)), Y).backward()
            if monitor is not None:
                with nothing_changes(model, X):
                    monitor.step(step)
            optimiser.step()
        if monitor is not None:
            monitor.close()
        states = [value for state in optimiser.state.values() for value in state.values()]
        return [*model.state_dict().values(), *states, torch.rand(3)]

    assert same(train(observe=True), train(observe=False))
    assert len(probe_rows(tmp_path)) == 5


def test_a_network_that_diverges_is_recorded_and_does_not_stop_training(model, tmp_path):
    with monitored(model, tmp_path) as monitor:
        monitor.step(0)
        model[2].weight.data[0, 0] = float("nan")
        monitor.step(1)
        monitor.step(2)
    skipped = read_experiment(tmp_path).skipped
    assert skipped.step.tolist() == [0, 1, 2]
    assert skipped.reason[0].startswith("decrease of the loss: 2.weight holds 1 NaN")
    assert skipped.reason[1].startswith("2.weight holds 1 NaN")
    assert set(skipped["map"]) == {"bounds"}
    assert set(skipped.layers) == {"total"}
    rows = probe_rows(tmp_path)
    assert rows.index.tolist() == [0]
    assert rows.grad_squared.notna().all()
    assert rows[DECREASES].isna().all(axis=None)


@pytest.fixture
def clock(monkeypatch):
    """A clock in place of the real one; a measurement of the bounds takes a second of it."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()

    def slow(*args, **options):
        clock.now += 1.0
        return pl_chain(*args, **options)

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(diagnostics.monitoring.bounds_log, "pl_chain", slow)
    monkeypatch.setattr(diagnostics.monitoring.bounds_log.BoundsLog, "forecast", lambda self: 1.0)
    return clock


def test_bounds_keep_to_their_share_and_are_made_up_for(model, tmp_path, clock):
    with monitored(model, tmp_path, schedule=lambda step: step in (2, 3), max_overhead=0.1) as monitor:
        for step in range(30):
            clock.now += 1.0
            monitor.step(step)
            assert monitor.overhead <= max(1 / (step + 1), 0.1) + 1e-9
    tables = read_experiment(tmp_path)
    assert tables.skipped.step.tolist() == [2, 3]
    assert set(tables.skipped["map"]) == {"bounds"}
    assert set(tables.skipped.reason) == {"would exceed max_overhead=0.1"}
    assert set(tables.skipped.estimated_seconds) == {1.0}
    assert probe_rows(tmp_path).index.tolist() == [0, 19]
    assert probe_rows(tmp_path).observed_decrease.notna().all()


def test_bounds_made_at_the_first_step_only_are_warned_about(model, tmp_path, clock):
    monitor = monitored(model, tmp_path, max_overhead=0.05)
    clock.now += 3.0
    monitor.step(0)
    monitor.step(1)
    with pytest.warns(UserWarning, match="nothing was measured after the first step: about 1 s"):
        monitor.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": X}, r"give the probe's targets too, as probe=\(x, y\)"),
        ({"probe": (X, Y[:3])}, "the probe's targets do not fit the inputs"),
        ({"memory_budget": 5000}, "the tangent kernel, 12×12, .*the memory budget is"),
        ({"maps": ["bounds"]}, "unknown map 'bounds'"),
        ({"probe": (X, torch.full((6, 2), float("nan")))}, "gradient of the loss in the outputs holds"),
    ],
)
def test_bad_input_is_met_before_the_first_step(model, tmp_path, options, message):
    probe = options.pop("probe", (X, Y))
    with pytest.raises(InputError, match=message):
        SpectrumMonitor(model, probe, tmp_path / "run", **{"maps": (), "bounds": True} | options)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_met_before_the_first_step(model, tmp_path):
    model[0].weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        monitored(model, tmp_path / "run")


def test_real_targets_have_no_contrasts(model, tmp_path):
    with SpectrumMonitor(model, (X, torch.randn(6, 2)), tmp_path, maps=(), max_overhead=None, bounds=True) as monitor:
        monitor.step(0)
    row = probe_rows(tmp_path).loc[0]
    assert pd.isna(row.pl_floor_centred)
    assert row.pl_floor <= row.grad_squared <= row.pl_ceiling
    assert row.pl_verdict == "holds"
    assert set(BOUNDS) <= set(METRICS.names)
