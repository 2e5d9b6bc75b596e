"""Leading triplets and norms of known spectra, found from random blocks."""

import numpy as np
import pytest
import scipy.sparse.linalg
import scipy.stats
import torch

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator, Operator
from skip_conditioning.diagnostics.linalg.sketching import frobenius_norm, randomized_svd

N = 200
SPECTRA = {
    "geometric 1e1": np.geomspace(1, 1e-1, N),
    "geometric 1e8": np.geomspace(1, 1e-8, N),
    "power law": 1 / np.arange(1, N + 1),
    "uniform": np.linspace(1, 0.01, N),
    "outlier": np.append(1e3, np.linspace(1, 0.5, N - 1)),
    "rank 30": np.append(np.linspace(1, 0.5, 30), np.zeros(N - 30)),
    "wishart": np.linalg.svd(np.random.default_rng(0).normal(size=(2 * N, N)), compute_uv=False),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Diagonal(Operator):
    """A diagonal matrix."""

    def __init__(self, values):
        self.values = torch.from_numpy(np.asarray(values, dtype=np.float64))[:, None]
        super().__init__((len(values), len(values)), torch.float64, torch.device("cpu"), "the diagonal")
        self.products = 0

    def _apply(self, block):
        self.products += block.shape[1]
        return self.values * block

    _apply_adjoint = _apply


def matrix_of(values, shape, dtype=torch.float64):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(side, len(values))))[0] for side in shape)
    return torch.from_numpy((left * values) @ right.T).to(dtype)


@pytest.fixture(params=SPECTRA)
def values(request):
    return SPECTRA[request.param]


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        *((name, (2 * N, N), torch.float64) for name in SPECTRA),
        ("geometric 1e8", (N, 2 * N), torch.float32),
        ("outlier", (N, N), torch.float32),
        ("rank 30", (2 * N, N), torch.float32),
    ],
)
def test_triplets_are_what_they_say(name, shape, dtype):
    matrix, rank = matrix_of(SPECTRA[name], shape, dtype), 12
    measured = randomized_svd(MatrixOperator(matrix), rank)
    eps, true = torch.finfo(dtype).eps, np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    assert (measured.U.shape, measured.S.shape, measured.V.shape) == ((shape[0], rank), (rank,), (shape[1], rank))
    assert measured.U.dtype == measured.V.dtype == dtype
    for vectors in (measured.U, measured.V):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(rank, dtype=dtype), atol=50 * eps, rtol=0)
    rounding = 50 * eps * true[0]
    assert np.all(true[:rank] + rounding >= measured.S)
    assert np.all(true[:rank] - measured.error_bound - rounding <= measured.S)
    product = (measured.U.T @ matrix @ measured.V).double()
    torch.testing.assert_close(product, torch.diag(torch.from_numpy(measured.S)), atol=rounding, rtol=0)


def test_more_power_iterations_are_closer(values):
    errors = [
        np.abs(randomized_svd(Diagonal(values), 5, power_iterations=q).S - np.sort(values)[::-1][:5]).sum()
        for q in (0, 2, 6)
    ]
    assert errors[0] >= errors[1] - 1e-12 >= errors[2] - 2e-12


def test_leading_values_agree_with_scipy():
    operator = MatrixOperator(matrix_of(SPECTRA["power law"], (2 * N, N)))
    peer = np.sort(scipy.sparse.linalg.svds(operator.to_scipy(), k=6, return_singular_vectors=False, random_state=0))
    np.testing.assert_allclose(randomized_svd(operator, 6, power_iterations=8).S, peer[::-1], rtol=1e-8)


@pytest.mark.parametrize(("name", "rank"), [*((name, 15) for name in SPECTRA), ("uniform", 1), ("outlier", 1)])
def test_error_bound_holds_and_is_not_wasteful(name, rank):
    values = SPECTRA[name]
    for seed in range(5):
        measured = randomized_svd(Diagonal(values), rank, oversampling=0, power_iterations=0, seed=seed)
        # Without oversampling the sampled range is that of U.
        missed = np.linalg.norm(np.diag(values) - (measured.U @ measured.U.T).numpy() * values, 2)
        assert missed <= measured.error_bound <= 10 * np.sqrt(N) * missed


