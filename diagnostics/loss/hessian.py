"""The Hessian of the loss on the probe as an operator, and the ends of its spectrum.

Products are those of one gradient's graph, held and differentiated again for each vector: no matrix anywhere.
"""

import dataclasses
import math
import time
from typing import Any, Unpack

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.pullback import chunk_size, clear_autograd_errors
from skip_conditioning.diagnostics.linalg.extremes import Extreme
from skip_conditioning.diagnostics.linalg.operators import Operator, require_precision
from skip_conditioning.diagnostics.loss.losses import loss_metrics
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL, check_map, flat_parameters
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.numerics import exact_numerics
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.support.memory import GIB

#: A second derivative keeps the tensors of the backward pass as well as those of the forward pass.
_PASSES = 2
#: Up to this many rows the matrix itself is cheaper than ARPACK's vectors.
_DENSE_SIDE = 64
#: Vectors that ARPACK holds.
_LANCZOS_VECTORS = 20
#: How much rounding in the products may add to a residual, in units of ``eps · ‖H‖``.
_ROUNDING_UNITS = 4


class HessianOperator(Operator):
    """``∇²ℓ`` of the probe loss in the trainable parameters, ``(P, P)`` and symmetric, known by its products.

    The loss is that of ``probe_loss.probe_metrics``: cross-entropy for class indices, the mean square otherwise; batch
    norm in train mode couples the samples. Parameters that are shared count once, frozen ones not at all. At kinks
    (ReLU) the second derivative is autograd's.

    It is a snapshot: training the model further does not change it, and using it changes nothing of the model. It
    holds the graph of one gradient, about three times the activations of a forward pass; a product costs about two
    gradients.

    Args:
        model: Any module that can be differentiated twice.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        targets: As for ``probe_loss.probe_metrics``.
        dtype: Precision of the products; None keeps the model's.
        memory_budget: Bytes that the temporaries of a product with a block of vectors may take.
        reading: How the probe is read, as for ``Probe``.

    Attributes:
        columns: Slice of each parameter's entries among the rows and columns, by its (first) name.

    Raises:
        InputError: The targets do not fit the logits.
        LayerCallError: No parameter is trainable.
        UnsupportedModelError: An operator in the model cannot be differentiated twice, or autograd does it wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        targets: Any = None,
        *,
        dtype: torch.dtype | None = torch.float64,
        memory_budget: int = GIB,
        **reading: Unpack[Reading],
    ) -> None:
        check_map("kernel", "batch", dtype)
        with measuring(model, Probe.of(probe, unwrap(model), targets, **reading), dtype=dtype) as probed:
            snapshot = probed.snapshot()
            outputs = snapshot.maps("kernel", [TOTAL])[0]
            _, replaced, _ = flat_parameters(probed.model, snapshot.state, TOTAL)
            self._map = dataclasses.replace(outputs, name="Hessian")
            self._chunk = chunk_size(outputs, memory_budget // _PASSES)
            with clear_autograd_errors(self._map), self._map.installed():
                self._point = outputs.point.requires_grad_()
                returned = snapshot.returned(replaced(self._point))
                # Copied, as the graph keeps the targets.
                loss = loss_metrics(returned, probed.probe.mapped(torch.clone))["loss"]
                (self._gradient,) = torch.autograd.grad(loss, self._point, create_graph=True)
                _require_symmetry(probed.probe.output_of(returned), self._point)
        super().__init__(
            (outputs.cols, outputs.cols), outputs.point.dtype, outputs.point.device, "the Hessian of the loss"
        )
        self.columns: dict[str, slice] = {}
        end = 0
        for name, parameter in probed.model.named_parameters():
            if parameter.requires_grad:
                self.columns[name] = slice(end, end + parameter.numel())
                end += parameter.numel()

    def _apply(self, block: Tensor) -> Tensor:
        vectors = block.T.contiguous()
        with exact_numerics([self.device]), clear_autograd_errors(self._map):
            if self._chunk > 1 and len(vectors) > 1:
                try:
                    return torch.cat([self._product(chunk, batched=True) for chunk in vectors.split(self._chunk)]).T
                except RuntimeError:
                    self._chunk = 1  # some operator cannot be batched; one vector at a time always works
            return torch.stack([self._product(vector) for vector in vectors], dim=1)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._apply(block)

    def _product(self, vector: Tensor, batched: bool = False) -> Tensor:
        # The gradient's Jacobian is symmetric, so that its adjoint's product, a backward pass, serves as well.
        with self._map.installed():
            images = torch.autograd.grad(
                self._gradient, self._point, vector, retain_graph=True, is_grads_batched=batched
            )
        return images[0].detach()


def _require_symmetry(logits: Tensor, point: Tensor) -> None:
    """Check that autograd's second derivatives are symmetric: ``uᵀHv = vᵀHu``, for a random quadratic of the logits.

    Not for the loss itself: where that is near zero, its second derivatives are mostly rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    quadratic = (logits * drawn(logits) + logits.square() * drawn(logits)).sum()
    (gradient,) = torch.autograd.grad(quadratic, point, create_graph=True)
    u, v = drawn(point), drawn(point)
    Hu, Hv = (torch.autograd.grad(gradient, point, vector, retain_graph=True)[0] for vector in (u, v))
    difference = abs(float(u @ Hv - v @ Hu))
    if difference > math.sqrt(torch.finfo(point.dtype).eps) * float(u.norm() * Hv.norm() + v.norm() * Hu.norm()):
        raise UnsupportedModelError(
            f"the second derivatives that autograd gives are not symmetric (uᵀHv and vᵀHu differ by {difference:.2g}): "
            "those of some operator are wrong, as of torch's fused weight norm; write it in plain operations"
        )


