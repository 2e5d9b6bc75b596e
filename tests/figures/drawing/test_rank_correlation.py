import numpy as np
import pytest
from scipy.stats import spearmanr

from skip_conditioning.figures.drawing.rank_correlation import _weighted_rhos, rank_correlation


def sample(rng: np.random.Generator, trials: int, arms: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    clusters = np.repeat(np.arange(trials), arms)
    x = rng.standard_normal(trials * arms)
    return x, 0.6 * x + 0.8 * rng.standard_normal(trials * arms), clusters


def test_rho_is_that_of_scipy_and_the_interval_holds_it() -> None:
    x, y, clusters = sample(np.random.default_rng(0), 10)
    y[:4] = np.inf  # ties at the slow end
    measured = rank_correlation(x, y, clusters)
    assert measured.rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert measured.low is not None
    assert measured.high is not None
    assert -1 <= measured.low < measured.rho < measured.high <= 1


def test_the_interval_is_the_same_each_time() -> None:
    data = sample(np.random.default_rng(1), 6)
    assert rank_correlation(*data) == rank_correlation(*data)


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_resampled_coefficients_are_those_of_scipy() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.integers(5, size=9).astype(float), rng.standard_normal(9)
    weights = rng.integers(3, size=(20, 9))
    expected = [spearmanr(np.repeat(x, row), np.repeat(y, row)).statistic for row in weights]
    np.testing.assert_allclose(_weighted_rhos(x, y, weights.astype(float)), expected, atol=1e-12)
    assert np.isnan(_weighted_rhos(x, y, np.eye(9))).all()  # a single point


def test_interval_covers_the_truth_at_about_its_rate() -> None:
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's ρ of a bivariate normal with correlation 0.6
    rng = np.random.default_rng(2)
    measured = [rank_correlation(*sample(rng, 20)) for _ in range(30)]
    assert sum(f.low <= truth <= f.high for f in measured if f.low is not None and f.high is not None) >= 25


def test_whole_trials_are_drawn() -> None:
    """Points that are copies within a trial add nothing, so the interval must not shrink."""
    x, y, clusters = sample(np.random.default_rng(3), 12, arms=1)
    once = rank_correlation(x, y, clusters)
    copied = rank_correlation(np.repeat(x, 9), np.repeat(y, 9), np.repeat(clusters, 9))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.02)


@pytest.mark.parametrize(
    ("x", "y", "clusters", "text"),
    [
        ([1, 2], [1, 2], [0, 1], "ρ undefined: fewer than 3 runs"),
        ([1, 1, 1], [1, 2, 3], [0, 1, 2], "ρ undefined: no spread in x"),
        ([1, 2, 3], [np.inf] * 3, [0, 1, 2], "ρ undefined: no spread in y"),
        ([1, 2, 3], [3, 2, 1], [0, 0, 0], "ρ = −1.00 (no interval: 1 trial)"),
    ],
)
def test_degenerate_cases_say_why(x: list, y: list, clusters: list, text: str) -> None:
    assert str(rank_correlation(np.array(x), np.array(y), np.array(clusters))) == text
