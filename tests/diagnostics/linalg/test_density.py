"""The density's statistics and their stated errors, on spectra that are known."""

import itertools

import numpy as np
import pytest
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.linalg.bidiagonalization import golub_kahan
from skip_conditioning.diagnostics.linalg.density import Density
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator
from skip_conditioning.diagnostics.linalg.quadrature import Estimate, Quadrature
from skip_conditioning.diagnostics.linalg.slq import lanczos_density, start_vector
from skip_conditioning.diagnostics.spectrum import statistics

N, SEEDS = 80, 200
RNG = np.random.default_rng(0)


def wishart(rows):
    return np.linalg.svd(RNG.normal(size=(rows, N)), compute_uv=False)


SPECTRA = {
    "wishart square": wishart(N),
    "wishart tall": wishart(2 * N),
    "orthogonal": np.ones(N),
    "geometric": np.geomspace(1, 1e-4, N),
    "rank-deficient": np.append(np.linspace(1, 0.05, N // 2), np.zeros(N // 2)),
    "outlier": np.append(1e3, np.linspace(1, 0.3, N - 1)),
    "two values": np.append(np.full(N // 4, 2.0), np.ones(N - N // 4)),
    "three dimensions": np.array([1.0, 1.0, 0.0]),
}
#: Read off after the steps of a quadrature; what rounding leaves of a zero lies far below.
FLOOR = 1e-12


def operator_of(values):
    return MatrixOperator(torch.diag(torch.from_numpy(values)))


def quadrature_of(values, steps, seed=0):
    """A random vector's quadrature, and the exact weights with which it sees each singular value."""
    operator = operator_of(values)
    start = start_vector(operator, seed, 0)
    *_, bidiagonal = golub_kahan(operator, start, steps)
    return Quadrature.of(bidiagonal), start.numpy() ** 2


def estimates(density, largest):
    floor = FLOOR * (largest or 1)
    return {
        "mean": density.mean(),
        "rms": density.rms(),
        "gmean": density.gmean(floor),
        "median": density.median(),
        "quantile": density.quantile(0.9),
        "effective_rank": density.effective_rank(),
        "stable_rank": density.stable_rank(largest),
        "rank": density.rank(floor),
        "share": density.share(0.25 * largest, 0.75 * largest),
    }


def truths(values):
    values = np.sort(values)[::-1]
    measured = statistics(values, FLOOR * values[0])
    names = ("mean", "rms", "gmean", "median")
    return {name: measured[f"sigma_{name}"] for name in names} | {
        "quantile": np.quantile(values, 0.9),
        "effective_rank": measured["effective_rank"],
        "stable_rank": measured["stable_rank"],
        "rank": measured["rank"],
        "share": np.mean((values >= 0.25 * values[0]) & (values <= 0.75 * values[0])),
    }


@pytest.fixture(params=SPECTRA)
def values(request):
    return SPECTRA[request.param]


def test_weights_sum_to_one_and_nodes_descend(values):
    density = lanczos_density(operator_of(values), vectors=3, steps=9).density
    assert density.weights.sum() == pytest.approx(1, rel=1e-14)
    assert (np.diff(density.nodes) <= 0).all()
    quadrature, _ = quadrature_of(values, 9)
    for rule in (quadrature.gauss, quadrature.radau):
        assert rule.weights.sum() == pytest.approx(1, rel=1e-13)
    assert quadrature.radau.nodes[0] == 0


@pytest.mark.parametrize("steps", [1, 12])
def test_the_bracket_of_the_mean_holds(values, steps):
    for seed in range(20):
        quadrature, weights = quadrature_of(values, steps, seed)
        gauss, likely, radau = quadrature.bracket(lambda nodes: nodes)
        rounding = 1e-12 * values.max()
        assert radau - rounding <= weights @ values <= gauss + rounding
        assert radau <= likely <= gauss
        mean = quadrature.mean()
        assert abs(mean.value - weights @ values) <= 1.96 * mean.error + rounding
        assert quadrature.exhausted or min(gauss - mean.value, mean.value - radau) >= 0


@pytest.mark.parametrize("steps", [1, 5])
def test_the_bounds_of_the_distribution_hold(values, steps):
    # Between the singular values, where rounding cannot move one to the other side.
    distinct = np.unique(values)
    points = np.concatenate([[0.5 * values[values > 0].min()], (distinct[1:] + distinct[:-1]) / 2, [2 * values.max()]])
    for seed in range(10):
        quadrature, weights = quadrature_of(values, steps, seed)
        exact = np.array([weights[values <= point].sum() for point in points])
        for inclusive in (False, True):
            lower, upper = quadrature.distribution_bounds(points, inclusive=inclusive)
            assert (lower <= exact + 1e-10).all()
            assert (exact <= upper + 1e-10).all()


# Measured, in per cent of 200 seeds, of a nominal 95: mean 91.5 to 100, other statistics 91 or more, quantiles and
# shares of continuous spectra 99 or 100. One falls short and has a limit of its own: the effective rank of two values,
# 87.5 by one random vector and 90 by two, as the delta method leaves out its curvature near a flat spectrum.
@pytest.mark.parametrize(
    ("spectrum", "vectors", "steps"),
    [
        *((name, 1, 8) for name in SPECTRA if name not in ("wishart tall", "orthogonal")),
        ("two values", 2, 16),
    ],
)
def test_intervals_cover_the_truth_at_their_stated_rate(spectrum, vectors, steps):
    values = SPECTRA[spectrum]
    truth, rounding = truths(values), 1e-12 * max(values.max(), 1)
    covered = dict.fromkeys(truth, 0)
    for seed in range(SEEDS):
        density = lanczos_density(operator_of(values), vectors=vectors, steps=steps, seed=seed).density
        for name, estimate in estimates(density, values.max()).items():
            assert np.isfinite([estimate.value, estimate.error]).all()
            covered[name] += abs(estimate.value - truth[name]) <= 1.96 * estimate.error + rounding
    assert covered.pop("effective_rank") >= 0.85 * SEEDS
    assert min(covered.values()) >= 0.9 * SEEDS, covered


@pytest.mark.parametrize("spectrum", ["wishart tall", "two values", "geometric"])
def test_stated_errors_are_as_large_as_true_ones(spectrum):
    # With steps enough sampling is all there is, and the root mean square of error over standard error is 1.
    values = SPECTRA[spectrum]
    truth, names = truths(values), ("mean", "rms")
    scores = []
    for seed in range(SEEDS // 2):
        density = lanczos_density(operator_of(values), vectors=3, steps=16, seed=seed).density
        measured = {name: getattr(density, name)() for name in names}
        scores.append([(measured[name].value - truth[name]) / measured[name].error for name in names])
    spread = np.sqrt(np.mean(np.square(scores), axis=0))
    assert ((spread > 0.8) & (spread < 1.2)).all(), spread  # almost 3 standard errors of it, 1 / √(2 · 100), either way


def test_the_variance_of_a_random_vector_is_as_stated():
    values = SPECTRA["geometric"]
    seen = [quadrature_of(values, 1, seed)[1] @ values for seed in range(1000)]
    assert np.var(seen) == pytest.approx(2 / (N + 2) * values.var(), rel=0.1)


def test_more_random_vectors_reduce_the_error_as_one_over_their_root():
    values = SPECTRA["wishart tall"]
    means = {
        vectors: [
            lanczos_density(operator_of(values), vectors=vectors, steps=12, seed=seed).density.mean()
            for seed in range(60)
        ]
        for vectors in (1, 4)
    }
    stated = [np.mean([mean.error for mean in means[vectors]]) for vectors in (1, 4)]
    true = [np.sqrt(np.mean([(mean.value - values.mean()) ** 2 for mean in means[vectors]])) for vectors in (1, 4)]
    assert stated[0] / stated[1] == pytest.approx(2, rel=0.1)
    assert true[0] / true[1] == pytest.approx(2, rel=0.5)  # of 60 seeds


def test_more_steps_narrow_the_bracket():
    errors = [quadrature_of(SPECTRA["wishart square"], steps)[0].mean().error for steps in (1, 4, 16, 64)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_every_singular_value_found_makes_all_exact(values):
    distinct = np.unique(values)
    density = lanczos_density(operator_of(distinct), steps=len(distinct)).density
    truth = truths(distinct)
    for name, estimate in estimates(density, distinct.max()).items():
        assert (estimate.value, estimate.error) == (pytest.approx(truth[name], rel=1e-7, abs=1e-13), 0), name


def test_an_exhausted_space_leaves_no_quadrature_error():
    quadrature, weights = quadrature_of(SPECTRA["two values"], 10)
    assert quadrature.exhausted
    mean = quadrature.mean()
    assert (mean.value, mean.error) == (pytest.approx(weights @ SPECTRA["two values"], rel=1e-12), 0)


def test_a_zero_that_is_found_counts_as_one():
    values = np.append(np.ones(3), np.zeros(5))
    quadrature, weights = quadrature_of(values, 8)
    np.testing.assert_allclose(quadrature.gauss.nodes, [0, 1], atol=1e-15)
    np.testing.assert_allclose(quadrature.gauss.weights, [weights[3:].sum(), weights[:3].sum()])
    rank = Density([quadrature], 8).rank(1e-10)
    assert rank.value == pytest.approx(8 * weights[:3].sum())


def test_an_orthogonal_matrix_has_no_error_at_all():
    density = lanczos_density(operator_of(np.ones(9)), vectors=1).density
    for name, value in {"mean": 1, "rms": 1, "gmean": 1, "median": 1, "effective_rank": 9, "rank": 9}.items():
        estimate = estimates(density, 1.0)[name]
        assert (estimate.value, estimate.error) == (pytest.approx(value), pytest.approx(0, abs=1e-7)), name


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_zero_operator_has_zero_statistics(size):
    density = lanczos_density(operator_of(np.zeros(size)), vectors=1).density
    measured = estimates(density, 0.0)
    assert (measured["gmean"].value, measured["gmean"].error) == (pytest.approx(FLOOR), 0)
    for name in ("mean", "rms", "median", "effective_rank", "stable_rank", "rank"):
        assert measured[name] == Estimate(0.0, 0.0), name


@pytest.mark.parametrize(
    ("values", "steps"),
    [([2.0], 1), ([2.0], 3), ([2.0, 1.0], 1), ([2.0, 2.0], 2), ([2.0, 0.0], 1), ([2.0, 0.0], 3), ([2.0, 1.0, 0.0], 2)],
)
def test_tiny_dimensions_give_finite_numbers(values, steps):
    density = lanczos_density(operator_of(np.array(values)), vectors=1, steps=steps).density
    for estimate in estimates(density, 2.0).values():
        assert np.isfinite([estimate.value, estimate.error]).all()
        assert estimate.error >= 0


@pytest.mark.parametrize("factor", [1e-150, 1e150])
def test_extreme_scales_change_nothing_but_the_scale(factor):
    quadrature, _ = quadrature_of(SPECTRA["geometric"], 8)
    scaled = [type(rule)(factor * rule.nodes, rule.weights) for rule in (quadrature.gauss, quadrature.radau)]
    density, larger = (
        Density([item], N) for item in (Quadrature(quadrature.gauss, quadrature.radau, quadrature.residuals, False),
                                        Quadrature(*scaled, factor * quadrature.residuals, False))
    )  # fmt: skip
    for name in ("rms", "mean"):
        one, other = getattr(density, name)(), getattr(larger, name)()
        assert (other.value, other.error) == (pytest.approx(factor * one.value), pytest.approx(factor * one.error))
    assert larger.effective_rank().value == pytest.approx(density.effective_rank().value)


@pytest.mark.parametrize("p", [0.0, 1.0, -1.0, float("nan")])
def test_a_quantile_of_no_share_is_an_error(p):
    with pytest.raises(InputError, match="between 0 and 1"):
        lanczos_density(operator_of(SPECTRA["geometric"])).density.quantile(p)


def test_a_geometric_mean_without_a_floor_is_an_error():
    with pytest.raises(InputError, match="must be positive"):
        lanczos_density(operator_of(np.zeros(3))).density.gmean(0.0)


def spectra_of_interest(size=300):
    generator = np.random.default_rng(0)
    return {
        "two values": np.repeat([1.0, 0.1], size // 2),
        "few large": np.r_[np.ones(10), np.full(size - 10, 1e-3)],
        "one outlier": np.r_[100.0, np.ones(size - 1)],
        "power law": np.arange(1.0, size + 1) ** -1,
        "heavy tail": np.sort(generator.pareto(1.0, size) + 1)[::-1],
        "geometric": np.logspace(0, -4, size),
        "clusters": np.concatenate([c * (1 + 0.01 * generator.normal(size=size // 4)) for c in (1, 0.3, 0.1, 0.03)]),
    }


def effective_rank_coverage(name, seeds):
    """How often the 95 % interval of the effective rank holds the truth, with the default vectors and steps."""
    values = spectra_of_interest()[name]
    shares = values / values.sum()
    truth = np.exp(-np.sum(shares * np.log(shares)))
    operator = MatrixOperator(torch.diag(torch.from_numpy(np.ascontiguousarray(values))))
    estimates = [lanczos_density(operator, seed=seed).density.effective_rank() for seed in range(seeds)]
    return np.mean([abs(item.value - truth) <= 1.96 * item.error + 1e-9 * truth for item in estimates])


@pytest.mark.slow
@pytest.mark.parametrize("name", spectra_of_interest())
def test_intervals_of_the_effective_rank_cover(name):
    assert effective_rank_coverage(name, 100) >= 0.88  # of 0.95, less two standard errors and a little


def test_intervals_of_the_effective_rank_cover_where_the_delta_method_falls_short():
    assert effective_rank_coverage("one outlier", 40) >= 0.85  # 0.81 without simulated weights
