"""All singular values of a map within a memory budget (``exact_spectrum``), and when they are worth it.

A Jacobian that fits is held whole. In float64 it gets an SVD, whose small singular values are right to rounding; in
float32 they come from the float64 Gram matrix of its smaller side, which loses nothing that float32 had. A larger one
is streamed: a tall one in blocks of rows (the Gram matrix accumulates; in float64 a QR factorisation is updated
instead), a wide one in pairs of blocks. ``ExactPlan`` decides between these; ``choose_method`` between all of them and
the matrix-free density, for ``method="auto"``.
"""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils.flop_counter import FlopCounterMode

from skip_conditioning.diagnostics.errors import InputError, MemoryBudgetError, NonFiniteError, near_matches
from skip_conditioning.diagnostics.jacobians.rows import RowSource
from skip_conditioning.diagnostics.linalg.gram import CONVERTED_COLUMNS, eigenvalues, product, self_product
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.spectrum import Spectrum, values_floor
from skip_conditioning.diagnostics.support.memory import readable
from skip_conditioning.diagnostics.support.progress import Progress

METHODS = ("auto", "exact", "lanczos")

#: Cost of a matrix-free measurement, in rows computed in chunks: a few random vectors take a few dozen steps of two
#: products each, one at a time, which is several times slower than in chunks.
_MATRIX_FREE_PRODUCTS = 1000

#: Arithmetic operations that take a few seconds at most: so many are always spent on all singular values.
_CHEAP = 1e11

#: Copies of a Gram matrix that its eigensolver holds.
_GRAM_COPIES = 3


def check_method(method: str, tolerance: float | None) -> None:
    """Raise ``InputError`` for an unknown method, or a tolerance that is not a positive number."""
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; known are {', '.join(METHODS)}.{near_matches(method, METHODS)}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise InputError(f"tolerance must be a positive relative error such as 0.01, or None; it is {tolerance!r}")


def choose_method(map: Map, memory_budget: int) -> tuple[str, str]:
    """``exact`` or ``lanczos``, and the reason in words.

    Exact while it fits the budget and is cheaper by estimated cost, or a matter of seconds. Costs are counted in
    arithmetic operations, not timed, so that a measurement repeats.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that a measurement may take.
    """
    try:
        plan = ExactPlan.of(map, memory_budget)
    except MemoryBudgetError:
        return "lanczos", "auto: an exact spectrum does not fit the memory budget"
    products, algebra = plan.products(map), plan.algebra(map)
    if products <= _MATRIX_FREE_PRODUCTS and algebra <= _CHEAP:
        return "exact", f"auto: exact fits, with {products:.0f} products"
    product = _product_cost(map)
    exact, free = products * product + algebra, _MATRIX_FREE_PRODUCTS * product
    if exact <= max(free, _CHEAP):
        return "exact", f"auto: exact fits, at about {exact:.1g} operations"
    return "lanczos", f"auto: exact would take about {exact:.1g} operations, matrix-free {free:.1g}"


