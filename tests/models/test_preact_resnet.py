"""Pre-activation ResNets: blocks against their formulas, shapes, sizes."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from skip_conditioning.models import (
    Arm,
    PreActivationBlock,
    build_model,
    build_preact_resnet,
    modified_shortcut,
    residual_shortcut,
)
from skip_conditioning.models.preact_resnet import basic_block, bottleneck_block

FACTORIES = {"original": residual_shortcut, "modified": modified_shortcut}


def norm_relu(x: Tensor, norm: nn.Module) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True))


def pooled(o: Tensor, arm: str, channels: int) -> Tensor | float:
    """``2·AvgPool_2`` between zero channels, by strided slices."""
    if arm == "original":
        return 0.0
    quarters = o[:, :, ::2, ::2] + o[:, :, 1::2, ::2] + o[:, :, ::2, 1::2] + o[:, :, 1::2, 1::2]
    n, c, h, w = quarters.shape
    zeros = o.new_zeros(n, (channels - c) // 2, h, w)
    return torch.cat([zeros, quarters / 2, zeros], dim=1)


@pytest.mark.parametrize("arm", FACTORIES)
def test_a_down_sampling_basic_block(arm: str) -> None:
    block = basic_block(4, 8, 2, FACTORIES[arm]).double()
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    o = norm_relu(x, block.preactivation[0])
    branch = F.conv2d(o, block.branch[0].weight, stride=2, padding=1)
    branch = F.conv2d(norm_relu(branch, block.branch[1]), block.branch[3].weight, padding=1)
    expected = branch + F.conv2d(o, block.shortcut.conv.weight, stride=2) + pooled(o, arm, 8)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("arm", FACTORIES)
def test_a_down_sampling_bottleneck(arm: str) -> None:
    block = bottleneck_block(8, 4, 2, FACTORIES[arm]).double()
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64)
    o = norm_relu(x, block.preactivation[0])
    branch = F.conv2d(o, block.branch[0].weight)
    branch = F.conv2d(norm_relu(branch, block.branch[1]), block.branch[3].weight, stride=2, padding=1)
    branch = F.conv2d(norm_relu(branch, block.branch[4]), block.branch[6].weight)
    expected = branch + F.conv2d(o, block.shortcut.conv.weight, stride=2) + pooled(o, arm, 16)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("arm", FACTORIES)
def test_a_block_that_keeps_the_shape_adds_its_input(arm: str) -> None:
    block = basic_block(4, 4, 1, FACTORIES[arm]).double()
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x) - x, block.branch(block.preactivation(x)))


def test_modified_leaves_alone_a_shortcut_that_only_changes_the_channels() -> None:
    first = build_model("preact-resnet50", arm="modified").layer1[0]
    assert [name for name, _ in first.shortcut.named_children()] == ["conv"]
    assert first.shortcut_reads == "preactivation"


@pytest.mark.parametrize(
    ("layers", "arm", "stem", "side", "width"),
    [
        (18, "original", "cifar", 32, 64),
        (18, "modified", "imagenet", 64, 64),
        (50, "modified", "cifar", 16, 64),
        (18, "modified", "cifar", 16, 3),
        (50, "original", "imagenet", 64, 16),
    ],
)
def test_it_is_a_chain_of_blocks_with_the_papers_shapes(
    layers: int, arm: str, stem: str, side: int, width: int
) -> None:
    # The papers' width is the default, so those cases check that too.
    options = {} if width == 64 else {"width": width}
    model = build_model(f"preact-resnet{layers}", arm=arm, stem=stem, num_classes=7, **options).eval()
    x = image = torch.randn(1, 3, side, side)
    expansion = 4 if layers == 50 else 1
    side = side if stem == "cifar" else side // 4
    with torch.no_grad():
        for stage in range(5):
            x = model[stage](x)
            channels = width * 2 ** max(stage - 1, 0) * (expansion if stage else 1)
            assert x.shape == (1, channels, side // 2 ** max(stage - 1, 0), side // 2 ** max(stage - 1, 0))
        pooled = F.avg_pool2d(x, x.shape[-1]).flatten(1)
        logits = F.linear(pooled, model.head[2].weight, model.head[2].bias)
        torch.testing.assert_close(model(image), logits)
    assert logits.shape == (1, 7)


@pytest.mark.parametrize(
    ("layers", "width", "padding"),
    [
        (18, 16, [(8, 8), (16, 16), (32, 32)]),
        (18, 3, [(1, 2), (3, 3), (6, 6)]),
        (18, 1, [(0, 1), (1, 1), (2, 2)]),
        (50, 3, [(6, 6), (12, 12), (24, 24)]),
    ],
)
def test_modified_centres_the_pooled_channels_at_any_width(
    layers: int, width: int, padding: list[tuple[int, int]]
) -> None:
    model = build_model(f"preact-resnet{layers}", arm="modified", width=width)
    pools = [model[stage][0].shortcut.pool for stage in (2, 3, 4)]
    assert [pool.padding for pool in pools] == padding
    before, after = padding[0]
    y = pools[0](torch.ones(1, before + after, 4, 4))
    assert (y[0, :, 0, 0] != 0).tolist() == [False] * before + [True] * (before + after) + [False] * after


@pytest.mark.parametrize(
    ("layers", "blocks", "post_activation", "norms"),
    [
        (18, 8, 11_689_512, 1408),
        (34, 16, 21_797_672, 1408),
        (50, 16, 25_557_032, 5888),
        (101, 33, 44_549_160, 5888),
        (152, 50, 60_192_808, 5888),
    ],
)
def test_size_is_that_of_the_post_activation_network_less_the_norms_moved_or_dropped(
    layers: int, blocks: int, post_activation: int, norms: int
) -> None:
    """``post_activation`` is torchvision's count; ``norms`` the channels normalised there and not here."""
    with torch.device("meta"):
        model = build_model(f"preact-resnet{layers}", stem="imagenet", num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == post_activation - 2 * norms
    assert sum(isinstance(module, PreActivationBlock) for module in model.modules()) == blocks
    weighted = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(weighted) == layers


@pytest.mark.parametrize(("layers", "square", "linear"), [(18, 2724, 213), (50, 5724, 993)])
@pytest.mark.parametrize("width", [1, 16, 64])
def test_size_is_quadratic_in_the_width(layers: int, square: int, linear: int, width: int) -> None:
    """Counted by hand; ``square``: convolutions behind the stem, ``linear``: stem, norms and the head's matrix."""
    for arm in FACTORIES:
        with torch.device("meta"):
            model = build_model(f"preact-resnet{layers}", arm=arm, width=width)
        assert sum(p.numel() for p in model.parameters()) == square * width**2 + linear * width + 10


def test_an_arm_of_ones_own_is_a_shortcut_and_an_initialisation() -> None:
    seen = []

    def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        seen.append((in_channels, out_channels, stride))
        return modified_shortcut(in_channels, out_channels, stride)

    model = build_preact_resnet(18, Arm(shortcut, "dirac"))
    assert seen[:3] == [(64, 64, 1), (64, 64, 1), (64, 128, 2)]
    assert torch.equal(model.layer1[0].branch[0].weight[:, :, 1, 1], torch.eye(64))
