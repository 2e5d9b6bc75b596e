from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.linalg.limit_laws import SingularValueLaw

UNIFORM = 3**-0.5
#: Both sides of the transition at shift = scale, the transition itself, and laws far from it.
_SHIFTS = (0, 0.5, 1, 1 - 1e-10, 1 + 1e-10, 3, 1e3, 1e-9)
LAWS = [
    SingularValueLaw(1, UNIFORM),
    *(SingularValueLaw(shift, 1) for shift in _SHIFTS),
    *(SingularValueLaw(shift, scale) for shift, scale in [(1e-200, 1e-200), (2e150, 1e150)]),
]
SIZE = 1000


@pytest.fixture(params=LAWS, ids=lambda law: f"{law.shift:g},{law.scale:g}")
def law(request: pytest.FixtureRequest) -> SingularValueLaw:
    return request.param


def mean(law: SingularValueLaw, function: Callable[[float], float], top: float = np.pi) -> float:
    """A mean by quadrature, in an angle in which the density has no roots at the edges, up to that angle."""
    (low, high), scale = law.edges, law.scale
    middle, radius = (low + high) / 2, (high - low) / 2

    def integrand(angle: float) -> float:
        sigma = middle - radius * np.cos(angle)
        return float(law.density(sigma)) * function(sigma / scale) * radius * np.sin(angle)

    return quad(integrand, 0, top, epsabs=1e-12, limit=500)[0]


def test_it_sums_to_one_and_its_second_moment_is_that_of_signal_and_noise(law: SingularValueLaw) -> None:
    np.testing.assert_allclose(mean(law, lambda _: 1), 1, rtol=1e-10)
    np.testing.assert_allclose(mean(law, lambda x: x**2), (law.shift / law.scale) ** 2 + 1, rtol=1e-10)


def test_distribution_is_the_integral_of_the_density(law: SingularValueLaw) -> None:
    low, high = law.edges
    for angle in (0.02, 1.5, 2.9):
        sigma = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
        # Of the law at 1000 times its scale, σ itself is known to 1e-13 scales only.
        np.testing.assert_allclose(law.cdf(sigma), mean(law, lambda _: 1, angle), rtol=1e-8, atol=1e-10)


def test_nothing_is_negative_or_undefined(law: SingularValueLaw) -> None:
    low, high = law.edges
    sigma = np.concatenate([[0, -law.scale, 3 * high], low + (high - low) * np.linspace(-0.1, 1.1, 5001)])
    with np.errstate(all="raise", under="ignore"):
        density, shares = law.density(sigma), law.cdf(np.sort(sigma))
    assert np.all(density >= 0)
    assert np.all(np.isfinite(density))
    np.testing.assert_array_equal(density[(sigma < low) | (sigma > high)], 0)
    assert np.all(density[(sigma > low + 1e-6 * law.scale) & (sigma < high - 1e-6 * law.scale)] > 0)
    assert np.all(np.diff(shares) > -1e-12)
    assert (shares[0], shares[-1]) == (0, 1)


@pytest.mark.parametrize("law", LAWS[:4], ids=str)
def test_density_is_the_stieltjes_transform(law: SingularValueLaw) -> None:
    """Against the cubic of Dozier and Silverstein, expanded in m, by the companion matrix."""
    (low, high), c, s = law.edges, law.shift, law.scale
    sigma = np.linspace(low, high, 52)[1:-1]
    roots = [np.roots([-(x**2) * s**4, -2 * x**2 * s**2, c**2 - x**2 - s**2, -1]) for x in sigma]
    expected = 2 * sigma * np.imag(roots).max(axis=1) / np.pi
    np.testing.assert_allclose(law.density(sigma), expected, rtol=1e-9)


@pytest.mark.parametrize("scale", [UNIFORM, 1.0, 1e-6])
def test_without_a_shift_it_is_the_quarter_circle(scale: float) -> None:
    law, sigma = SingularValueLaw(0, scale), scale * np.linspace(0, 2, 101)
    angle = np.arccos(sigma / (2 * scale))
    assert law.edges == (0, pytest.approx(2 * scale, rel=1e-15))
    expected = np.sqrt(np.maximum(4 * scale**2 - sigma**2, 0)) / (np.pi * scale**2)
    np.testing.assert_allclose(law.density(sigma), expected, rtol=1e-12, atol=1e-7 / scale)
    np.testing.assert_allclose(law.cdf(sigma), 1 - (2 * angle - np.sin(2 * angle)) / np.pi, atol=1e-14)


