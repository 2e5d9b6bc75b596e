"""Smooth densities of singular values, alike for all values of a spectrum and for the nodes of a quadrature."""

import numpy as np

#: A kernel reaches this share of the points to either side, and so many at least. Singular values repel each other
#: and nodes lie even more regularly, so so few make a smooth curve; those of 32 Lanczos steps join to one.
_REACH, _FEWEST = 1 / 32, 2
#: Standard deviation of a kernel over its reach.
_WIDTH = 0.75
#: Least and largest standard deviation, as shares of the axis: a point on its own stays a visible peak.
_NARROWEST, _WIDEST = 0.012, 0.08
#: More points than this are joined with their neighbours first, which no curve shows.
_MOST_POINTS = 512


def smoothed(points: np.ndarray, shares: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Density of weighted points, each spread by a Gaussian about as wide as its neighbours are away.

    No share is lost at the ends: what a kernel would put beyond them lies within. A quadrature does not resolve what
    lies between nodes, so neither does the curve: on a logarithmic axis its low end is a guess as wide as a kernel.

    Args:
        points: Where they lie on the axis (for a logarithmic one: their logarithms), between its ends.
        shares: What each weighs, same shape ``(n,)``.
        edges: Ascending, equally spaced, shape ``(cells + 1,)``.

    Returns:
        The density in each cell, shape ``(cells,)``; its integral is the sum of the shares.
    """
    cell = edges[1] - edges[0]
    if not len(points):
        return np.zeros(len(edges) - 1)
    order = np.argsort(points)
    points, shares = _joined(points[order], shares[order])
    middles = (edges[1:] + edges[:-1]) / 2
    widths = kernel_widths(points, edges[-1] - edges[0])
    kernels = np.exp(-0.5 * ((middles - points[:, None]) / widths[:, None]) ** 2)
    return (shares / kernels.sum(axis=1) / cell) @ kernels


def kernel_widths(points: np.ndarray, span: float) -> np.ndarray:
    """Standard deviation of the kernel of each of some ascending points on an axis of the given length."""
    reach = max(_FEWEST, round(_REACH * len(points)))
    places = np.arange(len(points))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach, len(points) - 1)
    distances = (points[high] - points[low]) * reach / np.maximum(high - low, 1)
    return np.clip(_WIDTH * distances, _NARROWEST * span, _WIDEST * span)


def _joined(points: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``_MOST_POINTS`` points, each the mean of neighbours."""
    if len(points) <= _MOST_POINTS:
        return points, shares
    starts = np.linspace(0, len(points), _MOST_POINTS, endpoint=False).astype(int)
    sums = np.add.reduceat(shares, starts)
    weighted = np.add.reduceat(points * shares, starts)
    means = np.add.reduceat(points, starts) / np.diff([*starts, len(points)])
    return np.divide(weighted, sums, out=means, where=sums > 0), sums
