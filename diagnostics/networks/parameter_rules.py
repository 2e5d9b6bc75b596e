"""How the gradient of a parameter follows from its layer's input and the cotangent of its layer's output.

For a linear layer, a convolution, a normalisation's gain and an embedding alike, the gradient in output channel c is a
sum over positions t (pixels, tokens, calls): ``Σ_t a[t] · g[c, t]``, with ``a`` the layer's activations (patches of
pixels, normalised values, one-hot indices) and ``g`` the cotangent; for a bias, ``a`` is a constant 1. A rule brings
both into one shape:

- activations ``(M, G, D, T)``: M samples, G groups of channels, D inputs of each, T positions;
- cotangents ``(rows, M, G, C, T)``: C outputs of each group.

The kernel follows from the two without the gradients being formed: ``Σ_{c,t,t'} (a[t]·a'[t']) g[c,t] g'[c,t']``
(for T = 1 the product of two Gram matrices, Jacot et al. 2018; in general "structured derivatives", Novak et al. 2022).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from skip_conditioning.diagnostics.linalg.gram import product
from skip_conditioning.diagnostics.networks.recording import Use


class ParameterRule(ABC):
    """The rule of parameters that are used in calls of a single kind.

    Args:
        uses: The calls.
        has_weight: Whether the weight of the calls is among the parameters.
        has_bias: Whether their bias is.

    Attributes:
        groups: G.
        inputs: D, 0 without the weight.
        outputs: C.
        forms_gradients: Whether gradients may be formed.
    """

    groups: int
    inputs: int
    outputs: int
    forms_gradients = True

    def __init__(self, uses: Sequence[Use], has_weight: bool, has_bias: bool) -> None:
        self.uses, self.has_weight, self.has_bias = tuple(uses), has_weight, has_bias

    @abstractmethod
    def activations(self, use: Use) -> Tensor:
        """The activations of a call: shape ``(M, G, D, T)``."""

    @abstractmethod
    def cotangents(self, g: Tensor) -> Tensor:
        """The cotangents of a call's output, which come samples first, as ``(rows, M, G, C, T)``."""

    def similarities(self, left: Tensor, right: Tensor) -> Tensor:
        """``a[t]·a'[t']`` of activations ``(m, 1, D, T)``: shape ``(m·T, m'·T')``, float64, the bias included."""
        flat = left[:, 0].transpose(1, 2).flatten(0, 1)
        products = product(flat, flat if right is left else right[:, 0].transpose(1, 2).flatten(0, 1))
        return products.add_(1) if self.has_bias else products

    def _trained(self, activations: Tensor) -> Tensor:
        """Activations ``(M, G, D, T)``; without the weight none of them, D = 0."""
        return activations if self.has_weight else activations[:, :, :0]


class LinearRule(ParameterRule):
    """``linear``: positions are all dimensions between the first and the last."""

    groups = 1

    def __init__(self, uses: Sequence[Use], has_weight: bool, has_bias: bool) -> None:
        super().__init__(uses, has_weight, has_bias)
        self.inputs, self.outputs = uses[0].input.shape[-1] * has_weight, uses[0].output_shape[-1]

    def activations(self, use: Use) -> Tensor:
        """See ``ParameterRule``."""
        x = use.input.movedim(use.sample_axis, 0)
        return self._trained(x.reshape(len(x), 1, -1, x.shape[-1]).transpose(2, 3))

    def cotangents(self, g: Tensor) -> Tensor:
        """See ``ParameterRule``."""
        return g.reshape(*g.shape[:2], 1, -1, g.shape[-1]).transpose(3, 4)


