r"""Shortcuts of the interventions of docs/paper.md §4, which change conditioning or skips, each without the other.

Factories as in `models.arms`, with the same promise: nothing is drawn from the global random stream but what every
other arm draws too, and all parameters have the same names and shapes. The networks' tables of arms say which network
has which intervention. Those that need no shortcut of their own are

- ``chain-orthogonal``, ``chain-dirac``, ``chain-looks-linear``: no skip, but another initialisation;
- ``residual-orthogonal``, ``residual-dirac``, ``residual-looks-linear``: the same with skips, which makes a factorial
  design of the two together with ``chain`` and ``residual``;
- ``rescaled``: skips, and an output gain (`RESCALED_GAIN`) that takes back what they add to the output's scale.

Whether an initialisation conditions a network better is to be measured, not taken from its name: batch norm and ReLU
that only the identity follows (``chain-dirac``) silence ever more samples in each unit, so that most singular values
are lost within a few blocks.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn

from skip_conditioning.models.arms import keeps_shape, residual_shortcut
from skip_conditioning.models.shortcuts import (
    ConvolutionShortcut,
    IdentityShortcut,
    OrthogonalShortcut,
    PartialIsometryShortcut,
    ScaledShortcut,
    ShortcutFactory,
    SumShortcut,
)

RESCALED_GAIN = 1 / math.sqrt(2)
r"""Output gain c of the arms ``rescaled``, whose blocks are ``x ↦ (g(x) + x)/√2``.

With it activations have the variance that they have in the chain; the Jacobian comes nearer to the chain's, but cannot
be made equal to it by a gain. Take a branch g of batch norm, ReLU and a linear layer with PyTorch's initialisation
(entries of variance 1/(3n)), v the variance of a block's input and b that of g(x), which batch norm keeps at
``b = (1/3)(1/2 − 1/(2π)) ≈ 0.114`` whatever v is. In expectation, for many samples and units:

- ``v ← (v + b)/2`` has the fixed point ``v = b``, the chain's (the mean square's is 1/6, again the chain's);
- ``‖Jg‖_F²/n = (1/3)(1/2)/v = 1/(1 − 1/π) ≈ 1.47`` there, and cross terms with the identity vanish, so that the block
  has ``‖J‖_F²/n ≈ (1.47 + 1)/2 ≈ 1.23``. It would be 1 in both only if φ had mean zero and E φ² = E φ'², as the
  identity has; the plain skip's tends to 1 with depth as its v grows.

Batch norm makes the network blind to a common scale of branch and skip, so other output gains that are the same in all
blocks change the balance of the two, not this gap. With other normalisers, activations, or convolutions for a shortcut
the variance too is matched approximately at best. Compare the measured ‖J‖_F of both arms first.
"""


def gain_shortcut(in_channels: int, out_channels: int, stride: int, *, gain: float, bias: bool = False) -> nn.Module:
    """As `residual_shortcut`, times a fixed gain α: a dose of skip."""
    if keeps_shape(in_channels, out_channels, stride):
        return ScaledShortcut(IdentityShortcut(), gain)
    return SumShortcut(conv=ConvolutionShortcut(in_channels, out_channels, stride, bias=bias, gain=gain))


def orthogonal_shortcut(
    in_channels: int, out_channels: int, stride: int, *, bias: bool = False, seed: int = 0
) -> nn.Module:
    """As `residual_shortcut`, with a fixed random orthogonal map of the channels in place of the identity.

    The identity's singular values without its alignment.
    """
    if keeps_shape(in_channels, out_channels, stride):
        return OrthogonalShortcut(in_channels, seed=seed)
    return residual_shortcut(in_channels, out_channels, stride, bias=bias)


def low_rank(channels: int) -> int:
    """Rank of the rank-deficient skips of so many channels: an eighth of them, at least 1."""
    return max(1, channels // 8)


def low_rank_shortcut(in_channels: int, out_channels: int, stride: int, *, seed: int = 0) -> nn.Module:
    """A fixed random partial isometry of rank `low_rank`, per pixel of the output, and nothing beside it.

    A skip that leaves most of the branch's spectrum as it is. For networks in which the shape never changes.
    """
    return PartialIsometryShortcut(in_channels, out_channels, stride, rank=low_rank(in_channels), seed=seed)


def isometry_shortcut(in_channels: int, out_channels: int, stride: int, *, bias: bool = False) -> nn.Module:
    """As `modified_shortcut`, with a fixed random partial isometry of the pool's rank in place of the pool.

    The pool's singular values without its alignment.
    """
    return _beside_convolution(in_channels, out_channels, stride, rank=in_channels, bias=bias)


def rank_deficient_shortcut(in_channels: int, out_channels: int, stride: int, *, bias: bool = False) -> nn.Module:
    """As `modified_shortcut`, with a fixed random partial isometry of rank `low_rank` in place of the pool."""
    return _beside_convolution(in_channels, out_channels, stride, rank=low_rank(in_channels), bias=bias)


def orthogonal_convolution_shortcut(
    in_channels: int, out_channels: int, stride: int, *, bias: bool = False
) -> nn.Module:
    """As `residual_shortcut`, with shortcut convolutions whose weights start out semi-orthogonal.

    A weight drawn as in every other arm is replaced by the nearest semi-orthogonal matrix (its polar factor), whose
    singular values are all 1. The zeros that a stride gives the map stay.
    """
    shortcut = residual_shortcut(in_channels, out_channels, stride, bias=bias)
    for module in shortcut.modules():
        if isinstance(module, ConvolutionShortcut):
            _make_semi_orthogonal(module)
    return shortcut


def seeded_by_block(shortcut: Callable[..., nn.Module]) -> ShortcutFactory:
    """A factory whose i-th shortcut has the seed i, so that blocks of one shape get independent maps.

    It counts its calls, so that each network needs a factory of its own.

    Args:
        shortcut: A factory that also takes a keyword ``seed``.
    """
    seeds = itertools.count()
    return lambda *sizes: shortcut(*sizes, seed=next(seeds))


def _beside_convolution(in_channels: int, out_channels: int, stride: int, *, rank: int, bias: bool) -> nn.Module:
    """As `residual_shortcut`, plus a partial isometry where the map down-samples."""
    if stride == 1:
        return residual_shortcut(in_channels, out_channels, stride, bias=bias)
    return SumShortcut(
        conv=ConvolutionShortcut(in_channels, out_channels, stride, bias=bias),
        isometry=PartialIsometryShortcut(in_channels, out_channels, stride, rank=rank),
    )


@torch.no_grad()
def _make_semi_orthogonal(convolution: nn.Conv2d) -> None:
    """Replace the weight of a 1×1 convolution by its polar factor, computed in float64."""
    weight = convolution.weight
    U, _, Vh = torch.linalg.svd(weight[:, :, 0, 0].double(), full_matrices=False)
    weight.copy_((U @ Vh)[:, :, None, None])
