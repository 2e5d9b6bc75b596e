"""Operators against the matrices they stand for."""

import numpy as np
import pytest
import torch

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator

SHAPES = [(5, 5), (7, 4), (3, 6), (1, 1)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=SHAPES, ids=str)
def matrix(request):
    return random(*request.param)


def test_products_are_the_matrix_s(matrix):
    operator, (rows, cols) = MatrixOperator(matrix), matrix.shape
    v, u, V, U = random(cols, seed=1), random(rows, seed=2), random(cols, 3, seed=3), random(rows, 3, seed=4)
    torch.testing.assert_close(operator.matvec(v), matrix @ v)
    torch.testing.assert_close(operator.rmatvec(u), matrix.T @ u)
    torch.testing.assert_close(operator.matmat(V), matrix @ V)
    torch.testing.assert_close(operator.rmatmat(U), matrix.T @ U)
    torch.testing.assert_close(operator.gram_matvec(v), matrix.T @ (matrix @ v))
    torch.testing.assert_close(operator.dense(), matrix)
    torch.testing.assert_close(operator @ v, matrix @ v)
    torch.testing.assert_close(operator @ V, matrix @ V)


def test_the_adjoint_moves_to_the_other_side(matrix):
    adjoint, (rows, cols) = MatrixOperator(matrix).T, matrix.shape
    v, u = random(cols, seed=1), random(rows, seed=2)
    assert adjoint.shape == (cols, rows)
    torch.testing.assert_close(adjoint.matvec(u) @ v, u @ adjoint.rmatvec(v))
    torch.testing.assert_close(adjoint.dense(), matrix.T)
    assert adjoint.T.matrix is matrix


def test_composition_applies_the_right_one_first():
    left, right = random(4, 6), random(6, 3, seed=1)
    product = MatrixOperator(left) @ MatrixOperator(right)
    assert product.shape == (4, 3)
    torch.testing.assert_close(product.dense(), left @ right)
    torch.testing.assert_close(product.T.dense(), (left @ right).T)
    u = random(4, seed=2)
    torch.testing.assert_close(product.rmatvec(u), (left @ right).T @ u)


def test_a_block_without_columns_has_a_product_without_columns():
    operator = MatrixOperator(random(4, 6))
    assert operator.matmat(random(6, 0)).shape == (4, 0)
    assert operator.rmatmat(random(4, 0)).shape == (6, 0)


def test_scipy_sees_the_same_matrix(matrix):
    linear = MatrixOperator(matrix).to_scipy()
    v, u = random(matrix.shape[1], seed=1).numpy(), random(matrix.shape[0], seed=2).numpy()
    assert (linear.shape, linear.dtype) == (tuple(matrix.shape), np.float64)
    np.testing.assert_allclose(linear @ v, matrix.numpy() @ v)
    np.testing.assert_allclose(linear.T @ u, matrix.numpy().T @ u)
    np.testing.assert_allclose(linear @ np.eye(matrix.shape[1]), matrix.numpy())
    np.testing.assert_allclose(linear.H @ np.eye(matrix.shape[0]), matrix.numpy().T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.matvec(random(4)), "blocks of 6 rows"),
        (lambda a: a.rmatvec(random(6)), "blocks of 4 rows"),
        (lambda a: a.matvec(random(6, 1)), "vector of 6 entries"),
        (lambda a: a.matmat(random(6)), "blocks of 6 rows"),
        (lambda a: a.matvec(random(6).float()), "float64.*float32"),
        (lambda a: a @ MatrixOperator(random(4, 6)), r"the stem \(4, 6\) cannot be applied after"),
        (lambda a: a @ MatrixOperator(random(6, 2).float()), "float64.*float32"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(MatrixOperator(random(4, 6), name="the stem"))


def test_composition_with_anything_else_is_a_type_error():
    with pytest.raises(TypeError):
        MatrixOperator(random(4, 6)) @ 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_product_that_is_not_finite_names_the_operator(bad):
    matrix = random(4, 6)
    matrix[1, 2] = bad
    operator = MatrixOperator(matrix, name="the stem")
    with pytest.raises(NonFiniteError, match="a product with the stem holds NaN"):
        operator.matvec(torch.ones(6, dtype=torch.float64))
    with pytest.raises(NonFiniteError, match="the adjoint of the stem"):
        operator.T.matvec(torch.ones(4, dtype=torch.float64))


def test_a_sum_that_overflows_is_no_error_where_no_entry_does():
    largest = torch.finfo(torch.float64).max
    product = MatrixOperator(torch.full((4, 1), 0.9 * largest, dtype=torch.float64)).matvec(torch.ones(1).double())
    assert torch.isfinite(product).all()
