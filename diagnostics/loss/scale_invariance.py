"""Which weights can be rescaled without changing the logits, and the Hessian in units of those weights' length.

Where ``F(αw) = F(w)`` for all ``α > 0``, as of a layer that is normalised, Euler's theorem says ``DF[w] = 0``, and
second derivatives fall as ``1/|w|²`` while ``w`` grows. That says nothing about speed: the step of gradient descent
relative to ``w`` falls alike. What counts is the Hessian in units of ``|w|``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import UnknownLayerError, near_matches
from skip_conditioning.diagnostics.jacobians.rows import dense_jacobian
from skip_conditioning.diagnostics.linalg.operators import Operator
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.support.memory import GIB

#: Up to this share, weights are taken for scale-invariant: the ε of a normaliser leaves about ``ε`` over the variance.
INVARIANT = 1e-3
#: What rounding leaves of a derivative that is zero, in units of ``eps`` times the largest.
_ROUNDING_UNITS = 64


def scale_invariance(
    model: nn.Module, probe: Any, groups: Mapping[str, Sequence[str]] | None = None, *, memory_budget: int = GIB
) -> dict[str, float]:
    """How much a change in the length of some weights moves the logits: ``|DF[w]| / (‖DF_w‖ |w|)``. In float64.

    From the dense Jacobian of the logits in the parameters: for small networks.

    Args:
        model: The model, left as it is.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        groups: Names of trainable parameters that are scaled together, by the group's name; by default each parameter
            is a group of its own.
        memory_budget: Bytes that the temporaries of the Jacobian may take.

    Returns:
        By group, from 0 (scale-invariant, or without influence on the logits) to 1 (no other change of
        the weights moves the logits more).

    Raises:
        UnknownLayerError: A group names no trainable parameter.
    """
    with measuring(model, probe, dtype=torch.float64) as probed:
        outputs = probed.maps("kernel", [TOTAL])[0]
        jacobian = dense_jacobian(outputs, memory_budget)
        trainable = {name: weight for name, weight in probed.model.named_parameters() if weight.requires_grad}
        names, sizes = [*trainable], [parameter.numel() for parameter in trainable.values()]
        columns = dict(zip(names, jacobian.split(sizes, dim=1), strict=True))
        values = dict(zip(names, outputs.point.split(sizes), strict=True))
    rounding = _ROUNDING_UNITS * torch.finfo(torch.float64).eps * float(jacobian.abs().max())
    shares = {}
    for group, members in (groups or {name: [name] for name in names}).items():
        _require_known(members, names)
        part = torch.cat([columns[name] for name in members], dim=1)
        weights = torch.cat([values[name] for name in members])
        norm = float(torch.linalg.matrix_norm(part, 2))
        moved = float(torch.linalg.vector_norm(part @ weights))
        shares[group] = moved / (norm * float(weights.norm())) if norm > rounding and moved > 0 else 0.0
    return shares


def _require_known(members: Sequence[str], names: Sequence[str]) -> None:
    for name in members:
        if name not in names:
            raise UnknownLayerError(f"{name!r} is no trainable parameter.{near_matches(name, names)}")


class Rescaled(Operator):
    """``D A D`` for a diagonal D: a Hessian in parameters ``θ_i / D_i``.

    Args:
        operator: Symmetric, ``(P, P)``.
        scales: The diagonal, shape ``(P,)``, the operator's dtype and device.
    """

    def __init__(self, operator: Operator, scales: Tensor) -> None:
        super().__init__(operator.shape, operator.dtype, operator.device, f"{operator.name}, rescaled")
        self.operator, self.scales = operator, scales[:, None]

    def _apply(self, block: Tensor) -> Tensor:
        return self.scales * self.operator._apply(self.scales * block)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.scales * self.operator._apply_adjoint(self.scales * block)


def effective_scales(model: nn.Module, columns: Mapping[str, slice], groups: Mapping[str, Sequence[str]]) -> Tensor:
    """The diagonal that gives the effective Hessian: ``|w|`` for each scale-invariant group's weights, 1 elsewhere.

    Args:
        model: The model.
        columns: Slices of the parameters' entries, as in ``HessianOperator.columns``.
        groups: Parameters of each scale-invariant group.

    Returns:
        Shape ``(P,)``, float64, on the model's device.
    """
    parameters = dict(unwrap(model).named_parameters())
    device = next(iter(parameters.values())).device
    scales = torch.ones(max(part.stop for part in columns.values()), dtype=torch.float64, device=device)
    for members in groups.values():
        squares = [parameters[name].detach().double().square().sum() for name in members]
        for name in members:
            scales[columns[name]] = torch.stack(squares).sum().sqrt()
    return scales