class Eigenvalue(Extreme):
    """An end of a symmetric operator's spectrum, and how far it can be trusted.

    Attributes:
        value: ``vᵀHv`` of a unit vector, or its size for a norm: never above the largest eigenvalue (or the norm) nor
            below the smallest, up to rounding.
        residual: Some eigenvalue lies within this of ``value``: ``‖Hv − value·v‖``, and ``4 · eps · ‖H‖`` for rounding.
        converged: Whether the residual met the tolerance, or rounding.
        bound: ``lower`` for a largest and ``upper`` for a smallest eigenvalue (``lower`` for a norm) that has not
            converged; else None.
        products: Vectors the operator was applied to.
        method: ``arpack`` or ``exact: eigh``.
        seconds: Time it took.
    """


def largest_eigenvalue(
    operator: Operator, *, tolerance: float = 1e-6, max_products: int = 2000, seed: int = 0
) -> Eigenvalue:
    """The largest (rightmost) eigenvalue of a symmetric operator, by ARPACK's restarted Lanczos method.

    Up to 64 rows it is exact, from the matrix itself. Memory for about 20 vectors.

    Args:
        operator: A symmetric one; that it is symmetric is not checked.
        tolerance: Residual to reach, relative to ``‖H‖``.
        max_products: Products after which the value is only a lower bound; at least some 60 are made.
        seed: Of the start vector.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
        InputError: The operator is not square, or its precision too coarse.
    """
    return _end(operator, "LA", tolerance, max_products, seed)


def smallest_eigenvalue(
    operator: Operator, *, tolerance: float = 1e-6, max_products: int = 2000, seed: int = 0
) -> Eigenvalue:
    """The smallest (leftmost) eigenvalue of a symmetric operator, as ``largest_eigenvalue`` finds the largest.

    Args:
        operator: A symmetric one; that it is symmetric is not checked.
        tolerance: Residual to reach, relative to ``‖H‖``.
        max_products: Products after which the value is only an upper bound; at least some 60 are made.
        seed: Of the start vector.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
        InputError: The operator is not square, or its precision too coarse.
    """
    return _end(operator, "SA", tolerance, max_products, seed)


def spectral_norm(
    operator: Operator, *, tolerance: float = 1e-6, max_products: int = 2000, seed: int = 0
) -> Eigenvalue:
    """``‖H‖ = max |λ|`` of a symmetric operator, with about half the products of ``largest_eigenvalue``.

    Args:
        operator: A symmetric one; that it is symmetric is not checked.
        tolerance: Residual to reach, relative to ``‖H‖``.
        max_products: Products after which the value is only a lower bound; at least some 60 are made.
        seed: Of the start vector.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
        InputError: The operator is not square, or its precision too coarse.
    """
    eigenvalue = _end(operator, "LM", tolerance, max_products, seed)
    return dataclasses.replace(eigenvalue, value=abs(eigenvalue.value))


