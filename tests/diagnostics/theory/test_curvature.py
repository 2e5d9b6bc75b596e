"""The layer-wise bound of the curvature: a theorem about every point, and equal to the curvature where it is tight."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skip_conditioning.diagnostics.errors import MemoryBudgetError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.theory.curvature import curvature, measured_constants
from skip_conditioning.diagnostics.theory.curvature_bounds import LayerConstants, hessian_bound
from skip_conditioning.diagnostics.theory.layered_network import LayeredNetwork
from skip_conditioning.models.residual_mlp import build_residual_mlp


class Scalar(nn.Module):
    """``x ↦ w x``."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))

    def forward(self, x):
        return x @ self.weight


def scalar_chain(*weights):
    return nn.Sequential(*(Scalar(weight) for weight in weights))


def constants_of(model, x, layers=None):
    with measuring(model, x, dtype=torch.float64) as probed:
        network = LayeredNetwork(probed, layers)
        return measured_constants(network.layers)


def scalar(value):
    return torch.tensor([[value]], dtype=torch.float64)


@pytest.mark.parametrize("a", [0.5, 2.0])
@pytest.mark.parametrize("y", [-3.0, 0.0])
def test_a_scalar_network_of_two_layers_attains_the_bound(a, y):
    """``ℓ = (b a x − y)²`` with ``b a x > y``: all terms of its Hessian have one sign."""
    b, x = 1.5, 2.0
    measured = curvature(scalar_chain(a, b), scalar(x), scalar(y))
    F = b * a * x
    mixed = 2 * (a * x * b * x + (F - y) * x)
    hessian = torch.tensor([[2 * (b * x) ** 2, mixed], [mixed, 2 * (a * x) ** 2]], dtype=torch.float64)
    exact = float(torch.linalg.eigvalsh(hessian)[-1])
    assert measured.largest.value == pytest.approx(exact, rel=1e-13)
    assert measured.spectral_norm.value == pytest.approx(exact, rel=1e-13)
    assert measured.bound == pytest.approx(exact, rel=1e-13)
    assert measured.cost_gradient == pytest.approx(2 * (F - y))
    assert measured.statement.verdict == "holds"
    assert abs(measured.statement.slack) < 1e-12 * exact


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_bound_that_forgets_a_layer_fails(dropped):
    model, x, y = scalar_chain(0.5, 1.5), scalar(2.0), scalar(-3.0)
    measured = curvature(model, x, y)
    layers = [layer for place, layer in enumerate(measured.layers.values()) if place != dropped]
    short = float(hessian_bound(layers, measured.cost_gradient, measured.cost_curvature))
    assert dataclasses.replace(measured, bound=short).statement.verdict == "violated"


@pytest.mark.parametrize("left_out", ["cost_gradient", "cost_curvature"])
def test_a_bound_that_forgets_a_term_of_the_chain_rule_fails(left_out):
    measured = curvature(scalar_chain(0.5, 1.5), scalar(2.0), scalar(-3.0))
    terms = {"cost_gradient": measured.cost_gradient, "cost_curvature": measured.cost_curvature} | {left_out: 0.0}
    short = float(hessian_bound(list(measured.layers.values()), **terms))
    assert short < measured.spectral_norm.value * (1 - 1e-3)


def test_the_inequality_turned_round_fails_where_it_is_not_tight():
    measured = curvature(scalar_chain(0.5, 1.5), scalar(2.0), scalar(5.0))  # b a x < y: the terms have two signs
    assert measured.spectral_norm.value < 0.9 * measured.bound
    assert measured.statement.verdict == "holds"
    assert dataclasses.replace(measured.statement, relation=">=").verdict == "violated"


def test_constants_of_a_scalar_layer():
    first, second = constants_of(scalar_chain(0.5, 1.5), scalar(2.0))
    assert (first.jacobian, first.parameter, first.parameter_parameter) == (0, 2, 0)
    assert (first.mixed, first.input_input) == (0, 0)  # its input is data
    assert (second.jacobian, second.parameter) == (1.5, 1)
    assert (second.parameter_parameter, second.mixed, second.input_input) == (0, 1, 0)


