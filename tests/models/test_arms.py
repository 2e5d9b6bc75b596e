"""Arms, the interventions above all, by what each is to change and what it is to leave alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from skip_conditioning.models import (
    Arm,
    IdentityShortcut,
    ModelOptionError,
    PreActivationBlock,
    arms,
    build_model,
    modified_shortcut,
)
from skip_conditioning.models.arms import (
    RESCALED_GAIN,
    RESCALED_SHORTCUT_GAIN,
    gain_shortcut,
    isometry_shortcut,
    low_rank_shortcut,
    orthogonal_convolution_shortcut,
    orthogonal_shortcut,
    rank_deficient_shortcut,
)
from skip_conditioning.models.preact_resnet import ARMS, build_preact_resnet


def singular_values(shortcut: nn.Module, *shape: int) -> Tensor:
    """All singular values of a shortcut's Jacobian, in float64."""
    x = torch.zeros(1, *shape, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(shortcut.double(), x)
    return torch.linalg.svdvals(J.reshape(-1, x.numel()))


SPECTRA = [
    ("orthogonal", orthogonal_shortcut(5, 5, 1), (5, 3, 3), 45),
    ("orthogonal-vector", orthogonal_shortcut(7, 7, 1, seed=3), (7,), 7),
    ("low-rank", low_rank_shortcut(16, 16, 1), (16,), 2),
    ("rank-deficient", rank_deficient_shortcut(16, 32, 2).isometry, (16, 4, 4), 2 * 4),
    ("rank-deficient-mnist", rank_deficient_shortcut(5, 20, 3).isometry, (5, 6, 6), 1 * 4),
    ("orthogonal-conv", orthogonal_convolution_shortcut(4, 8, 2), (4, 4, 4), 4 * 4),
    ("orthogonal-conv-narrowing", orthogonal_convolution_shortcut(6, 3, 1), (6, 2, 2), 3 * 4),
]


@pytest.mark.parametrize(
    ("shortcut", "shape", "ones"), [case[1:] for case in SPECTRA], ids=[case[0] for case in SPECTRA]
)
def test_singular_values_are_one_on_the_rank_and_zero_elsewhere(
    shortcut: nn.Module, shape: tuple[int, ...], ones: int
) -> None:
    values = singular_values(shortcut, *shape)
    expected = torch.zeros_like(values)
    expected[:ones] = 1
    torch.testing.assert_close(values, expected, rtol=0, atol=2e-6)  # the convolution's weight is in float32


@pytest.mark.parametrize(("sizes", "side"), [((5, 20, 3), 6), ((4, 8, 2), 4)])
def test_the_isometry_has_the_pools_singular_values_and_not_its_alignment(
    sizes: tuple[int, int, int], side: int
) -> None:
    isometry, pool = isometry_shortcut(*sizes).isometry, modified_shortcut(*sizes).pool
    torch.testing.assert_close(
        singular_values(isometry, sizes[0], side, side), singular_values(pool, sizes[0], side, side)
    )
    x = torch.randn(1, sizes[0], side, side, dtype=torch.float64)
    assert not torch.allclose(isometry(x), pool(x), atol=0.1)


@pytest.mark.parametrize("factory", [isometry_shortcut, rank_deficient_shortcut, orthogonal_shortcut])
def test_where_they_have_nothing_to_replace_they_are_the_plain_shortcuts(factory) -> None:
    assert [name for name, _ in factory(4, 8, 1).named_children()] == ["conv"]
    if factory is not orthogonal_shortcut:
        assert isinstance(factory(4, 4, 1), IdentityShortcut)


def test_the_semi_orthogonal_weight_is_the_nearest_to_the_one_drawn() -> None:
    torch.manual_seed(0)
    drawn = modified_shortcut(4, 8, 2).conv.weight.detach()[:, :, 0, 0].double()
    torch.manual_seed(0)
    Q = orthogonal_convolution_shortcut(4, 8, 2).conv.weight.detach()[:, :, 0, 0].double()
    torch.testing.assert_close(Q.T @ Q, torch.eye(4).double(), rtol=0, atol=1e-6)
    S = Q.T @ drawn  # a polar decomposition: drawn = Q S with S symmetric and positive
    torch.testing.assert_close(S, S.T, rtol=0, atol=1e-6)
    assert torch.linalg.eigvalsh(S).min() > 0
    torch.testing.assert_close(Q @ S, drawn, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gain", [0.25, 0.5, 2.0])
def test_gains_scale_both_skips_of_the_mnist_network(gain: float) -> None:
    torch.manual_seed(0)
    model = build_model("paper-mnist", arm=f"gain-{gain:g}")
    torch.manual_seed(0)
    plain = build_model("paper-mnist", arm="residual")
    x = torch.randn(2, 5, 12, 12)
    for block, other in ((model.block1, plain.block1), (model.block2, plain.block2)):
        torch.testing.assert_close(block.shortcut(x), gain * other.shortcut(x))
        assert torch.equal(block.branch(x), other.branch(x))


def test_a_gain_of_one_is_the_plain_skip() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(gain_shortcut(4, 4, 1, gain=1.0)(x), x)


@pytest.mark.parametrize("gain", [1.0, RESCALED_GAIN, -2.0])
def test_the_output_gain_multiplies_branch_and_shortcut(gain: float) -> None:
    branch, x = nn.Linear(4, 4), torch.randn(3, 4)
    block = PreActivationBlock(nn.ReLU(), branch, IdentityShortcut(), output_gain=gain)
    assert torch.equal(block(x), gain * (branch(x.relu()) + x))
    assert ("output_gain" in repr(block)) == (gain != 1)


@pytest.mark.parametrize(
    "name", ["paper-mnist", "preact-resnet18", "preact-resnet50", "residual-mlp", "contractive-mlp"]
)
def test_every_builder_passes_an_arms_output_gain_to_all_blocks(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, arm=Arm(modified_shortcut, output_gain=0.5))
    assert {block.output_gain for block in model.modules() if isinstance(block, PreActivationBlock)} == {0.5}


def test_each_block_has_a_random_map_of_its_own_and_each_network_the_same_ones() -> None:
    for arm in ("orthogonal", "rank-deficient"):
        first, again = (build_model("residual-mlp", arm=arm, depth=3) for _ in range(2))
        maps = [block.shortcut.weight for block in first.blocks]
        assert not any(torch.allclose(a, b) for i, a in enumerate(maps) for b in maps[:i])
        assert all(torch.equal(a, block.shortcut.weight) for a, block in zip(maps, again.blocks, strict=True))


def test_a_rank_deficient_skip_has_an_eighth_of_the_width() -> None:
    ranks = {w: build_model("residual-mlp", arm="rank-deficient", width=w).blocks[0].shortcut.rank for w in (64, 6)}
    assert ranks == {64: 8, 6: 1}


@pytest.mark.parametrize("name", ["orthogonal", "dirac", "looks-linear"])
def test_the_factorial_designs_cells_differ_in_one_thing_each(name: str) -> None:
    for skip in ("chain", "residual"):
        torch.manual_seed(0)
        model = build_model("residual-mlp", arm=f"{skip}-{name}", skip_gain=0.5)
        torch.manual_seed(0)
        other = build_model("residual-mlp", arm=skip, skip_gain=0.5, initialisation=name)
        x = torch.randn(5, 784)
        assert torch.equal(model(x), other(x))


def test_odd_widths_rule_out_looks_linear_alone() -> None:
    for arm in arms("residual-mlp"):
        if arm.endswith("looks-linear"):
            with pytest.raises(ModelOptionError, match="pairs channels up"):
                build_model("residual-mlp", arm=arm, width=7)
        else:
            build_model("residual-mlp", arm=arm, width=7)


def blockwise(arm: str, seed: int) -> Tensor:
    """Variance of each block's output and an unbiased estimate of its ``‖J‖_F²/(N n)``, shape ``(depth, 2)``."""
    torch.manual_seed(seed)
    options = {"in_features": 64, "width": 64, "depth": 8, "normaliser": "batch"}
    model, rows = build_model("residual-mlp", arm=arm, **options).double(), []
    x = model.stem(torch.randn(256, 64, dtype=torch.float64))
    for block in model.blocks:
        x = x.detach().requires_grad_()
        y = block(x)
        (pulled,) = torch.autograd.grad(y, x, torch.randn_like(y))
        rows.append([y.var(0).mean().item(), pulled.square().mean().item()])
        x = y
    return torch.tensor(rows)


def last_blocks(arm: str) -> list[float]:
    """Variance and mean square singular value, over the last three blocks and 8 seeds."""
    return torch.stack([blockwise(arm, seed)[-3:] for seed in range(8)]).mean((0, 1)).tolist()


def test_rescaling_gives_the_chains_variance_and_a_jacobian_half_way_to_it() -> None:
    (chain, chain_J), (rescaled, rescaled_J) = last_blocks("chain"), last_blocks("rescaled")
    assert (chain, rescaled) == pytest.approx([(1 / 2 - 1 / (2 * math.pi)) / 3] * 2, rel=0.06)
    assert chain_J == pytest.approx(1 / (1 - 1 / math.pi), rel=0.06)
    assert rescaled_J == pytest.approx((1 / (1 - 1 / math.pi) + 1) / 2, rel=0.06)
    plain, plain_J = last_blocks("residual")
    assert plain > 5 * rescaled
    assert plain_J < rescaled_J < 0.9 * chain_J


def test_the_mnist_networks_dirac_arms_change_what_keeps_its_channels_and_no_more() -> None:
    for skip in ("chain", "residual"):
        torch.manual_seed(0)
        plain = build_model("paper-mnist", arm=skip).state_dict()
        torch.manual_seed(0)
        dirac = build_model("paper-mnist", arm=f"{skip}-dirac").state_dict()
        changed = {key for key in plain if not torch.equal(plain[key], dirac[key])}
        branches = ("block1.branch.0", "block1.branch.3", "block2.branch.3")
        assert changed == {f"{name}.{kind}" for name in branches for kind in ("weight", "bias")}


def _of_shortcut(arm: str) -> torch.Tensor:
    """All singular values of the down-sampling shortcut of one draw of weights."""
    torch.manual_seed(0)
    shortcut = ARMS[arm].shortcut(3, 6, 2).double()
    J = torch.autograd.functional.jacobian(shortcut, torch.randn(1, 3, 4, 4, dtype=torch.float64))
    return torch.linalg.svdvals(J.reshape(24, 48))


def test_pooling_before_a_convolution_keeps_its_singular_values_and_throws_no_pixel_away() -> None:
    plain = _of_shortcut("original")
    torch.testing.assert_close(_of_shortcut("pooled-1x1"), plain)
    torch.testing.assert_close(_of_shortcut("plain-pooled-1x1"), plain / 2)
    torch.testing.assert_close(_of_shortcut("rescaled"), RESCALED_SHORTCUT_GAIN * plain)
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(ARMS["pooled-1x1"].shortcut(3, 6, 2)(x).sum(), x)
    assert (gradient != 0).all()


def test_the_rescaled_shortcuts_have_about_the_scale_of_the_modified_ones() -> None:
    # Neighbouring pixels are alike, as in photographs; of white noise the pool would leave half.
    coarse = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    stds = {}
    for arm in ("original", "modified", "rescaled"):
        torch.manual_seed(1)
        network = build_preact_resnet(18, arm, width=16)
        features = network.stem(images)
        block = network.get_submodule("layer2.0")
        assert isinstance(block, PreActivationBlock)
        with torch.no_grad():
            stds[arm] = float(block.shortcut(block.preactivation(network.layer1(features))).std())
    assert stds["rescaled"] == pytest.approx(2.25 * stds["original"])
    assert stds["rescaled"] == pytest.approx(stds["modified"], rel=0.1)
