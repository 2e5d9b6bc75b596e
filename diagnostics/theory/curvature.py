"""The curvature of the loss at one point, and the bound on it from the curvature of the layers.

MacDonald et al. 2023 bound ``‖∇²ℓ‖`` by ``‖D²F‖ |∇c| + ‖DF‖² ‖∇²c‖``, and the two derivatives of the network by those
of its layers (docs/paper.md §2.5). With the layers' derivatives at the same point this is a theorem about that point,
and has to hold to rounding for every network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import MemoryBudgetError, UnsupportedModelError
from skip_conditioning.diagnostics.loss.costs import cost_of
from skip_conditioning.diagnostics.loss.hessian import Eigenvalue, HessianOperator, largest_eigenvalue, spectral_norm
from skip_conditioning.diagnostics.loss.losses import named_loss
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.support.memory import GIB, readable
from skip_conditioning.diagnostics.theory.curvature_bounds import LayerConstants, hessian_bound
from skip_conditioning.diagnostics.theory.layered_network import LayeredNetwork, NetworkLayer
from skip_conditioning.diagnostics.theory.statement import Statement

#: Copies of a layer's second derivative that its singular values take.
_COPIES = 4
#: How much rounding may do to either side, in units of ``eps`` times the bound: sums over some thousands of terms.
_ROUNDING_UNITS = 256


@dataclass(frozen=True)
class Curvature:
    """The size of the Hessian at one point, and what bounds it.

    Attributes:
        largest: The top eigenvalue of ``∇²ℓ``.
        spectral_norm: ``‖∇²ℓ‖``.
        layers: The derivatives of each layer at the point, by its name, first to last.
        cost_gradient: ``|∇c|`` at the point.
        cost_curvature: Upper bound of ``‖∇²c‖``.
        bound: Upper bound of ``‖∇²ℓ‖`` at the point, from the layers.
    """

    largest: Eigenvalue
    spectral_norm: Eigenvalue
    layers: dict[str, LayerConstants]
    cost_gradient: float
    cost_curvature: float
    bound: float

    @property
    def statement(self) -> Statement:
        """``‖∇²ℓ‖`` against the bound. A norm not converged is a lower bound, so that a violation still is one."""
        norm = self.spectral_norm
        rounding = _ROUNDING_UNITS * torch.finfo(torch.float64).eps * self.bound
        return Statement(
            name="curvature",
            formula="‖∇²ℓ‖ ≤ ‖ |∇c| S + ‖∇²c‖ ggᵀ ‖, with S and g from the layers' derivatives",
            left=norm.value,
            relation="<=",
            right=self.bound,
            error=rounding,
            cause="" if math.isfinite(self.bound) else "the bound is beyond the range of float64",
            note=f"|∇c| = {self.cost_gradient:.3g}, ‖∇²c‖ ≤ {self.cost_curvature:.3g}, residual {norm.residual:.1g}"
            + ("" if norm.converged else "; not converged: the left side is a lower bound"),
        )


def curvature(
    model: nn.Module,
    probe: Any,
    targets: Any = None,
    *,
    layers: Sequence[str] | str | None = None,
    memory_budget: int = GIB,
    **reading: Unpack[Reading],
) -> Curvature:
    """The norm of ``∇²ℓ`` on the probe, and the layer-wise bound of it at the same point. In float64.

    Costs ``rows · (parameters + inputs)`` double backward passes of every layer: for small networks.

    Args:
        model: The model, left as it is.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        targets: As for ``probe_loss.probe_metrics``.
        layers: Where to cut the network into a chain, as for ``chain.LayeredNetwork``; None takes the blocks.
        memory_budget: Bytes that any layer's second derivative may take.
        reading: How the probe is read, as for ``Probe``.

    Returns:
        The Hessian's largest eigenvalue and norm, the layers' derivatives, and the bound.

    Raises:
        InputError: The targets do not fit the logits.
        UnsupportedModelError: The layers do not form a chain, or cannot be differentiated twice.
        MemoryBudgetError: A layer's second derivative does not fit.
    """
    probe = Probe.of(probe, unwrap(model), targets, **reading)
    hessian = HessianOperator(model, probe, dtype=torch.float64, memory_budget=memory_budget)
    with measuring(model, probe, dtype=torch.float64) as probed:
        network = LayeredNetwork(probed, layers)
        constants = measured_constants(network.layers, memory_budget)
        logits = network.logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(named_loss(logits, probed.probe)["loss"], logits)
    gradient, cost = float(torch.linalg.vector_norm(slope)), cost_of(logits, probed.probe)
    return Curvature(
        largest=largest_eigenvalue(hessian),
        spectral_norm=spectral_norm(hessian),
        layers={layer.name: held for layer, held in zip(network.layers, constants, strict=True)},
        cost_gradient=gradient,
        cost_curvature=cost.curvature,
        bound=float(hessian_bound(constants, gradient, cost.curvature)),
    )


def measured_constants(layers: Sequence[NetworkLayer], memory_budget: int = GIB) -> list[LayerConstants]:
    """The norms of every layer's derivatives at its actual parameters and input, or upper bounds of them.

    Those of first derivatives are exact. The norm of a second derivative as a bilinear map is at most the spectral norm
    of any of its unfoldings into a matrix, of which the smallest is taken. Of the first layer, whose input is data,
    only the derivatives in the parameters count; the others are 0.

    Args:
        layers: Layers of a chain; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that any layer's second derivative may take.

    Raises:
        MemoryBudgetError: One does not fit.
        UnsupportedModelError: A layer cannot be differentiated twice.
    """
    return [_constants(layer, memory_budget) for layer in layers]


def _constants(layer: NetworkLayer, memory_budget: int) -> LayerConstants:
    inner = layer.parameters.numel()
    first, second = _derivatives(layer, memory_budget)
    return LayerConstants(
        jacobian=_norm(first[:, inner:]),
        parameter=_norm(first[:, :inner]),
        parameter_parameter=_bilinear_norm(second[:, :inner, :inner]),
        mixed=_bilinear_norm(second[:, :inner, inner:]),
        input_input=_bilinear_norm(second[:, inner:, inner:]),
    )


def _derivatives(layer: NetworkLayer, memory_budget: int) -> tuple[Tensor, Tensor]:
    """First and second derivatives in (parameters, input), shapes ``(rows, q)`` and ``(rows, q, q)``."""
    parts = [layer.parameters] if layer.first else [layer.parameters, layer.input.reshape(-1)]
    point = torch.cat(parts).detach().requires_grad_()
    inner, rows, cols = layer.parameters.numel(), layer.output_shape.numel(), point.numel()
    needed = _COPIES * rows * cols**2 * point.element_size()
    if needed > memory_budget:
        raise MemoryBudgetError(
            f"the second derivative of layer {layer.name!r} is {rows}×{cols}×{cols}: its norm needs about "
            f"{readable(needed)}, the memory budget is {readable(memory_budget)}; use fewer probe samples, a narrower "
            "network, cuts closer together, or a larger memory_budget"
        )
    if cols == 0:
        return point.new_zeros(rows, 0), point.new_zeros(rows, 0, 0)
    first, second = point.new_empty(rows, cols), point.new_empty(rows, cols, cols)
    try:
        held = layer.input if layer.first else point[inner:].view(layer.input.shape)
        for row, entry in enumerate(layer.function(point[:inner], held).reshape(-1)):
            gradient = _gradients(entry, point, create_graph=True)
            first[row] = gradient.detach()
            second[row] = _gradients(gradient, point) if gradient.requires_grad else 0
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(
            f"layer {layer.name!r} cannot be differentiated twice ({reason}); cut the network at other modules"
        ) from error
    return first, second


def _gradients(output: Tensor, point: Tensor, *, create_graph: bool = False) -> Tensor:
    """The Jacobian of a scalar or a vector in a vector, all rows at once where the operators allow that."""

    def pulled_back(cotangent: Tensor, batched: bool) -> Tensor:
        return torch.autograd.grad(
            output, point, cotangent, is_grads_batched=batched, retain_graph=True, create_graph=create_graph,
            materialize_grads=True,
        )[0]  # fmt: skip

    if output.dim() == 0:
        return pulled_back(torch.ones_like(output), False)
    units = torch.eye(len(output), dtype=output.dtype, device=output.device)
    try:
        return pulled_back(units, True)
    except RuntimeError:
        return torch.stack([pulled_back(unit, False) for unit in units])


def _bilinear_norm(tensor: Tensor) -> float:
    """Upper bound of ``max |B(u, v)| / (|u||v|)``: the smallest spectral norm among the three unfoldings."""
    return min(_norm(tensor.movedim(side, 0).flatten(1)) for side in range(3)) if tensor.numel() else 0.0


def _norm(matrix: Tensor) -> float:
    """The spectral norm."""
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0
