"""A tangent kernel held against autograd: ``vᵀ K_u v = |J_uᵀ v|²`` for one random ``v`` and every unit.

It takes one gradient. Whatever a rule does not know of (a weight used elsewhere too, samples that interact, a hook
that changes what passes) shows here.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from diagnostics.errors import NonFiniteError
from diagnostics.kernel_batch import Batch
from diagnostics.kernel_units import Unit


class Check:
    """One random product of the kernel between two batches, found by autograd.

    Args:
        left: The first batch.
        right: The second; the same object for a batch with itself.

    Raises:
        NonFiniteError: A gradient holds NaN or infinity.
    """

    def __init__(self, left: Batch, right: Batch) -> None:
        self._v = left.random_cotangent(0)
        self._w = self._v if right is left else right.random_cotangent(1)
        self._left = left.gradients(self._v)
        self._right = self._left if right is left else right.gradients(self._w)
        eps = left.coarsest_eps
        #: What a wrong rule leaves out is of the size of the gradient itself. Rounding is of that of the terms which
        #: may cancel in it (a bias before batch norm), say 100 · eps of the whole gradient, squared; and where they
        #: cancel in part, by Young's inequality, that over the relative tolerance.
        self._relative = 10 * eps**0.5
        self._absolute = (100 * eps) ** 2 / self._relative
        self._whole = _norm(self._left) * _norm(self._right)
        if not math.isfinite(self._whole):
            raise NonFiniteError(
                "the gradients of the tangent kernel hold NaN or infinite values; measure an earlier step, or in dtype "
                "float64"
            )

    def is_used(self, unit: Unit) -> bool:
        """Whether the outputs depend on a unit's parameters at all."""
        return any(one in self._left or one in self._right for one in unit.parameters)

    def agrees(self, unit: Unit, kernel: Tensor) -> bool:
        """Whether a unit's kernel gives the product that autograd gives."""
        left, right = (
            {one: found[one] for one in unit.parameters if one in found} for found in (self._left, self._right)
        )
        expected = sum(float((left[one].double() * right[one].double()).sum()) for one in left if one in right)
        found = float(self._v @ kernel @ self._w)
        allowed = self._relative * _norm(left) * _norm(right) + self._absolute * self._whole
        return abs(found - expected) <= allowed


def _norm(gradients: Mapping[nn.Parameter, Tensor]) -> float:
    return float(sum((part.double() ** 2).sum() for part in gradients.values())) ** 0.5
