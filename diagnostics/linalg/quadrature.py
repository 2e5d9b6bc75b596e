"""Quadrature rules of the density of singular values, as one Lanczos run sees it, and the bounds they imply.

With ``x = σ²`` the even derivatives of ``√x`` are negative and the odd ones positive, so that Gauss's rule lies above
``vᵀ(JᵀJ)^½v`` and Gauss–Radau's with a node at 0 below it (Golub & Meurant, *Matrices, Moments and Quadrature*, §6).
Distribution functions have the bounds of Chebyshev, Markov and Stieltjes (Szegő, *Orthogonal Polynomials*, §3.41). An
estimate whose bracket reaches as far as ``h`` has ``h/√3`` added in quadrature, so that ±1.96 standard errors cover the
bracket.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # numpy alone at run time
    from skip_conditioning.diagnostics.linalg.bidiagonalization import Bidiagonal

#: A statistic of one singular value; takes and returns an array.
Function = Callable[[np.ndarray], np.ndarray]

#: A bracket's half-width over its share of the standard error: as for a uniform distribution.
UNIFORM = 3**0.5
#: The limit of slow quadratures is extrapolated from those after all steps and after this share of them.
_COARSE_SHARE = 2 / 3


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class QuadratureRule:
    """A quadrature rule.

    Attributes:
        nodes: Singular values, ascending, shape ``(k,)``, float64.
        weights: Share of each, shape ``(k,)``; they sum to 1.
    """

    nodes: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> "QuadratureRule":
        """Singular values of a matrix and the squares of its right singular vectors' first components.

        Args:
            matrix: Shape ``(k, k)``, or ``(k, k + 1)``: its null vector supplies a node at 0.
        """
        _, values, right = np.linalg.svd(matrix)
        nodes = np.append(values, np.zeros(matrix.shape[1] - len(values)))
        # Not views: those sum in another order once they have been sent to another process.
        return cls(nodes[::-1].copy(), right[::-1, 0].copy() ** 2)

    def integral(self, function: Function) -> float:
        """``Σ wᵢ f(σᵢ)``."""
        return float(self.weights @ function(self.nodes))

    def distribution_bounds(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of Chebyshev, Markov and Stieltjes on the share at or below each point, and on that below it."""
        sums = np.append(0.0, np.cumsum(self.weights))
        below = np.searchsorted(self.nodes, points, side="right") - 1  # last node at or below
        above = np.searchsorted(self.nodes, points, side="left")  # first node at or above
        upper = np.where(above < len(self.nodes), sums[np.minimum(above + 1, len(self.nodes))], 1.0)
        return sums[np.maximum(below, 0)], upper


