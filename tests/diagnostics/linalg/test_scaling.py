"""Scale does not matter: estimates of a scaled matrix are the scaled estimates, far beyond where squares underflow."""

import math

import pytest
import torch

from skip_conditioning.diagnostics.linalg.extremes import largest_singular_value, smallest_singular_value
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator
from skip_conditioning.diagnostics.linalg.scaling import in_range
from skip_conditioning.diagnostics.linalg.sketching import frobenius_norm, randomized_svd
from skip_conditioning.diagnostics.linalg.slq import lanczos_density

POWERS = [(torch.float32, power) for power in (-100, -60, -30, 30, 60, 100)]
POWERS += [(torch.float64, power) for power in (-500, 500)]


def matrix(dtype: torch.dtype, size: int = 80) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
    return (bases[0] * torch.logspace(0, -2, size, dtype=torch.float64) @ bases[1]).to(dtype)


@pytest.mark.parametrize(("dtype", "power"), POWERS, ids=str)
def test_estimates_scale_with_the_matrix(dtype: torch.dtype, power: int) -> None:
    plain, scaled = (MatrixOperator(matrix(dtype) * 2.0**exponent) for exponent in (0, power))

    def near(scaled: float, plain: float) -> None:
        assert math.ldexp(scaled, -power) == pytest.approx(plain, rel=1e-4)

    one, other = lanczos_density(plain), lanczos_density(scaled)
    near(other.sigma_max, one.sigma_max)
    near(other.sigma_min, one.sigma_min)
    for name in ("mean", "rms", "median"):
        near(getattr(other.density, name)().value, getattr(one.density, name)().value)
        near(getattr(other.density, name)().error, getattr(one.density, name)().error)
    near(other.density.gmean(math.ldexp(1e-3, power)).value, one.density.gmean(1e-3).value)
    assert other.density.effective_rank().value == pytest.approx(one.density.effective_rank().value, rel=1e-4)
    for estimate in (largest_singular_value, smallest_singular_value):
        one_end, other_end = estimate(plain), estimate(scaled)
        near(other_end.value, one_end.value)
        assert (other_end.converged, other_end.bound) == (one_end.converged, one_end.bound)
    near(frobenius_norm(scaled).value, frobenius_norm(plain).value)
    near(randomized_svd(scaled, 3).S[0], randomized_svd(plain, 3).S[0])


@pytest.mark.parametrize("power", [-20, 0, 20])
def test_ordinary_sizes_are_left_as_they_are(power: int) -> None:
    operator, v = MatrixOperator(matrix(torch.float32) * 2.0**power), torch.ones(80) / 80**0.5
    same, exponent, image = in_range(operator, v)
    assert same is operator
    assert exponent == 0
    assert torch.equal(image, operator.matvec(v))


def test_a_product_beyond_the_range_is_found_by_scaling_its_vector() -> None:
    halves = [MatrixOperator(matrix(torch.float32) * 2.0**-80) for _ in range(2)]
    sigma_max = largest_singular_value(halves[0] @ halves[1].T).value
    expected = float(torch.linalg.matrix_norm(matrix(torch.float64) @ matrix(torch.float64).T, 2))
    assert math.ldexp(sigma_max, 160) == pytest.approx(expected, rel=1e-3)
    assert largest_singular_value(MatrixOperator(torch.zeros(70, 70))).value == 0
