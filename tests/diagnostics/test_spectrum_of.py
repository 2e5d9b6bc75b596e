"""The spectrum of any matrix or operator, against plain singular values."""

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning import (
    HessianOperator,
    JacobianOperator,
    MatrixOperator,
    TangentKernelOperator,
    jacobian,
    spectrum_of,
    tangent_kernel,
)
from skip_conditioning.diagnostics.errors import InputError, MemoryBudgetError, NonFiniteError
from skip_conditioning.diagnostics.spectrum import ROUNDING_UNITS
from skip_conditioning.diagnostics.tables import STATISTICS

D = torch.float64


def drawn(rows, cols, dtype=D):
    return torch.randn(rows, cols, dtype=D, generator=torch.Generator().manual_seed(0)).to(dtype)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.randn(6, 4, dtype=D)


@pytest.mark.parametrize("shape", [(7, 7), (3, 8), (8, 3), (1, 1)])
@pytest.mark.parametrize("dtype", [D, torch.float32, torch.bfloat16])
def test_a_dense_matrix_has_all_its_singular_values_and_the_floor_of_its_dtype(shape, dtype, nothing_changes):
    matrix = drawn(*shape, dtype)
    with nothing_changes():
        measured = spectrum_of(matrix)
    expected = torch.linalg.svdvals(matrix.double())
    np.testing.assert_allclose(measured.values, expected, rtol=1e-13)
    assert (measured.rows, measured.cols, measured.method) == (*shape, "exact: svd")
    assert measured.floor == pytest.approx(ROUNDING_UNITS * torch.finfo(dtype).eps * float(expected.norm()))
    assert str(measured).startswith(f"the matrix: {shape[0]}×{shape[1]}, σ from ")


@pytest.mark.parametrize("kind", [np.asarray, lambda m: np.asarray(m)[::-1], lambda m: m.T, MatrixOperator])
def test_a_matrix_may_come_in_any_form(kind):
    matrix = drawn(5, 9)
    np.testing.assert_allclose(spectrum_of(kind(matrix)).values, torch.linalg.svdvals(matrix), rtol=1e-13)


def test_whole_numbers_are_taken_exactly():
    np.testing.assert_allclose(spectrum_of(np.diag([3, 2, 1])).values, [3, 2, 1], rtol=1e-15)


def operators():
    model, x = network()
    y = torch.arange(6) % 3
    kernel = tangent_kernel(model, x).total
    hessian = HessianOperator(model, x, y)
    return {
        "jacobian": (JacobianOperator(model, x, layer="0"), jacobian(model, x, layer="0")),
        "kernel": (TangentKernelOperator(model, x), kernel),
        "hessian": (hessian, hessian.dense()),
    }


@pytest.mark.parametrize("name", ["jacobian", "kernel", "hessian"])
def test_a_small_operator_has_all_its_singular_values(name):
    operator, dense = operators()[name]
    expected = torch.linalg.svdvals(dense)
    measured = spectrum_of(operator)
    np.testing.assert_allclose(measured.values, expected, rtol=0, atol=1e-12 * float(expected[0]))
    assert measured.layer == operator.name


@pytest.mark.parametrize("name", ["jacobian", "kernel", "hessian"])
def test_the_density_of_an_operator_has_standard_errors(name):
    operator, dense = operators()[name]
    exact, measured = spectrum_of(dense), spectrum_of(operator, method="lanczos", tolerance=0.05)
    assert measured.method.startswith("lanczos: ")
    assert len(measured.values) == 0
    assert measured.weights.sum() == pytest.approx(1)
    assert measured.sigma_max == pytest.approx(exact.sigma_max, rel=1e-6)
    assert abs(measured.sigma_mean - exact.sigma_mean) <= 4 * measured.sigma_mean_se + 1e-12
    assert all(getattr(measured, f"{statistic}_se") is not None for statistic in STATISTICS)


def test_what_does_not_fit_the_budget_is_a_density_by_default():
    matrix = drawn(60, 50)
    assert spectrum_of(matrix, memory_budget=2**15).method.startswith("lanczos")
    with pytest.raises(MemoryBudgetError, match="the matrix is 60×50: its exact spectrum needs about"):
        spectrum_of(matrix, method="exact", memory_budget=2**15)


def test_a_large_operator_is_a_density_by_default():
    matrix = drawn(200, 150)
    operator = MatrixOperator(matrix) @ MatrixOperator(torch.eye(150, dtype=D))
    measured, values = spectrum_of(operator), torch.linalg.svdvals(matrix)
    assert measured.method == "lanczos: 2 random vectors × 32 steps"
    assert abs(measured.sigma_rms - float(values.square().mean().sqrt())) <= 4 * measured.sigma_rms_se
    assert not measured.resolved


@pytest.mark.parametrize(
    ("matrix", "options", "error", "message"),
    [
        (torch.ones(3), {}, InputError, r"a matrix has shape \(rows, cols\), with entries; this one has \(3,\)"),
        (torch.ones(0, 3), {}, InputError, "this one has"),
        (torch.ones(2, 2, dtype=torch.complex64), {}, InputError, "give a real one"),
        (torch.tensor([[1.0, torch.nan]]), {}, NonFiniteError, "the matrix holds 1 NaN or infinite of 2 values"),
        (torch.ones(2, 2), {"method": "svd"}, InputError, "unknown method 'svd'"),
        (torch.ones(2, 2).bfloat16(), {"method": "lanczos"}, InputError, "too coarse for matrix-free methods"),
    ],
)
def test_what_has_no_spectrum_is_refused(matrix, options, error, message):
    with pytest.raises(error, match=message):
        spectrum_of(matrix, **options)
