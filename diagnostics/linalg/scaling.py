"""Products at any scale: powers of two, which are exact, keep them within the range of float32."""

import math

import torch
from torch import Tensor

from skip_conditioning.diagnostics.linalg.operators import Operator

#: Sizes from ``2^-24`` to ``2^24`` need no scaling.
_ORDINARY = 24
#: Share of a dtype's exponents by which a vector may be scaled.
_REACH = 0.75


class Rescaled(Operator):
    """``A / 2^exponent``, its products made on vectors that are scaled so that products are of size 1.

    Args:
        operator: ``A``.
        exponent: Of the size of its products.
    """

    def __init__(self, operator: Operator, exponent: int) -> None:
        super().__init__(operator.shape, operator.dtype, operator.device, operator.name)
        reach = _reach(operator)
        self.operator, self.rounding = operator, math.ldexp(operator.rounding, -exponent)
        self._before = max(-reach, min(reach, exponent))
        self._after = exponent - self._before

    def _apply(self, block: Tensor) -> Tensor:
        return self.operator._apply(block * 2.0**-self._before) * 2.0**-self._after

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.operator._apply_adjoint(block * 2.0**-self._before) * 2.0**-self._after


def in_range(operator: Operator, vector: Tensor) -> tuple[Operator, int, Tensor]:
    """An operator over the power of two that its products are of the size of, as one product tells.

    Args:
        operator: ``A``.
        vector: A random unit vector ``v``, shape ``(cols,)``.

    Returns:
        ``A / 2^e``, e (0 for ordinary sizes), and ``A v / 2^e``, shape ``(rows,)``.

    Raises:
        NonFiniteError: The product holds NaN or infinity, however the vector is scaled.
    """
    image = operator._apply(vector[:, None])[:, 0]
    exponent = _exponent(image)
    if exponent is not None and abs(exponent) <= _ORDINARY:
        return operator, 0, operator._finite(image)
    for shift in (_reach(operator), -_reach(operator)) if exponent is None else (-exponent,):
        again = Rescaled(operator, -shift)
        left = _exponent(again._apply(vector[:, None])[:, 0])
        if left is not None:
            rescaled = Rescaled(operator, left - shift)
            return rescaled, left - shift, rescaled.matvec(vector)
    return operator, 0, operator._finite(image)


def rescaled(operator: Operator, products: Tensor) -> tuple[Operator, int, Tensor]:
    """An operator over the power of two that its products are of the size of, that power and the products over it.

    Args:
        operator: ``A``.
        products: Of ``A`` with some random vectors, any shape.
    """
    exponent = ordinary_exponent(float(products.abs().max()))
    if not exponent:
        return operator, 0, products
    return Rescaled(operator, exponent), exponent, products * 2.0**-exponent


def ordinary_exponent(size: float) -> int:
    """The exponent of a size, or 0 where products of that size need no scaling."""
    exponent = math.frexp(size)[1] if size > 0 else 0
    return exponent if abs(exponent) > _ORDINARY else 0


def _exponent(image: Tensor) -> int | None:
    """That of the largest entry; None where all are zero or some are not finite."""
    largest = float(image.abs().max())
    return math.frexp(largest)[1] if 0 < largest < math.inf else None


def _reach(operator: Operator) -> int:
    return int(_REACH * math.log2(torch.finfo(operator.dtype).max))
