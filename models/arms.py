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
unused). The shortcuts here are those of the paper; those of its interventions are in `models.interventions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from skip_conditioning.models.errors import check_choice
from skip_conditioning.models.initialisation import InitialisationName
from skip_conditioning.models.shortcuts import (
    ConvolutionShortcut,
    IdentityShortcut,
    NoShortcut,
    PooledIdentityShortcut,
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
    """

    shortcut: ShortcutFactory
    initialisation: InitialisationName = "default"
    output_gain: float = 1.0


def choose_arm(network: str, arm: str | Arm, table: Mapping[str, Arm]) -> Arm:
    """Look up an arm by its name; an `Arm` is returned as it is.

    Raises:
        ModelOptionError: The network's table has no such arm.
    """
    if isinstance(arm, Arm):
        return arm
    check_choice(f"arm of {network}", arm, table)
    return table[arm]


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
