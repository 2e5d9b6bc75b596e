r"""Shortcuts: what a block adds to its branch, each a module of its own; and the pre-activation block itself.

A shortcut maps the features of a block, of shape ``(N, C_in, H, W)`` (or ``(N, C_in)``), to the shape of
the branch's output, ``(N, C_out, H / s, W / s)`` (or ``(N, C_out)``). All are linear in their input.
Blocks get them from a *factory*, ``(in_channels, out_channels, stride) -> nn.Module``, so a shortcut
of your own is a function of those three numbers.

Parameters live in `ConvolutionShortcut` alone. The fixed random maps are buffers, drawn from a seed of
their own: they take nothing from the global random stream, and they are *not* part of the state dict, so
the weights of one arm load into every other. (They are rebuilt from the seed whenever the model is.)
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

ShortcutFactory = Callable[[int, int, int], nn.Module]
"""``(in_channels, out_channels, stride) -> shortcut``."""


class PreActivationBlock(nn.Module):
    r"""``y = c · (branch(o) + shortcut(z))`` with ``o = preactivation(x)`` and ``z = x`` or ``z = o``.

    Source: He et al. 2016, *Identity mappings in deep residual networks*.

    Args:
        preactivation: Usually batch norm and ReLU.
        branch: The residual branch, on the pre-activated input.
        shortcut: The shortcut; its output has the branch's shape.
        shortcut_reads: What the shortcut acts on: the block's ``"input"`` x (blocks that keep the shape)
            or its ``"preactivation"`` o (blocks that change it).
        output_gain: c, fixed.
    """

    def __init__(
        self,
        preactivation: nn.Module,
        branch: nn.Module,
        shortcut: nn.Module,
        *,
        shortcut_reads: Literal["input", "preactivation"] = "input",
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.preactivation, self.branch, self.shortcut = preactivation, branch, shortcut
        self.shortcut_reads, self.output_gain = shortcut_reads, output_gain

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut, times the output gain."""
        o = self.preactivation(x)
        y = self.branch(o) + self.shortcut(x if self.shortcut_reads == "input" else o)
        return y if self.output_gain == 1 else self.output_gain * y

    def extra_repr(self) -> str:
        """The output gain if there is one, for ``print(model)``."""
        return "" if self.output_gain == 1 else f"output_gain={self.output_gain}"


def _zeros(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Zeros of the shape that a strided 1×1 convolution of ``x`` has."""
    return x.new_zeros((x.shape[0], out_channels, *(math.ceil(side / stride) for side in x.shape[2:])))


def _check_sides(x: Tensor, stride: int) -> None:
    """Refuse images that patches of ``stride × stride`` pixels do not tile.

    Raises:
        ValueError: A side of ``x`` is not a multiple of ``stride``.
    """
    if any(side % stride for side in x.shape[2:]):
        sides = "×".join(str(side) for side in x.shape[2:])
        raise ValueError(f"a shortcut of stride {stride} needs sides that are multiples of {stride}, not {sides}")


def _scaled_pool(x: Tensor, stride: int) -> Tensor:
    """``s · AvgPool_s``, whose singular values are all 1."""
    _check_sides(x, stride)
    return stride * nn.functional.avg_pool2d(x, stride)


class NoShortcut(nn.Module):
    """The zero map: what a chain has in place of a skip.

    Args:
        in_channels: Unused; here so that the class is a shortcut factory.
        out_channels: Channels of the zeros.
        stride: Spatial stride.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Zeros, shape ``(N, C_out, ⌈H / s⌉, ⌈W / s⌉)``."""
        return _zeros(x, self.out_channels, self.stride)


class IdentityShortcut(nn.Identity):
    """The identity: every singular value is 1."""


class ScaledShortcut(nn.Module):
    """A shortcut times a fixed gain α.

    Args:
        shortcut: The shortcut to scale.
        gain: α; the singular values are those of ``shortcut`` times ``|α|``.
    """

    def __init__(self, shortcut: nn.Module, gain: float) -> None:
        super().__init__()
        self.shortcut, self.gain = shortcut, gain

    def forward(self, x: Tensor) -> Tensor:
        """The scaled shortcut of ``x``."""
        return self.gain * self.shortcut(x)

    def extra_repr(self) -> str:
        """The gain, for ``print(model)``."""
        return f"gain={self.gain}"


class ConvolutionShortcut(nn.Conv2d):
    """A trainable 1×1 convolution of stride ``s``, times a fixed gain.

    Where ``s > 1`` it reads one pixel in ``s²`` and is blind to the others, so its Jacobian has a large
    kernel. Pooled, it reads ``s`` times the mean of each patch of ``s × s`` pixels instead: as picking and
    pooling both have orthonormal rows, the singular values are the same, but no pixel is thrown away.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Spatial stride ``s``.
        bias: Whether the convolution has a bias.
        gain: α. At 0 the convolution exists and is not used: the output is zero and its parameters get no
            gradient. A chain thus has the parameters of the network with skips.
        pooled: Whether it reads patches instead of pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        bias: bool = False,
        gain: float = 1.0,
        pooled: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, stride=stride, bias=bias)
        self.gain, self.pooled = gain, pooled

    def forward(self, x: Tensor) -> Tensor:
        """The scaled convolution, shape ``(N, C_out, ⌈H / s⌉, ⌈W / s⌉)``.

        Raises:
            ValueError: It is pooled, and ``H`` or ``W`` is not a multiple of the stride.
        """
        if self.gain == 0:
            return _zeros(x, self.out_channels, self.stride[0])
        # Picking the pixels first is the same map; its backward pass is several times faster on a CPU.
        stride = self.stride[0]
        read = _scaled_pool(x, stride) if self.pooled else x[..., ::stride, ::stride]
        y = nn.functional.conv2d(read, self.weight, self.bias)
        return y if self.gain == 1 else self.gain * y

    def extra_repr(self) -> str:
        """The convolution's description, the gain and whether it is pooled, for ``print(model)``."""
        return f"{super().extra_repr()}, gain={self.gain}" + (", pooled=True" if self.pooled else "")


