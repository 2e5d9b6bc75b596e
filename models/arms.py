"""Arms: the variants of one network that are compared.

An arm consists of a shortcut factory, an initialisation and an output gain. To add one, add an entry to a
network's table, or pass an `Arm` of your own where a name is asked for:

    def only_the_pool(in_channels, out_channels, stride):
        if in_channels == out_channels and stride == 1:
            return IdentityShortcut()
        return SumShortcut(
            conv=ConvolutionShortcut(in_channels, out_channels, stride, gain=0.0),
            pool=PooledIdentityShortcut(in_channels, out_channels, stride),
        )

    build_model("preact-resnet18", arm=Arm(only_the_pool))

All arms in the tables have the same parameter names and shapes, and draw them in the same order: the same
seed gives the same parameters to all arms of one initialisation, and the state dict of one loads into each.
(``orthogonal-conv`` then replaces the weights of its shortcuts by a function of them.) An arm of your own keeps
to that if its shape-changing shortcuts are sums with a convolution named ``conv`` (of gain 0, if it is to be
unused). First come the paper's shortcuts, then those of the interventions of docs/paper.md §4, which change
conditioning or skips, each without the other. Those that need no shortcut of their own are

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
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from skip_conditioning.models.errors import check_choice
from skip_conditioning.models.initialisation import InitialisationName
from skip_conditioning.models.shortcuts import (
    ConvolutionShortcut,
    IdentityShortcut,
    NoShortcut,
    OrthogonalShortcut,
    PartialIsometryShortcut,
    PooledIdentityShortcut,
    ScaledShortcut,
    ShortcutFactory,
    SumShortcut,
)


@dataclass(frozen=True)
class Arm:
    """One variant of a network.

    Attributes:
        shortcut: Makes each block's shortcut from ``(in_channels, out_channels, stride)``.
        initialisation: Name of the initialisation, see `models.initialisation`.
        output_gain: Factor of the output of every block, whether or not its shortcut is an identity.
        towards: An initialisation, and how far between ``initialisation`` (0) and it (1) the weights begin.
        logit_gain: Factor of the logits, fixed.
    """

    shortcut: ShortcutFactory
    initialisation: InitialisationName = "default"
    output_gain: float = 1.0
    towards: tuple[InitialisationName, float] | None = None
    logit_gain: float = 1.0


def choose_arm(network: str, arm: str | Arm, table: Mapping[str, Arm]) -> Arm:
    """Look up an arm by its name; an `Arm` is returned as it is.

    Raises:
        ModelOptionError: The network's table has no such arm.
    """
    if isinstance(arm, Arm):
        return arm
    check_choice(f"arm of {network}", arm, table)
    return table[arm]


#: Arms with a number in their name, and what it may be: a skip of any gain, or weights between two initialisations.
#: With ``@c`` behind it the logits are multiplied by c, which scales every Jacobian of theirs.
DOSES: dict[str, str] = {
    "gain-NUMBER": "a skip with this gain",
    "chain-to-looks-linear-NUMBER": "no skip, the weights so far (0 to 1) from default to looks-linear",
    "chain-orthogonal-to-looks-linear-NUMBER": "no skip, so far from orthogonal to looks-linear",
}

_DOSED = re.compile(
    r"(gain|chain-to-looks-linear|chain-orthogonal-to-looks-linear)-(\d+(?:\.\d+)?)(?:@(\d+(?:\.\d+)?))?"
)


def dosed_arm(name: str, skip: Callable[[float], ShortcutFactory], no_skip: ShortcutFactory) -> Arm | None:
    """An arm of ``DOSES``; None if the name is none of them.

    Args:
        name: Such as ``gain-0.37`` or ``chain-to-looks-linear-0.4@1.7``.
        skip: Makes the shortcut of a gain.
        no_skip: The shortcut of a chain.
    """
    match = _DOSED.fullmatch(name)
    if not match or (match[1] != "gain" and float(match[2]) > 1):
        return None
    dose, factor = float(match[2]), float(match[3] or 1)
    if match[1] == "gain":
        return Arm(skip(dose), logit_gain=factor)
    start: InitialisationName = "orthogonal" if "orthogonal" in match[1] else "default"
    return Arm(no_skip, start, towards=("looks-linear", dose), logit_gain=factor)


def keeps_shape(in_channels: int, out_channels: int, stride: int) -> bool:
    """Whether a block's output has the shape of its input, so that an identity fits."""
    return in_channels == out_channels and stride == 1