def test_exact_where_the_rank_is_sampled():
    measured = randomized_svd(Diagonal(SPECTRA["rank 30"]), 30)
    np.testing.assert_allclose(measured.S, np.linspace(1, 0.5, 30), rtol=1e-12)
    assert measured.error_bound < 1e-12


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (4, 6)])
def test_all_triplets_of_a_small_matrix(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    measured = randomized_svd(MatrixOperator(matrix), min(shape))
    torch.testing.assert_close(measured.U * torch.from_numpy(measured.S).to(dtype) @ measured.V.T, matrix)


def test_zero_operator(dtype):
    operator = MatrixOperator(torch.zeros(60, 80, dtype=dtype))
    measured = randomized_svd(operator, 3)
    assert (measured.S.max(), measured.error_bound) == (0, 0)
    assert (frobenius_norm(operator).value, frobenius_norm(operator).error) == (0, 0)


@pytest.mark.parametrize(("name", "vectors"), [*((name, 10) for name in SPECTRA), ("power law", 4), ("outlier", 4)])
def test_standard_error_covers(name, vectors):
    values = SPECTRA[name]
    true, quantile = np.linalg.norm(values), scipy.stats.t.ppf(0.95, vectors - 1)
    measured = [frobenius_norm(Diagonal(values), vectors=vectors, seed=seed) for seed in range(200)]
    errors, stated = (np.array([getattr(one, name) for one in measured]) for name in ("value", "error"))
    errors -= true
    # 200 intervals of 90 %, and the size of the error itself.
    assert np.mean(np.abs(errors) <= quantile * stated) >= 0.85
    assert 0.7 <= np.sqrt(np.mean(errors**2) / np.mean(stated**2)) <= 1.4
    assert abs(errors.mean()) <= 4 * errors.std() / np.sqrt(200) + 0.1 * stated.mean()


@pytest.mark.parametrize("shape", [(2 * N, N), (N, 2 * N)])
def test_norm_of_either_dtype_and_shape(dtype, shape):
    values = SPECTRA["power law"]
    measured = frobenius_norm(MatrixOperator(matrix_of(values, shape, dtype)))
    assert abs(measured.value - np.linalg.norm(values)) <= 5 * measured.error + 1e-6 * measured.value
    assert measured.error <= 0.06 * measured.value


@pytest.mark.parametrize("spectrum", [np.ones(N), np.append(np.ones(9), np.zeros(N - 9))], ids=["orthogonal", "rank 9"])
def test_norm_is_exact_where_nothing_is_left_to_sample(spectrum):
    measured = frobenius_norm(Diagonal(spectrum))
    assert measured.value == pytest.approx(np.linalg.norm(spectrum), rel=1e-13)
    assert measured.error < 1e-13 * measured.value


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (40, 90)])
def test_norm_of_a_small_side_is_summed(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = frobenius_norm(MatrixOperator(matrix))
    assert measured.value == pytest.approx(float(torch.linalg.matrix_norm(matrix)), rel=1e-14)
    assert measured.products == min(shape)


def test_products_are_counted():
    for find in (lambda operator: randomized_svd(operator, 7), frobenius_norm):
        operator = Diagonal(SPECTRA["uniform"])
        assert find(operator).products == operator.products


def test_a_seed_repeats():
    operator = Diagonal(SPECTRA["power law"])
    first, again, other = (frobenius_norm(operator, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    first, again, other = (randomized_svd(operator, 3, power_iterations=0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.U, again.U)
    assert not torch.equal(first.U, other.U)


@pytest.mark.parametrize("find", [lambda operator: randomized_svd(operator, 2), frobenius_norm])
def test_products_that_are_not_finite(find):
    matrix = torch.eye(100)
    matrix[1, 1] = torch.inf
    with pytest.raises(NonFiniteError, match="the tail of block1"):
        find(MatrixOperator(matrix, "the tail of block1"))


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda operator: randomized_svd(operator, 0), "rank=0: .* between 1 and 3"),
        (lambda operator: randomized_svd(operator, 4), "rank=4: .* between 1 and 3"),
        (lambda operator: randomized_svd(operator, 2, oversampling=-1), "oversampling=-1"),
        (lambda operator: randomized_svd(operator, 2, power_iterations=-1), "power_iterations=-1"),
        (lambda operator: frobenius_norm(operator, vectors=1), "vectors=1"),
    ],
)
def test_bad_options(find, message):
    with pytest.raises(InputError, match=message):
        find(MatrixOperator(torch.eye(3, 5)))


def test_an_empty_operator_has_no_norm():
    with pytest.raises(InputError, match="nothing to measure"):
        frobenius_norm(MatrixOperator(torch.zeros(0, 4)))
