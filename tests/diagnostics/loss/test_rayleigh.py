"""The speed felt by the loss: its gradient in each layer's parameters against its gradient in the outputs."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from skip_conditioning import SpectrumMonitor, jacobian, spectra, tangent_kernel
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.loss.probe_loss import rayleigh_quotients
from skip_conditioning.diagnostics.monitoring.monitor import Measurement
from skip_conditioning.diagnostics.tables import read_experiment


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


X, Y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])


def slope(model, x, y, loss=cross_entropy):
    """Gradient of the loss in the outputs."""
    logits = nn.Sequential(*model)(x).detach().requires_grad_()
    return torch.autograd.grad(loss(logits, y), logits)[0].flatten()


def test_quotients_are_those_of_the_kernel(model):
    gradient = slope(model, X, Y)
    measured = rayleigh_quotients(model, X, Y)
    kernel = tangent_kernel(model, X)
    assert list(measured) == ["0", "1", "3", "total"]
    for name, value in measured.items():
        matrix = jacobian(model, X, map="kernel", layer=name)
        assert value == pytest.approx(float(gradient @ matrix @ gradient / (gradient @ gradient)), rel=1e-9)
        assert kernel.rayleigh(gradient.view(5, 3), name) == pytest.approx(value, rel=1e-9)
        ends = kernel.spectrum(name)
        assert ends.values[-1] * (1 - 1e-9) <= value <= ends.sigma_max * (1 + 1e-9)
    assert sum(measured[name] for name in ("0", "1", "3")) == pytest.approx(measured["total"], rel=1e-9)


def test_the_quotient_is_the_decrease_along_gradient_flow(model):
    step, before = 1e-6, float(cross_entropy(model(X), Y).detach())
    gradient = slope(model, X, Y)
    speed = rayleigh_quotients(model, X, Y)["total"] * float(gradient @ gradient)
    cross_entropy(model(X), Y).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= step * parameter.grad
        after = float(cross_entropy(model(X), Y))
    assert (before - after) / step == pytest.approx(speed, rel=1e-4)


def test_real_targets_and_single_samples(model):
    targets = torch.randn(5, 3, dtype=torch.float64)
    gradient = slope(model, X, targets, mse_loss)
    matrix = jacobian(model, X, map="kernel")
    expected = float(gradient @ matrix @ gradient / (gradient @ gradient))
    assert rayleigh_quotients(model, X, targets)["total"] == pytest.approx(expected, rel=1e-9)
    measured = rayleigh_quotients(model, X, Y, batch_mode="sample", layers=["3"])
    assert list(measured) == [f"{name}[{sample}]" for sample in range(5) for name in ("3", "total")]
    model.eval()
    alone = rayleigh_quotients(model, X[2:3], Y[2:3], layers=["3"])
    assert measured["3[2]"] == pytest.approx(alone["3"], rel=1e-9)


def test_no_gradient_is_no_number_and_a_tiny_one_does_not_vanish(model):
    reached = nn.Sequential(*model)(X).detach()
    assert math.isnan(rayleigh_quotients(model, X, reached)["total"])
    near = reached + 1e-200 * torch.randn_like(reached)
    assert math.isnan(rayleigh_quotients(model, X, near)["total"]) or rayleigh_quotients(model, X, near)["total"] > 0


def test_targets_that_do_not_fit(model):
    with pytest.raises(InputError, match="do not fit"):
        rayleigh_quotients(model, X, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
def test_the_monitor_writes_a_row_for_each_layer_and_the_whole(model, tmp_path, batch_mode):
    kernels = Measurement("kernel", batch_mode=batch_mode, schedule=1)
    with SpectrumMonitor(model, (X, Y), tmp_path / "runs" / "a", maps=kernels, max_overhead=None) as monitor:
        measured = monitor.step(0)
    table = read_experiment(tmp_path).spectra
    expected = spectra(model, X, map="kernel", batch_mode=batch_mode)
    assert list(measured) == list(expected)
    assert len(table) == len(expected) == (4 if batch_mode == "batch" else 20)
    felt = rayleigh_quotients(model, X, Y, batch_mode=batch_mode)
    for (key, spectrum), row in zip(expected.items(), table.to_dict("records"), strict=True):
        assert (row["layer"], row["map"]) == (spectrum.layer, "kernel")
        assert row["trace"] == pytest.approx(float(np.sum(spectrum.values)), rel=1e-9)
        assert row["rayleigh"] == pytest.approx(felt[key], rel=1e-9)
        assert row["sigma_max"] == pytest.approx(spectrum.values[0], rel=1e-9)
        assert row["condition_number"] == pytest.approx(spectrum.condition_number, rel=1e-6)


def test_other_maps_and_probes_without_targets_have_none(model, tmp_path):
    with SpectrumMonitor(model, X, tmp_path / "runs" / "a", maps=["kernel", "network"], max_overhead=None) as monitor:
        monitor.step(0)
    table = read_experiment(tmp_path).spectra
    assert table.rayleigh.isna().all()
    assert table[table["map"] == "kernel"].trace.notna().all()
    assert table[table["map"] == "network"].trace.isna().all()
