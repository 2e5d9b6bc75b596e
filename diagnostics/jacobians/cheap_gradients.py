"""Convolutions and batch norm whose gradients are cheap to differentiate in their cotangents.

A product with a Jacobian is the derivative of one with its adjoint, in the cotangent. For these two PyTorch's second
derivatives take several times longer than needed: that of a convolution also computes the weight's, and that of batch
norm takes a dozen passes. A convolution is linear; and batch norm's Jacobian for the values of one channel, without
gain and shift, is ``P = (I − 11ᵀ/m − x̂x̂ᵀ/m) / σ``, which is symmetric (Ioffe & Szegedy 2015, section 3), or diagonal
by running statistics. So the same fused operators serve in both directions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten

_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_NORM_DEFAULTS = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_DIMENSIONS = {functional.conv1d: 1, functional.conv2d: 2, functional.conv3d: 3}


class CheapGradients(TorchFunctionMode):
    """Inside, gradients of convolutions and batch norm can be differentiated in the cotangent, and in nothing else."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        replaced = None
        if func is functional.batch_norm:
            replaced = _batch_norm(_NORM_DEFAULTS | dict(zip(_NORM, args, strict=False)) | kwargs)
        elif func in _DIMENSIONS:
            replaced = _convolution(_CONV_DEFAULTS | dict(zip(_CONV, args, strict=False)) | kwargs, _DIMENSIONS[func])
        return func(*args, **kwargs) if replaced is None else replaced()


def _convolution(given: dict[str, Any], dimensions: int) -> Callable[[], Tensor] | None:
    """The convolution of these arguments; None where PyTorch's own is to be used."""
    x, weight, bias = given["input"], given["weight"], given["bias"]
    if isinstance(given["padding"], str) or x.dim() != dimensions + 2 or not _alike(x, weight, bias):
        return None
    each = lambda value: [value] * dimensions if isinstance(value, int) else list(value)  # noqa: E731
    sizes = [each(given[name]) for name in ("stride", "padding", "dilation")]
    return lambda: _Convolution.apply(x, weight, bias, (*sizes, False, [0] * dimensions, given["groups"]))


def _batch_norm(given: dict[str, Any]) -> Callable[[], Tensor] | None:
    """Batch norm of these arguments; None where PyTorch's own is to be used."""
    x, uses_batch = given["input"], given["training"] or given["running_mean"] is None
    # For one value a channel PyTorch raises an error that explains itself.
    if (uses_batch and x.numel() == x.shape[1]) or not _alike(*(given[name] for name in _NORM[:5])):
        return None
    return lambda: _BatchNorm.apply(*(given[name] for name in _NORM[:5]), uses_batch, given["momentum"], given["eps"])


def _alike(first: Tensor, *others: Tensor | None) -> bool:
    """Whether all tensors are plain ones of the same precision."""
    return all(other is None or (type(other) in _PLAIN and other.dtype == first.dtype) for other in (first, *others))


_PLAIN = (Tensor, torch.nn.Parameter)


def _saved(ctx: Any) -> list[Any]:
    """The saved tensors, as constants."""
    return [None if tensor is None else tensor.detach() for tensor in ctx.saved_tensors]


def _sum(parts: list[Any]) -> Tensor | None:
    return sum(parts[1:], parts[0]) if parts else None


class _Convolution(torch.autograd.Function):
    """A convolution, differentiable once in its arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[Any, ...]) -> Tensor:
        """The values."""
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.channels = sizes, None if bias is None else list(bias.shape)
        return _aten.convolution(x, weight, bias, *sizes)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients in input, weight and bias."""
        gradient = _ConvolutionGradient.apply if torch.is_grad_enabled() else _convolution_gradient
        needed = list(ctx.needs_input_grad[:3])
        x, weight = _saved(ctx)
        return (*gradient(cotangents[0], x, weight, ctx.channels, ctx.sizes, needed), None)


def _convolution_gradient(
    cotangent: Tensor, x: Tensor, weight: Tensor, channels: Any, sizes: Any, needed: list[bool]
) -> tuple[Tensor | None, ...]:
    gradients = _aten.convolution_backward(cotangent, x, weight, channels, *sizes, needed)
    return tuple(part if wanted else None for part, wanted in zip(gradients, needed, strict=True))


