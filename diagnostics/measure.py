"""The functions that measure: ``spectra`` and ``jacobian`` of a model at a batch, ``spectrum_of`` of any matrix."""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import (
    ConstantMapError,
    InputError,
    MemoryBudgetError,
    UnsupportedModelError,
)
from skip_conditioning.diagnostics.jacobians.exact import check_method, choose_method, exact_spectrum, svdvals
from skip_conditioning.diagnostics.jacobians.matrix_free import matrix_free_spectrum, steps_within
from skip_conditioning.diagnostics.jacobians.param_spectrum import param_spectrum
from skip_conditioning.diagnostics.jacobians.rows import dense_jacobian
from skip_conditioning.diagnostics.kernel.spectra import kernel_spectra
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator, Operator
from skip_conditioning.diagnostics.linalg.slq import STEPS, VECTORS, lanczos_density
from skip_conditioning.diagnostics.networks.first_process import buffers_of_first
from skip_conditioning.diagnostics.networks.isolation import require_finite, unwrap
from skip_conditioning.diagnostics.networks.maps import Map, check_map
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.spectrum import Spectrum, values_floor
from skip_conditioning.diagnostics.support.memory import GIB, readable
from skip_conditioning.diagnostics.support.progress import progress_bar
from skip_conditioning.diagnostics.support.sharding import distribute, fails_together, run_in_all

#: Copies of a matrix, in float64, that its singular values take.
_SVD_COPIES = 3

Result = TypeVar("Result")


@fails_together
def spectra(
    model: nn.Module,
    probe: Any,
    *,
    map: str = "layer",
    layers: Sequence[str] | str | None = None,
    batch_mode: str = "batch",
    method: str = "auto",
    tolerance: float | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    memory_budget: int = GIB,
    progress: bool = False,
    group: ProcessGroup | None = None,
    **reading: Unpack[Reading],
) -> dict[str, Spectrum]:
    """Singular values of the chosen maps of a model at a probe batch, or their density where there are too many.

    The model comes out as it went in: weights, buffers, gradients, flags and random streams.

    Args:
        model: Any module that returns logits, ``(N, ...)``, or an object that holds them.
        probe: Inputs: a tensor, shape ``(N, *input_shape)``, a tuple of positional or a dictionary of keyword inputs;
            a pair of inputs and targets; or a ``Probe``.
        map: ``layer`` ∂output/∂input of a module, ``tail`` ∂logits/∂(its output), ``network`` ∂logits/∂input,
            ``param`` ∂output/∂(its parameters), or ``kernel``: its share of the tangent kernel.
        layers: Module names or globs (``"block*"``); None takes the blocks. A module called several times needs
            its call, ``"name#2"``. For ``kernel``, ``"total"`` is the whole kernel.
        batch_mode: ``batch`` measures the map of the whole probe at once, with the model's own train/eval flags
            (so that batch norm in train mode couples the samples). ``sample`` measures each sample by itself,
            in eval mode (batch norm with running statistics, no dropout).
        method: ``exact`` computes all singular values (those of the ``param`` map of a plain layer by a closed
            form); ``lanczos`` a quadrature of their density from products with random vectors, with standard errors;
            ``auto`` is exact where that fits the memory budget and is either cheaper by estimated cost or takes only
            seconds (the spectrum's ``note`` says what was chosen, and why).
        tolerance: Relative standard error of the mean σ that ``lanczos`` should reach by adding steps and random
            vectors; None for 2 vectors and 32 steps. ``note`` says so where it was not reached.
        seed: Of the random vectors.
        dtype: Precision of the Jacobian; None keeps the model's. float64 resolves about 1e8 times smaller values.
        memory_budget: Bytes the measurement may take; chunks are chosen to fit.
        progress: Whether to show a bar.
        group: Processes of ``torch.distributed`` to share the work among: random vectors, or rows of an exact
            Jacobian. All have to call, with the same weights and probe, and all get the result of the first alone: its
            buffers (batch norm's running statistics) are used in every process.
        reading: How the probe is read: ``forward``, ``output``, ``outputs``, ``loss``, as for ``Probe``.

    Returns:
        One spectrum per layer, in the model's order, by name. In ``sample`` mode one per layer and sample, by
        ``"name[index]"``.

    Raises:
        UnknownLayerError: A name that is no module; near matches are offered.
        LayerCallError: A layer that is never called, or several times with no call named.
        NonFiniteError: NaN or infinity in the probe, the weights or a Jacobian.
        MemoryBudgetError: A spectrum that does not fit the budget.
        UnsupportedModelError: An operator or a model that cannot be differentiated.
        InputError: An unknown map, batch mode or method, or a tolerance that is not a positive number.
    """
    check_method(method, tolerance)
    read = Probe.of(probe, unwrap(model), **reading)
    budget = int(memory_budget)

    def measured(item: Map) -> tuple[Spectrum, str]:
        """The spectrum of a map, and why ``auto`` chose its method."""
        if item.name == "param" and method != "lanczos":
            closed = distribute([0], lambda _: param_spectrum(item, memory_budget=budget), group)[0]
            if closed is not None:
                return closed, "auto: the closed form of a layer" if method == "auto" else ""
        chosen, reason = method, ""
        if method == "auto":
            chosen, reason = distribute([0], lambda _: choose_method(item, budget), group)[0]
        matrix_free: Callable[..., Spectrum] = functools.partial(matrix_free_spectrum, tolerance=tolerance, seed=seed)
        engine = exact_spectrum if chosen == "exact" else matrix_free
        with progress_bar(f"{item.name} {item.layer}", show=progress) as advance:
            return engine(item, memory_budget=budget, progress=advance, group=group), reason

    def evaluate(item: Map, sample: int | None) -> Spectrum:
        spectrum, reason = measured(item)
        note = "; ".join(filter(None, (reason, spectrum.note)))
        return dataclasses.replace(spectrum, batch_mode=batch_mode, sample=sample, note=note)

    def kernels() -> list[Spectrum]:
        return kernel_spectra(
            model,
            read,
            layers=layers,
            batch_mode=batch_mode,
            dtype=dtype,
            memory_budget=budget,
            progress=progress,
            group=group,
        )

    with buffers_of_first(model, group):
        if map == "kernel" and method != "lanczos":
            try:
                return {_key(spectrum): spectrum for spectrum in run_in_all(kernels, group)}
            except MemoryBudgetError:
                pass  # one layer at a time, streamed or matrix-free, takes less memory
        measurements = _measure(evaluate, model, read, map, layers, batch_mode, dtype, group)
    return {_key(spectrum): spectrum for spectrum in measurements}


