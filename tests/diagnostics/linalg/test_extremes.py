"""The ends of known spectra, found from products alone."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from skip_conditioning.diagnostics.errors import NonFiniteError
from skip_conditioning.diagnostics.linalg.extremes import largest_singular_value, smallest_singular_value
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator, Operator

N = 150
KAPPAS = [1e1, 1e2, 1e4, 1e6, 1e8]
SPECTRA = {
    **{f"geometric {kappa:.0e}": np.geomspace(1, 1 / kappa, N) for kappa in KAPPAS},
    **{f"isolated {size:.0e}": np.append(np.linspace(1, 0.2, N - 1), size) for size in (1e-2, 1e-4, 1e-8)},
    "cluster": np.append(np.linspace(1, 0.2, N - 10), 0.01 * (1 + 1e-4 * np.arange(10))),
    "two small": np.append(np.linspace(1, 0.2, N - 2), [0.05, 0.1]),
    "outlier": np.append(np.linspace(1, 0.3, N - 1), 1e4),
    "rank-deficient": np.append(np.linspace(1, 0.3, N - 5), np.zeros(5)),
    "orthogonal": np.ones(N),
}
SHAPES = {"square": (N, N), "tall": (2 * N, N), "wide": (N, 2 * N)}
F32, F64 = torch.float32, torch.float64
#: Every spectrum once, and those that rounding can spoil in single precision as well.
IN_SINGLE = ("geometric 1e+08", "cluster", "rank-deficient")
CASES = [*((name, F64) for name in SPECTRA), *((name, F32) for name in IN_SINGLE)]


def matrix_of(values, shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(side, len(values))))[0] for side in shape)
    return torch.from_numpy((left * values) @ right.T).to(dtype)


def exact(matrix):
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


class Counting(MatrixOperator):
    products = 0

    def _apply(self, block):
        self.products += block.shape[1]
        return super()._apply(block)

    def _apply_adjoint(self, block):
        self.products += block.shape[1]
        return super()._apply_adjoint(block)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [*((*case, "tall") for case in CASES), ("geometric 1e+08", F32, "wide"), ("cluster", F32, "square")],
)
@pytest.mark.parametrize("find", [largest_singular_value, smallest_singular_value])
def test_stated_residuals_and_bounds_hold(name, shape, dtype, find):
    values = SPECTRA[name]
    matrix = matrix_of(values, SHAPES[shape], dtype)
    true, rounding = exact(matrix), 4 * torch.finfo(dtype).eps * values.max()
    extreme = true[0] if find is largest_singular_value else true[-1]
    for budget in (21, 120):
        limit = {"max_steps": budget // 2} if find is largest_singular_value else {"max_products": budget}
        measured = find(MatrixOperator(matrix), **limit)
        assert np.abs(true - measured.value).min() <= measured.residual
        if measured.bound is None:
            assert measured.converged
            assert measured.value == pytest.approx(extreme, rel=1e-2, abs=rounding)
        elif measured.bound == "lower":
            assert measured.value <= extreme + rounding
        else:
            assert measured.value >= extreme - rounding
        assert measured.bound is None or measured.bound == ("lower" if find is largest_singular_value else "upper")


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_largest_converges(name, dtype):
    matrix = matrix_of(SPECTRA[name], (2 * N, N), dtype)
    measured = largest_singular_value(MatrixOperator(matrix))
    assert (measured.converged, measured.bound) == (True, None)
    assert measured.value == pytest.approx(exact(matrix)[0], rel=1e-4)
    assert measured.residual <= 2e-3 * measured.value


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("geometric 1e+01", F64),
        ("isolated 1e-02", F64),
        ("isolated 1e-04", F64),
        ("isolated 1e-04", F32),
        ("cluster", F64),
        ("cluster", F32),
        ("two small", F64),
    ],
)
def test_smallest_converges(name, dtype):
    matrix = matrix_of(SPECTRA[name], (2 * N, N), dtype)
    measured = smallest_singular_value(MatrixOperator(matrix))
    assert (measured.converged, measured.bound, measured.method) == (True, None, "golub-kahan-lanczos")
    assert measured.value == pytest.approx(exact(matrix)[-1], rel=1e-2)


@pytest.mark.parametrize("seed", range(5))
def test_the_neighbour_is_not_taken_for_the_extreme(seed):
    values = np.append(np.linspace(0.9, 0.2, N - 4), [1, 0.99, 0.1, 0.09])
    operator = MatrixOperator(torch.from_numpy(np.diag(values)))
    assert largest_singular_value(operator, seed=seed).value == pytest.approx(1, rel=1e-3)
    assert smallest_singular_value(operator, seed=seed).value == pytest.approx(0.09, rel=1e-2)


def test_wishart_edges():
    matrix = torch.randn(3000, 750, generator=torch.Generator().manual_seed(0), dtype=F64)
    largest, smallest = (find(MatrixOperator(matrix)) for find in (largest_singular_value, smallest_singular_value))
    assert largest.value == pytest.approx(np.sqrt(3000) + np.sqrt(750), rel=0.02)
    assert smallest.value == pytest.approx(np.sqrt(3000) - np.sqrt(750), rel=0.02)
    assert largest.converged
    assert smallest.converged
    assert smallest.products < 750 / 2


def test_agrees_with_scipy():
    operator = MatrixOperator(matrix_of(SPECTRA["geometric 1e+02"], (N, 2 * N), F64))
    peer = scipy.sparse.linalg.svds(operator.to_scipy(), k=1, return_singular_vectors=False, random_state=0)[0]
    assert largest_singular_value(operator, tolerance=1e-8).value == pytest.approx(peer, rel=1e-10)


def test_too_few_products_leave_bounds():
    operator = MatrixOperator(matrix_of(SPECTRA["geometric 1e+06"], (N, N), F64))
    low, high = largest_singular_value(operator, max_steps=2), smallest_singular_value(operator, max_products=40)
    assert (low.converged, low.bound) == (False, "lower")
    assert (high.converged, high.bound) == (False, "upper")


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_floor_tells_zero_from_small(dtype):
    measured = smallest_singular_value(MatrixOperator(matrix_of(SPECTRA["rank-deficient"], (N, N), dtype)))
    assert (measured.converged, measured.bound) == (True, "upper")
    assert measured.value < 10 * torch.finfo(dtype).eps
    operator = MatrixOperator(matrix_of(SPECTRA["isolated 1e-04"], (N, N), dtype))
    resolved, unresolved = (smallest_singular_value(operator, floor=floor) for floor in (1e-5, 1e-3))
    assert (resolved.bound, unresolved.bound, unresolved.converged) == (None, "upper", True)
    assert unresolved.value < 1e-3
    assert unresolved.products < resolved.products


def test_a_space_exhausted_by_rounding_leaves_a_bound():
    # In float32 the recursion ends at the 1s: what is left is shorter than its rounding, yet above the floor.
    values = np.append(np.ones(N // 2), np.linspace(1e-5, 4e-6, N // 2))
    matrix = matrix_of(values, (N, N), F32)
    measured, true = smallest_singular_value(MatrixOperator(matrix)), exact(matrix)
    assert (measured.converged, measured.bound) == (False, "upper")
    assert true[-1] <= measured.value <= measured.residual


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1), F64),
        ((1, 500), F64),
        ((500, 1), F32),
        ((64, 64), F32),
        ((64, 64), F64),
        ((300, 65), F32),
        ((65, 65), F64),
    ],
)
def test_small_sides(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=F64).to(dtype)
    operator, true = MatrixOperator(matrix), exact(matrix)
    assert largest_singular_value(operator).value == pytest.approx(true[0], rel=1e-4)
    measured = smallest_singular_value(operator)
    assert measured.value == pytest.approx(true[-1], rel=1e-2)
    assert measured.method == ("exact: svd" if min(shape) <= 64 else "golub-kahan-lanczos")


@pytest.mark.parametrize(("side", "dtype"), [(1, F64), (30, F32), (100, F32), (100, F64)])
def test_zero_operator(side, dtype):
    operator = MatrixOperator(torch.zeros(side, 2 * side, dtype=dtype))
    for find in (largest_singular_value, smallest_singular_value):
        measured = find(operator)
        assert (measured.value, measured.residual, measured.converged) == (0, 0, True)


@pytest.mark.parametrize("shape", [(20, 40), (N, 2 * N)])
def test_products_are_counted(shape):
    for find in (largest_singular_value, smallest_singular_value):
        operator = Counting(matrix_of(np.linspace(1, 0.5, min(shape)), shape, F64))
        assert find(operator).products == operator.products


def test_products_stay_in_the_budget():
    operator = Counting(matrix_of(SPECTRA["geometric 1e+08"], (N, N), F64))
    smallest_singular_value(operator, max_products=81)
    assert operator.products == 81


def test_a_seed_repeats():
    operator = MatrixOperator(matrix_of(SPECTRA["geometric 1e+04"], (N, N), F64))
    for find in (largest_singular_value, smallest_singular_value):
        first, again, other = (find(operator, seed=seed) for seed in (1, 1, 2))
        assert (first.value, first.residual) == (again.value, again.residual)
        assert first.value != other.value


@pytest.mark.parametrize("name", ["geometric 1e+01", "rank-deficient", "orthogonal"])
def test_scaling_scales(name):
    matrix = matrix_of(SPECTRA[name], (N, N), F64)
    for find in (largest_singular_value, smallest_singular_value):
        # A power of two changes no rounding.
        assert find(MatrixOperator(2.0**-40 * matrix)).value == 2.0**-40 * find(MatrixOperator(matrix)).value


@pytest.mark.parametrize("name", ["geometric 1e+08", "rank-deficient", "orthogonal"])
def test_no_warnings_leak(name, recwarn):
    smallest_singular_value(MatrixOperator(matrix_of(SPECTRA[name], (N, N), F32)))
    assert not recwarn.list


@pytest.mark.parametrize("side", [10, 100])
def test_products_that_are_not_finite(side):
    matrix = torch.eye(side)
    matrix[1, 1] = torch.nan
    operator: Operator = MatrixOperator(matrix, "the tail of block1")
    for find in (largest_singular_value, smallest_singular_value):
        with pytest.raises(NonFiniteError, match="the tail of block1"):
            find(operator)


@pytest.mark.parametrize("seed", range(3))
def test_a_direction_taken_for_rounding_counts_in_the_residual(seed):
    """Two values closer than a hundred roundings of σ_max are one to the recursion, which ends between them."""
    matrix = matrix_of(np.repeat([1, 0.5 + 2e-6, 0.5 - 2e-6], 40), (120, 120), F32, seed)
    measured = smallest_singular_value(MatrixOperator(matrix), seed=seed)
    distance = np.abs(exact(matrix) - measured.value).min()
    assert 1e-6 < distance <= measured.residual < 1e-5
