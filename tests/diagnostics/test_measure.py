"""The public functions that measure a model: what they return, and errors about anything but layers."""

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning import JacobianOperator, jacobian, spectra, tangent_kernel
from skip_conditioning.diagnostics.errors import InputError, MemoryBudgetError, NonFiniteError, UnsupportedModelError
from skip_conditioning.models import build_model

X = torch.ones(2, 3)


def net():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": "tial"}, "unknown map 'tial'; known are layer, tail, network, param, kernel. Did you mean 'tail'"),
        ({"map": None}, "unknown map None"),
        ({"batch_mode": "batched"}, "unknown batch_mode 'batched'; known are batch, sample. Did you mean 'batch'"),
        ({"method": "exakt"}, "unknown method 'exakt'; known are auto, exact, lanczos. Did you mean 'exact'"),
        ({"dtype": torch.int32}, r"dtype must be a floating torch.dtype .*; it is torch.int32"),
        ({"dtype": "float64"}, "it is 'float64'"),
        ({"tolerance": 0}, "tolerance must be a positive relative error such as 0.01, or None; it is 0"),
        ({"tolerance": float("nan")}, "tolerance must be a positive"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(InputError, match=message):
        spectra(net(), X, **options)


@pytest.mark.parametrize(
    "probe", [torch.ones(0, 3), torch.ones(()), [1.0], None, {"input": 1.0}, torch.ones(2, 0), np.ones((2, 3))]
)
@pytest.mark.parametrize("model", [net(), nn.ReLU()], ids=["net", "no-parameters"])
def test_probes_that_are_none(probe, model):
    with pytest.raises(InputError, match=r"the probe must be a tensor of shape \(N, \*input_shape\)"):
        spectra(model, probe, map="network")


def test_the_layer_map_is_the_default():
    model = net().double()
    x = torch.randn(2, 3, dtype=torch.float64)
    expected = jacobian(model, x, map="layer", layer="2")
    assert torch.equal(jacobian(model, x, layer="2"), expected)
    assert torch.equal(JacobianOperator(model, x, layer="2").dense(), expected)
    assert spectra(model, x, layers="2")["2"].map == "layer"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(value):
    probe = X.clone()
    probe[1, 2] = value
    with pytest.raises(NonFiniteError, match="the probe holds 1 NaN or infinite of 6 values"):
        spectra(net(), probe)
    model = net()
    model[2].bias.data[0] = value
    with pytest.raises(NonFiniteError, match=r"2.bias holds 1 NaN or infinite of 2 values; measure an earlier step"):
        spectra(model, X)
    model = net().eval()
    model[1].running_mean[1] = value
    with pytest.raises(NonFiniteError, match=r"1.running_mean holds|the output of the layer map of '1' holds"):
        spectra(model, X)


def test_jacobian_needs_a_layer_unless_the_map_is_the_network_or_the_kernel():
    with pytest.raises(InputError, match="the param map needs a layer; name one of the model's modules"):
        jacobian(net(), X, map="param")
    assert jacobian(net(), X, map="network").shape == (4, 6)
    assert jacobian(net(), X, map="kernel").shape == (4, 4)


def test_too_small_a_budget_is_told_before_anything_is_computed():
    with pytest.raises(MemoryBudgetError, match=r"the layer map of '0' is 6×6: .* budget is 0.000954 MiB; use"):
        spectra(net(), X, memory_budget=1000, method="exact")


def test_checkpointed_gradients_are_those_without_checkpoints():
    class Checkpointed(nn.Linear):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(
                lambda h: super(Checkpointed, self).forward(h).sin(), x, use_reentrant=False
            )

    torch.manual_seed(0)
    model, x = Checkpointed(3, 2), X.double()
    rows = torch.autograd.functional.jacobian(lambda x: (x @ model.weight.double().T + model.bias.double()).sin(), x)
    measured = jacobian(model, x, map="network", dtype=torch.float64)
    torch.testing.assert_close(measured, rows.reshape(measured.shape), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_floating_precision_agrees_within_its_floor(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    x = torch.randn(4, 3).to(dtype)
    measured, exact = (spectra(model, x, map="network", dtype=kind)["network"] for kind in (dtype, torch.float64))
    assert measured.dtype == str(dtype).removeprefix("torch.")
    assert np.abs(measured.values - exact.values).max() <= measured.floor


def test_the_papers_measurement_has_its_320_values():
    torch.manual_seed(0)
    x = torch.rand(32, 1, 28, 28)
    measured = spectra(build_model("paper-mnist", arm="chain"), x, map="tail", layers="stem")["stem"]
    assert (measured.rows, measured.cols, len(measured.values)) == (320, 32 * 5 * 12 * 12, 320)
    assert measured.map == "tail"
    assert measured.method == "exact: gram of rows"
    assert measured.seconds > 0
    assert measured.resolved


def test_importing_the_package_is_cheap_and_lazy():
    import subprocess
    import sys

    code = "import sys, diagnostics, diagnostics.tables; assert 'torch' not in sys.modules; diagnostics.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "module 'diagnostics' has no attribute 'nothing'" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_of_torchscript_are_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    for model in (scripted, nn.Sequential(nn.Linear(3, 3), scripted)):
        for measure in (spectra, tangent_kernel):
            with pytest.raises(UnsupportedModelError, match="measure the module that was scripted or traced"):
                measure(model, torch.randn(2, 3))
