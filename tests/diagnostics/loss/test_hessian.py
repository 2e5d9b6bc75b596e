"""The Hessian as an operator against dense ones, and the ends of known spectra."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError, LayerCallError, UnsupportedModelError
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator
from skip_conditioning.diagnostics.loss.hessian import (
    HessianOperator,
    largest_eigenvalue,
    smallest_eigenvalue,
    spectral_norm,
)
from skip_conditioning.diagnostics.networks.numerics import exact_numerics
from skip_conditioning.diagnostics.networks.output_choice import choose_output
from tests.diagnostics.sample_networks import CASES

#: Dense Hessians of these take too long; batch norm over one value; torch's weight norm (see below).
LEFT_OUT = ("paper-mnist", "preact-resnet18", "transformer", "fused-attention", "width-one", "parametrised")


def targets(model, x, real):
    torch.manual_seed(1)
    with torch.no_grad():
        logits = choose_output(copy.deepcopy(model)(x.clone()))
    if real:
        return torch.randn(logits.shape, dtype=torch.float64)
    return torch.randint(logits.shape[-1], logits.shape[:-1])


def dense_hessian(model, x, y):
    """From plain autograd on a deep copy, parameter by parameter."""
    model = copy.deepcopy(model)
    with exact_numerics([torch.device("cpu")]):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        logits = choose_output(model(x.clone()))
        if y.is_floating_point():
            loss = ((logits - y) ** 2).mean()
        else:
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())
        points = [parameter for parameter in model.parameters() if parameter.requires_grad]
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        gradients = torch.autograd.grad(loss, points, create_graph=True, **options)
        rows = [torch.autograd.grad(entry, points, **options) for one in gradients for entry in one.flatten()]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("case", [case for case in CASES if not case.id.startswith(LEFT_OUT)], ids=lambda case: case.id)
@pytest.mark.parametrize("real", [False, True], ids=["cross-entropy", "mean-square"])
def test_products_are_those_with_the_dense_hessian(case, real):
    model, x = case.make()
    y = targets(model, x, real)
    dense, operator = dense_hessian(model, x, y), HessianOperator(model, x, y)
    V = torch.randn(len(dense), 3, dtype=torch.float64)
    size = 1e-11 * dense.abs().max() * len(dense)
    assert operator.shape == tuple(dense.shape)
    for measured in (operator.matmat(V), operator.rmatmat(V)):
        assert (measured - dense @ V).abs().max() <= size
    assert (operator.matvec(V[:, 0]) - dense @ V[:, 0]).abs().max() <= size


def test_it_is_the_hessian_of_torch_func():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()
    y = torch.randn(5, 2).double()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    point = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    def loss(point):
        pieces = point.split([shape.numel() for shape in shapes.values()])
        weights = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return nn.functional.mse_loss(torch.func.functional_call(model, weights, x), y)

    operator = HessianOperator(model, x, y)
    torch.testing.assert_close(operator.dense(), torch.func.hessian(loss)(point), rtol=1e-12, atol=1e-14)
    assert operator.columns == {
        "0.weight": slice(0, 12), "0.bias": slice(12, 16), "2.weight": slice(16, 24), "2.bias": slice(24, 26)
    }  # fmt: skip


def test_linear_regression_has_the_closed_form():
    torch.manual_seed(0)
    x, model = torch.randn(7, 3).double(), nn.Linear(3, 2, bias=False).double()
    operator = HessianOperator(model, x, torch.randn(7, 2).double())
    expected = torch.kron(torch.eye(2).double(), 2 * x.T @ x / (7 * 2))
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-13, atol=1e-15)
    exact = torch.linalg.eigvalsh(expected)
    assert largest_eigenvalue(operator).value == pytest.approx(float(exact[-1]), rel=1e-12)
    assert smallest_eigenvalue(operator).value == pytest.approx(float(exact[0]), rel=1e-10)


@pytest.mark.parametrize("name", ["conv-batch-norm", "tied", "embedding", "dropout", "in-place-residual"])
def test_building_and_using_one_changes_nothing(name, make, nothing_changes):
    model, x = make(name)
    y = targets(model, x, False)
    with nothing_changes(model, x):
        operator = HessianOperator(model, x, y)
        operator.matmat(torch.ones(operator.shape[1], 2, dtype=torch.float64))


@pytest.mark.parametrize("real", [False, True])
def test_it_is_a_snapshot(real, make):
    model, x = make("conv-batch-norm")
    y = targets(model, x, real)
    operator = HessianOperator(model, x, y)
    vector = torch.ones(operator.shape[1], dtype=torch.float64)
    before = operator.matvec(vector)
    model(x)  # moves the running statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    x.zero_(), y.zero_()
    assert torch.equal(operator.matvec(vector), before)


def test_blocks_are_carried_in_chunks_that_change_nothing(make):
    model, x = make("mlp")
    y = targets(model, x, False)
    wide, narrow = (HessianOperator(model, x, y, memory_budget=budget) for budget in (2**30, 1))
    torch.testing.assert_close(wide.dense(), narrow.dense(), rtol=1e-12, atol=1e-14)


def test_frozen_parameters_are_left_out(make):
    model, x = make("frozen")
    assert list(HessianOperator(model, x, targets(model, x, False)).columns) == ["0.bias", "2.weight", "2.bias"]
    with pytest.raises(LayerCallError, match="no trainable parameters"):
        HessianOperator(model.requires_grad_(False), x, targets(model, x, False))


class OnceOnly(nn.Module):
    """An operator whose backward pass cannot be differentiated."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x**2

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.Square.apply(self.inner(x))