class _ConvolutionGradient(torch.autograd.Function):
    """``_convolution_gradient``, differentiable in the cotangent."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        """The gradients."""
        ctx.save_for_backward(arguments[1], arguments[2])
        ctx.sizes, ctx.shape = arguments[4], arguments[0].shape
        ctx.set_materialize_grads(False)
        return _convolution_gradient(*arguments)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The tangent of the values, from those of input, weight and bias."""
        (x, weight), (of_x, of_weight, of_bias) = _saved(ctx), tangents
        parts: list[Any] = []
        if of_x is not None:
            parts.append(_aten.convolution(of_x, weight, None, *ctx.sizes))
        if of_weight is not None:
            parts.append(_aten.convolution(x, of_weight, None, *ctx.sizes))
        if of_bias is not None:
            parts.append(of_bias.view(1, -1, *(1,) * (len(ctx.shape) - 2)).expand(ctx.shape))
        return _sum(parts), None, None, None, None, None


class _BatchNorm(torch.autograd.Function):
    """Batch norm, differentiable once in its arguments."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """The values."""
        x, running_mean, running_var, weight, bias, uses_batch, momentum, eps = arguments
        output, mean, inverse_deviation = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, uses_batch, momentum or 0.0, eps
        )
        if not uses_batch:
            mean, inverse_deviation = running_mean.clone(), (running_var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse_deviation)
        ctx.constants = (uses_batch, eps)
        return output

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients in input, gain and shift."""
        gradient = _BatchNormGradient.apply if torch.is_grad_enabled() else _batch_norm_gradient
        needed = [ctx.needs_input_grad[position] for position in (0, 3, 4)]
        x, weight, mean, inverse_deviation = _saved(ctx)
        uses_batch, eps = ctx.constants
        of_x, of_weight, of_bias = gradient(cotangents[0], x, weight, mean, inverse_deviation, uses_batch, eps, needed)
        return of_x, None, None, of_weight, of_bias, None, None, None


def _batch_norm_gradient(
    cotangent: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse_deviation: Tensor,
    uses_batch: bool,
    eps: float,
    needed: list[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients in input, gain and shift; None for those not needed."""
    if uses_batch:
        gradients = _aten.native_batch_norm_backward(
            cotangent, x, weight, None, None, mean, inverse_deviation, True, eps, needed
        )
        return tuple(part if wanted else None for part, wanted in zip(gradients, needed, strict=True))
    scale = inverse_deviation if weight is None else inverse_deviation * weight
    normalised = (x - _by_channel(mean, x)) * _by_channel(inverse_deviation, x)
    sums = [axis for axis in range(x.dim()) if axis != 1]
    return (
        cotangent * _by_channel(scale, x) if needed[0] else None,
        (cotangent * normalised).sum(sums) if needed[1] else None,
        cotangent.sum(sums) if needed[2] else None,
    )


class _BatchNormGradient(torch.autograd.Function):
    """``_batch_norm_gradient``, differentiable in the cotangent."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        """The gradients."""
        ctx.save_for_backward(*arguments[1:5])
        ctx.constants = arguments[5:7]
        ctx.set_materialize_grads(False)
        return _batch_norm_gradient(*arguments)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The tangent of the values, from those of input, gain and shift."""
        (x, weight, mean, inverse_deviation), (of_x, of_weight, of_bias) = _saved(ctx), tangents
        assert x is not None
        parts: list[Any] = []
        if of_x is not None:
            uses_batch, eps = ctx.constants
            needed = [True, False, False]
            gradients = _batch_norm_gradient(of_x, x, weight, mean, inverse_deviation, uses_batch, eps, needed)
            parts.append(gradients[0])
        if of_weight is not None:
            normalised = (x - _by_channel(mean, x)) * _by_channel(inverse_deviation, x)
            parts.append(_by_channel(of_weight, x) * normalised)
        if of_bias is not None:
            parts.append(_by_channel(of_bias, x).expand_as(x))
        return _sum(parts), *(None,) * 7


def _by_channel(values: Tensor | None, x: Tensor) -> Tensor:
    """Values of the channels, to be combined with ``x``."""
    assert values is not None
    return values.view(1, -1, *(1,) * (x.dim() - 2))
