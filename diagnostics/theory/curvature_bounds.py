"""Upper bounds of a network's Jacobian and of the Hessian of its loss, from upper bounds of its layers' derivatives."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerConstants:
    """Upper bounds on the derivatives of one layer ``f(θ, X)``, on a batch X and around parameters θ.

    Lengths of inputs, outputs and parameters are Euclidean (Frobenius of a batch); a second derivative is measured
    as a bilinear map, ``‖B‖ = max |B(u, v)| / (|u||v|)``. Each is a number, or a tensor of shape ``(R,)`` with one
    value for each of R runs.

    Attributes:
        jacobian: Of ``Jf``, the derivative in the input.
        parameter: Of ``Df``, the derivative in the layer's parameters.
        parameter_parameter: Of ``∂²f/∂θ²``.
        mixed: Of ``∂²f/∂θ∂X``.
        input_input: Of ``∂²f/∂X²``.
    """

    jacobian: float | Tensor
    parameter: float | Tensor
    parameter_parameter: float | Tensor
    mixed: float | Tensor
    input_input: float | Tensor


def hessian_bound(
    layers: Sequence[LayerConstants], cost_gradient: float | Tensor, cost_curvature: float | Tensor
) -> Tensor:
    """Upper bound of ``‖∇²ℓ‖`` for ``ℓ = c ∘ F``, ``F = f_L ∘ … ∘ f_1``, from bounds on the layers.

    A unit step of length ``v_l`` in each layer's parameters moves the outputs by at most ``g·v`` to first and
    ``vᵀSv`` to second order, so the bound is the top eigenvalue of ``|∇c| S + ‖∇²c‖ g gᵀ``: never above the
    ``Lip(DF)·|∇c| + ‖DF‖²·‖∇²c‖`` of the source, which adds the two maxima.

    Args:
        layers: First to last.
        cost_gradient: Upper bound of ``|∇c|``, a number or shape ``(R,)``.
        cost_curvature: Upper bound of ``‖∇²c‖``, a number or shape ``(R,)``.

    Returns:
        Shape ``()``, or ``(R,)`` where anything given is; float64.

    Raises:
        ValueError: There are no layers.

    Source: docs/paper.md §2.5.
    """
    first, second = _chain_rule(layers)
    gradient, curvature = (
        torch.as_tensor(value, dtype=torch.float64, device=first.device)[..., None, None]
        for value in (cost_gradient, cost_curvature)
    )
    return _top_eigenvalue(gradient * second + curvature * first[..., :, None] * first[..., None, :])


def jacobian_bound(layers: Sequence[LayerConstants]) -> Tensor:
    """Upper bound of ``‖DF‖``: the root of ``Σ_l (P_l Π_{j>l} J_j)²``. Shape ``()`` or ``(R,)``, float64.

    Raises:
        ValueError: There are no layers.
    """
    return _chain_rule(layers)[0].norm(dim=-1)


def lipschitz_bound(layers: Sequence[LayerConstants]) -> Tensor:
    """Upper bound of ``‖D²F‖``, and so of the Lipschitz constant of ``DF``. Shape ``()`` or ``(R,)``, float64.

    Raises:
        ValueError: There are no layers.
    """
    return _top_eigenvalue(_chain_rule(layers)[1])


def _chain_rule(layers: Sequence[LayerConstants]) -> tuple[Tensor, Tensor]:
    """The vector g, ``(..., L)``, and the symmetric matrix S, ``(..., L, L)``, of `hessian_bound`.

    For steps of lengths v, the output of layer l moves by at most ``a_l·v``, ``a_l = P_l e_l + J_l a_{l−1}``, and
    with ``T_l = Π_{j>l} J_j``,
    ``S = Σ_l T_l (PP_l e_l e_lᵀ + M_l (e_l a_{l−1}ᵀ + a_{l−1} e_lᵀ) + II_l a_{l−1} a_{l−1}ᵀ)``.
    """
    J, P, PP, M, II = _stacked(layers)
    units = torch.eye(len(layers), dtype=J.dtype, device=J.device)
    moved = [torch.zeros_like(J)]
    for l, unit in enumerate(units):
        moved.append(P[..., l, None] * unit + J[..., l, None] * moved[-1])
    later = torch.cat([J[..., 1:].flip(-1).cumprod(-1).flip(-1), torch.ones_like(J[..., :1])], dim=-1)
    before = torch.stack(moved[:-1], dim=-2)  # row l is a_{l−1}
    mixed = (later * M)[..., None] * before
    second = mixed + mixed.mT + before.mT @ ((later * II)[..., None] * before) + torch.diag_embed(later * PP)
    return moved[-1], second


def _stacked(layers: Sequence[LayerConstants]) -> tuple[Tensor, ...]:
    """J, P, PP, M and II, each of shape ``(..., L)``, float64."""
    if not layers:
        raise ValueError("a bound needs the constants of at least one layer")
    names = [field.name for field in fields(LayerConstants)]
    values = [getattr(layer, name) for name in names for layer in layers]
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    tensors = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
    return torch.stack(torch.broadcast_tensors(*tensors), dim=-1).unflatten(-1, (len(names), -1)).unbind(-2)


def _top_eigenvalue(matrix: Tensor) -> Tensor:
    """Of each symmetric nonnegative matrix the largest eigenvalue; infinite where an entry is, or is too large."""
    finite = torch.isfinite(matrix).all(-1).all(-1)
    largest = torch.linalg.eigvalsh(torch.where(finite[..., None, None], matrix, 0.0))[..., -1]
    return torch.where(finite, largest, torch.inf)