class ConvolutionRule(ParameterRule):
    """``conv1d``, ``conv2d``, ``conv3d``: activations are patches, positions the output's pixels."""

    def __init__(self, uses: Sequence[Use], has_weight: bool, has_bias: bool) -> None:
        super().__init__(uses, has_weight, has_bias)
        self.kernel = tuple(uses[0].weight_shape[2:])
        self.groups = int(uses[0].options.get("groups", 1))
        self.outputs = uses[0].output_shape[1] // self.groups
        self.inputs = uses[0].input.shape[1] // self.groups * math.prod(self.kernel) * has_weight

    def activations(self, use: Use) -> Tensor:
        """See ``ParameterRule``."""
        stride, dilation = (self._each(use.options.get(name, 1)) for name in ("stride", "dilation"))
        x = _padded(use.input, self.kernel, use.options.get("padding", 0), dilation)
        patches = _patches(x, self.kernel, stride, dilation)
        return self._trained(patches.view(len(x), self.groups, -1, patches.shape[-1]))

    def cotangents(self, g: Tensor) -> Tensor:
        """See ``ParameterRule``."""
        return g.reshape(*g.shape[:2], self.groups, self.outputs, -1)

    def _each(self, value: Any) -> tuple[int, ...]:
        return (int(value),) * len(self.kernel) if isinstance(value, int) else _repeated(value, len(self.kernel))


class EmbeddingRule(ParameterRule):
    """``embedding``: activations are one-hot, those of two positions orthogonal unless their indices are equal."""

    groups = inputs = 1
    forms_gradients = False

    def __init__(self, uses: Sequence[Use], has_weight: bool, has_bias: bool) -> None:
        super().__init__(uses, has_weight, has_bias)
        self.outputs = uses[0].output_shape[-1]

    def activations(self, use: Use) -> Tensor:
        """See ``ParameterRule``; the indices themselves, with -1 for the one that is not trained, D = 1."""
        x, padding = use.input.movedim(use.sample_axis, 0), use.options.get("padding_idx")
        if padding is not None:
            x = torch.where(x == padding % use.weight_shape[0], -1, x)
        return x.reshape(len(x), 1, 1, -1)

    def cotangents(self, g: Tensor) -> Tensor:
        """See ``ParameterRule``."""
        return g.reshape(*g.shape[:2], 1, -1, g.shape[-1]).transpose(3, 4)

    def similarities(self, left: Tensor, right: Tensor) -> Tensor:
        """1 where the indices are equal."""
        left, right = left.reshape(-1, 1), right.reshape(1, -1)
        return ((left == right) & (left >= 0)).double()


class GainRule(ParameterRule):
    """Gain and bias of a normalisation: each channel is a group of its own, its activation the normalised value.

    Args:
        uses: The calls.
        has_weight: As for ``ParameterRule``.
        has_bias: As for ``ParameterRule``.
        normalise: Computes the normalised values of a call, before gain and bias.
        features: Trailing dimensions that the gain has entries for; None for a gain with an entry for each channel, the
            second dimension.
    """

    outputs = 1

    def __init__(
        self,
        uses: Sequence[Use],
        has_weight: bool,
        has_bias: bool,
        normalise: Callable[[Use], Tensor],
        features: int | None,
    ) -> None:
        super().__init__(uses, has_weight, has_bias)
        shape = uses[0].output_shape
        self.groups = shape[1] if features is None else math.prod(shape[len(shape) - features :])
        self.inputs = int(has_weight)
        self._normalise, self._features = normalise, features

    def activations(self, use: Use) -> Tensor:
        """See ``ParameterRule``."""
        return self._trained(self._positions(self._normalise(use).movedim(use.sample_axis, 0)).unsqueeze(2))

    def cotangents(self, g: Tensor) -> Tensor:
        """See ``ParameterRule``."""
        return self._positions(g.flatten(0, 1)).reshape(*g.shape[:2], self.groups, 1, -1)

    def _positions(self, tensor: Tensor) -> Tensor:
        """``(M, …)`` to ``(M, channels, T)``."""
        if self._features is None:
            return tensor.reshape(len(tensor), self.groups, -1)
        return tensor.reshape(len(tensor), -1, self.groups).transpose(1, 2)