def jacobian(
    model: nn.Module,
    probe: Any,
    *,
    map: str = "layer",
    layer: str | None = None,
    batch_mode: str = "batch",
    dtype: torch.dtype | None = None,
    memory_budget: int = GIB,
    **reading: Unpack[Reading],
) -> Tensor:
    """The Jacobian of one map as a dense matrix; for ``kernel`` the kernel matrix ``J·Jᵀ``.

    Its singular values are those that ``spectra`` reports.

    Args:
        model: As for ``spectra``.
        probe: As for ``spectra``.
        map: As for ``spectra``.
        layer: Dotted module name; not needed for ``network``, and ``total`` by default for ``kernel``.
        batch_mode: As for ``spectra``.
        dtype: Precision of the Jacobian; None keeps the model's.
        memory_budget: Bytes that temporaries may take; rows are computed in chunks that fit. The result itself
            comes on top.
        reading: As for ``spectra``.

    Returns:
        Shape ``(N·d_out, N·d_in)`` in ``batch`` mode, rows and columns running over (sample, coordinate),
        row-major; ``(N, d_out, d_in)`` in ``sample`` mode.

    Raises:
        InputError: As for ``spectra``; also when no layer is named for a map that needs one.
    """
    if layer is None and map == "kernel":
        layer = "total"
    if layer is None and map != "network":
        raise InputError(f"the {map} map needs a layer; name one of the model's modules")

    def evaluate(item: Map, sample: int | None) -> Tensor:
        rows = dense_jacobian(item, int(memory_budget))
        require_finite(rows, f"the Jacobian of the {item.name} map of {item.layer!r}")
        return rows @ rows.T if map == "kernel" else rows

    read = Probe.of(probe, unwrap(model), **reading)
    matrices = _measure(evaluate, model, read, map, None if layer is None else [layer], batch_mode, dtype)
    return torch.stack(matrices) if batch_mode == "sample" else matrices[0]