def test_constants_of_a_linear_layer():
    """``f(W, X) = X Wᵀ``: its mixed derivative ``V Uᵀ`` is at most as long as ``|U||V|``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    x = torch.randn(5, 3).double()
    first, second = constants_of(model, x)
    hidden = model[0](x).detach()
    assert first.parameter == pytest.approx(float(torch.linalg.matrix_norm(x, 2)))
    assert second.parameter == pytest.approx(float(torch.linalg.matrix_norm(hidden, 2)))
    assert second.jacobian == pytest.approx(float(torch.linalg.matrix_norm(model[1].weight.detach(), 2)))
    assert second.parameter_parameter == second.input_input == 0
    # Exactly 1 as a bilinear map; the unfoldings along X and W are √2 and √5, and √(4) along the output.
    assert second.mixed == pytest.approx(math.sqrt(2))


def test_layers_without_parameters_and_inputs_without_derivatives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)).double()
    x, y = torch.randint(7, (4, 2)), torch.tensor([0, 1, 1, 0])
    measured = curvature(model, x, y, layers=["0", "1", "3"])
    assert list(measured.layers) == ["0", "1", "3"]
    assert (measured.layers["1"].parameter, measured.layers["1"].parameter_parameter, measured.layers["1"].mixed) == (
        0,
        0,
        0,
    )
    assert measured.layers["1"].input_input > 0
    assert measured.statement.verdict == "holds"


draws = {
    "width": st.integers(1, 3),
    "depth": st.integers(1, 2),
    "samples": st.integers(2, 4),
    "classes": st.integers(2, 3),
    "normaliser": st.sampled_from([None, "weight", "batch", "layer"]),
    "activation": st.sampled_from(["relu", "tanh", "softplus", "identity"]),
    "arm": st.sampled_from(["chain", "residual", "gain-2"]),
    "scale": st.sampled_from([1e-3, 1.0, 10.0]),
    "real": st.booleans(),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(**draws)
def test_it_holds_on_every_draw(width, depth, samples, classes, normaliser, activation, arm, scale, real, seed):
    torch.manual_seed(seed)
    model = build_residual_mlp(
        arm, in_features=2, width=width, depth=depth, num_classes=classes, activation=activation, normaliser=normaliser
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    x = torch.randn(samples, 2, dtype=torch.float64)
    y = torch.randn(samples, classes, dtype=torch.float64) if real else torch.randint(classes, (samples,))
    measured = curvature(model, x, y)
    assert measured.statement.verdict == "holds", str(measured.statement)
    assert (
        measured.largest.value
        <= measured.spectral_norm.value + measured.spectral_norm.residual + measured.largest.residual
    )


def test_a_convolutional_network_in_train_mode(nothing_changes):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    ).double()
    x, y = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 1])
    with nothing_changes(model, x):
        measured = curvature(model, x, y)
    assert measured.statement.verdict == "holds"
    assert "|∇c| =" in measured.statement.note


def test_a_layer_too_large_for_the_budget_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    with pytest.raises(MemoryBudgetError, match=r"layer '0' is 12×9×9.*fewer probe samples"):
        curvature(model, x, y, memory_budget=10_000)


def test_what_is_no_chain_is_an_error():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return x + self.second(self.first(x))

    x, y = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1, 1])
    with pytest.raises(UnsupportedModelError, match="no chain"):
        curvature(Skips().double(), x, y, layers=["first", "second"])


def test_samples_that_cross_entropy_passes_over_do_not_count():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        model.weight.mul_(0.01)
    measured = curvature(model, x, torch.tensor([0, -100, -100, -100]))
    assert measured.statement.verdict == "holds"
    assert measured.cost_curvature == 0.5


def test_a_bound_beyond_the_range_of_numbers_is_vacuous():
    measured = hessian_bound([LayerConstants(1e200, 1e200, 0.0, 0.0, 0.0)] * 2, 1.0, 1.0)
    assert math.isinf(measured)
