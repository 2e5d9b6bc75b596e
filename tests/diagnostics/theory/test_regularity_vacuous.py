"""Where the regularity bound says nothing: the cause is named, and sizes at the ends of a precision violate nothing."""

import math

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError, MemoryBudgetError
from skip_conditioning.diagnostics.theory.regularity import regularity
from tests.diagnostics.theory.chains import D, everything, kept_apart, network, orthogonal

X = torch.randn(3, 5, dtype=D, generator=torch.Generator().manual_seed(0))


def vacuous(name):
    torch.manual_seed(0)
    dead = nn.Linear(5, 4)
    dead.bias.data[0] = -99
    image = torch.randn(1, 2, 4, 4)
    strided = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 1, stride=2), nn.Flatten())
    return {
        "expansion": (nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 6)), X, "1"),
        "dead units": (nn.Sequential(dead, nn.ReLU(), nn.Linear(4, 2)), X, "1"),
        "batch norm": (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), X, "1"),
        "strided 1×1 convolution": (strided, image, "1"),
    }[name]


@pytest.mark.parametrize("name", ["expansion", "dead units", "batch norm", "strided 1×1 convolution"])
def test_a_layer_that_loses_directions_makes_earlier_terms_vacuous_with_that_cause(name):
    model, x, place = vacuous(name)
    measured = regularity(model, x, layers=everything(model))
    first = measured.terms[0]
    assert (first.value, first.statement.verdict) == (0.0, "vacuous")
    assert first.cause.startswith(f"λ(Jf) of {place}: {name}: ")
    assert first.as_row()["cause"] == first.cause
    if all(term.cause for term in measured.terms):
        assert measured.statement.verdict == "vacuous"
        assert f"0: λ(Jf) of {place}: {name}" in measured.statement.cause
    else:
        assert measured.statement.right > 0
    kept_apart([measured.statement, measured.restricted_statement])


def test_a_limit_that_the_subspace_stays_under_is_not_its_cause():
    torch.manual_seed(0)
    wide, head = nn.Linear(3, 6, bias=False), nn.Linear(6, 2, bias=False)
    wide.weight.data, head.weight.data = torch.eye(6)[:, :3].clone(), torch.eye(6)[[0, 5]].clone()
    measured = regularity(nn.Sequential(nn.Linear(4, 3), wide, head), torch.randn(2, 4))
    factor = measured.restricted[1].jacobian
    assert (factor.value, factor.rows, factor.cols) == (0.0, 4, 6)
    assert "expansion" not in factor.cause, "four directions fit in six inputs"


def test_more_outputs_than_parameters_is_vacuous_as_a_whole():
    measured = regularity(nn.Sequential(nn.Linear(2, 2, bias=False)), torch.randn(7, 2))
    assert (measured.whole.value, measured.statement.right, measured.statement.verdict) == (0.0, 0.0, "vacuous")
    assert measured.whole.cause == "14 directions, 4 columns"


def off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    model[2].weight.data.zero_()
    return model


def constant():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].bias.data.fill_(-99)
    return model


@pytest.mark.parametrize("build", [off, constant])
def test_later_layers_that_pass_nothing_on(build):
    measured = regularity(build(), X)
    assert measured.terms[0].statement.verdict == measured.restricted[0].statement.verdict == "vacuous"
    assert measured.restricted[0].cause


def test_for_a_zero_probe_everything_is_vacuous():
    measured = regularity(network((5, 4, 2), bias=False), 0 * X)
    assert measured.statement.verdict == "vacuous"
    assert "the 3 inputs of 0 span 0 dimensions" in measured.statement.cause
    with pytest.raises(InputError, match="the probe is zero"):
        regularity(network((5, 4, 2)), 0 * X, subspace="data")


def sized(*sizes):
    return nn.Sequential(*[orthogonal(4, 4, size, seed) for seed, size in enumerate(sizes)])


@pytest.mark.parametrize("size", [1e-70, 1e-50, 1e50, 1e70])
def test_sizes_far_from_one(size):
    x = torch.randn(3, 4, dtype=D, generator=torch.Generator().manual_seed(9))
    measured = regularity(sized(size, 1 / size, 1), x)
    assert measured.statement.verdict == measured.restricted_statement.verdict == "holds"
    assert measured.statement.right > 0


EXTREME = {"overflow": (1, 1e200, 1e-200), "overflow of products": (1, 1e120, 1e40), "underflow": (1e-150,) * 3}


@pytest.mark.parametrize("name", EXTREME)
def test_sizes_whose_squares_leave_float64_are_vacuous(name):
    x = torch.randn(3, 4, dtype=D, generator=torch.Generator().manual_seed(9))
    measured = regularity(sized(*EXTREME[name]), x)
    assert measured.statement.verdict == measured.restricted_statement.verdict == "vacuous"
    assert math.isfinite(measured.statement.right)


def test_a_basis_that_is_orthonormal_only_to_float32_violates_nothing():
    model = nn.Sequential(nn.Linear(4, 2, bias=False, dtype=D))
    x = torch.linalg.qr(torch.randn(4, 4, dtype=D))[0][:3]
    measured = regularity(model, x, subspace=torch.eye(6, dtype=D) * (1 - 4e-7))
    assert measured.statement.verdict == measured.restricted_statement.verdict == "holds"


def test_what_does_not_fit_is_left_out_of_the_bound_and_reported():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 300), nn.Tanh(), nn.Linear(300, 2)), torch.randn(3, 2)
    large, small = (regularity(model, x, memory_budget=budget) for budget in (2**30, 1_000_000))
    assert small.terms[0].cause == "λ(Df): not computed: 900×900 exceeds the memory budget"
    assert math.isnan(small.terms[0].parameter.value)
    assert small.whole.value == pytest.approx(large.whole.value, rel=1e-9)
    kept_apart([small.statement])
    with pytest.raises(
        MemoryBudgetError, match="the derivative of 6 outputs in a parameter of 600 entries needs about"
    ):
        regularity(model, x, memory_budget=1000)


def test_a_kernel_that_cannot_be_told_from_zero_does_not_hold():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-10)
    measured = regularity(model, torch.randn(4, 6, dtype=torch.float64))
    for one in (measured.statement, measured.restricted_statement, *(term.statement for term in measured.terms)):
        assert one.verdict != "violated"
        assert one.verdict == "vacuous" or one.left > one.error
