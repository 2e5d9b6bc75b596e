"""The tangent kernel by its products: against the dense kernel and plain autograd, its ends against numpy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import (
    InputError,
    LayerCallError,
    NonFiniteError,
    UnknownLayerError,
    UnsupportedModelError,
)
from skip_conditioning.diagnostics.kernel.operator import TangentKernelOperator
from skip_conditioning.diagnostics.kernel.result import contrasts
from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator

OUTPUTS = ("all", "sum", "centred")


def mlp(samples, width=12, outputs=3, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))
    return model.to(dtype), torch.randn(samples, 5, dtype=torch.float64).to(dtype)


def plain_jacobian(model, x, batch_mode):
    """Rows over (sample, output), columns over all parameters, from plain autograd."""
    if batch_mode == "sample":
        alone = copy.deepcopy(model).eval()
        return torch.cat([plain_jacobian(alone, one, "batch") for one in x.split(1)])
    model = copy.deepcopy(model)
    rows = [torch.autograd.grad(one, list(model.parameters()), retain_graph=True) for one in model(x).flatten()]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def assert_products_are_those_with_the_dense_kernel(model, x, layers, batch_mode):
    for layer in layers:
        dense = tangent_kernel(model, x, layers=layer, batch_mode=batch_mode).total
        operator = TangentKernelOperator(model, x, layer=layer, batch_mode=batch_mode)
        assert operator.shape == tuple(dense.shape)
        V = torch.randn(len(dense), 3, dtype=torch.float64)
        close = {"rtol": 1e-9, "atol": 1e-10 * float(dense.abs().max())}
        torch.testing.assert_close(operator.matmat(V), dense @ V, **close)
        torch.testing.assert_close(operator.rmatmat(V), dense @ V, **close)
        torch.testing.assert_close(operator.matvec(V[:, 0]), dense @ V[:, 0], **close)


def test_products_are_those_with_the_dense_kernel(kernel_case):
    model, x = kernel_case.make()
    assert_products_are_those_with_the_dense_kernel(model, x, kernel_case.maps["kernel"], "batch")


@pytest.mark.parametrize("name", ["conv-batch-norm", "changes-its-input", "transformer", "called-thrice", "dropout"])
def test_products_sample_by_sample_are_those_with_the_dense_kernel(name, make):
    model, x = make(name)
    assert_products_are_those_with_the_dense_kernel(model, x, ["total"], "sample")


@pytest.mark.parametrize(
    ("name", "batch_mode", "outputs"),
    [
        ("mlp", "batch", "all"),
        ("mlp", "sample", "sum"),
        ("conv-batch-norm", "batch", "centred"),
        ("conv-batch-norm", "sample", "centred"),
        ("conv-batch-norm", "sample", "all"),
        ("conv-batch-norm-eval", "batch", "sum"),
        ("in-place-residual", "batch", "centred"),
        ("in-place-residual", "sample", "all"),
    ],
)
def test_the_jacobian_is_that_of_plain_autograd(name, batch_mode, outputs, make):
    model, x = make(name)
    J = plain_jacobian(model, x, batch_mode)
    count = len(J) // len(x)
    basis = {"all": torch.eye(count), "sum": torch.ones(count, 1), "centred": contrasts(count)}[outputs].double()
    J = torch.kron(torch.eye(len(x)), basis.T.contiguous()) @ J
    operator = TangentKernelOperator(model, x, batch_mode=batch_mode, outputs=outputs)
    V, U = (torch.randn(side, 2, dtype=torch.float64) for side in reversed(J.shape))
    torch.testing.assert_close(operator.jacobian.matmat(V), J @ V, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(operator.jacobian.rmatmat(U), J.T @ U, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(operator.dense(), J @ J.T, rtol=1e-9, atol=1e-10)


def test_in_sample_mode_entries_between_samples_are_in_it(make):
    model, x = make("conv-batch-norm")
    whole = TangentKernelOperator(model, x, batch_mode="sample").dense().view(4, 3, 4, 3)
    assert whole.abs().amax((1, 3)).min() > 1e-3
    assert not torch.allclose(whole, TangentKernelOperator(model, x).dense().view_as(whole))
    together = TangentKernelOperator(model.eval(), x).dense()
    torch.testing.assert_close(whole.reshape_as(together), together)


@pytest.mark.parametrize(
    ("outputs", "batch_mode", "samples"),
    [
        ("all", "batch", 6),
        ("sum", "batch", 80),
        ("centred", "batch", 80),
        ("centred", "sample", 6),
        ("all", "sample", 20),
    ],
)
def test_the_ends_are_those_of_the_dense_kernel(outputs, batch_mode, samples):
    model, x = mlp(samples)
    values = tangent_kernel(model, x, outputs=outputs, batch_mode=batch_mode).spectrum().values
    operator = TangentKernelOperator(model, x, outputs=outputs, batch_mode=batch_mode)
    assert operator.shape == (len(values), len(values))
    largest, smallest = operator.largest_eigenvalue(), operator.smallest_eigenvalue()
    assert (largest.converged, largest.bound) == (smallest.converged, smallest.bound) == (True, None)
    assert largest.value == pytest.approx(values[0], rel=1e-5)
    assert largest.residual <= 2e-3 * largest.value
    assert smallest.value == pytest.approx(values[-1], rel=1e-2)


@pytest.mark.parametrize(("layer", "steps"), [("0", 8), ("2", 20), ("total", 2), ("total", 20), ("total", 60)])
def test_residuals_and_bounds_hold(layer, steps):
    model, x = mlp(30)
    values = np.linalg.eigvalsh(tangent_kernel(model, x, layers=layer).total.numpy())[::-1]
    operator = TangentKernelOperator(model, x, layer=layer)
    rounding = 1e-12 * values[0]
    largest = operator.largest_eigenvalue(max_steps=steps, tolerance=1e-8)
    smallest = operator.smallest_eigenvalue(max_products=2 * steps)
    assert np.abs(values - largest.value).min() <= largest.residual + rounding
    assert largest.value <= values[0] + rounding
    assert (largest.bound is None) == largest.converged
    assert smallest.value >= values[-1] - rounding
    if operator.jacobian.shape[0] <= operator.jacobian.shape[1]:
        assert np.abs(values - smallest.value).min() <= smallest.residual + rounding
        assert smallest.bound == "upper" or smallest.value == pytest.approx(values[-1], rel=2e-2)
    else:
        assert smallest.value == 0


def test_too_few_products_leave_bounds():
    operator = TangentKernelOperator(*mlp(50))
    low, high = operator.largest_eigenvalue(max_steps=2, tolerance=1e-9), operator.smallest_eigenvalue(max_products=11)
    assert (low.converged, low.bound) == (False, "lower")
    assert (high.converged, high.bound) == (False, "upper")


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_the_tolerance_is_that_of_the_eigenvalue(tolerance):
    operator = TangentKernelOperator(*mlp(50))
    measured = operator.largest_eigenvalue(tolerance=tolerance)
    assert measured.converged
    assert measured.residual <= tolerance * measured.value * (1 + 1e-3)


@pytest.mark.parametrize("samples", [30, 90])
def test_more_rows_than_parameters_make_a_singular_kernel(samples):
    model, x = mlp(samples, width=4)  # 59 parameters
    operator = TangentKernelOperator(model, x)
    rows, cols = operator.jacobian.shape
    assert rows > cols
    measured, largest = operator.smallest_eigenvalue(), operator.largest_eigenvalue()
    assert (measured.value, measured.residual, measured.converged, measured.bound, measured.products) == (
        0,
        0,
        True,
        None,
        0,
    )
    assert measured.method == "exact: rank"
    assert largest.value == pytest.approx(float(torch.linalg.eigvalsh(operator.dense())[-1]), rel=1e-5)


@pytest.mark.parametrize("samples", [8, 40])
def test_a_sample_given_twice_is_told_from_a_small_eigenvalue(samples):
    model, x = mlp(samples)
    x[1] = x[0]
    operator = TangentKernelOperator(model, x)
    measured, largest = operator.smallest_eigenvalue(), operator.largest_eigenvalue().value
    assert (measured.converged, measured.bound) == (True, "upper")
    assert measured.value <= 1e-28 * largest
    assert measured.residual <= 1e-28 * largest


@pytest.mark.parametrize(("samples", "apart"), [(8, 2e-3), (40, 2e-2)])
def test_no_condition_number_is_squared(samples, apart):
    # Two samples almost the same: λ_min / λ_max lies under float32's eps, σ_min / σ_max far above.
    model, x = mlp(samples)
    x[1] = x[0] + apart
    exact = TangentKernelOperator(model, x).smallest_eigenvalue()
    operator = TangentKernelOperator(model, x, dtype=torch.float32)
    measured, largest = operator.smallest_eigenvalue(), operator.largest_eigenvalue().value
    assert exact.value < torch.finfo(torch.float32).eps / 10 * largest
    assert (measured.converged, measured.bound) == (True, None)
    assert abs(measured.value - exact.value) <= measured.residual + exact.residual
    assert measured.value == pytest.approx(exact.value, rel=2e-2)


def test_an_eigenvalue_under_the_floor_is_a_bound():
    model, x = mlp(40)
    operator = TangentKernelOperator(model, x)
    value = operator.smallest_eigenvalue().value
    assert operator.smallest_eigenvalue(floor=value / 4).bound is None
    below = operator.smallest_eigenvalue(floor=value * 4)
    assert (below.converged, below.bound) == (True, "upper")
    assert value <= below.value * (1 + 1e-2)
    assert below.value <= 4 * value * (1 + 1e-6)
    with pytest.raises(InputError, match="floor=-1"):
        operator.smallest_eigenvalue(floor=-1)


def test_scaling_the_outputs_scales_by_the_square():
    model, x = mlp(30)
    one = TangentKernelOperator(model, x, layer="0")
    with torch.no_grad():
        model[4].weight.mul_(2.0)
    two = TangentKernelOperator(model, x, layer="0")
    torch.testing.assert_close(two.dense(), 4 * one.dense())
    assert two.largest_eigenvalue().value == pytest.approx(4 * one.largest_eigenvalue().value, rel=1e-12)


def test_the_layers_sum_to_the_whole():
    model, x = mlp(5)
    parts = [TangentKernelOperator(model, x, layer=layer, outputs="centred").dense() for layer in ("0", "2", "4")]
    torch.testing.assert_close(sum(parts), TangentKernelOperator(model, x, outputs="centred").dense())


@pytest.mark.parametrize(("batch_mode", "outputs"), [("batch", "all"), ("batch", "sum"), ("sample", "centred")])
def test_blocks_are_carried_in_chunks_that_change_nothing(batch_mode, outputs):
    model, x = mlp(4)
    wide, narrow = (
        TangentKernelOperator(model, x, batch_mode=batch_mode, outputs=outputs, memory_budget=budget)
        for budget in (2**30, 1)
    )
    torch.testing.assert_close(wide.dense(), narrow.dense(), rtol=1e-12, atol=1e-12)


def test_it_is_symmetric_and_composes():
    model, x = mlp(6)
    operator = TangentKernelOperator(model, x)
    dense = operator.dense()
    assert operator.T is operator
    torch.testing.assert_close(dense, dense.T, rtol=1e-12, atol=1e-12)
    step = MatrixOperator(torch.eye(len(dense)).double()[:4]) @ operator
    torch.testing.assert_close(step.dense(), dense[:4])
    V = torch.randn(len(dense), dtype=torch.float64)
    np.testing.assert_allclose(operator.to_scipy() @ V.numpy(), dense @ V)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_outputs_of_more_dimensions_are_flattened(outputs):
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, 3, 3, padding=1).double(), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    values = tangent_kernel(model, x, outputs=outputs).spectrum().values
    operator = TangentKernelOperator(model, x, outputs=outputs)
    assert operator.shape == (len(values), len(values))
    assert operator.largest_eigenvalue().value == pytest.approx(values[0], rel=1e-5)
    assert operator.smallest_eigenvalue().value == pytest.approx(values[-1], rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("name", ["conv-batch-norm", "in-place-residual", "dropout", "transformer-fast-path"])
@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
def test_building_and_using_one_changes_nothing(name, batch_mode, make, nothing_changes):
    model, x = make(name)
    with nothing_changes(model, x):
        operator = TangentKernelOperator(model, x, batch_mode=batch_mode, outputs="sum")
        operator.matvec(torch.ones(operator.shape[1], dtype=torch.float64))
        operator.largest_eigenvalue(), operator.smallest_eigenvalue()


@pytest.mark.parametrize(("batch_mode", "layer"), [("batch", "total"), ("sample", "0")])
def test_it_is_a_snapshot(batch_mode, layer, make):
    model, x = make("conv-batch-norm")
    operator = TangentKernelOperator(model, x, layer=layer, batch_mode=batch_mode)
    vector = torch.ones(operator.shape[1], dtype=torch.float64)
    before, smallest = operator.matvec(vector), operator.smallest_eigenvalue().value
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):  # moves the running statistics too
        optimiser.zero_grad()
        model(x).square().sum().backward()
        optimiser.step()
    assert not torch.equal(TangentKernelOperator(model, x, layer=layer, batch_mode=batch_mode).matvec(vector), before)
    x.zero_()
    assert torch.equal(operator.matvec(vector), before)
    assert operator.smallest_eigenvalue().value == smallest


def test_a_seed_repeats():
    operator = TangentKernelOperator(*mlp(40))
    first, again, other = (operator.largest_eigenvalue(seed=seed, max_steps=4) for seed in (1, 1, 2))
    assert (first.value, first.residual) == (again.value, again.residual)
    assert first.value != other.value


class Pooled(nn.Linear):
    """One row of outputs for the whole batch."""

    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {"layer": "3x"}, UnknownLayerError, "layer '3x' is no module of Sequential"),
        ({}, {"layer": "1"}, LayerCallError, "layer '1' has no trainable parameters"),
        ({}, {"layer": "*"}, InputError, "layer '1' has no trainable parameters"),
        ({}, {"layer": "[02]"}, InputError, r"'\[02\]' stands for 2 layers; name one of them"),
        ({}, {"layer": None}, InputError, "the layer is None; give the name of one module, or 'total'"),
        ({}, {"layer": ["0", "2"]}, InputError, "give the name of one module"),
        ({}, {"outputs": "trace"}, InputError, "unknown outputs 'trace'; known are all, sum, centred"),
        ({}, {"outputs": "centered"}, InputError, "Did you mean 'centred'"),
        ({}, {"batch_mode": "samples"}, InputError, "Did you mean 'sample'"),
        ({}, {"dtype": torch.int32}, InputError, "dtype must be a floating"),
        (
            {},
            {"dtype": torch.bfloat16},
            InputError,
            "the tangent kernel of 'total' is computed in bfloat16",
        ),
        ({"dtype": torch.float16}, {"dtype": torch.float16}, InputError, "of 'total' is computed in float16"),
        ({"outputs": 1}, {"outputs": "centred"}, InputError, "a network with a single output are zero; use outputs"),
        ({"outputs": 1}, {"outputs": "centred", "batch_mode": "sample"}, InputError, "single output"),
    ],
)
def test_bad_input_is_named(change, options, error, message):
    model, x = mlp(3, **change)
    with pytest.raises(error, match=message):
        TangentKernelOperator(model, x, **options)


def test_outputs_without_a_row_for_each_sample_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"returns a tensor of shape \(1, 2\) for 3 samples"):
        TangentKernelOperator(Pooled(4, 2), torch.randn(3, 4))


def test_what_is_not_finite_is_named():
    model, x = mlp(3)
    x[0] = torch.nan
    with pytest.raises(NonFiniteError, match="the probe"):
        TangentKernelOperator(model, x)

    class Root(nn.Linear):
        def forward(self, x):
            return super().forward(x).square().sqrt()

    dead = Root(2, 2)
    nn.init.zeros_(dead.weight), nn.init.zeros_(dead.bias)
    operator = TangentKernelOperator(dead, torch.ones(3, 2))
    for product in (operator.largest_eigenvalue, operator.smallest_eigenvalue, lambda: operator.matvec(torch.ones(6))):
        with pytest.raises(NonFiniteError, match="'total' holds NaN"):
            product()
