r"""Limit law of the singular values of ``c·I + A``, with A square and its entries independent, as A grows.

The entries of A have mean 0 and variance ``s²/n``; their distribution does not matter otherwise. In the limit n → ∞:

- The Stieltjes transform ``m(z) = ∫ dμ(λ)/(λ − z)`` of the eigenvalues of ``(cI + A)(cI + A)ᵀ`` solves
  ``m = 1 / (c²/(1 + s²m) − (1 + s²m)·z)`` (Dozier & Silverstein 2007, *On the empirical distribution of eigenvalues of
  large dimensional information-plus-noise type matrices*, theorem 1.1, for a square matrix and ``H = δ_{c²}``).
- At ``z = σ²`` put ``u = σ·(1 + s²m)``. That makes it a cubic that is regular at 0,
  ``(u − σ)(u² − c²) + s²u = 0``, and of the root in the upper half plane ``2σ·Im m(σ²)/π = 2·Im u/(π s²)`` is the
  density of singular values.
- An edge is where two roots meet, ``(u² − c²)² = s²(u² + c²)``. The smaller solution is real for c > s only: up to
  there the law reaches 0.
- Along ``σ = u + s²u/(u² − c²)`` the density integrates to ``1 − (arg(u² − c²) + s²·Im((u − σ)²/s⁴))/π``.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq

from skip_conditioning.diagnostics.errors import InputError

#: At a threefold root (c = s, σ → 0) Newton's steps gain a third each; elsewhere a handful is enough.
_NEWTON_STEPS = 100

#: Of shift and scale; past it float64 no longer tells apart the singular values.
_LARGEST_RATIO = 1e12


@dataclass(frozen=True)
class SingularValueLaw:
    """Limit law of the singular values of ``shift·I + A``; the quarter circle of radius ``2·scale`` at shift 0.

    Values are accurate to about ``ε·(1 + shift/scale)`` of float64, next to the edges to the square root of that where
    σ itself is rounded.

    Attributes:
        shift: ``c ≥ 0``.
        scale: ``s > 0``: n times the variance of the entries is ``s²``, 1/3 if they are uniform on ±1/√n.

    Raises:
        InputError: The shift is negative, the scale is not positive, or the scale is lost in the rounding of the shift.
    """

    shift: float
    scale: float

    def __post_init__(self) -> None:
        if not (0 <= self.shift < _LARGEST_RATIO * self.scale and 0 < self.scale < math.inf):
            raise InputError(
                f"a law needs a finite scale > 0 and 0 ≤ shift < {_LARGEST_RATIO:g}·scale, "
                f"not scale {self.scale!r} and shift {self.shift!r}"
            )

    @cached_property
    def edges(self) -> tuple[float, float]:
        """Limits of the smallest and of the largest singular value; the lower one is 0 up to ``shift = scale``."""
        low, high = self._unit_edges
        return float(self.scale * low), float(self.scale * high)

    def density(self, sigma: np.ndarray | float) -> np.ndarray:
        """Density at each σ, any shape; 0 outside the edges."""
        x = np.asarray(sigma, dtype=float) / self.scale
        low, high = self._unit_edges
        inside = (x >= low) & (x <= high)
        return 2 / (math.pi * self.scale) * self._roots(np.clip(x, low, high)).imag * inside

    def cdf(self, sigma: np.ndarray | float) -> np.ndarray:
        """Share of the singular values up to each σ, any shape."""
        x = np.clip(np.asarray(sigma, dtype=float) / self.scale, *self._unit_edges)
        u = self._roots(x)
        argument = np.angle(u - self._ratio) + np.angle(u + self._ratio)
        return np.clip(1 - (argument + 2 * (u.real - x) * u.imag) / math.pi, 0.0, 1.0)

    def quantile(self, share: float) -> float:
        """The σ that a share of the singular values lies below.

        Raises:
            InputError: Not ``0 ≤ share ≤ 1``.
        """
        if not 0 <= share <= 1:
            raise InputError(f"a quantile's share must lie between 0 and 1; it is {share!r}")
        low, high = self.edges
        if share in (0, 1):
            return high if share else low
        return float(brentq(lambda sigma: float(self.cdf(sigma)) - share, low, high, xtol=1e-14 * high))

    @property
    def _ratio(self) -> float:
        return self.shift / self.scale

    @cached_property
    def _unit_edges(self) -> tuple[float, float]:
        """The edges at scale 1, written without differences of nearly equal numbers."""
        c = self._ratio
        root = math.hypot(1, math.sqrt(8) * c)
        high_square = (2 * c**2 + 1 + root) / 2  # u² at the upper edge; times that at the lower one it is c²(c² − 1)
        high = math.sqrt(high_square) * (root + 3) / (root + 1)
        if c <= 1:
            return 0.0, high
        gap = (c - 1) * (c + 1)
        return c * math.sqrt(gap / high_square) * 8 * gap / ((root + 3) * (root - 1)), high

    def _roots(self, x: np.ndarray) -> np.ndarray:
        """The root ``u`` in the upper half plane at scale 1, for x between the edges.

        Of the third root r, which is real, ``2·Re u = x − r`` and, from the discriminant of the cubic,
        ``Im u·|u − r|² = √((x₊² − x²)(c²x² − c²x₋²))`` with ``c²x₋² = (c² − 1)³/x₊²``.
        """
        (low, high), c = self._unit_edges, self._ratio
        r = _negative_root(c, x)
        above = c**2 * (x - low) * (x + low) if c > 1 else (c * x) ** 2 + ((1 - c) * (1 + c)) ** 3 / high**2
        imaginary = np.sqrt((high - x) * (high + x) * above) / _slope(c, x, r)
        return (x - r) / 2 + 1j * imaginary


def _negative_root(c: float, x: np.ndarray) -> np.ndarray:
    """The root of ``P(u) = u³ − xu² + (1 − c²)u + c²x`` in ``[−c, 0]``.

    ``P(−c) < 0 ≤ P(0)`` and P is concave between them, so Newton's method from −c rises to it.
    """
    r = np.full_like(x, -c)
    for _ in range(_NEWTON_STEPS):
        step = -(r * (r * (r - x) + (1 - c) * (1 + c)) + c**2 * x) / _slope(c, x, r)
        r = r + step
        if np.all(np.abs(step) <= np.finfo(float).eps * np.abs(r)):
            break
    return r


def _slope(c: float, x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """``P'(r)``, which is ``|u − r|²`` at the real root."""
    return r * (3 * r - 2 * x) + (1 - c) * (1 + c)
