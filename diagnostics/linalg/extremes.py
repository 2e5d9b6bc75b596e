"""The largest and the smallest singular value of an operator, from its products alone, each with a residual.

Both are ends of the spectrum of ``B`` in Golub–Kahan–Lanczos bidiagonalisation. No method finds a closer bound from
as many products with one start vector, and ``AᵀA``, which squares the condition number, is never decomposed. Compared
on 500 columns with 800 products: for geometric spectra with κ = 10, 1e2, 1e3 it found σ_min to 5e-6, 3e-5, 1e-2 of its
value, LOBPCG on ``AᵀA`` to 6e-4, 0.3, 3; inverse iteration with LSMR was no better, ARPACK on ``AᵀA`` did not converge.
PROPACK (``scipy.sparse.linalg.svds``) takes no limit on products, and called a value 1000 times too large converged.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from skip_conditioning.diagnostics.linalg.bidiagonalization import golub_kahan
from skip_conditioning.diagnostics.linalg.operators import Operator
from skip_conditioning.diagnostics.linalg.scaling import Rescaled, ordinary_exponent
from skip_conditioning.diagnostics.linalg.sketching import gaussian_block, smaller_side

#: Up to this smaller side, decomposing the matrix itself is cheaper than Lanczos for the smallest singular value.
_DENSE_SIDE = 64
#: How much rounding in the products may add to a residual, in units of ``eps · σ_max``.
_ROUNDING_UNITS = 4
#: A Ritz value is settled when it has not moved since this share of the steps: a residual alone is also small where
#: the start vector happens to hold little of the true extreme, and that little grows with each step.
_SETTLED_SHARE = 0.5
#: ``B`` is decomposed at every step up to this one, then each time the steps have grown by this factor.
_EVERY_STEP, _SPACING = 20, 1.05


@dataclass(frozen=True)
class Extreme:
    """The largest or the smallest singular value, and how far it can be trusted.

    Attributes:
        value: ``‖A v‖`` for a unit vector ``v`` of the smaller side; so never above the largest singular value nor
            below the smallest, up to rounding.
        residual: Some singular value lies within this of ``value``: ``‖Aᵀu − σv‖`` of the Ritz vectors, by the
            recursion, the difference between ``value`` and the Ritz value σ, and ``4 · eps · σ_max`` for rounding.
            (``u`` computed as ``A v / value`` would lose ``eps · κ`` and its residual show nothing else.)
        converged: Whether the residual met the tolerance and the value had settled, or more steps would add nothing.
            That the value is then the extreme one, not its neighbour, is all but certain for a random start vector.
        bound: ``lower`` for a largest and ``upper`` for a smallest one that has not converged or lies under the floor;
            None where ``value`` is the extreme itself, to the tolerance.
        products: Vectors the operator or its adjoint was applied to.
        method: ``golub-kahan-lanczos`` or ``exact: svd``.
        seconds: Time it took.
    """

    value: float
    residual: float
    converged: bool
    bound: str | None
    products: int
    method: str
    seconds: float


def largest_singular_value(
    operator: Operator, *, tolerance: float = 1e-3, max_steps: int = 200, seed: int = 0
) -> Extreme:
    """σ_max by Golub–Kahan–Lanczos on the smaller side.

    Some 5 to 80 steps for most spectra; a step costs two products. Memory for ``max_steps`` vectors of the smaller
    side.

    Args:
        operator: Any operator.
        tolerance: Residual to reach, relative to σ_max. The value is then closer still, by the square of that over
            the gap to the next one.
        max_steps: Steps after which the value is only a lower bound.
        seed: Of the start vector.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
    """
    return _lanczos_end(operator, 0, tolerance, max_steps, 0.0, seed)


def smallest_singular_value(
    operator: Operator, *, tolerance: float = 1e-2, max_products: int = 600, floor: float = 0.0, seed: int = 0
) -> Extreme:
    """σ_min, the last of ``min(rows, cols)`` singular values, by Golub–Kahan–Lanczos on the smaller side.

    The steps needed grow with ``σ_max / √(σ₂² − σ_min²)``, σ₂ being the next larger value: about 65 for a Wishart
    matrix or an isolated value of 1e-2, 200 for one of 1e-8. Where small values lie densely it does not converge in
    fewer steps than columns, and the value is an upper bound. Up to 64 columns it is exact, from the matrix itself.

    A step costs two products; memory for ``max_products / 2`` vectors of the smaller side.

    Args:
        operator: Any operator.
        tolerance: Residual to reach, relative to σ_min.
        max_products: Products after which the value is only an upper bound.
        floor: Size below which a value cannot be told from zero, such as ``spectrum.jacobian_floor``; the least used
            is the rounding of the products, ``4 · eps · σ_max`` or ``operator.rounding`` if that is more. The search
            ends under it: ``converged`` (more steps would add nothing) with the bound ``upper``, the value as computed.
        seed: Of the start vector.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
    """
    if min(operator.shape) <= _DENSE_SIDE:
        return _exact_smallest(operator, floor)
    return _lanczos_end(operator, -1, tolerance, (max_products - 1) // 2, floor, seed)


def _exact_smallest(operator: Operator, floor: float) -> Extreme:
    """From the singular values of the matrix itself, in float64."""
    start = time.perf_counter()
    side = smaller_side(operator)
    values = np.linalg.svd(side.dense().double().cpu().numpy(), compute_uv=False)
    rounding = _rounding(operator, values[0])
    value = float(values[-1])
    bound = "upper" if value <= max(floor, rounding) else None
    return Extreme(value, rounding, True, bound, side.shape[1], "exact: svd", time.perf_counter() - start)


def _lanczos_end(operator: Operator, end: int, tolerance: float, max_steps: int, floor: float, seed: int) -> Extreme:
    """The Ritz value at one end of the spectrum, 0 for the largest and −1 for the smallest."""
    start = time.perf_counter()
    counted = _Counted(smaller_side(operator))
    generator = torch.Generator().manual_seed(seed)
    vector = gaussian_block(counted.shape[1], 1, counted, generator)[:, 0]
    history: list[tuple[int, float]] = []
    next_check = 1.0
    for bidiagonal in golub_kahan(counted, vector, max(max_steps, 1)):
        steps = bidiagonal.steps
        if steps < next_check and steps < max_steps and not bidiagonal.exhausted:
            continue
        next_check = steps * _SPACING if steps >= _EVERY_STEP else steps + 1
        left, values, right = np.linalg.svd(bidiagonal.square())
        ritz, rounding = float(values[end]), _rounding(counted, values[0])
        # What the recursion leaves: Aᵀu − σv = β_k p_k v_{k+1}, with p the left vector of B.
        residual = float((bidiagonal.betas[-1] + bidiagonal.dropped) * abs(left[-1, end]))
        history.append((steps, ritz))
        settled = bidiagonal.exhausted or _settled(history, tolerance)
        least = max(floor, rounding) if end == -1 else 0.0
        if ritz <= least or (settled and residual <= tolerance * ritz):
            break
    value = _norm_of_image(counted, bidiagonal.V, right[end], values[0])
    # Where rounding or an exhausted space left B short of the operator, the two values show by how much.
    residual += abs(value - ritz)
    under_floor = end == -1 and value <= least + rounding
    converged = under_floor or (settled and residual <= max(tolerance * value, rounding))
    bound = None if converged and not under_floor else ("lower" if end == 0 else "upper")
    seconds = time.perf_counter() - start
    return Extreme(value, residual + rounding, converged, bound, counted.products, "golub-kahan-lanczos", seconds)


def _settled(history: list[tuple[int, float]], tolerance: float) -> bool:
    """Whether the last Ritz value is, within the tolerance, what it was after half as many steps."""
    steps, value = history[-1]
    earlier = [old for at, old in history if at <= _SETTLED_SHARE * steps]
    return bool(earlier) and abs(earlier[-1] - value) <= tolerance * value


def _norm_of_image(operator: Operator, V: torch.Tensor, coefficients: np.ndarray, size: float) -> float:
    """``‖A v‖`` of the Ritz vector ``v = V q``, normalised; ``size`` is that of the operator."""
    vector = V @ torch.from_numpy(coefficients.copy()).to(V)
    exponent = ordinary_exponent(size)
    image = Rescaled(operator, exponent).matvec(vector / torch.linalg.vector_norm(vector))
    return math.ldexp(float(torch.linalg.vector_norm(image.double())), exponent)


def _rounding(operator: Operator, sigma_max: float) -> float:
    return max(float(_ROUNDING_UNITS * torch.finfo(operator.dtype).eps * sigma_max), operator.rounding)


class _Counted(Operator):
    """An operator that counts the vectors it is applied to."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.shape, operator.dtype, operator.device, operator.name)
        self.operator, self.products, self.rounding = operator, 0, operator.rounding

    def _apply(self, block: torch.Tensor) -> torch.Tensor:
        self.products += block.shape[1]
        return self.operator._apply(block)

    def _apply_adjoint(self, block: torch.Tensor) -> torch.Tensor:
        self.products += block.shape[1]
        return self.operator._apply_adjoint(block)