def spectrum_of(
    matrix: Tensor | np.ndarray | Operator,
    *,
    method: str = "auto",
    tolerance: float | None = None,
    seed: int = 0,
    memory_budget: int = GIB,
) -> Spectrum:
    """Singular values of a dense matrix or of an operator, or their density where there are too many.

    Those of a symmetric matrix, such as a Hessian or a kernel, are the absolute values of its eigenvalues.

    Args:
        matrix: Shape ``(rows, cols)``, real; or any ``Operator``, such as a ``JacobianOperator``.
        method: ``exact`` computes all singular values in float64, those of an operator from ``min(rows, cols)``
            products; ``lanczos`` a quadrature of their density, with standard errors; ``auto`` is exact within the
            memory budget for a matrix, and for an operator so small that ``lanczos`` would take as many products.
        tolerance: As for ``spectra``.
        seed: Of the random vectors.
        memory_budget: Bytes that the measurement may take.

    Returns:
        The spectrum; its floor is that of the matrix's own precision, or the operator's ``rounding`` if larger.

    Raises:
        InputError: The matrix is empty or not real, or an option is out of range; half precision for ``lanczos``.
        NonFiniteError: NaN or infinity in the matrix or a product.
        MemoryBudgetError: The spectrum does not fit the budget.
    """
    check_method(method, tolerance)
    start = time.perf_counter()
    operator = matrix if isinstance(matrix, Operator) else MatrixOperator(_real_matrix(matrix))
    shape, dense = operator.shape, isinstance(operator, MatrixOperator)
    needed = _SVD_COPIES * 8 * shape[0] * shape[1]
    if method == "auto":
        cheap = dense or min(shape) <= 2 * VECTORS * STEPS
        method = "exact" if cheap and needed <= memory_budget else "lanczos"
    if method == "exact":
        if needed > memory_budget:
            raise MemoryBudgetError(
                f"{operator.name} is {shape[0]}×{shape[1]}: its exact spectrum needs about {readable(needed)}, the "
                f"memory budget is {readable(memory_budget)}; use method='lanczos' or a larger memory_budget"
            )
        notes: list[str] = []
        rows = operator.matrix if isinstance(operator, MatrixOperator) else operator.dense()
        values = svdvals(rows.double(), notes)
        return Spectrum.of_values(
            values,
            shape,
            operator.dtype,
            floor=max(values_floor(values, operator.dtype), operator.rounding),
            layer=operator.name,
            seconds=time.perf_counter() - start,
            peak_bytes=needed,
            note="; ".join(notes),
        )
    vector_bytes = min(shape) * torch.finfo(operator.dtype).bits // 8
    steps = steps_within(memory_budget, shape, vector_bytes, operator.dtype, operator.name)
    lanczos = lanczos_density(operator, tolerance=tolerance, seed=seed, max_steps=steps)
    return Spectrum.of_density(
        lanczos,
        shape,
        operator.dtype,
        tolerance=tolerance,
        rounding=operator.rounding,
        layer=operator.name,
        seconds=time.perf_counter() - start,
        peak_bytes=max(lanczos.steps) * vector_bytes,
    )


def _real_matrix(matrix: Tensor | np.ndarray) -> Tensor:
    """A dense matrix as a floating tensor, checked."""
    tensor = torch.as_tensor(np.ascontiguousarray(matrix) if isinstance(matrix, np.ndarray) else matrix).detach()
    if tensor.dim() != 2 or tensor.numel() == 0:
        raise InputError(f"a matrix has shape (rows, cols), with entries; this one has {tuple(tensor.shape)}")
    if tensor.is_complex():
        raise InputError(f"the matrix is {tensor.dtype}; give a real one")
    tensor = tensor if tensor.is_floating_point() else tensor.double()
    require_finite(tensor, "the matrix")
    return tensor


def _key(spectrum: Spectrum) -> str:
    return spectrum.layer if spectrum.sample is None else f"{spectrum.layer}[{spectrum.sample}]"


def _measure(
    evaluate: Callable[[Map, int | None], Result],
    model: nn.Module,
    probe: Probe,
    name: str,
    layers: Sequence[str] | str | None,
    batch_mode: str,
    dtype: torch.dtype | None,
    group: ProcessGroup | None = None,
) -> list[Result]:
    """Call ``evaluate`` on every map (of every sample, in ``sample`` mode) while the model is ``quiet``.

    In a group, a failure in one process (of an allocation, say) is an error in all processes.
    """
    check_map(name, batch_mode, dtype)
    results: list[Result] = []
    with measuring(model, probe, batch_mode=batch_mode, dtype=dtype) as probed:
        for part in probed.parts():
            for item in run_in_all(functools.partial(part.maps, name, layers), group):
                try:
                    results.append(run_in_all(functools.partial(evaluate, item, part.sample), group))
                except UnsupportedModelError as error:
                    if layers is not None or name == "network":
                        raise
                    if not isinstance(error, ConstantMapError):
                        warnings.warn(f"left out of the default layers: {error}", stacklevel=4)
    if not results:
        raise InputError(f"{type(model).__name__} has no blocks with a {name} map; name the layers to measure")
    return results
