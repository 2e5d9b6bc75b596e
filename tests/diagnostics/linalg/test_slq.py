"""Stochastic Lanczos quadrature of matrices with known singular values."""

import numpy as np
import pytest
import torch

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator
from skip_conditioning.diagnostics.linalg.slq import STEPS, VECTORS, lanczos_density, start_vector, vector_quadrature

N = 120
RNG = np.random.default_rng(0)
SPECTRA = {
    "wishart square": np.linalg.svd(RNG.normal(size=(N, N)), compute_uv=False),
    "wishart tall": np.linalg.svd(RNG.normal(size=(2 * N, N)), compute_uv=False),
    "orthogonal": np.ones(N),
    "geometric": np.geomspace(1, 1e-4, N),
    "rank-deficient": np.append(np.linspace(1, 0.3, N // 2), np.zeros(N // 2)),
    "outlier": np.append(1e3, np.linspace(1, 0.3, N - 1)),
}


def operator_of(values, dtype=torch.float64):
    return MatrixOperator(torch.diag(torch.from_numpy(values)).to(dtype))


class Counting(MatrixOperator):
    products = 0

    def _apply(self, block):
        self.products += block.shape[1]
        return super()._apply(block)

    def _apply_adjoint(self, block):
        self.products += block.shape[1]
        return super()._apply_adjoint(block)


@pytest.fixture(params=SPECTRA)
def values(request):
    return SPECTRA[request.param]


@pytest.mark.parametrize("shape", [(12, 12), (30, 12), (12, 30)], ids=str)
def test_as_many_steps_as_values_find_them_all(shape):
    matrix = np.random.default_rng(1).normal(size=shape)
    true = np.linalg.svd(matrix, compute_uv=False)
    measured = lanczos_density(MatrixOperator(torch.from_numpy(matrix)), vectors=2, steps=50)
    np.testing.assert_allclose(measured.density.nodes, true, rtol=1e-10)
    np.testing.assert_allclose(measured.density.weights, 1 / 12)
    mean = measured.density.mean()
    assert (mean.value, mean.error) == (pytest.approx(true.mean(), rel=1e-12), 0)
    assert measured.sigma_max == pytest.approx(true[0], rel=1e-12)
    assert measured.sigma_min == pytest.approx(true[-1], rel=1e-10)
    assert measured.residual == 0


def test_exactly_the_random_vectors_and_steps_asked_for_are_taken():
    counting = Counting(operator_of(SPECTRA["wishart tall"]).matrix)
    measured = lanczos_density(counting, vectors=3, steps=7)
    assert (measured.steps, measured.density.vectors, measured.converged) == ((7, 7, 7), 3, True)
    assert measured.products == counting.products == 42
    assert lanczos_density(counting).steps == (STEPS,) * VECTORS


def test_products_are_counted_where_the_space_is_exhausted(values):
    counting = Counting(operator_of(values).matrix)
    assert lanczos_density(counting, steps=N).products == counting.products


def test_the_largest_ritz_value_bounds_and_the_residual_holds(values):
    for seed in range(5):
        measured = lanczos_density(operator_of(values), steps=6, seed=seed)
        rounding = 1e-12 * values.max()
        assert measured.sigma_max <= values.max() + rounding
        assert measured.sigma_min >= values.min() - rounding
        assert np.abs(values - measured.sigma_max).min() <= measured.residual + rounding


@pytest.mark.parametrize("tolerance", [0.1, 0.02])
def test_a_tolerance_met_is_met_in_truth(values, tolerance):
    needed = 2 / (N + 2) * values.var() / values.mean() ** 2 / (0.75 * tolerance**2)  # of the 32 random vectors at most
    for seed in range(4):
        measured = lanczos_density(operator_of(values), tolerance=tolerance, seed=seed)
        mean = measured.density.mean()
        assert measured.converged == (mean.error <= tolerance * mean.value)
        assert measured.converged or needed > 16
        if measured.converged:
            assert abs(mean.value - values.mean()) <= 3 * tolerance * values.mean()


def test_a_limit_reached_is_reported():
    operator = operator_of(SPECTRA["geometric"])
    few_vectors = lanczos_density(operator, tolerance=0.01, max_vectors=3)
    assert (few_vectors.density.vectors, few_vectors.converged) == (3, False)
    # No number of random vectors mends a bracket too wide: none is added.
    few_steps = lanczos_density(operator, tolerance=0.001, max_steps=4)
    assert (few_steps.steps, few_steps.converged) == ((4, 4), False)


def test_a_finer_tolerance_takes_more_steps_and_then_more_random_vectors():
    operator = operator_of(SPECTRA["geometric"])
    coarse, fine = (lanczos_density(operator, tolerance=tolerance, max_vectors=2) for tolerance in (0.3, 0.005))
    assert max(coarse.steps) < min(fine.steps)
    few, many = (lanczos_density(operator, tolerance=tolerance) for tolerance in (0.3, 0.1))
    assert few.density.vectors < many.density.vectors


def test_a_lax_tolerance_still_takes_the_least_steps_unless_the_space_is_exhausted():
    assert lanczos_density(operator_of(SPECTRA["wishart tall"]), tolerance=1.0).steps == (16, 16)
    assert lanczos_density(operator_of(np.ones(N)), tolerance=1e-6).steps == (1, 1)


@pytest.mark.parametrize("options", [{}, {"tolerance": 0.05}], ids=["fixed", "tolerance"])
def test_the_same_seed_gives_the_same_bits(values, options):
    one, two = (lanczos_density(operator_of(values), seed=7, **options) for _ in range(2))
    assert one.steps == two.steps
    assert np.array_equal(one.density.nodes, two.density.nodes)
    assert np.array_equal(one.density.weights, two.density.weights)


def test_a_random_vector_depends_on_its_index_and_the_seed_alone():
    operator = operator_of(SPECTRA["wishart square"])
    vectors = [start_vector(operator, seed, index) for seed in (0, 1) for index in (0, 1)]
    gram = torch.stack(vectors) @ torch.stack(vectors).T
    torch.testing.assert_close(gram.diagonal(), torch.ones(4, dtype=torch.float64))
    assert gram.fill_diagonal_(0).abs().max() < 0.5
    single = start_vector(operator_of(SPECTRA["wishart square"], torch.float32), 0, 0)
    assert torch.equal(single, vectors[0].float())
    pooled = lanczos_density(operator, vectors=3, steps=5, seed=1).density
    apart = [vector_quadrature(operator, index, 5, seed=1).quadrature.gauss.nodes for index in range(3)]
    assert np.array_equal(pooled.nodes, np.sort(np.concatenate(apart))[::-1])


@pytest.mark.parametrize("seed", [0, 7])
def test_a_random_vector_is_independent_of_data_drawn_with_the_same_seed(seed):
    # An index of 0 appended to the entropy would leave numpy's stream as it is.
    data = np.random.default_rng(seed).standard_normal(4000)
    seen = start_vector(operator_of(data), seed, 0).numpy() ** 2 @ data**2
    assert seen == pytest.approx(np.mean(data**2), rel=0.2)  # 3, not 1, were they the same


def test_float32_is_as_good_as_its_rounding(values):
    double = lanczos_density(operator_of(values), steps=10).density.mean()
    single = lanczos_density(operator_of(values, torch.float32), steps=10).density.mean()
    assert single.value == pytest.approx(double.value, rel=1e-4)


def test_a_zero_operator_has_a_density_at_zero():
    measured = lanczos_density(MatrixOperator(torch.zeros(6, 9, dtype=torch.float64)), tolerance=0.01)
    assert (measured.sigma_max, measured.sigma_min, measured.residual, measured.converged) == (0, 0, 0, True)
    assert measured.density.mean().value == measured.density.mean().error == 0


def test_progress_counts_every_step():
    seen = []
    lanczos_density(operator_of(SPECTRA["geometric"]), steps=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 8) for step in range(1, 9)]


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": float("nan")}, {"vectors": 0}, {"steps": 0}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        lanczos_density(operator_of(np.ones(3)), **options)


def test_products_that_are_not_finite_are_an_error():
    with pytest.raises(NonFiniteError, match="the matrix"):
        lanczos_density(operator_of(np.array([1.0, np.nan, 2.0])))
