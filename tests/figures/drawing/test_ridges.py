import numpy as np
import pytest

from skip_conditioning.figures.drawing.ridges import kernel_widths, smoothed

EDGES = np.linspace(0, 2, 201)
MIDDLES = (EDGES[1:] + EDGES[:-1]) / 2
CELL = EDGES[1] - EDGES[0]


@pytest.mark.parametrize("count", [1, 2, 32, 5000])
def test_area_is_the_sum_of_the_shares(count: int) -> None:
    rng = np.random.default_rng(count)
    # Right at both ends too: nothing leaks beyond the axis.
    points = np.concatenate([[0.0], 2 * rng.random(count), [2.0]])
    shares = rng.random(count + 2)
    assert smoothed(points, shares, EDGES).sum() * CELL == pytest.approx(shares.sum())


def test_no_points_have_no_density() -> None:
    np.testing.assert_array_equal(smoothed(np.zeros(0), np.zeros(0), EDGES), np.zeros(200))


@pytest.mark.parametrize("count", [16, 32, 64])
def test_regular_nodes_do_not_show_one_by_one(count: int) -> None:
    density = smoothed((np.arange(count) + 0.5) * 2 / count, np.full(count, 1 / count), EDGES)
    np.testing.assert_allclose(density[60:-60], 0.5, rtol=0.02)


def test_a_single_value_is_a_narrow_peak_at_its_place() -> None:
    density = smoothed(np.full(40, 1.5), np.full(40, 1 / 40), EDGES)
    assert abs(MIDDLES[np.argmax(density)] - 1.5) <= CELL
    assert density[np.abs(MIDDLES - 1.5) < 0.1].sum() * CELL > 0.99


def test_kernels_are_wide_where_nodes_are_sparse() -> None:
    widths = kernel_widths(np.array([0.0, 0.1, 0.13, 0.16, 0.19, 0.22, 2.0]), 3.0)
    # Three quarters of the mean distance to the second neighbours; at the end there is only one side.
    np.testing.assert_allclose(widths[:4], 0.75 * np.array([0.13, 0.16 * 2 / 3, 0.19 / 2, 0.06]))
    assert widths[-1] == pytest.approx(0.08 * 3)
    assert kernel_widths(np.ones(3), 4.0) == pytest.approx(0.012 * 4)


def test_nodes_show_the_density_of_all_values() -> None:
    """Gauss–Legendre nodes of a uniform density against its values."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    from_nodes = smoothed(1 + 0.6 * nodes, weights / 2, EDGES)
    from_values = smoothed(np.linspace(0.4, 1.6, 3000), np.full(3000, 1 / 3000), EDGES)
    assert np.abs(from_nodes - from_values).sum() * CELL < 0.06
