"""Stochastic Lanczos quadrature: the density of an operator's singular values from a few random vectors.

Golub & Meurant, *Matrices, Moments and Quadrature*; Ubaru, Chen & Saad (SIAM J. Matrix Anal. Appl. 38, 2017).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.linalg.bidiagonalization import Bidiagonal, golub_kahan
from skip_conditioning.diagnostics.linalg.density import Density
from skip_conditioning.diagnostics.linalg.operators import Operator
from skip_conditioning.diagnostics.linalg.quadrature import Quadrature
from skip_conditioning.diagnostics.linalg.sketching import smaller_side
from skip_conditioning.diagnostics.support.progress import Progress
from skip_conditioning.diagnostics.support.sharding import distribute, fails_together

#: Random vectors and steps of each, where no tolerance is given.
VECTORS, STEPS = 2, 32

#: However lax the tolerance: fewer steps do not show the ends of a spectrum and the shape of its density.
_LEAST_STEPS = 16

#: Keeps random vectors apart from weights or data drawn with the same seed.
_STREAM = 0x51_0A_D5

#: Share of the tolerance that each random vector's quadrature error may take.
_QUADRATURE_SHARE = 0.5
#: The quadrature is computed at every step up to this one, then each time the steps have grown by this factor.
_EVERY_STEP, _SPACING = 20, 1.05


@dataclass(frozen=True, eq=False)
class VectorQuadrature:
    """The quadrature that one random vector gives, and what it took.

    Attributes:
        quadrature: The rules.
        steps: Lanczos steps taken.
        products: Vectors the operator or its adjoint was applied to.
    """

    quadrature: Quadrature
    steps: int
    products: int


@dataclass(frozen=True, eq=False)
class Lanczos:
    """A density of singular values and what it took.

    Attributes:
        density: The density; ``nodes`` and ``weights`` have shape ``(k,)``, k the sum of ``steps`` (or the smaller side
            of the operator, where all singular values were found).
        steps: Lanczos steps of each random vector, length ``density.vectors``.
        products: Vectors the operator or its adjoint was applied to, by all random vectors.
        converged: Whether the tolerance was met, or none was given.
        sigma_max: Largest Ritz value of all random vectors, a lower bound of the largest singular value.
        residual: Some singular value lies within this of ``sigma_max``.
        sigma_min: Smallest Ritz value, an upper bound of the smallest singular value.
        seconds: Time it took.
    """

    density: Density
    steps: tuple[int, ...]
    products: int
    converged: bool
    sigma_max: float
    residual: float
    sigma_min: float
    seconds: float


@fails_together
def lanczos_density(
    operator: Operator,
    *,
    tolerance: float | None = None,
    vectors: int = VECTORS,
    steps: int = STEPS,
    max_vectors: int = 32,
    max_steps: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
) -> Lanczos:
    """The density of an operator's singular values, on its smaller side.

    Without a tolerance exactly ``vectors`` random vectors take ``steps`` steps each. With one, each takes steps (16 at
    least) until its bracket is narrow enough, and then as many vectors are added as the variance over the spectrum
    calls for.
    Nothing depends on the clock or on the number of processes, so that a measurement repeats.

    Cost: two products a step. Memory: as many vectors of the smaller side as steps, at most ``max_steps``.

    Args:
        operator: Any operator.
        tolerance: Relative standard error of the mean singular value to reach; None for a fixed number of vectors and
            steps.
        vectors: How many random vectors, to begin with.
        steps: Lanczos steps of each where no tolerance is given.
        max_vectors: Limit on the random vectors that a tolerance may call for.
        max_steps: Limit on the steps of each.
        seed: Of the random vectors.
        progress: Called after every step with the steps taken and those expected, in this process.
        group: Processes to share the random vectors among; all have to call, and all get the same result (``seconds``
            apart).

    Raises:
        InputError: An option is out of range.
        NonFiniteError: A product holds NaN or infinity; in every process of the group if in one.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise InputError(f"tolerance must be a positive relative error such as 0.01, or None; it is {tolerance!r}")
    if min(vectors, steps, max_vectors, max_steps) < 1:
        raise InputError("vectors, steps, max_vectors and max_steps must be 1 or more")
    begin = time.perf_counter()
    side = smaller_side(operator)
    limit = min(max_steps if tolerance is not None else min(steps, max_steps), side.shape[1])
    advance = _Advance(progress, limit)

    def work(index: int) -> VectorQuadrature:
        return vector_quadrature(side, index, limit, seed=seed, tolerance=tolerance, step_taken=advance.step_taken)

    results: list[VectorQuadrature] = []
    wanted = vectors if tolerance is None else min(vectors, max_vectors)
    while wanted > len(results):
        indices = range(len(results), wanted)
        advance.expect(len(indices) if group is None else -(-len(indices) // group.size()))
        results += distribute(indices, work, group)
        density = Density([result.quadrature for result in results], side.shape[1])
        wanted = len(results) if tolerance is None else min(_vectors_needed(density, results, tolerance), max_vectors)
    mean = density.mean()
    quadratures = [result.quadrature for result in results]
    tops = [(float(item.gauss.nodes[-1]), float(item.residuals[-1])) for item in quadratures]
    sigma_max, residual = max(tops, key=lambda top: top[0])
    return Lanczos(
        density=density,
        steps=tuple(result.steps for result in results),
        products=sum(result.products for result in results),
        converged=tolerance is None or mean.error <= tolerance * mean.value,
        sigma_max=sigma_max,
        residual=residual,
        sigma_min=min(float(item.gauss.nodes[0]) for item in quadratures),
        seconds=time.perf_counter() - begin,
    )


def vector_quadrature(
    operator: Operator,
    index: int,
    max_steps: int,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    step_taken: Callable[[int], None] | None = None,
) -> VectorQuadrature:
    """The quadrature of one random vector: it depends on nothing but its index and the operator.

    Args:
        operator: Any operator, ``cols`` its smaller side.
        index: Of the random vector, from 0.
        max_steps: Steps to take, or with a tolerance to take at most.
        seed: Of all random vectors.
        tolerance: Relative standard error of the mean singular value; half of it is the quadrature's.
        step_taken: Called with the step's number.
    """
    next_check = 1.0
    for bidiagonal in golub_kahan(operator, start_vector(operator, seed, index), max_steps):
        if step_taken is not None:
            step_taken(bidiagonal.steps)
        if tolerance is not None and bidiagonal.steps >= max(next_check, _LEAST_STEPS):
            next_check = bidiagonal.steps * _SPACING if bidiagonal.steps >= _EVERY_STEP else bidiagonal.steps + 1
            mean = Quadrature.of(bidiagonal).mean()
            if mean.error <= _QUADRATURE_SHARE * tolerance * mean.value:
                break
    return VectorQuadrature(Quadrature.of(bidiagonal), bidiagonal.steps, _products(bidiagonal))


def start_vector(operator: Operator, seed: int, index: int) -> torch.Tensor:
    """A vector uniform on the unit sphere, the same on every device.

    Args:
        operator: Whose side, dtype and device the vector has.
        seed: Of all random vectors.
        index: Of this one, from 0.

    Returns:
        Shape ``(cols,)``.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_STREAM, index))
    drawn = np.random.default_rng(sequence).standard_normal(operator.shape[1])
    return torch.from_numpy(drawn / np.linalg.norm(drawn)).to(dtype=operator.dtype, device=operator.device)


def _products(bidiagonal: Bidiagonal) -> int:
    """Two a step; the adjoint's is saved where the left space is exhausted."""
    return 2 * bidiagonal.steps - int(bidiagonal.alphas[-1] == 0)


def _vectors_needed(density: Density, results: Sequence[VectorQuadrature], tolerance: float) -> int:
    """How many random vectors meet the tolerance in all: no more than there are if these do, or if no number can."""
    mean = density.mean()
    allowed = tolerance * mean.value
    quadrature = float(np.mean([result.quadrature.mean().error for result in results]))
    if mean.error <= allowed or quadrature >= allowed:
        return len(results)
    sampling = (mean.error**2 - quadrature**2) * len(results)
    return max(math.ceil(sampling / (allowed**2 - quadrature**2)), len(results) + 1)


class _Advance:
    """Steps taken by this process, and those expected of it."""

    def __init__(self, progress: Progress | None, limit: int) -> None:
        self._progress, self._limit = progress, limit
        self._done = self._expected = 0

    def expect(self, vectors: int) -> None:
        self._expected = self._done + vectors * self._limit

    def step_taken(self, step: int) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._expected)