def _end(operator: Operator, which: str, tolerance: float, max_products: int, seed: int) -> Eigenvalue:
    """One end of the spectrum, by ARPACK's name for it."""
    require_precision(operator.dtype, operator.name)
    rows, size = operator.shape
    if rows != size:
        raise InputError(f"{operator.name} is {rows}×{size}; only square symmetric operators have these eigenvalues")
    start = time.perf_counter()
    first = np.random.default_rng(seed).normal(size=size)
    watched = _Watched(operator, torch.from_numpy(first).to(device=operator.device, dtype=operator.dtype))
    exact = size <= _DENSE_SIDE
    vector = _exact_vector(watched, which) if exact else _ritz_vector(watched, which, tolerance, max_products, first)
    unit = torch.from_numpy(vector).to(device=operator.device, dtype=operator.dtype)
    unit = unit / torch.linalg.vector_norm(unit)
    image = watched.matvec(unit).double()
    value = float(unit.double() @ image)
    rounding = _ROUNDING_UNITS * torch.finfo(operator.dtype).eps * watched.norm
    residual = float(torch.linalg.vector_norm(image - value * unit.double()))
    converged = exact or residual <= tolerance * watched.norm + rounding
    return Eigenvalue(
        value=value * watched.unit,
        residual=(residual + rounding) * watched.unit,
        converged=converged,
        bound=None if converged else "upper" if which == "SA" else "lower",
        products=watched.products,
        method="exact: eigh" if exact else "arpack",
        seconds=time.perf_counter() - start,
    )


def _exact_vector(operator: Operator, which: str) -> np.ndarray:
    """The eigenvector at one end, from the matrix itself."""
    matrix = operator.dense().double().cpu().numpy()
    values, vectors = scipy.linalg.eigh((matrix + matrix.T) / 2)
    index = {"LA": -1, "SA": 0, "LM": int(np.argmax(np.abs(values)))}[which]
    return vectors[:, index].copy()


def _ritz_vector(
    operator: "_Watched", which: str, tolerance: float, max_products: int, start: np.ndarray
) -> np.ndarray:
    """The eigenvector by ARPACK; where that does not converge, the best one of a single run without restarts.

    ARPACK's tolerance is relative to the eigenvalue, and it takes a neighbour for one that is zero. For the rightmost
    or leftmost one the operator is therefore scaled to norm 1 and shifted by 2, so that none is zero.
    """
    matrix, size = operator.to_scipy(), operator.shape[0]
    held = min(_LANCZOS_VECTORS, size)
    matrix.matvec(start)
    if operator.norm == 0:
        return start  # a random vector is in the null space: the operator is zero

    def ritz(which: str, scale: float, shift: float, **limits: float) -> np.ndarray:
        shifted = LinearOperator(matrix.shape, lambda vector: matrix.matvec(vector) / scale + shift * vector)
        return eigsh(shifted, 1, which=which, v0=start, ncv=held, **limits)[1][:, 0]

    # With so large a tolerance the first Ritz vector is the answer.
    at_once = {"tol": np.finfo(float).max}
    scale, shift = operator.norm, 0.0
    if which != "LM":
        ritz("LM", scale, shift, **at_once)
        scale, shift = operator.norm, 2.0 if which == "LA" else -2.0
    restarts = max((max_products - operator.products - 2 * held) // (held - 1), 1)
    try:
        return ritz(which, scale, shift, tol=tolerance / (1 + abs(shift)), maxiter=restarts)
    except ArpackNoConvergence:
        return ritz(which, scale, shift, **at_once)


class _Watched(Operator):
    """An operator that counts its products, and keeps in ``norm`` the most that one has lengthened its vector.

    It is divided by ``unit``, the size of its first product, so that squares of its entries stay within range.
    """

    def __init__(self, operator: Operator, first: Tensor) -> None:
        super().__init__(operator.shape, operator.dtype, operator.device, operator.name)
        self.operator, self.products, self.norm = operator, 1, 0.0
        self.unit = float(operator.matvec(first).abs().max()) or 1.0

    def _apply(self, block: Tensor) -> Tensor:
        image = self.operator._apply(block) / self.unit
        lengths = torch.linalg.vector_norm(block, dim=0)
        stretch = torch.linalg.vector_norm(image, dim=0) / lengths.clamp(min=torch.finfo(self.dtype).tiny)
        self.products += block.shape[1]
        self.norm = max(self.norm, float(stretch.max()))
        return image

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._apply(block)