def chain_shortcut(in_channels: int, out_channels: int, stride: int, *, bias: bool = False) -> nn.Module:
    """No skip anywhere; the shortcut convolution exists, so that all arms share parameters, and is unused."""
    if keeps_shape(in_channels, out_channels, stride):
        return NoShortcut(in_channels, out_channels, stride)
    return SumShortcut(conv=ConvolutionShortcut(in_channels, out_channels, stride, bias=bias, gain=0.0))


def residual_shortcut(in_channels: int, out_channels: int, stride: int, *, bias: bool = False) -> nn.Module:
    """The identity where it fits, a strided 1×1 convolution elsewhere."""
    if keeps_shape(in_channels, out_channels, stride):
        return IdentityShortcut()
    return SumShortcut(conv=ConvolutionShortcut(in_channels, out_channels, stride, bias=bias))


def modified_shortcut(in_channels: int, out_channels: int, stride: int, *, bias: bool = False) -> nn.Module:
    """As `residual_shortcut`, plus ``s·AvgPool_s``, zero-padded on channels, where the map down-samples.

    Down-sampling means ``stride > 1`` (docs/paper.md §3). A convolution that only changes the channels, as in the
    first block of a bottleneck network, is left as it is; the authors' released code adds the zero-padded
    identity there too.
    """
    if stride == 1:
        return residual_shortcut(in_channels, out_channels, stride, bias=bias)
    return SumShortcut(
        conv=ConvolutionShortcut(in_channels, out_channels, stride, bias=bias),
        pool=PooledIdentityShortcut(in_channels, out_channels, stride),
    )


def pooled_convolution_shortcut(
    in_channels: int, out_channels: int, stride: int, *, bias: bool = False, scaled: bool = True
) -> nn.Module:
    """As `residual_shortcut`, the down-sampling convolutions on pooled patches instead of single pixels.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Spatial stride s.
        bias: Whether the convolution has a bias.
        scaled: Whether the mean of a patch is multiplied by s, which gives the singular values and the rank of the
            convolution on single pixels; otherwise they are 1/s of those.
    """
    if stride == 1:
        return residual_shortcut(in_channels, out_channels, stride, bias=bias)
    gain = 1.0 if scaled else 1 / stride
    return SumShortcut(conv=ConvolutionShortcut(in_channels, out_channels, stride, bias=bias, gain=gain, pooled=True))


RESCALED_SHORTCUT_GAIN = 2.25
"""Gain of the down-sampling convolutions of the ResNets' arm ``rescaled``.

With it their outputs have the standard deviation that those of ``modified`` have at initialisation. Measured on 256
normalised images of CIFAR-10 the ratio was 2.24, 2.27 and 2.18 at the three shortcuts of a ResNet-18 of width 16
(standard deviation between six seeds 0.05 to 0.07), and 2.31, 2.31 and 2.24 at width 64.
"""


def rescaled_convolution_shortcut(in_channels: int, out_channels: int, stride: int, *, bias: bool = False) -> nn.Module:
    """As `residual_shortcut`, the down-sampling convolutions times `RESCALED_SHORTCUT_GAIN`."""
    if stride == 1:
        return residual_shortcut(in_channels, out_channels, stride, bias=bias)
    conv = ConvolutionShortcut(in_channels, out_channels, stride, bias=bias, gain=RESCALED_SHORTCUT_GAIN)
    return SumShortcut(conv=conv)


RESCALED_GAIN = 1 / math.sqrt(2)
r"""Output gain c of the arms ``rescaled``, whose blocks are ``x ↦ (g(x) + x)/√2``.

Activations then have the chain's variance: with a branch g of batch norm, ReLU and a linear layer with PyTorch's
initialisation, g(x) has variance ``b = (1/3)(1/2 − 1/(2π))`` whatever x has, and ``v ← (v + b)/2`` tends to b. The
Jacobian comes nearer to the chain's, but not to it: ``‖J‖_F²/n`` tends to about 1.23, to 1.47 in the chain and to 1
with a plain skip. Batch norm is blind to a common scale of branch and skip, so no other gain would do better. With
other normalisers, activations or convolutions the variances match approximately: compare the measured ‖J‖_F first.
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
