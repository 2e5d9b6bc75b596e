"""All singular values of a linear map that acts on disjoint patches: strided 1×1 convolutions, pools, their sums."""

import numpy as np
import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import NonFiniteError


def patchwise(matrix: Tensor, patches: int) -> np.ndarray:
    """Singular values of a map that applies one matrix to each of several disjoint patches.

    The map is block-diagonal up to the order of coordinates: the values of the matrix, each as often as there are
    patches. They are exact to float64 rounding, exact zeros included, as ``measure.jacobian`` of the whole map would
    give them; that matrix is never built.

    Args:
        matrix: Shape ``(outputs, inputs)`` of one patch.
        patches: How many there are.

    Returns:
        Shape ``(patches * min(outputs, inputs),)``, float64, descending.

    Raises:
        NonFiniteError: The matrix holds NaN or infinity.
    """
    matrix = matrix.detach().to("cpu", torch.float64)
    if not bool(matrix.isfinite().all()):
        raise NonFiniteError("the matrix holds NaN or infinity; its map has no singular values")
    return np.repeat(_matrix_values(matrix), patches)


def _matrix_values(matrix: Tensor) -> np.ndarray:
    """All singular values of a matrix, descending; a triangular factor first, as that is faster and as accurate."""
    padded = np.zeros(min(matrix.shape))
    matrix = matrix[matrix.any(dim=1)][:, matrix.any(dim=0)]  # unused rows and columns add exact zeros
    if matrix.numel() == 0:
        return padded
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    values = torch.linalg.svdvals(torch.linalg.qr(matrix, mode="r").R).numpy()
    padded[: len(values)] = values
    return padded