def _product_cost(map: Map) -> float:
    """Arithmetic operations of one product with the Jacobian: about those of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        map.function(map.point)
    return counter.get_total_flops() + 10.0 * map.widest


def exact_spectrum(
    map: Map,
    *,
    memory_budget: int,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
) -> Spectrum:
    """All singular values of a map; for ``kernel`` the eigenvalues of the Gram matrix of its Jacobian.

    Cost: one forward pass and ``rows`` backward passes (several times as many for a wide Jacobian that does not
    fit), plus ``O(min(rows, cols)² · max(rows, cols))``.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes for the Jacobian or its Gram matrix and all temporaries.
        progress: Called after every chunk of rows.
        group: Processes to share the rows among; all have to call, and all get the same result.

    Raises:
        MemoryBudgetError: Not even the smaller Gram matrix fits.
        NonFiniteError: The Jacobian holds NaN or infinity.
    """
    start = time.perf_counter()
    plan = ExactPlan.of(map, memory_budget)
    source = RowSource(map, plan.chunk_bytes, progress=progress, group=group)
    notes: list[str] = []
    values, gram_side = _singular_values(plan, source, notes)
    witness, rounding = source.judged() or (None, None)
    floor = values_floor(values, map.point.dtype, gram_side, rounding)
    rows, cols = map.rows, map.cols
    if map.name == "kernel":
        # Eigenvalues of J·Jᵀ are squares of singular values of J, and zero beyond the number of parameters.
        values = np.concatenate([values**2, np.zeros(rows - len(values))])
        floor, cols = max(floor**2, float(np.finfo(np.float64).tiny)), rows
    return Spectrum.of_values(
        values,
        (rows, cols),
        map.point.dtype,
        floor=floor,
        map=map.name,
        layer=map.layer,
        method=f"exact: {plan.method}",
        seconds=time.perf_counter() - start,
        peak_bytes=plan.matrix_bytes + min(plan.chunk_bytes, source.row_bytes * source.chunk),
        note="; ".join([*filter(None, [map.note]), *notes]),
        witness=witness,
    )


class ExactPlan:
    """How the singular values of a map will be computed, and what it takes.

    Attributes:
        method: ``svd``, ``gram`` or ``qr, streamed`` and the like; recorded in the spectrum.
        block_rows: Rows held at a time; all of them unless streamed.
        matrix_bytes: Bytes for the Jacobian's blocks and the matrices made from them.
        chunk_bytes: Bytes left for the temporaries of the backward pass.
    """

    def __init__(self, method: str, block_rows: int, matrix_bytes: int, memory_budget: int) -> None:
        self.method, self.block_rows, self.matrix_bytes = method, block_rows, matrix_bytes
        self.chunk_bytes = max(memory_budget - matrix_bytes, 0)

    @classmethod
    def of(cls, map: Map, memory_budget: int) -> "ExactPlan":
        """Choose the best method that fits the budget.

        Raises:
            MemoryBudgetError: None fits; the message says what would.
        """
        rows, cols, item = map.rows, map.cols, map.point.element_size()
        short, double = min(rows, cols), map.point.dtype == torch.float64
        one_row = map.widest * item
        converted = min(CONVERTED_COLUMNS, max(rows, cols))
        gram = 8 * short * (_GRAM_COPIES * short + 2 * converted)
        side = "rows" if rows <= cols else "columns"
        whole = rows * cols * item + (2 * 8 * rows * cols if double else gram)
        if whole + one_row <= memory_budget:
            return cls("svd" if double else f"gram of {side}", rows, whole, memory_budget)
        left = memory_budget - gram - one_row
        # Half of what is left for blocks, half for the backward pass; two blocks at a time.
        block = max(left, 0) // (4 * cols * max(item, 8 if double else item))
        if block < 1:
            raise MemoryBudgetError(
                f"the {map.name} map of {map.layer!r} is {rows}×{cols}: its exact spectrum needs about "
                f"{readable(gram + one_row + 4 * cols * 8)}, the memory budget is {readable(memory_budget)}; "
                "use fewer probe samples, a later layer, or a larger memory_budget"
            )
        block = min(block, rows)
        matrix_bytes = gram + 2 * block * cols * item
        if rows > cols and double:
            return cls("qr, streamed", block, matrix_bytes, memory_budget)
        return cls(f"gram of {side}, streamed", block, matrix_bytes, memory_budget)

    def products(self, map: Map) -> float:
        """Rows of the Jacobian that will be computed, repeated ones included."""
        # A wide Jacobian that is streamed has its rows computed again for every pair of blocks.
        blocks = math.ceil(map.rows / self.block_rows)
        return map.rows * ((blocks + 1) / 2 if map.rows <= map.cols else 1)

    def algebra(self, map: Map) -> float:
        """Arithmetic operations on the matrices, without those for the Jacobian itself."""
        short, long = sorted((map.rows, map.cols))
        return 2.0 * short**2 * long + 10.0 * short**3


def _singular_values(plan: ExactPlan, source: RowSource, notes: list[str]) -> tuple[np.ndarray, int]:
    """Singular values (descending), and the side of the Gram matrix they come from (0 if they come from none)."""
    rows, cols = source.map.rows, source.map.cols
    if plan.method in ("svd", "qr, streamed"):
        whole = plan.method == "svd"
        matrix = source.rows(0, rows) if whole else _triangular_factor(source.blocks(plan.block_rows), cols)
        _require_finite(matrix.abs().max(), source.map)
        return svdvals(matrix, notes), 0
    if plan.block_rows == rows:
        gram = _gram(source.rows(0, rows))
    elif rows > cols:
        gram = torch.zeros(cols, cols, dtype=torch.float64, device=source.map.point.device)
        for block in source.blocks(plan.block_rows):
            gram += self_product(block.T)
    else:
        blocks = math.ceil(rows / plan.block_rows)
        notes.append(f"every row was computed {(blocks + 1) / 2:g} times over; a larger memory_budget is faster")
        gram = _gram_by_pairs(source, plan.block_rows)
    _require_finite(torch.trace(gram), source.map)
    return _from_gram(gram, notes), min(rows, cols)


def _require_finite(size: Tensor, map: Map) -> None:
    """Raise ``NonFiniteError`` for a Jacobian whose largest entry, or sum of squares, is not finite."""
    if not bool(torch.isfinite(size)):
        raise NonFiniteError(
            f"the Jacobian of the {map.name} map of {map.layer!r} holds NaN or infinite values; "
            "measure an earlier step, or in dtype float64"
        )


def _gram(jacobian: Tensor) -> Tensor:
    """``J·Jᵀ`` or ``Jᵀ·J``, whichever is smaller, in float64."""
    return self_product(jacobian if jacobian.shape[0] <= jacobian.shape[1] else jacobian.T)


def _gram_by_pairs(source: RowSource, size: int) -> Tensor:
    """``J·Jᵀ`` of a wide Jacobian from pairs of row blocks; blocks are computed again for every partner."""
    rows = source.map.rows
    gram = torch.empty(rows, rows, dtype=torch.float64, device=source.map.point.device)
    for start in range(0, rows, size):
        block = source.rows(start, min(start + size, rows))
        gram[start : start + size, start : start + size] = self_product(block)
        for first in range(start + size, rows, size):
            cross = product(source.rows(first, min(first + size, rows)), block)
            gram[first : first + size, start : start + size] = cross
            gram[start : start + size, first : first + size] = cross.T
    return gram


def _triangular_factor(blocks: Iterator[Tensor], cols: int) -> Tensor:
    """``R`` of a tall matrix's QR factorisation, updated block by block; its singular values are the matrix's."""
    factor: Tensor | None = None
    for block in blocks:
        stacked = block if factor is None else torch.cat([factor, block])
        factor = torch.linalg.qr(stacked, mode="r").R
    assert factor is not None
    return factor


def _from_gram(gram: Tensor, notes: list[str]) -> np.ndarray:
    """Singular values, descending, from a Gram matrix."""
    # Rounding makes zero eigenvalues slightly negative; they lie under the floor and are marked by it.
    return np.sqrt(np.clip(eigenvalues(gram, notes), 0, None))


def svdvals(matrix: Tensor, notes: list[str]) -> np.ndarray:
    """Singular values, descending, of a matrix.

    Args:
        matrix: Shape ``(rows, cols)``, float64.
        notes: Where the device's solver fails and scipy's is used instead, a note of that is appended.
    """
    try:
        return torch.linalg.svdvals(matrix).cpu().numpy()
    except (torch.linalg.LinAlgError, RuntimeError) as error:
        notes.append(f"svdvals failed on {matrix.device} ({_first_line(error)}); scipy's gesvd on the CPU instead")
        return _scipy_svdvals(matrix.cpu().numpy())


def _scipy_svdvals(matrix: np.ndarray) -> np.ndarray:
    import scipy.linalg

    return scipy.linalg.svd(matrix, compute_uv=False, lapack_driver="gesvd")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