def test_edges_of_the_paper() -> None:
    np.testing.assert_allclose(SingularValueLaw(1, UNIFORM).edges, [12**-0.5, 4 * 2**0.5 / 3], rtol=1e-14)


@pytest.mark.parametrize("shift", [0, 0.3, 1, 1.01, 2])
def test_edges_are_where_the_discriminant_vanishes(shift: float) -> None:
    """Of ``u³ − xu² + (1 − c²)u + c²x``, a quadratic in ``x²``."""
    b, c2 = 1 - shift**2, shift**2
    squares = np.roots([4 * c2, b**2 - 18 * b * c2 - 27 * c2**2, -4 * b**3])
    expected = np.sqrt(np.sort(np.maximum(squares, 0)))[-2:] if shift else [0, 2]
    np.testing.assert_allclose(SingularValueLaw(shift, 1).edges, expected, atol=1e-12)


def test_zero_is_reached_up_to_shift_equal_to_scale() -> None:
    lows = [SingularValueLaw(shift, 1).edges[0] for shift in (0, 0.5, 1, 1 + 1e-12, 1.1, 2)]
    assert lows[:3] == [0, 0, 0]
    assert 0 < lows[3] < lows[4] < lows[5]


def test_quantile_inverts_the_distribution(law: SingularValueLaw) -> None:
    for share in (1e-3, 0.25, 0.5, 0.999):
        np.testing.assert_allclose(law.cdf(law.quantile(share)), share, atol=1e-10)
    assert (law.quantile(0), law.quantile(1)) == law.edges


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    """Singular values, ascending, of ``I + A`` with entries of variance 1/(3n), by their distribution."""
    random, shape = np.random.default_rng(0), (SIZE, SIZE)
    entries = {
        "uniform": random.uniform(-1, 1, shape),
        "normal": random.normal(0, UNIFORM, shape),
        "signs": UNIFORM * random.choice([-1, 1], shape),
    }
    eye = np.eye(SIZE)
    return {name: np.linalg.svd(eye + A / SIZE**0.5, compute_uv=False)[::-1] for name, A in entries.items()}


def distance(values: np.ndarray, law: SingularValueLaw) -> float:
    ranks = np.arange(SIZE + 1) / SIZE
    return max(np.max(ranks[1:] - law.cdf(values)), np.max(law.cdf(values) - ranks[:-1]))


@pytest.mark.parametrize("entries", ["uniform", "normal", "signs"])
def test_sampled_matrices_agree(samples: dict[str, np.ndarray], entries: str) -> None:
    law, values = SingularValueLaw(1, UNIFORM), samples[entries]
    assert distance(values, law) < np.log(SIZE) / SIZE
    # Twice the stretch in which one value is expected: 5.6 units of the Tracy–Widom law.
    assert abs(values[0] - law.edges[0]) < 2 * (law.quantile(1 / SIZE) - law.edges[0])
    assert abs(values[-1] - law.edges[1]) < 2 * (law.edges[1] - law.quantile(1 - 1 / SIZE))


@pytest.mark.parametrize(("shift", "scale"), [(1.03, UNIFORM), (0.97, UNIFORM), (1, 1.03 * UNIFORM), (0, UNIFORM)])
def test_a_wrong_law_is_detected(samples: dict[str, np.ndarray], shift: float, scale: float) -> None:
    assert distance(samples["uniform"], SingularValueLaw(shift, scale)) > np.log(SIZE) / SIZE


@pytest.mark.parametrize(
    ("shift", "scale"), [(-1, 1), (1, 0), (1, -1), (np.nan, 1), (1, np.nan), (np.inf, 1), (0, np.inf), (1e13, 1)]
)
def test_impossible_parameters_are_refused(shift: float, scale: float) -> None:
    with pytest.raises(InputError, match=r"finite scale > 0 and 0 ≤ shift"):
        SingularValueLaw(shift, scale)


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        SingularValueLaw(1, 1).quantile(share)


def test_what_is_not_a_number_stays_so() -> None:
    law = SingularValueLaw(1, UNIFORM)
    assert np.isnan(law.density(np.nan))
    assert np.isnan(law.cdf(np.nan))
