"""Gram matrices accumulated in float64, whatever the precision of their factors.

Squaring in float32 would lose every singular value under 3e-4 of the largest. Pieces are converted some columns at a
time, so that no float64 copy of the whole exists.
"""

import numpy as np
import torch
from torch import Tensor

#: Columns converted to float64 at a time.
CONVERTED_COLUMNS = 2048

#: Panels of rows in which a symmetric product is computed: 5/8 of the work of the whole.
_PANELS = 4


def self_product(matrix: Tensor) -> Tensor:
    """``A·Aᵀ`` in float64; only its lower panels are computed.

    Args:
        matrix: Shape ``(rows, cols)``, floating.

    Returns:
        Shape ``(rows, rows)``.
    """
    size = matrix.shape[0]
    panels = [slice(start, min(start + -(-size // _PANELS), size)) for start in range(0, size, -(-size // _PANELS))]
    total = torch.empty(size, size, dtype=torch.float64, device=matrix.device)
    for number, columns in enumerate(matrix.split(CONVERTED_COLUMNS, dim=1)):
        piece = columns.double()
        for panel in panels:
            total[panel, : panel.stop].addmm_(piece[panel], piece[: panel.stop].T, beta=min(number, 1))
    for panel in panels:
        total[: panel.start, panel] = total[panel, : panel.start].T
        # Symmetric to the last bit, whatever order the sums were taken in.
        square = total[panel, panel]
        total[panel, panel] = square.tril() + square.tril(-1).T
    return total


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left·rightᵀ`` in float64.

    Args:
        left: Shape ``(rows, cols)``, floating.
        right: Shape ``(others, cols)``.

    Returns:
        Shape ``(rows, others)``; ``self_product`` where both are one tensor.
    """
    if left is right:
        return self_product(left)
    total = torch.zeros(left.shape[0], right.shape[0], dtype=torch.float64, device=left.device)
    for start in range(0, left.shape[1], CONVERTED_COLUMNS):
        chosen = slice(start, start + CONVERTED_COLUMNS)
        total.addmm_(left[:, chosen].double(), right[:, chosen].double().T)
    return total


def eigenvalues(gram: Tensor, notes: list[str]) -> np.ndarray:
    """Eigenvalues of a symmetric matrix, descending; rounding may make zeros slightly negative.

    Args:
        gram: Shape ``(size, size)``, float64.
        notes: Where the device's solver fails and scipy's is used instead, a note of that is appended.
    """
    try:
        values = torch.linalg.eigvalsh(gram).cpu().numpy()
    except (torch.linalg.LinAlgError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        notes.append(f"eigvalsh failed on {gram.device} ({reason}); scipy on the CPU instead")
        values = _scipy_eigvalsh(gram.cpu().numpy())
    return values[::-1]


def _scipy_eigvalsh(matrix: np.ndarray) -> np.ndarray:
    import scipy.linalg

    return scipy.linalg.eigh(matrix, eigvals_only=True, driver="ev")
