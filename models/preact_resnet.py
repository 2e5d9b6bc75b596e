"""Pre-activation ResNets for CIFAR and ImageNet (docs/paper.md §3)."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from torch import nn

from skip_conditioning.models.arms import (
    Arm,
    chain_shortcut,
    choose_arm,
    isometry_shortcut,
    keeps_shape,
    modified_shortcut,
    orthogonal_convolution_shortcut,
    pooled_convolution_shortcut,
    rank_deficient_shortcut,
    rescaled_convolution_shortcut,
    residual_shortcut,
)
from skip_conditioning.models.errors import check_choice, check_count
from skip_conditioning.models.initialisation import initialise
from skip_conditioning.models.shortcuts import PreActivationBlock, ShortcutFactory

StemName = Literal["cifar", "imagenet"]

ARMS: dict[str, Arm] = {
    "original": Arm(residual_shortcut),
    "modified": Arm(modified_shortcut),
    "pooled-1x1": Arm(pooled_convolution_shortcut),
    "plain-pooled-1x1": Arm(partial(pooled_convolution_shortcut, scaled=False)),
    "rescaled": Arm(rescaled_convolution_shortcut),
    "isometry": Arm(isometry_shortcut),
    "rank-deficient": Arm(rank_deficient_shortcut),
    "orthogonal-conv": Arm(orthogonal_convolution_shortcut),
    "chain": Arm(chain_shortcut),
}
"""The arms: the paper's two, then interventions of docs/paper.md §4.

- ``original``: identity and 1×1 convolution shortcuts; ``modified``: the same, the down-sampling ones plus
  ``s·AvgPool_s``.
- ``pooled-1x1``: as ``original``, the down-sampling convolutions on ``s·AvgPool_s`` of their input: exactly the
  original's singular values, but no pixel is thrown away; ``plain-pooled-1x1``: the same without the factor s;
  ``rescaled``: as ``original``, the down-sampling convolutions at the scale of ``modified``.
- ``isometry``, ``rank-deficient``: as ``modified``, with a fixed random partial isometry of the pool's rank, or of an
  eighth of it, in place of the pool.
- ``orthogonal-conv``: as ``original``, the weights of all shortcut convolutions initially semi-orthogonal.
- ``chain``: no skips; the convolutions exist and are unused.
"""


def build_preact_resnet(
    layers: int,
    arm: str | Arm = "original",
    *,
    num_classes: int = 10,
    stem: StemName = "cifar",
    width: int = 64,
) -> nn.Sequential:
    r"""Build a pre-activation ResNet, the chain ``stem → layer1.0 → … → layer4.K → head``.

    Four stages of widths w-2w-4w-8w, w = 64 (times 4 at the output of a bottleneck), the last three halving
    the image. Within a block o = ReLU(BN(x)); the identity shortcut acts on x, a convolution shortcut on
    o. In ``modified`` the pooled identity acts on o too, as the convolution that it is added to.
    Convolutions have no bias; there is no batch norm after the last block. The head averages over all
    pixels (on CIFAR a window of 4 on a 4×4 map), then is linear.

    Args:
        layers: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        arm: A name in `ARMS`, or an `Arm`.
        num_classes: Number of logits.
        stem: ``cifar``: one 3×3 convolution. ``imagenet``: 7×7 of stride 2, then 3×3 max pooling of
            stride 2.
        width: w, the channels of the stem and the width of the first stage. Parameters, and with many
            channels the time of a step, grow with its square; activations are proportional to it.

    Returns:
        The network for inputs ``(N, 3, H, W)``, with its arm's initialisation.

    Raises:
        ModelOptionError: There is no such depth, arm or stem, or ``num_classes`` or ``width`` is not a
            positive ``int``.
    """
    check_choice("depth of preact-resnet", layers, BLOCKS)
    check_choice("stem", stem, get_args(StemName))
    check_count("num_classes", num_classes)
    check_count("width", width)
    chosen = choose_arm(f"preact-resnet{layers}", arm, ARMS)

    modules: OrderedDict[str, nn.Module] = OrderedDict(stem=_stem(stem, width))
    block, expansion, counts = BLOCKS[layers]
    channels = width
    for stage, count in enumerate(counts):
        stage_width, blocks = width * 2**stage, []
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            blocks.append(block(channels, stage_width, stride, chosen.shortcut, chosen.output_gain))
            channels = stage_width * expansion
        modules[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    modules["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    model = nn.Sequential(modules)
    initialise(model, chosen.initialisation)
    return model


def basic_block(
    in_channels: int, width: int, stride: int, shortcut: ShortcutFactory, output_gain: float = 1.0
) -> PreActivationBlock:
    """Two 3×3 convolutions, ``in_channels → width → width``; the first has the stride."""
    branch = nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
    )
    return _block(in_channels, width, stride, branch, shortcut, output_gain)


def bottleneck_block(
    in_channels: int, width: int, stride: int, shortcut: ShortcutFactory, output_gain: float = 1.0
) -> PreActivationBlock:
    """Convolutions 1×1, 3×3 (with the stride) and 1×1, ``in_channels → width → width → 4·width``."""
    branch = nn.Sequential(
        nn.Conv2d(in_channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 4 * width, 1, bias=False),
    )
    return _block(in_channels, 4 * width, stride, branch, shortcut, output_gain)


BlockBuilder = Callable[[int, int, int, ShortcutFactory, float], PreActivationBlock]

BLOCKS: dict[int, tuple[BlockBuilder, int, tuple[int, int, int, int]]] = {
    18: (basic_block, 1, (2, 2, 2, 2)),
    34: (basic_block, 1, (3, 4, 6, 3)),
    50: (bottleneck_block, 4, (3, 4, 6, 3)),
    101: (bottleneck_block, 4, (3, 4, 23, 3)),
    152: (bottleneck_block, 4, (3, 8, 36, 3)),
}
"""By depth: the block, its output channels in units of its width, and the number of blocks per stage."""


def _block(
    in_channels: int,
    out_channels: int,
    stride: int,
    branch: nn.Module,
    shortcut: ShortcutFactory,
    output_gain: float,
) -> PreActivationBlock:
    """A block with batch norm and ReLU in front and the arm's shortcut beside its branch."""
    return PreActivationBlock(
        preactivation=nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU()),
        branch=branch,
        shortcut=shortcut(in_channels, out_channels, stride),
        shortcut_reads="input" if keeps_shape(in_channels, out_channels, stride) else "preactivation",
        output_gain=output_gain,
    )


def _stem(name: StemName, channels: int) -> nn.Module:
    """The layers before the first block, 3 → ``channels``."""
    if name == "cifar":
        return nn.Conv2d(3, channels, 3, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, stride=2, padding=1)
    )
