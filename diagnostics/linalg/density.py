"""The density of singular values from several Lanczos runs, and its statistics with standard errors.

A start vector ``v`` uniform on the unit sphere of dimension ``d`` sees the singular values through
``vᵀf(JᵀJ)v = Σ wᵢ f(σᵢ)``, whose weights have the Dirichlet distribution ``(½, …, ½)``. So one random vector's
estimate has variance exactly ``2/(d+2) · Var(f)`` over the spectrum, which is read off the density itself: a single
random vector gives a standard error. Nonlinear statistics follow by the delta method. The error of the quadrature comes
on top (``linalg/quadrature.py``).
"""

from collections.abc import Callable, Sequence

import numpy as np

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.linalg.quadrature import (
    UNIFORM,
    Estimate,
    Function,
    Quadrature,
    QuadratureRule,
    farthest,
    identity,
)

#: Half-width of a 95 % interval, in standard errors.
_INTERVAL = 1.96

#: Draws of a simulated standard error.
_DRAWS = 1000


class Density:
    """The density of singular values that the quadratures of some random vectors give together.

    Where one of them found as many nodes as there are singular values, these are all known, each with the same weight,
    and the statistics are exact.

    Args:
        quadratures: One for each random vector, at least one.
        size: ``min(rows, cols)``, the dimension of the space that the start vectors are drawn in.

    Attributes:
        vectors: How many random vectors.
        nodes: Those of all random vectors, descending, shape ``(k,)``, float64.
        weights: Share of the singular values that each node stands for; they sum to 1.
    """

    def __init__(self, quadratures: Sequence[Quadrature], size: int) -> None:
        self.vectors, self.size = len(quadratures), size
        complete = [item for item in quadratures if item.steps == size]
        if complete:
            rule = QuadratureRule(complete[0].gauss.nodes, np.full(size, 1 / size))
            quadratures = [Quadrature(rule, rule, np.zeros(size), exhausted=True)]
        self._quadratures = list(quadratures)
        # Variance of the mean over random vectors over the variance over the spectrum, 2/(d+2)/n.
        self._factor = 0.0 if complete else 2 / (size + 2) / self.vectors
        nodes = np.concatenate([item.gauss.nodes for item in self._quadratures])
        order = np.argsort(nodes, kind="stable")[::-1]
        self.nodes = nodes[order]
        weights = np.concatenate([item.gauss.weights for item in self._quadratures])[order]
        self.weights = weights / weights.sum()
        # Divided by the largest first: squares of extreme values would leave the range of float64.
        self._scale = float(self.nodes[0]) or 1.0

    def mean(self) -> Estimate:
        """Arithmetic mean of σ, with a rigorous bracket for each random vector."""
        means = [item.mean() for item in self._quadratures]
        quadrature = float(np.mean([mean.error for mean in means]))
        return Estimate(
            float(np.mean([mean.value for mean in means])), float(np.hypot(self._sampling(identity), quadrature))
        )

    def rms(self) -> Estimate:
        """Root mean square of σ: Gauss's rule is exact for it."""
        square = self._moment(self._relative_square)
        root = square**0.5
        error = self._sampling(self._relative_square) / (2 * root) if root else 0.0
        return Estimate(self._scale * root, self._scale * error)

    def stable_rank(self, sigma_max: float) -> Estimate:
        """``‖J‖_F² / σ_max²``, taking ``sigma_max`` as known."""
        if not sigma_max:
            return Estimate(0.0, 0.0)
        factor = self.size * (self._scale / sigma_max) ** 2
        return Estimate(factor * self._moment(self._relative_square), factor * self._sampling(self._relative_square))

    def gmean(self, floor: float) -> Estimate:
        """Geometric mean of ``max(σ, floor)``.

        The logarithm's bracket reaches from Gauss's rule, too high, down to Radau's, which puts all it can at the
        floor; ±1.96 standard errors cover it and sampling on top. So the geometric mean is known well only where few
        steps show that hardly any value can be near 0. Of Gauss's rule and what both rules tend to with more steps the
        middle one is taken.

        Raises:
            InputError: ``floor`` is not positive.
        """
        if not floor > 0:
            raise InputError(f"the floor of a geometric mean must be positive; it is {floor!r}")

        def logarithm(nodes: np.ndarray) -> np.ndarray:
            return np.log(np.maximum(nodes, floor))

        _, value, high = np.sort(np.mean([item.limits(logarithm) for item in self._quadratures], axis=0))
        low = float(np.mean([item.bracket(logarithm).min() for item in self._quadratures]))
        sampling = _INTERVAL * max(self._sampling(logarithm, gauss=gauss) for gauss in (True, False))
        ends = np.array([low - sampling, value, high + sampling])
        low, value, high = np.exp(np.minimum(ends, np.log(max(self._scale, floor))))
        return Estimate(float(value), farthest(value, [low, high]) / _INTERVAL)

    def effective_rank(self) -> Estimate:
        """``exp(entropy(σ / Σσ))`` (Roy & Vetterli 2007): ``d·a·exp(−b/a)`` with ``a = E[σ]``, ``b = E[σ log σ]``.

        Relative to the largest, ``σ log σ`` is convex where ``√x`` is concave, and so on: bracketed the other way.
        Where a few values hold most of the sum the delta method falls short, so that the sampling is simulated too.
        """
        if not self.nodes[0]:
            return Estimate(0.0, 0.0)

        def entropy(nodes: np.ndarray) -> np.ndarray:
            relative = nodes / self._scale
            return relative * np.log(np.where(relative > 0, relative, 1.0))

        means, entropies = (self._bracket(function) for function in (self._relative, entropy))
        a, b = means[1], entropies[1]
        value = float(self.size * a * np.exp(-b / a))
        # The corners of the box that the two brackets span, where Radau's mean is not 0.
        corners = [self.size * x * np.exp(-y / x) for x in means if x > 0 for y in entropies]
        sampling = value * self._sampling(lambda nodes: ((1 + b / a) * self._relative(nodes) - entropy(nodes)) / a)

        def statistic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return self.size * a * np.exp(-b / np.maximum(a, np.finfo(float).tiny))

        sampling = max(sampling, self._simulated(value, statistic, entropy))
        return Estimate(value, float(np.hypot(sampling, farthest(value, corners) / UNIFORM)))

    def _simulated(self, value: float, statistic: Callable[..., np.ndarray], function: Function) -> float:
        """Standard error of a statistic of ``E[σ]`` and the mean of a function, by drawing weights of random vectors.

        The weight of a node that ``m`` of ``d`` singular values share is the sum of ``m`` squares of normal variables,
        over that of all. Half the interval that covers 95 %, of ratios to the truth as much as of differences, as a
        weight that was drawn too small also makes its own spread seem too small.
        """
        if not self._factor:
            return 0.0
        generator = np.random.default_rng(0)
        squares = generator.gamma(self.vectors * self.size * self.weights / 2, size=(_DRAWS, len(self.weights)))
        drawn = squares / squares.sum(axis=1, keepdims=True)
        values = statistic(drawn @ self._relative(self.nodes), drawn @ function(self.nodes))
        ratios = np.maximum(values / value, value / np.maximum(values, np.finfo(float).tiny))
        return value * float(np.quantile(ratios - 1, 0.95)) / _INTERVAL

    def median(self) -> Estimate:
        """The median of σ."""
        return self.quantile(0.5)

    def quantile(self, p: float) -> Estimate:
        """The value that a share ``p`` of the singular values lies below.

        Raises:
            InputError: Not ``0 < p < 1``.
        """
        if not 0 < p < 1:
            raise InputError(f"a quantile's share must lie between 0 and 1; it is {p!r}")
        if not self._factor:
            return Estimate(float(np.quantile(self.nodes, p)), 0.0)
        points = np.unique(
            np.concatenate([rule.nodes for item in self._quadratures for rule in (item.gauss, item.radau)])
        )
        shares = np.stack([self._distribution(points, inclusive=side) for side in (False, True)], axis=1).ravel()
        value = float(np.interp(p, np.maximum.accumulate(shares), np.repeat(points, 2)))
        # The values that the quantile cannot be told to lie above and below; p itself is defined to one value in d.
        below, up_to = self._interval(points, inclusive=False)[1], self._interval(points, inclusive=True)[0]
        low = points[below < p - 1 / self.size].max(initial=0.0)
        high = points[up_to > p + 1 / self.size].min(initial=points[-1])
        return Estimate(value, farthest(value, [low, high]) / _INTERVAL)

    def share(self, low: float, high: float) -> Estimate:
        """The share of singular values in ``[low, high]``."""
        edges = np.array([low]), np.array([high])
        below = [item.distribution_bounds(edges[0], inclusive=False) for item in self._quadratures]
        up_to = [item.distribution_bounds(edges[1], inclusive=True) for item in self._quadratures]
        least = np.mean([np.maximum(top[0] - bottom[1], 0.0) for top, bottom in zip(up_to, below, strict=True)])
        most = np.mean([np.maximum(top[1] - bottom[0], 0.0) for top, bottom in zip(up_to, below, strict=True)])
        value = self._distribution(edges[1], inclusive=True) - self._distribution(edges[0], inclusive=False)
        return self._share(float(np.clip(value[0], least, most)), float(least), float(most))

    def rank(self, floor: float) -> Estimate:
        """How many singular values exceed ``floor``.

        Up to the floor count the nodes there; for certain, those of them whose residual also lies under it.
        """
        up_to, certain, most = [], [], []
        for item in self._quadratures:
            nodes, weights = item.gauss.nodes, item.gauss.weights
            up_to.append(weights[nodes <= floor].sum())
            certain.append(weights[nodes + item.residuals <= floor].sum())
            most.append(item.distribution_bounds(np.array([floor]), inclusive=True)[1][0])
        value, least = np.mean(up_to), np.mean(certain)
        share = self._share(float(value), float(least), float(max(np.mean(most), value)))
        return Estimate(self.size * (1 - share.value), self.size * share.error)

    def _share(self, value: float, least: float, most: float) -> Estimate:
        """A share with its bracket, which atoms fill to either end: ±1.96 standard errors cover it and sampling too."""
        sampling = float(self._share_sampling(np.array(least), np.array(most)))
        return Estimate(value, sampling + farthest(value, [least, most]) / _INTERVAL)

    def _distribution(self, points: np.ndarray, *, inclusive: bool) -> np.ndarray:
        return np.mean([item.distribution(points, inclusive=inclusive) for item in self._quadratures], axis=0)

    def _interval(self, points: np.ndarray, *, inclusive: bool) -> tuple[np.ndarray, np.ndarray]:
        """The bracket of the share at or below (or below) each point, widened by 1.96 standard errors."""
        bounds = [item.distribution_bounds(points, inclusive=inclusive) for item in self._quadratures]
        lower, upper = np.mean(bounds, axis=0)
        sampling = _INTERVAL * self._share_sampling(lower, upper)
        return lower - sampling, upper + sampling

    def _share_sampling(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Standard error from the random vectors of a share between two bounds, where it is largest.

        A share that is neither 0 nor 1 is one value's at least.
        """
        share, least = np.clip(0.5, lower, upper), min(self._least_share, 0.5)
        raised = np.where((share > 0) & (share < 1), np.clip(share, least, 1 - least), share)
        return np.sqrt(self._factor * np.maximum(raised * (1 - raised), 0.0))

    def _moment(self, function: Function) -> float:
        return float(np.mean([item.gauss.integral(function) for item in self._quadratures]))

    def _bracket(self, function: Function) -> np.ndarray:
        return np.mean([item.bracket(function) for item in self._quadratures], axis=0)

    @property
    def _least_share(self) -> float:
        """What the weight of a node, pooled, should come to at least: it stands for one singular value or more."""
        return 1 / (self.size * self.vectors)

    def _sampling(self, function: Function, *, gauss: bool = False) -> float:
        """Standard error of ``E[f(σ)]`` from the random vectors.

        The variance is Radau's, which is exact for ``σ²`` after one step, or Gauss's where 0 is singular for ``f``.
        A single value's weight ``z²/d`` often comes out far too small, and with it the variance: it is raised.
        """
        rules = [item.gauss if gauss or item.exhausted else item.radau for item in self._quadratures]
        weights = []
        for item, rule in zip(self._quadratures, rules, strict=True):
            raised = np.maximum(rule.weights, self._least_share)
            if rule is item.radau and not item.exhausted:
                raised[0] = rule.weights[0]  # the node at 0 is prescribed, not found
            weights.append(raised / raised.sum() / len(rules))
        values = np.concatenate([function(rule.nodes) for rule in rules])
        shares = np.concatenate(weights)
        variance = shares @ (values - shares @ values) ** 2
        # Over the spectrum; that of a sample of it is smaller by the variance of its mean.
        return float(np.sqrt(self._factor * variance / (1 - self._factor)))

    def _relative(self, nodes: np.ndarray) -> np.ndarray:
        return nodes / self._scale

    def _relative_square(self, nodes: np.ndarray) -> np.ndarray:
        return (nodes / self._scale) ** 2