@dataclass(frozen=True, eq=False)
class Quadrature:
    """The density as one random vector sees it.

    Attributes:
        gauss: Gauss's rule, ``k`` nodes.
        radau: Gauss–Radau's with a node prescribed at 0, ``k + 1`` nodes.
        residuals: Some singular value lies within this of each of Gauss's nodes, shape ``(k,)``.
        exhausted: Whether the Krylov space was, so that Gauss's rule is exact for this random vector.
        coarse: The quadrature after two thirds of the steps; None after a single step.
    """

    gauss: QuadratureRule
    radau: QuadratureRule
    residuals: np.ndarray
    exhausted: bool
    coarse: "Quadrature | None" = None

    @classmethod
    def of(cls, bidiagonal: "Bidiagonal") -> "Quadrature":
        """The quadratures that a bidiagonalisation holds."""
        fine = cls._rules(bidiagonal.alphas, bidiagonal.betas)
        steps = int(_COARSE_SHARE * bidiagonal.steps)
        if not steps:
            return fine
        coarse = cls._rules(bidiagonal.alphas[:steps], bidiagonal.betas[:steps])
        return cls(fine.gauss, fine.radau, fine.residuals, fine.exhausted, coarse)

    @classmethod
    def _rules(cls, alphas: np.ndarray, betas: np.ndarray) -> "Quadrature":
        square = np.diag(alphas) + np.diag(betas[:-1], 1)
        extended = np.hstack([square, betas[-1] * np.eye(len(alphas))[:, -1:]])
        residuals = betas[-1] * np.abs(np.linalg.svd(square)[0][-1, ::-1].copy())
        return cls(QuadratureRule.of(square), QuadratureRule.of(extended), residuals, bool(betas[-1] == 0))

    @property
    def steps(self) -> int:
        """Lanczos steps taken, ``k``."""
        return len(self.gauss.nodes)

    def bracket(self, function: Function) -> np.ndarray:
        """An integral by Gauss and by Gauss–Radau, bounds for ``√x`` and the like, and its likely value between them.

        Where in the bracket the truth lies depends on the density at 0: a third from Gauss's end where that is finite,
        at it where there is none, at the other where many values are 0. Steps narrow the bracket and hardly move that
        position, so that it is estimated from the coarse bracket: measured, to a fifth of the width or better.

        Returns:
            Shape ``(3,)``: Gauss's, the likely one, Radau's.
        """
        gauss, radau = self.gauss.integral(function), self.radau.integral(function)
        if self.exhausted:
            return np.full(3, gauss)
        position = 0.5
        if self.coarse is not None:
            before = self.coarse.gauss.integral(function)
            shrunk = (before - self.coarse.radau.integral(function)) - (gauss - radau)
            position = float(np.clip((before - gauss) / shrunk, 0.0, 1.0)) if shrunk else 0.5
        return np.array([gauss, gauss + position * (radau - gauss), radau])

    def mean(self) -> Estimate:
        """This random vector's own mean of σ; the error is the quadrature's alone."""
        bounds = self.bracket(identity)
        return Estimate(float(bounds[1]), farthest(bounds[1], bounds) / UNIFORM)

    def limits(self, function: Function) -> np.ndarray:
        """An increasing function's integral by Gauss, and what Gauss and Radau tend to if they err by ``1/k``.

        Returns:
            Shape ``(3,)``. The limits are no lower than Radau's rule and no higher than Gauss's.
        """
        high, low = self.gauss.integral(function), self.radau.integral(function)
        if self.exhausted:
            return np.full(3, high)
        if self.coarse is None:
            return np.array([high, low, low])
        fine, coarse = self.steps, self.coarse.steps
        before = np.array([self.coarse.gauss.integral(function), self.coarse.radau.integral(function)])
        tends = (fine * np.array([high, low]) - coarse * before) / (fine - coarse)
        return np.append(high, np.clip(tends, low, high))

    def distribution_bounds(self, points: np.ndarray, *, inclusive: bool) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds on the share of σ at or below each point, or below it if not ``inclusive``."""
        if self.exhausted:
            exact = self.distribution(points, inclusive=inclusive)
            return exact, exact
        bounds = [rule.distribution_bounds(points) for rule in (self.gauss, self.radau)]
        lower, upper = np.maximum(bounds[0][0], bounds[1][0]), np.minimum(bounds[0][1], bounds[1][1])
        empty = points < 0 if inclusive else points <= 0
        return np.where(empty, 0.0, lower), np.where(empty, 0.0, upper)

    def distribution(self, points: np.ndarray, *, inclusive: bool) -> np.ndarray:
        """The share of σ at or below each point (or below it): interpolated between steps of the bounds."""
        nodes, weights = self.gauss.nodes, self.gauss.weights
        if self.exhausted:
            counts = np.searchsorted(nodes, points, side="right" if inclusive else "left")
            return np.minimum(np.append(0.0, np.cumsum(weights))[counts], 1.0)
        middles = np.cumsum(weights) - weights / 2
        return np.interp(points, np.append(0.0, nodes), np.append(0.0, middles), right=1.0)


def identity(nodes: np.ndarray) -> np.ndarray:
    """The singular values themselves."""
    return nodes


def farthest(value: float, others: Sequence[float] | np.ndarray) -> float:
    """The largest distance from a value."""
    return float(np.max(np.abs(np.asarray(others) - value)))
