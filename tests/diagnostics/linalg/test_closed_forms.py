"""The closed form of a map on disjoint patches against the singular values of its dense matrix."""

import math

import numpy as np
import pytest
import torch

from skip_conditioning.diagnostics.errors import NonFiniteError
from skip_conditioning.diagnostics.linalg.closed_forms import patchwise


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 1)])
def test_the_values_of_the_matrix_as_often_as_there_are_patches(shape) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    measured = patchwise(matrix, 3)
    assert measured.dtype == np.float64
    assert (np.diff(measured) <= 0).all()
    np.testing.assert_allclose(measured, torch.linalg.svdvals(torch.block_diag(*[matrix] * 3)).numpy(), rtol=1e-12)


def test_what_is_not_read_has_exact_zeros() -> None:
    matrix = torch.tensor([[0.0, 0, 0], [0, 3, 4]])
    np.testing.assert_array_equal(patchwise(matrix, 2), [5, 5, 0, 0])
    assert not patchwise(torch.zeros(2, 3), 2).any()


@pytest.mark.parametrize("shape", [(3, 70), (70, 3), (40, 40)])
def test_small_values_are_resolved_to_rounding_of_the_largest(shape) -> None:
    """Through the Gram matrix they would not be: 1e-10 squared is under the rounding of 1."""
    torch.manual_seed(0)
    k = min(shape)
    U, V = (torch.linalg.qr(torch.randn(n, k, dtype=torch.float64)).Q for n in shape)
    expected = torch.logspace(0, -10, k, dtype=torch.float64)
    measured = patchwise(U * expected @ V.T, 1)
    np.testing.assert_allclose(measured, expected.numpy(), rtol=1e-4, atol=0)


def test_a_weight_that_is_float32_and_requires_gradients_is_taken_as_it_is() -> None:
    weight = torch.nn.Linear(3, 4).weight
    np.testing.assert_array_equal(patchwise(weight, 2), patchwise(weight.detach().double(), 2))
    assert (weight.dtype, weight.grad) == (torch.float32, None)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        patchwise(torch.full((2, 2), math.nan), 3)
