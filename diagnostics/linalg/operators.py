"""Linear operators: matrices known only by their products, which is all that the matrix-free algorithms ask for.

A subclass implements two methods, the product with a block of columns and the adjoint's, and gets vectors, Gram
products, transposition, composition by ``@`` and ``to_scipy`` for free.
"""

import math
from abc import ABC, abstractmethod

import scipy.sparse.linalg
import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError


class Operator(ABC):
    """A real ``(rows, cols)`` matrix known by its products with vectors and blocks of vectors.

    Vectors are flat tensors of the operator's dtype on its device; a block holds one in each column.

    Args:
        shape: ``(rows, cols)``.
        dtype: Of the vectors and the products.
        device: Where they live.
        name: What error messages call it.

    Attributes:
        rounding: The size below which a singular value cannot be told from zero, where it was measured; else 0.
    """

    rounding = 0.0

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, name: str) -> None:
        self.shape, self.dtype, self.device, self.name = shape, dtype, device, name

    @abstractmethod
    def _apply(self, block: Tensor) -> Tensor:
        """``A V`` for ``V`` of shape ``(cols, k)``, k ≥ 1; shape ``(rows, k)``."""

    @abstractmethod
    def _apply_adjoint(self, block: Tensor) -> Tensor:
        """``Aᵀ U`` for ``U`` of shape ``(rows, k)``, k ≥ 1; shape ``(cols, k)``."""

    def matvec(self, vector: Tensor) -> Tensor:
        """``A v``: shape ``(cols,)`` to ``(rows,)``.

        Raises:
            InputError: The vector has another shape, dtype or device.
            NonFiniteError: The product holds NaN or infinity.
        """
        return self.matmat(self._column(vector, self.shape[1]))[:, 0]

    def rmatvec(self, vector: Tensor) -> Tensor:
        """``Aᵀ u``: shape ``(rows,)`` to ``(cols,)``; errors as for ``matvec``."""
        return self.rmatmat(self._column(vector, self.shape[0]))[:, 0]

    def matmat(self, block: Tensor) -> Tensor:
        """``A V``: shape ``(cols, k)`` to ``(rows, k)``; errors as for ``matvec``."""
        self._check(block, self.shape[1])
        return self._finite(self._apply(block)) if block.shape[1] else block.new_zeros(self.shape[0], 0)

    def rmatmat(self, block: Tensor) -> Tensor:
        """``Aᵀ U``: shape ``(rows, k)`` to ``(cols, k)``; errors as for ``matvec``."""
        self._check(block, self.shape[0])
        return self._finite(self._apply_adjoint(block)) if block.shape[1] else block.new_zeros(self.shape[1], 0)

    def gram_matvec(self, vector: Tensor) -> Tensor:
        """``AᵀA v``: shape ``(cols,)`` to ``(cols,)``; errors as for ``matvec``."""
        return self.rmatvec(self.matvec(vector))

    @property
    def T(self) -> "Operator":  # noqa: N802
        """The adjoint."""
        return _Adjoint(self)

    def __matmul__(self, other: "Operator | Tensor") -> "Operator | Tensor":
        """Composition with an operator, or the product with a vector or a block."""
        if isinstance(other, Operator):
            return _Product(self, other)
        if isinstance(other, Tensor):
            return self.matvec(other) if other.dim() == 1 else self.matmat(other)
        return NotImplemented

    def dense(self) -> Tensor:
        """The matrix itself, shape ``(rows, cols)``, from as many products as its smaller side has entries."""
        rows, cols = self.shape
        if cols <= rows:
            return self.matmat(torch.eye(cols, dtype=self.dtype, device=self.device))
        return self.rmatmat(torch.eye(rows, dtype=self.dtype, device=self.device)).T

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """The operator for scipy's solvers; vectors are copied to the device and back."""

        def through(product, vector):  # type: ignore[no-untyped-def]
            tensor = torch.as_tensor(vector).to(device=self.device, dtype=self.dtype)
            return product(tensor).cpu().numpy()

        return scipy.sparse.linalg.LinearOperator(
            self.shape,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
            matvec=lambda vector: through(self.matvec, vector.reshape(-1)),
            rmatvec=lambda vector: through(self.rmatvec, vector.reshape(-1)),
            matmat=lambda block: through(self.matmat, block),
            rmatmat=lambda block: through(self.rmatmat, block),
        )

    def _column(self, vector: Tensor, length: int) -> Tensor:
        if vector.dim() != 1:
            raise InputError(f"{self.name} takes a vector of {length} entries; this has shape {tuple(vector.shape)}")
        return vector[:, None]

    def _check(self, block: Tensor, length: int) -> None:
        if block.dim() != 2 or block.shape[0] != length:
            raise InputError(f"{self.name} takes blocks of {length} rows; this one has shape {tuple(block.shape)}")
        if block.dtype != self.dtype or block.device != self.device:
            raise InputError(
                f"{self.name} takes {self.dtype} on {self.device}; this is {block.dtype} on {block.device}: convert it"
            )

    def _finite(self, block: Tensor) -> Tensor:
        # A sum is one pass and one number; where it overflows although no entry does, the entries are checked.
        if not math.isfinite(block.sum().item()) and not bool(torch.isfinite(block).all()):
            raise NonFiniteError(
                f"a product with {self.name} holds NaN or infinite values; measure an earlier step, or in dtype float64"
            )
        return block


class MatrixOperator(Operator):
    """A dense matrix as an operator.

    Args:
        matrix: Shape ``(rows, cols)``, floating.
    """

    def __init__(self, matrix: Tensor, name: str = "the matrix") -> None:
        super().__init__((matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.device, name)
        self.matrix = matrix

    def _apply(self, block: Tensor) -> Tensor:
        return self.matrix @ block

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.matrix.T @ block


class _Adjoint(Operator):
    """The adjoint of an operator."""

    def __init__(self, operator: Operator) -> None:
        rows, cols = operator.shape
        super().__init__((cols, rows), operator.dtype, operator.device, f"the adjoint of {operator.name}")
        self.operator, self.rounding = operator, operator.rounding

    @property
    def T(self) -> Operator:  # noqa: N802
        """The operator itself."""
        return self.operator

    def _apply(self, block: Tensor) -> Tensor:
        return self.operator._apply_adjoint(block)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.operator._apply(block)


class _Product(Operator):
    """``left · right``, the right one applied first.

    Raises:
        InputError: The shapes do not fit, or dtypes or devices differ.
    """

    def __init__(self, left: Operator, right: Operator) -> None:
        if left.shape[1] != right.shape[0]:
            raise InputError(f"{left.name} {left.shape} cannot be applied after {right.name} {right.shape}")
        if (left.dtype, left.device) != (right.dtype, right.device):
            raise InputError(
                f"{left.name} is {left.dtype} on {left.device}, {right.name} {right.dtype} on {right.device}"
            )
        name = f"{left.name} after {right.name}"
        super().__init__((left.shape[0], right.shape[1]), left.dtype, left.device, name)
        self.left, self.right = left, right

    def _apply(self, block: Tensor) -> Tensor:
        return self.left._apply(self.right._apply(block))

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.right._apply_adjoint(self.left._apply_adjoint(block))


def require_precision(dtype: torch.dtype, name: str) -> None:
    """Raise ``InputError`` for a half precision, in which Lanczos and orthonormalisation lose all meaning."""
    if torch.finfo(dtype).eps > torch.finfo(torch.float32).eps:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"{name} is computed in {kind}, too coarse for matrix-free methods; use dtype=torch.float32")
