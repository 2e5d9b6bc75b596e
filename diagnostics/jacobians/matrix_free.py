"""The density of a map's singular values, matrix-free: from products of its Jacobian with vectors alone."""

import time

import torch
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import MemoryBudgetError
from skip_conditioning.diagnostics.jacobians.operator import jacobian_of
from skip_conditioning.diagnostics.linalg.operators import Operator, require_precision
from skip_conditioning.diagnostics.linalg.slq import lanczos_density
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.support.memory import readable
from skip_conditioning.diagnostics.support.progress import Progress
from skip_conditioning.diagnostics.support.sharding import run_in_all

#: Fewer steps do not resolve the shape of a density.
_MIN_STEPS = 8

#: More steps change the density by less than a reader could see.
_MAX_STEPS = 256


def matrix_free_spectrum(
    map: Map,
    *,
    memory_budget: int,
    tolerance: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
) -> Spectrum:
    """A quadrature of the density of a map's singular values, and statistics with standard errors.

    σ_max is the largest Ritz value and its error the residual: a singular value lies within it. σ_min is the smallest
    Ritz value, an upper bound, so the condition number is a lower bound and ``resolved`` False;
    ``extremes.smallest_singular_value`` searches for the value itself.

    Cost: one forward pass and one in forward mode, then two products for each step of each vector; memory for the
    activations twice and for as many vectors of the smaller side as there are steps.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes for the Lanczos vectors, which limits the steps, and for temporaries.
        tolerance: Relative standard error of the mean σ to reach by more steps and random vectors; None for a fixed
            number of both.
        seed: Of the random vectors.
        progress: Called after every step.
        group: Processes to share the random vectors among; all have to call, and all get the same result.

    Raises:
        UnsupportedModelError: An operator in the model cannot be differentiated.
        NonFiniteError: A product with the Jacobian holds NaN or infinity.
    """
    start = time.perf_counter()
    steps = affordable_steps(map, memory_budget)
    jacobian = run_in_all(lambda: jacobian_of(map, memory_budget), group)
    operator: Operator = jacobian @ jacobian.T if map.name == "kernel" else jacobian  # type: ignore[assignment]
    lanczos = lanczos_density(operator, tolerance=tolerance, seed=seed, max_steps=steps, progress=progress, group=group)
    return Spectrum.of_density(
        lanczos,
        operator.shape,
        map.point.dtype,
        tolerance=tolerance,
        # Eigenvalues of the kernel are squares of singular values.
        rounding=jacobian.rounding ** (2 if map.name == "kernel" else 1),
        map=map.name,
        layer=map.layer,
        seconds=time.perf_counter() - start,
        peak_bytes=max(lanczos.steps) * _vector_bytes(map),
        note="; ".join(filter(None, (map.note, jacobian.note))),
        witness=jacobian.difference,
    )


def affordable_steps(map: Map, memory_budget: int) -> int:
    """Lanczos steps whose vectors fit the budget, at most ``_MAX_STEPS``.

    Raises:
        MemoryBudgetError: They are too few for a density.
        InputError: The map is computed in half precision.
    """
    name = f"the {map.name} map of {map.layer!r}"
    return steps_within(memory_budget, (map.rows, map.cols), _vector_bytes(map), map.point.dtype, name)


def steps_within(memory_budget: int, shape: tuple[int, int], vector_bytes: int, dtype: torch.dtype, name: str) -> int:
    """As ``affordable_steps``, for any operator.

    Args:
        memory_budget: Bytes that the vectors may take.
        shape: ``(rows, cols)``.
        vector_bytes: Memory of one vector.
        dtype: Precision of the products.
        name: The operator's name in messages.
    """
    require_precision(dtype, name)
    steps = memory_budget // vector_bytes
    if steps < min(_MIN_STEPS, *shape):
        raise MemoryBudgetError(
            f"{name} is {shape[0]}×{shape[1]}: its matrix-free spectrum needs about "
            f"{readable(_MIN_STEPS * vector_bytes)}, the memory budget is {readable(memory_budget)}; "
            "use fewer probe samples, or a larger memory_budget"
        )
    return min(steps, _MAX_STEPS)


def _vector_bytes(map: Map) -> int:
    """Memory of one vector of the smaller side."""
    rows, cols = map.rows, map.rows if map.name == "kernel" else map.cols
    return min(rows, cols) * map.point.element_size()