class PooledIdentityShortcut(nn.Module):
    r"""``s · AvgPool_s``, zero-padded on channels: the closest to an identity where the shape changes.

    Averages over disjoint patches of ``s × s`` pixels have all singular values ``1/s``; times ``s``, all
    are exactly 1 (on ``C_in · HW/s²`` dimensions). The new channels are zero. With ``s = 1`` it is the
    identity, zero-padded.

    Source: docs/paper.md §3 (arms ``modified``).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, at least ``in_channels``.
        stride: Side ``s`` of the patches, and the stride.
        padding: Zero channels ``(before, after)``; default centred, the odd one after (5 → 20 gives 7 and
            8).

    Raises:
        ValueError: The padding does not make ``out_channels`` out of ``in_channels``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, padding: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        added = out_channels - in_channels
        before, after = padding if padding is not None else (added // 2, added - added // 2)
        if min(before, after) < 0 or before + after != added:
            raise ValueError(
                f"zero channels ({before}, {after}) do not make {out_channels} channels out of {in_channels}"
            )
        self.stride, self.padding = stride, (before, after)

    def forward(self, x: Tensor) -> Tensor:
        """The pooled input, shape ``(N, C_out, H / s, W / s)``.

        Raises:
            ValueError: ``H`` or ``W`` is not a multiple of the stride.
        """
        return nn.functional.pad(_scaled_pool(x, self.stride), (0, 0, 0, 0, *self.padding))

    def extra_repr(self) -> str:
        """Stride and padding, for ``print(model)``."""
        return f"stride={self.stride}, padding={self.padding}"


class SumShortcut(nn.Module):
    """The sum of several shortcuts, each under a name of its own.

    Args:
        **terms: The shortcuts. The names become those of the submodules, and so of the parameters: two
            sums with a term ``conv`` have the same parameter names, whatever else is added to it.

    Raises:
        ValueError: There are no terms.
    """

    def __init__(self, **terms: nn.Module) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a sum of shortcuts needs at least one term")
        for name, term in terms.items():
            self.add_module(name, term)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of all terms at ``x``."""
        first, *rest = (term(x) for term in self._modules.values() if term is not None)
        for y in rest:
            first = first + y
        return first


class PartialIsometryShortcut(nn.Module):
    r"""A fixed random partial isometry, the same on every patch of ``s × s`` pixels.

    ``M = U Vᵀ`` with ``U`` (``C_out × r``) and ``V`` (``C_in s² × r``) drawn uniformly among matrices
    with orthonormal columns. The patches are disjoint, so the whole map has ``r · HW/s²`` singular values
    equal to 1 and the rest 0. At the default rank it has the spectrum of `PooledIdentityShortcut` without
    its alignment.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Side ``s`` of the patches, and the stride.
        rank: ``r``, per patch; default ``min(C_in, C_out)``, that of the pooled identity.
        seed: Seed of the draw; equal sizes and seeds give equal maps.

    Raises:
        ValueError: The rank is impossible for these sizes.
    """

    weight: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, rank: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        rank = min(in_channels, out_channels) if rank is None else rank
        patch = in_channels * stride**2
        if not 0 <= rank <= min(patch, out_channels):
            raise ValueError(f"rank {rank} is not between 0 and {min(patch, out_channels)}")
        generator = torch.Generator().manual_seed(seed)
        U = _orthonormal_columns(out_channels, rank, generator)
        V = _orthonormal_columns(patch, rank, generator)
        # Kept in float64, so that a model converted to float64 has an isometry to float64 rounding.
        weight = (U @ V.T).reshape(out_channels, in_channels, stride, stride)
        self.register_buffer("weight", weight, persistent=False)
        self.stride, self.rank, self.seed = stride, rank, seed

    def forward(self, x: Tensor) -> Tensor:
        """The mapped input, shape ``(N, C_out, H / s, W / s)``, or ``(N, C_out)`` for vectors (stride 1).

        Raises:
            ValueError: ``H`` or ``W`` is not a multiple of the stride.
        """
        weight = self.weight.to(x.dtype)
        if x.dim() == 2:
            return nn.functional.linear(x, weight.flatten(1))
        _check_sides(x, self.stride)
        return nn.functional.conv2d(x, weight, stride=self.stride)

    def extra_repr(self) -> str:
        """Stride, rank and seed, for ``print(model)``."""
        return f"stride={self.stride}, rank={self.rank}, seed={self.seed}"


class OrthogonalShortcut(PartialIsometryShortcut):
    """A fixed random orthogonal map of the channels, the same at every pixel: every singular value is 1.

    Args:
        channels: Channels of the input and of the output.
        seed: Seed of the draw.
    """

    def __init__(self, channels: int, *, seed: int = 0) -> None:
        super().__init__(channels, channels, seed=seed)


def _orthonormal_columns(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A uniformly distributed matrix with orthonormal columns, float64, shape ``(rows, columns)``."""
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu")
    Q, R = torch.linalg.qr(gaussian)
    return Q * R.diagonal().sign()  # without the signs, Q would depend on the conventions of LAPACK
