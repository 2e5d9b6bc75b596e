"""Batch norm with a fast forward mode: one pass over the tangent where PyTorch's formula takes about a dozen.

Without gain and shift, batch norm's Jacobian for the values of one channel is ``P = (I − 11ᵀ/m − x̂x̂ᵀ/m) / σ``, which
is symmetric (Ioffe & Szegedy 2015, section 3). So ``P (γ t)``, which the fused backward pass computes, is ``γ P t``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_NAMES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_DEFAULTS = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}


class ShortBatchNorm(TorchFunctionMode):
    """Inside, ``functional.batch_norm`` in train mode has the fast forward mode; its values are the same."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is not functional.batch_norm:
            return func(*args, **kwargs)
        arguments: dict[str, Any] = _DEFAULTS | dict(zip(_NAMES, args, strict=False)) | kwargs
        uses_batch = arguments["training"] or arguments["running_mean"] is None
        # For one value a channel PyTorch raises an error that explains itself.
        if not uses_batch or arguments["input"].numel() == arguments["input"].shape[1]:
            return func(*args, **kwargs)
        return _BatchNorm.apply(*(arguments[name] for name in _NAMES))[0]


class _BatchNorm(torch.autograd.Function):
    """Batch norm by the statistics of the batch, differentiable in forward mode."""

    @staticmethod
    def forward(
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The values, and mean and inverse deviation of each channel."""
        momentum = 0.0 if momentum is None else momentum
        return torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save what ``jvp`` needs."""
        x, _, _, weight, _, _, _, eps = inputs
        _, mean, inverse_deviation = output
        ctx.save_for_forward(x, weight, mean, inverse_deviation)
        ctx.mark_non_differentiable(mean, inverse_deviation)
        ctx.eps = eps

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None, None]:
        """The tangent of the values, from the tangents of input, gain and shift."""
        x, weight, mean, inverse_deviation = ctx.saved_tensors
        of_x, _, _, of_weight, of_bias = tangents[:5]
        shape = (1, -1, *(1,) * (x.dim() - 2))
        parts = []
        if of_x is not None:
            backward = torch.ops.aten.native_batch_norm_backward
            mask = [True, False, False]
            parts.append(backward(of_x, x, weight, None, None, mean, inverse_deviation, True, ctx.eps, mask)[0])
        if of_weight is not None:
            normalised = (x - mean.view(shape)) * inverse_deviation.view(shape)
            parts.append(of_weight.view(shape) * normalised)
        if of_bias is not None:
            parts.append(of_bias.view(shape).expand_as(x))
        return (sum(parts[1:], parts[0]) if parts else None), None, None