def rule_for(uses: Sequence[Use], has_weight: bool, has_bias: bool) -> ParameterRule | None:
    """The rule for parameters used in calls of one function; None if there is none.

    Args:
        uses: The calls, at least one.
        has_weight: Whether the weight of the calls is among the parameters.
        has_bias: Whether their bias is.
    """
    function, options = uses[0].function, uses[0].options
    spatial = _SPATIAL.get(function)
    if any(len(use.output_shape) < 2 for use in uses):
        return None  # a single sample without a sample dimension
    if function is functional.linear:
        return LinearRule(uses, has_weight, has_bias)
    if spatial is not None:
        alike = all(use.options.get("groups") == options.get("groups") for use in uses)
        batched = all(len(use.output_shape) == spatial + 2 for use in uses)
        return ConvolutionRule(uses, has_weight, has_bias) if alike and batched else None
    if function is functional.embedding:
        special = any(use.options.get(name) for use in uses for name in ("max_norm", "scale_grad_by_freq", "sparse"))
        return None if special else EmbeddingRule(uses, has_weight, has_bias)
    normalise = _NORMALISATIONS[function]
    features = len(options["normalized_shape"]) if "normalized_shape" in options else None
    if features is not None and any(features >= len(use.output_shape) for use in uses):
        return None  # normalised over the samples too
    return GainRule(uses, has_weight, has_bias, normalise, features)


_SPATIAL = {functional.conv1d: 1, functional.conv2d: 2, functional.conv3d: 3}


def _batch_norm(use: Use) -> Tensor:
    eps = use.options.get("eps", 1e-5)
    if use.options.get("training", False):
        return functional.batch_norm(use.input, None, None, training=True, eps=eps)
    return functional.batch_norm(use.input, use.options["running_mean"], use.options["running_var"], eps=eps)


def _group_norm(use: Use) -> Tensor:
    return functional.group_norm(use.input, use.options["num_groups"], eps=use.options.get("eps", 1e-5))


def _layer_norm(use: Use) -> Tensor:
    return functional.layer_norm(use.input, use.options["normalized_shape"], eps=use.options.get("eps", 1e-5))


def _rms_norm(use: Use) -> Tensor:
    return functional.rms_norm(use.input, use.options["normalized_shape"], eps=use.options.get("eps"))


_NORMALISATIONS: dict[Callable[..., Any], Callable[[Use], Tensor]] = {
    functional.batch_norm: _batch_norm,
    functional.group_norm: _group_norm,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
}


def _repeated(values: Sequence[int], count: int) -> tuple[int, ...]:
    """A number for each dimension, from as many numbers or from a single one."""
    return tuple(values) * (count if len(values) == 1 else 1)


def _padded(x: Tensor, kernel: tuple[int, ...], padding: Any, dilation: tuple[int, ...]) -> Tensor:
    """The input with zero padding, given as a number, a number for each dimension, ``"same"`` or ``"valid"``."""
    if padding == "valid":
        return x
    if padding == "same":
        totals = [spread * (size - 1) for size, spread in zip(kernel, dilation, strict=True)]
        ends = [(total // 2, total - total // 2) for total in totals]
    else:
        each = _repeated([padding] if isinstance(padding, int) else padding, len(kernel))
        ends = [(size, size) for size in each]
    return functional.pad(x, [size for pair in reversed(ends) for size in pair]) if any(map(any, ends)) else x


def _patches(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Patches of a padded input with any number of spatial dimensions.

    Args:
        x: Shape ``(M, channels, *spatial)``.
        kernel: Size of the patch in each dimension.
        stride: Step from one patch to the next.
        dilation: Step within a patch.

    Returns:
        Shape ``(M, channels · entries of a patch, patches)``.
    """
    spatial = len(kernel)
    for dimension, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dimension, spread * (size - 1) + 1, step)[..., ::spread]
    order = (0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))
    positions = math.prod(x.shape[2 : 2 + spatial])
    return x.permute(order).reshape(len(x), -1, positions)
