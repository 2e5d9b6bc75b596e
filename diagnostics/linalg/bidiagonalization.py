"""Golub–Kahan–Lanczos bidiagonalisation of an operator, on which every Lanczos estimate of singular values rests.

After ``k`` steps from a unit vector ``v₁``, ``A V = U B`` and ``Aᵀ U = V Bᵀ + β_k v_{k+1} e_kᵀ`` with orthonormal
columns and ``B`` upper bidiagonal. ``BᵀB`` is the Lanczos matrix of ``AᵀA``; working with ``B`` squares no condition
number. (Golub & Kahan 1965; Golub & Van Loan, *Matrix Computations*, §10.4.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skip_conditioning.diagnostics.linalg.operators import Operator, require_precision
from skip_conditioning.diagnostics.linalg.scaling import in_range

#: Right vectors allocated at a time: many runs end long before the last step allowed.
_BLOCK = 8

#: A new direction shorter than this many units of rounding of the largest coefficient is taken for rounding.
_BREAKDOWN_UNITS = 100


@dataclass(frozen=True, eq=False)
class Bidiagonal:
    """The matrix ``B`` after some steps.

    Attributes:
        alphas: Diagonal, shape ``(k,)``, float64.
        betas: Coefficients that link each step to the next, shape ``(k,)``: the superdiagonal, then ``β_k``, which is
            0 where the Krylov space is exhausted.
        blocks: Right vectors in the rows of some blocks; the last block may end in unused rows, which are zero.
        dropped: Length of the direction that was taken for rounding where the space is exhausted, else 0.
    """

    alphas: np.ndarray
    betas: np.ndarray
    blocks: tuple[Tensor, ...]
    dropped: float = 0.0

    @property
    def V(self) -> Tensor:  # noqa: N802
        """Right vectors, a copy of shape ``(cols, k)``."""
        return torch.cat(self.blocks)[: self.steps].T

    @property
    def steps(self) -> int:
        """Steps taken, ``k``."""
        return len(self.alphas)

    @property
    def exhausted(self) -> bool:
        """Whether the Krylov space is invariant, so that further steps add nothing."""
        return self.betas[-1] == 0

    def square(self) -> np.ndarray:
        """``B``, shape ``(k, k)``: its singular values are the nodes of Gauss's rule."""
        return np.diag(self.alphas) + np.diag(self.betas[:-1], 1)


def golub_kahan(operator: Operator, start: Tensor, max_steps: int) -> Iterator[Bidiagonal]:
    """The bidiagonalisation after 1, 2, … steps; ends after ``max_steps`` or where the space is exhausted.

    The right vectors are reorthogonalised in full, twice, which keeps the left ones orthogonal as well (Simon & Zha
    2000) at half the memory. One step costs one product with the operator, one with its adjoint, and ``4 · cols · k``
    multiplications. Vectors are scaled so that products of any size stay within the range of the operator's dtype.

    Args:
        operator: Any operator; ``cols`` should be its smaller side.
        start: Not zero, shape ``(cols,)``; normalised here.
        max_steps: Most steps to take; never more than ``cols`` are.

    Raises:
        InputError: The operator works in half precision.
        NonFiniteError: A product holds NaN or infinity.
    """
    require_precision(operator.dtype, operator.name)
    eps = torch.finfo(operator.dtype).eps
    limit = min(max_steps, operator.shape[1])
    blocks = [start.new_zeros(min(_BLOCK, limit), operator.shape[1])]
    vector = blocks[0][0] = start / torch.linalg.vector_norm(start)
    alphas, betas = np.zeros(limit), np.zeros(limit)
    operator, exponent, left = in_range(operator, vector)
    for step in range(limit):
        if step:
            left = operator.matvec(vector) - betas[step - 1] * left
        alphas[step] = float(torch.linalg.vector_norm(left))
        largest = max(alphas.max(), betas.max())
        if alphas[step] > _BREAKDOWN_UNITS * eps * largest:
            left = left / alphas[step]
            right = operator.rmatvec(left) - alphas[step] * vector
        else:
            # The left space is exhausted: a zero singular value, and nothing beyond it.
            alphas[step], right = 0.0, torch.zeros_like(vector)
        for _ in range(2):
            for block in blocks:  # unused rows are zero
                right = right - block.T @ (block @ right)
        beta = float(torch.linalg.vector_norm(right))
        complete = step + 1 == operator.shape[1]
        exhausted = complete or beta <= _BREAKDOWN_UNITS * eps * largest
        betas[step] = 0.0 if exhausted else beta
        dropped = beta if exhausted and not complete else 0.0
        diagonal, links = (np.ldexp(part[: step + 1], exponent) for part in (alphas, betas))
        yield Bidiagonal(diagonal, links, tuple(blocks), math.ldexp(dropped, exponent))
        if exhausted:
            return
        if step + 1 < limit:
            row = (step + 1) % _BLOCK
            if not row:
                blocks.append(start.new_zeros(min(_BLOCK, limit - step - 1), operator.shape[1]))
            vector = blocks[-1][row] = right / beta
