"""``λ(A)``, the smallest eigenvalue of ``A Aᵀ``, of the derivatives of a layer: the factors of the regularity bound."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diagnostics.errors import MemoryBudgetError
from diagnostics.exact import exact_spectrum
from diagnostics.isolation import require_finite
from diagnostics.maps import Map
from diagnostics.rank_limits import rank_limit
from diagnostics.spectrum import jacobian_floor


@dataclass(frozen=True)
class Factor:
    """``λ(A) = min |Aᵀu|² / |u|²`` over all ``u``, or those of a subspace; positive only if ``A`` reaches all of it.

    Attributes:
        value: ``λ``; zero where it is under its floor, NaN where the matrix was too large.
        error: By how much rounding may have moved it.
        rows: Dimensions of the space it is taken on.
        cols: Columns of the matrix, or of a triangular factor that stands for it.
        cause: Why it is zero or not known; empty where it is positive.
    """

    value: float
    error: float
    rows: int
    cols: int
    cause: str = ""

    @classmethod
    def of_sigma(cls, sigma: float, floor: float, rows: int, cols: int) -> "Factor":
        """From the smallest singular value and the size below which it cannot be told from zero."""
        if sigma <= floor:
            return cls(0.0, floor * floor, rows, cols, f"σ_min {sigma:.2g} is under its floor {floor:.2g}")
        value, error = sigma * sigma, (2 * sigma + floor) * floor
        beyond = not 0 < value < math.inf
        return cls(
            value, error, rows, cols, f"σ_min² = ({sigma:.2g})² is beyond the range of float64" if beyond else ""
        )


def factor_of_columns(columns: Tensor, rounding: float) -> Factor:
    """``λ`` of ``A`` on the span of an orthonormal basis ``U``.

    Args:
        columns: ``AᵀU``, shape ``(cols, r)``.
        rounding: Bound of what rounding did to ``A``, in Frobenius norm.
    """
    cols, rows = columns.shape
    if not rows:
        return Factor(0.0, 0.0, rows, cols, "the later layers pass nothing on")
    if rows > cols:
        return Factor(0.0, 0.0, rows, cols, f"{rows} directions, {cols} columns")
    require_finite(columns, "the derivative of the network")
    sizes = torch.linalg.svdvals(torch.linalg.qr(columns, mode="r").R)
    floor = jacobian_floor(float(torch.linalg.vector_norm(sizes)), torch.finfo(columns.dtype).eps)
    return Factor.of_sigma(float(sizes[-1]), max(floor, rounding), rows, cols)


def factor_of_map(map: Map, rounding: float, model: nn.Module, memory_budget: int) -> Factor:
    """``λ`` of a whole Jacobian; with the reason where it is zero, or where it does not fit the budget.

    Args:
        map: Of which the derivative is taken.
        rounding: Bound of what rounding does to that, in Frobenius norm.
        model: For the names of places.
        memory_budget: Bytes for the Jacobian and its temporaries.
    """
    rows, cols = map.rows, map.cols
    if rows > cols:
        return explained(Factor(0.0, 0.0, rows, cols, "more rows than columns"), map, model)
    try:
        spectrum = exact_spectrum(map, batch_mode="batch", memory_budget=memory_budget)
    except MemoryBudgetError:
        return Factor(math.nan, 0.0, rows, cols, f"not computed: {rows}×{cols} exceeds the memory budget")
    floor = max(spectrum.floor, rounding)
    return explained(Factor.of_sigma(float(spectrum.values[-1]), floor, rows, cols), map, model)


def explained(factor: Factor, map: Map, model: nn.Module) -> Factor:
    """A factor that is zero with the operation of the layer that loses directions, where one is found."""
    limit = rank_limit(model, map) if factor.cause and factor.rows else None
    return factor if limit is None or limit.rank >= factor.rows else replace(factor, cause=str(limit))
