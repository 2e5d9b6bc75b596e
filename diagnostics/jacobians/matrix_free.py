"""The density of a map's singular values, matrix-free: from products of its Jacobian with vectors alone."""

import time

import torch
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import MemoryBudgetError, readable
from skip_conditioning.diagnostics.jacobians.operator import operator_of
from skip_conditioning.diagnostics.linalg.operators import require_precision
from skip_conditioning.diagnostics.linalg.quadrature import Estimate
from skip_conditioning.diagnostics.linalg.slq import Lanczos, lanczos_density
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.spectrum import Spectrum, jacobian_floor
from skip_conditioning.diagnostics.support.progress import Progress
from skip_conditioning.diagnostics.support.sharding import together

#: With fewer steps there is no telling the shape of a density.
_MIN_STEPS = 8

#: Beyond these the density gains nothing that a reader could see.
_MAX_STEPS = 256


def matrix_free_spectrum(
    map: Map,
    *,
    batch_mode: str,
    memory_budget: int,
    sample: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
    note: str = "",
) -> Spectrum:
    """A quadrature of the density of a map's singular values, and statistics with standard errors.

    σ_max is the largest Ritz value, its error the residual: some singular value lies that close. σ_min is the smallest
    Ritz value, an upper bound, so the condition number is a lower bound and ``resolved`` False;
    ``extremes.smallest_singular_value`` looks for it in earnest.

    Cost: one forward pass and one in forward mode, then two products for each step of each vector; memory for the
    activations twice and for as many vectors of the smaller side as there are steps.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        batch_mode: Recorded in the result.
        memory_budget: Bytes for the Lanczos vectors, which limits the steps, and for temporaries.
        sample: Recorded in the result.
        tolerance: Relative standard error of the mean σ to reach by more steps and random vectors; None for a fixed
            number of both.
        seed: Of the random vectors.
        progress: Called after every step.
        group: Processes to deal the random vectors to; all have to call, and all get the same result.
        note: Recorded in the result.

    Raises:
        UnsupportedModelError: An operator in the model cannot be differentiated.
        NonFiniteError: A product with the Jacobian holds NaN or infinity.
    """
    start = time.perf_counter()
    steps = affordable_steps(map, memory_budget)
    operator = together(lambda: operator_of(map, memory_budget), group)
    found = lanczos_density(operator, tolerance=tolerance, seed=seed, max_steps=steps, progress=progress, group=group)
    rows, cols = operator.shape
    floor = jacobian_floor(found.density.rms().value * min(rows, cols) ** 0.5, torch.finfo(operator.dtype).eps)
    return Spectrum(
        map=map.name,
        layer=map.layer,
        batch_mode=batch_mode,
        sample=sample,
        rows=rows,
        cols=cols,
        values=found.density.nodes[:0],
        nodes=found.density.nodes,
        weights=found.density.weights,
        estimates=estimates(found, floor),
        floor=floor,
        method=f"lanczos: {found.density.vectors} random vectors × {max(found.steps)} steps",
        dtype=str(map.point.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - start,
        peak_bytes=max(found.steps) * _vector_bytes(map),
        note="; ".join(part for part in (note, _limit(found, tolerance)) if part),
    )


def affordable_steps(map: Map, memory_budget: int) -> int:
    """Lanczos steps whose vectors fit the budget, at most ``_MAX_STEPS``.

    Raises:
        MemoryBudgetError: They are too few for a density.
        InputError: The map is computed in half precision.
    """
    require_precision(map.point.dtype, f"the {map.name} map of {map.layer!r}")
    steps = memory_budget // _vector_bytes(map)
    if steps < min(_MIN_STEPS, map.rows, map.cols):
        raise MemoryBudgetError(
            f"the {map.name} map of {map.layer!r} is {map.rows}×{map.cols}: its matrix-free spectrum needs about "
            f"{readable(_MIN_STEPS * _vector_bytes(map))}, the memory budget is {readable(memory_budget)}; "
            "use fewer probe samples, or a larger memory_budget"
        )
    return min(steps, _MAX_STEPS)


def _vector_bytes(map: Map) -> int:
    """Memory of one vector of the smaller side."""
    rows, cols = map.rows, map.rows if map.name == "kernel" else map.cols
    return min(rows, cols) * map.point.element_size()


def estimates(found: Lanczos, floor: float) -> dict[str, Estimate]:
    """An estimate of each of ``tables.STATISTICS``; a σ_min under ``floor`` is the floor."""
    density = found.density
    largest = Estimate(found.sigma_max, found.residual)
    smallest = Estimate(max(found.sigma_min, floor), 0.0)
    kappa = max(largest.value / smallest.value, 1.0)
    return {
        "sigma_max": largest,
        "sigma_min": smallest,
        "sigma_mean": density.mean(),
        "sigma_gmean": density.gmean(floor),
        "sigma_median": density.median(),
        "sigma_rms": density.rms(),
        "condition_number": Estimate(kappa, largest.error / smallest.value),
        "rank": density.rank(floor),
        "effective_rank": density.effective_rank(),
        "stable_rank": density.stable_rank(largest.value),
    }


def _limit(found: Lanczos, tolerance: float | None) -> str:
    """What to tell a reader when the accuracy asked for was not reached."""
    if found.converged:
        return ""
    mean = found.density.mean()
    return f"tolerance {tolerance:g} not reached: relative standard error {mean.error / mean.value:.2g}"