def test_errors_are_clear(make):
    model, x = make("mlp")
    with pytest.raises(InputError, match="do not fit"):
        HessianOperator(model, x, torch.zeros(2, dtype=torch.long))
    with pytest.raises(UnsupportedModelError, match="the Hessian map of 'total' cannot be differentiated"):
        HessianOperator(OnceOnly().double(), torch.ones(2, 3).double(), torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match="too coarse"):
        largest_eigenvalue(MatrixOperator(torch.eye(3, dtype=torch.bfloat16)))


def test_second_derivatives_that_autograd_gets_wrong_are_refused(make):
    """Torch's fused weight norm forgets that the norm it divides by depends on the weight."""
    model, x = make("parametrised")
    y = targets(model, x, False)
    dense = dense_hessian(model, x, y)
    if (dense - dense.T).abs().max() < 1e-10:
        pytest.skip("this torch differentiates its weight norm twice as it should")
    with pytest.raises(UnsupportedModelError, match="not symmetric"):
        HessianOperator(model, x, y)


SIZE = 200
SPECTRA = {
    "both signs": np.linspace(-2, 1, SIZE),
    "an outlier": np.append(np.linspace(-1, 1, SIZE - 1), 40.0),
    "negative, and one zero": np.append(np.linspace(-1, -0.5, SIZE - 1), 0.0),
    "positive, and a null space": np.append(np.linspace(1, 0.5, SIZE - 20), np.zeros(20)),
    "±": np.append(np.linspace(-0.5, 0.5, SIZE - 2), [-1.0, 1.0]),
    "identity": np.ones(SIZE),
    "zero": np.zeros(SIZE),
    "tiny": 1e-100 * np.linspace(-2, 1, SIZE),
    "small enough to be dense": np.linspace(-2, 1, 40),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("max_products", [40, 2000])
def test_the_stated_residuals_and_bounds_of_the_ends_hold(name, max_products):
    values = SPECTRA[name]
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(len(values),) * 2))[0]
    operator = MatrixOperator(torch.from_numpy((basis * values) @ basis.T))
    norm = np.abs(values).max()
    for find, exact, sizes in (
        (largest_eigenvalue, values.max(), values),
        (smallest_eigenvalue, values.min(), values),
        (spectral_norm, norm, np.abs(values)),
    ):
        measured = find(operator, max_products=max_products)
        rounding = 16 * np.finfo(float).eps * norm  # of the residual itself, which differs between processors
        assert np.abs(sizes - measured.value).min() <= measured.residual + rounding
        if max_products == 2000:
            assert (measured.converged, measured.bound) == (True, None)
        if measured.converged:
            assert measured.value == pytest.approx(exact, abs=1e-6 * norm)
            assert measured.residual <= 2e-6 * norm
        elif find is smallest_eigenvalue:
            assert (measured.bound, measured.value >= exact) == ("upper", True)
        else:
            assert (measured.bound, measured.value <= exact) == ("lower", True)


def test_no_convergence_is_reported():
    operator = MatrixOperator(torch.diag(1 - torch.logspace(0, -8, 1000, dtype=torch.float64)))
    measured = largest_eigenvalue(operator, tolerance=1e-12, max_products=100)
    assert (measured.converged, measured.bound) == (False, "lower")
    assert 0.9 < measured.value < 1 - 1e-8
    assert measured.products <= 100


@pytest.mark.parametrize("size", [5, 100])
@pytest.mark.parametrize("scale", [1e-305, 1e-200, 1e200])
def test_the_scale_of_an_operator_does_not_matter(size, scale):
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    values = torch.linspace(-1.5, 1.0, size, dtype=torch.float64)
    operator = MatrixOperator(basis @ torch.diag(values * scale) @ basis.T)
    for find, exact in ((largest_eigenvalue, 1.0), (smallest_eigenvalue, -1.5), (spectral_norm, 1.5)):
        measured = find(operator)
        assert measured.converged
        assert measured.value / scale == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("shape", [(10, 7), (100, 70)])
def test_an_operator_that_is_not_square_has_no_eigenvalues(shape):
    with pytest.raises(InputError, match="only square"):
        largest_eigenvalue(MatrixOperator(torch.randn(shape, dtype=torch.float64)))


@pytest.mark.parametrize("targets", [None, [0, 1, 2, 0]])
def test_targets_that_are_no_tensor_are_named(targets):
    with pytest.raises(InputError, match="targets do not fit"):
        HessianOperator(nn.Linear(6, 3), torch.randn(4, 6), targets)
