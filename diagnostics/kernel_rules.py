"""How the parameter gradients of a layer follow from what goes in and the cotangent of what comes out.

For a linear layer, a convolution, a normalisation's gain and an embedding alike, the gradient in output channel c is a
sum over positions t (pixels, tokens, calls): ``Σ_t a[t] · g[c, t]``, with ``a`` the layer's activations (patches of
pixels, normalised values, one-hot indices; a constant 1 for the bias) and ``g`` the cotangent. A rule brings both into
one shape:

- activations ``(M, G, D, T)``: M samples, G groups of channels, D inputs of each, T positions;
- cotangents ``(rows, M, G, C, T)``: C outputs of each group.

The kernel follows from the two without the gradients being formed: ``Σ_{c,t,t'} (a[t]·a'[t']) g[c,t] g'[c,t']``
(for T = 1 the product of two Gram matrices, Jacot et al. 2018; in general as in Novak et al. 2022, "structured
derivatives").
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from diagnostics.isolation import State


class Rule(ABC):
    """The rule of one module.

    Args:
        module: A module of a type that ``rule_for`` knows.

    Attributes:
        groups: G.
        inputs: D; None where gradients are never formed.
        outputs: C.
    """

    groups: int
    inputs: int | None
    outputs: int

    def __init__(self, module: nn.Module, state: State) -> None:
        self.module, self.state = module, state
        self.has_weight = _trains(module, "weight")
        self.has_bias = _trains(module, "bias")

    @property
    def parameters(self) -> int:
        """P: trainable parameters that the rule speaks for."""
        return self.groups * self.outputs * (self.inputs or 0)

    def accepts(self, x: Tensor, output_shape: torch.Size) -> bool:
        """Whether a call had the dimensions that the rule expects: samples first."""
        return len(output_shape) >= 2 and x.shape[:1] == output_shape[:1]

    @abstractmethod
    def activations(self, x: Tensor) -> Tensor:
        """Of one call, from the module's input: ``(M, G, D, T)``."""

    @abstractmethod
    def cotangents(self, g: Tensor) -> Tensor:
        """Of one call, from the cotangents of the module's output: ``(rows, M, G, C, T)``."""

    def similarities(self, left: Tensor, right: Tensor) -> Tensor | None:
        """``a[t]·a'[t']`` where it is not simply that: None, or shape ``(m·t, m'·t')``."""
        return None

    def _with_bias(self, weight_part: Tensor) -> Tensor:
        """Activations ``(M, G, D, T)`` of those parameters that are trained, a constant 1 for the bias."""
        parts = [weight_part] if self.has_weight else []
        if self.has_bias:
            parts.append(weight_part.new_ones(1, 1, 1, 1).expand(*weight_part.shape[:2], 1, weight_part.shape[3]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class LinearRule(Rule):
    """``nn.Linear``: positions are all dimensions between the first and the last."""

    def __init__(self, module: nn.Linear, state: State) -> None:
        super().__init__(module, state)
        self.groups, self.outputs = 1, module.out_features
        self.inputs = module.in_features * self.has_weight + self.has_bias

    def activations(self, x: Tensor) -> Tensor:
        """See ``Rule``."""
        return self._with_bias(x.reshape(len(x), 1, -1, x.shape[-1]).transpose(2, 3))

    def cotangents(self, g: Tensor) -> Tensor:
        """See ``Rule``."""
        return g.reshape(*g.shape[:2], 1, -1, g.shape[-1]).transpose(3, 4)


class ConvolutionRule(Rule):
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``: activations are patches, positions the output's pixels."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, state: State) -> None:
        super().__init__(module, state)
        self.conv = module
        self.groups, self.outputs = module.groups, module.out_channels // module.groups
        patch = module.in_channels // module.groups * math.prod(module.kernel_size)
        self.inputs = patch * self.has_weight + self.has_bias

    def accepts(self, x: Tensor, output_shape: torch.Size) -> bool:
        """See ``Rule``; a single image without a dimension of samples is not accepted."""
        return len(output_shape) == len(self.conv.kernel_size) + 2

    def activations(self, x: Tensor) -> Tensor:
        """See ``Rule``."""
        conv = self.conv
        if isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            patches = functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
        else:
            patches = _patches(self._padded(x), conv.kernel_size, conv.stride, conv.dilation)
        return self._with_bias(patches.reshape(len(x), self.groups, -1, patches.shape[-1]))

    def cotangents(self, g: Tensor) -> Tensor:
        """See ``Rule``."""
        return g.reshape(*g.shape[:2], self.groups, self.outputs, -1)

    def _padded(self, x: Tensor) -> Tensor:
        mode = "constant" if self.conv.padding_mode == "zeros" else self.conv.padding_mode
        # PyTorch keeps what functional.pad takes, "same" resolved, under this name.
        return functional.pad(x, self.conv._reversed_padding_repeated_twice, mode=mode)


class EmbeddingRule(Rule):
    """``nn.Embedding``: activations are one-hot, so two positions meet where their indices are equal."""

    inputs = None

    def __init__(self, module: nn.Embedding, state: State) -> None:
        super().__init__(module, state)
        self.groups, self.outputs = 1, module.embedding_dim
        self.padding = module.padding_idx

    def activations(self, x: Tensor) -> Tensor:
        """See ``Rule``; the indices themselves, D = 1."""
        return x.reshape(len(x), 1, 1, -1)

    def cotangents(self, g: Tensor) -> Tensor:
        """See ``Rule``."""
        return g.reshape(*g.shape[:2], 1, -1, g.shape[-1]).transpose(3, 4)

    def similarities(self, left: Tensor, right: Tensor) -> Tensor:
        """1 where the indices are equal and trained."""
        left, right = left.reshape(-1, 1), right.reshape(1, -1)
        equal = left == right
        return (equal if self.padding is None else equal & (left != self.padding)).double()


class GainRule(Rule):
    """The gain and bias of a normalisation: each channel is a group of its own, its activation the normalised value.

    Args:
        module: The normalisation.
        state: Where its running statistics are.
        normalise: The normalisation without gain and bias.
        channels: Entries of the gain.
        positions: Brings a tensor ``(M, ...)`` into the shape ``(M, channels, T)``.
    """

    outputs = 1

    def __init__(
        self,
        module: nn.Module,
        state: State,
        normalise: Callable[[Tensor], Tensor],
        channels: int,
        positions: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(module, state)
        self.groups, self.inputs = channels, self.has_weight + self.has_bias
        self._normalise, self._positions = normalise, positions

    def activations(self, x: Tensor) -> Tensor:
        """See ``Rule``."""
        return self._with_bias(self._positions(self._normalise(x)).unsqueeze(2))

    def cotangents(self, g: Tensor) -> Tensor:
        """See ``Rule``."""
        return self._positions(g.flatten(0, 1)).reshape(*g.shape[:2], self.groups, 1, -1)


def rule_for(module: nn.Module, state: State) -> Rule | None:
    """The rule of a module, or None where there is none: its gradients are then found by autograd.

    Subclasses have rules of their own, or none: they may do anything.
    """
    kind = type(module)
    trained = {name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad}
    if not trained or not trained <= {"weight", "bias"} or any(True for _ in module.children()):
        return None
    if kind is nn.Linear or kind is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return LinearRule(module, state)  # type: ignore[arg-type]
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return ConvolutionRule(module, state)  # type: ignore[arg-type]
    if kind is nn.Embedding:
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return EmbeddingRule(module, state) if plain else None  # type: ignore[arg-type]
    return _gain_rule(module, state)


def _gain_rule(module: nn.Module, state: State) -> GainRule | None:
    """The rule of a normalisation, None for any other module."""

    def per_channel(tensor: Tensor) -> Tensor:
        return tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2)

    def statistic(name: str) -> Tensor | None:
        buffer = getattr(module, name)
        return None if buffer is None else state[buffer]

    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):

        def batch_norm(x: Tensor) -> Tensor:
            mean, var = statistic("running_mean"), statistic("running_var")
            if module.training or mean is None:
                return functional.batch_norm(x, None, None, training=True, eps=module.eps)  # type: ignore[arg-type]
            return functional.batch_norm(x, mean, var, eps=module.eps)  # type: ignore[arg-type]

        return GainRule(module, state, batch_norm, module.num_features, per_channel)  # type: ignore[arg-type]
    if type(module) is nn.GroupNorm:

        def group_norm(x: Tensor) -> Tensor:
            return functional.group_norm(x, module.num_groups, eps=module.eps)  # type: ignore[arg-type]

        return GainRule(module, state, group_norm, module.num_channels, per_channel)
    if type(module) in (nn.LayerNorm, getattr(nn, "RMSNorm", nn.LayerNorm)):
        shape = module.normalized_shape
        entries = math.prod(shape)  # type: ignore[arg-type]

        def layer_norm(x: Tensor) -> Tensor:
            function = functional.layer_norm if type(module) is nn.LayerNorm else functional.rms_norm
            return function(x, shape, eps=module.eps)  # type: ignore[arg-type]

        def last(tensor: Tensor) -> Tensor:
            return tensor.reshape(len(tensor), -1, entries).transpose(1, 2)

        return GainRule(module, state, layer_norm, entries, last)
    return None


def _trains(module: nn.Module, name: str) -> bool:
    parameter = module._parameters.get(name)
    return parameter is not None and parameter.requires_grad


def _patches(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Patches of a padded input with any number of spatial dimensions.

    Args:
        x: Shape ``(M, channels, *spatial)``.
        kernel: Size of the patch in each dimension.
        stride: Step from one to the next.
        dilation: Step within a patch.

    Returns:
        Shape ``(M, channels · entries of a patch, patches)``.
    """
    spatial = len(kernel)
    for dimension, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dimension, spread * (size - 1) + 1, step)[..., ::spread]
    order = (0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))
    places = math.prod(x.shape[2 : 2 + spatial])
    return x.permute(order).reshape(len(x), -1, places)
