"""The relations of Golub–Kahan bidiagonalisation, and where it ends."""

import itertools

import numpy as np
import pytest
import torch

from skip_conditioning.diagnostics.linalg.bidiagonalization import golub_kahan
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator

N = 40
RNG = np.random.default_rng(0)
MATRICES = {
    "square": RNG.normal(size=(N, N)),
    "tall": RNG.normal(size=(2 * N, N)),
    "geometric 1e8": np.diag(np.geomspace(1, 1e-8, N)),
    "outlier": np.diag(np.append(1e6, np.linspace(1, 0.5, N - 1))),
    "rank-deficient": np.diag(np.append(np.linspace(1, 0.2, N - 6), np.zeros(6))),
}


def last(matrix, steps, seed=0):
    start = torch.from_numpy(np.random.default_rng(seed).normal(size=matrix.shape[1]))
    *_, measured = golub_kahan(MatrixOperator(torch.from_numpy(matrix)), start, steps)
    return measured


@pytest.fixture(params=MATRICES)
def matrix(request):
    return MATRICES[request.param]


@pytest.mark.parametrize("steps", [1, 7, N])
def test_the_relations_hold(matrix, steps):
    measured = last(matrix, steps)
    V, B, scale = measured.V.numpy(), measured.square(), np.linalg.norm(matrix, 2)
    np.testing.assert_allclose(V.T @ V, np.eye(measured.steps), atol=1e-13)
    # A V = U B with orthonormal U, so (A V)ᵀ(A V) = BᵀB, and AᵀA V = V BᵀB + α_k β_k v_{k+1} e_kᵀ.
    np.testing.assert_allclose((matrix @ V).T @ (matrix @ V), B.T @ B, atol=1e-12 * scale**2)
    remainder = matrix.T @ (matrix @ V) - V @ (B.T @ B)
    np.testing.assert_allclose(remainder[:, :-1], 0, atol=1e-12 * scale**2)
    norm = np.linalg.norm(remainder[:, -1])
    assert norm == pytest.approx(measured.alphas[-1] * measured.betas[-1], abs=1e-12 * scale**2)


def test_as_many_steps_as_columns_find_every_singular_value(matrix):
    measured = last(matrix, N)
    true = np.linalg.svd(matrix, compute_uv=False)
    assert measured.exhausted
    distinct = true[: measured.steps]  # the zeros of the rank-deficient one count once
    np.testing.assert_allclose(
        np.linalg.svd(measured.square(), compute_uv=False), distinct, rtol=1e-6, atol=1e-13 * true[0]
    )


def test_each_step_extends_the_one_before():
    operator, start = MatrixOperator(torch.from_numpy(MATRICES["tall"])), torch.ones(N, dtype=torch.float64)
    measured = list(golub_kahan(operator, start, 5))
    assert [item.steps for item in measured] == [1, 2, 3, 4, 5]
    for before, after in itertools.pairwise(measured):
        assert np.array_equal(after.alphas[:-1], before.alphas)
        assert np.array_equal(after.betas[:-1], before.betas)
        assert not before.exhausted


@pytest.mark.parametrize(("values", "steps"), [(np.ones(N), 1), (np.zeros(N), 1), (np.repeat([3.0, 2, 1], 10), 3)])
def test_the_space_is_exhausted_after_as_many_steps_as_distinct_values(values, steps):
    measured = last(np.diag(values), N)
    assert (measured.steps, measured.exhausted) == (steps, True)
    np.testing.assert_allclose(np.linalg.svd(measured.square(), compute_uv=False), np.unique(values)[::-1], rtol=1e-12)


def test_zeros_count_as_one_distinct_value():
    measured = last(MATRICES["rank-deficient"], N)
    assert measured.steps == N - 5
    assert np.linalg.svd(measured.square(), compute_uv=False)[-1] < 1e-14


def test_an_exhausted_left_space_is_a_zero_singular_value():
    measured = last(np.diag([2.0, 1.0, 0.0, 0.0]), 4)
    assert measured.exhausted
    assert measured.alphas[-1] == 0
    np.testing.assert_allclose(np.linalg.svd(measured.square(), compute_uv=False), [2, 1, 0], atol=1e-15)
