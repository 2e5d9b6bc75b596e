"""A tangent kernel held against autograd: ``vᵀ K_u v = |J_uᵀ v|²`` for one random ``v`` and every unit.

It takes one gradient. Whatever a rule does not know of (a weight used elsewhere too, samples that interact, a hook
that changes what passes) shows here.
"""

import math

import torch
from torch import Tensor

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
        gradients = left.gradients(self._v)
        others = gradients if right is left else right.gradients(self._w)
        self._products = {one: _product(part, others[one]) for one, part in gradients.items() if one in others}
        self._squares = [{one: _product(part, part) for one, part in side.items()} for side in (gradients, others)]
        eps = left.coarsest_eps
        #: What a wrong rule leaves out is of the size of the gradient itself. Rounding is of that of the terms which
        #: may cancel in it (a bias before batch norm), say 100 · eps of the whole gradient, squared; and where they
        #: cancel in part, by Young's inequality, that over the relative tolerance.
        self._relative = 10 * eps**0.5
        self._absolute = (100 * eps) ** 2 / self._relative
        self._whole = math.sqrt(math.prod(sum(squares.values()) for squares in self._squares))
        if not math.isfinite(self._whole):
            raise NonFiniteError(
                "the gradients of the tangent kernel hold NaN or infinite values; measure an earlier step, or in dtype "
                "float64"
            )

    def is_used(self, unit: Unit) -> bool:
        """Whether the outputs depend on a unit's parameters at all."""
        return any(one in side for side in self._squares for one in unit.parameters)

    def agrees(self, unit: Unit, kernel: Tensor) -> bool:
        """Whether a unit's kernel gives the product that autograd gives."""
        expected = sum(self._products.get(one, 0.0) for one in unit.parameters)
        sizes = [sum(squares.get(one, 0.0) for one in unit.parameters) for squares in self._squares]
        allowed = self._relative * math.sqrt(math.prod(sizes)) + self._absolute * self._whole
        return abs(float(self._v @ (kernel @ self._w)) - expected) <= allowed


def _product(left: Tensor, right: Tensor) -> float:
    """The scalar product of two gradients, in float64."""
    if left is right and math.isfinite(norm := float(torch.linalg.vector_norm(left))):
        return norm**2  # several times faster than in float64, and as good unless squares leave the range
    return float(left.flatten().double() @ right.flatten().double())
