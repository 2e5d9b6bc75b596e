"""Every shortcut against the singular values and the formula that it promises."""

import pytest
import torch
from torch import Tensor, nn

from skip_conditioning.models import (
    ConvolutionShortcut,
    IdentityShortcut,
    NoShortcut,
    OrthogonalShortcut,
    PartialIsometryShortcut,
    PooledIdentityShortcut,
    ScaledShortcut,
    SumShortcut,
)


def singular_values(shortcut: nn.Module, *shape: int) -> Tensor:
    """All singular values (zeros included) of a shortcut's Jacobian at a random input, in float64."""
    x = torch.randn(1, *shape, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(shortcut.double(), x)
    return torch.linalg.svdvals(J.flatten(4 if len(shape) == 3 else 2).flatten(0, -2))


SPECTRA = [
    ("none", NoShortcut(2, 3, 2), (2, 4, 4), 0, 0.0),
    ("none-vector", NoShortcut(5, 5), (5,), 0, 0.0),
    ("identity", IdentityShortcut(), (2, 4, 4), 32, 1.0),
    ("scaled", ScaledShortcut(IdentityShortcut(), -0.25), (2, 4, 4), 32, 0.25),
    ("pooled", PooledIdentityShortcut(2, 5, 3), (2, 6, 6), 8, 1.0),
    ("pooled-stride-1", PooledIdentityShortcut(2, 5, 1), (2, 3, 3), 18, 1.0),
    ("orthogonal", OrthogonalShortcut(3), (3, 4, 4), 48, 1.0),
    ("orthogonal-vector", OrthogonalShortcut(7), (7,), 7, 1.0),
    ("isometry-like-pool", PartialIsometryShortcut(2, 5, 3), (2, 6, 6), 8, 1.0),
    ("isometry-wide", PartialIsometryShortcut(2, 6, 2, rank=6), (2, 4, 4), 24, 1.0),
    ("isometry-deficient", PartialIsometryShortcut(4, 4, rank=1), (4, 3, 3), 9, 1.0),
    ("isometry-vector", PartialIsometryShortcut(5, 3, rank=2), (5,), 2, 1.0),
    ("isometry-zero", PartialIsometryShortcut(5, 3, rank=0), (5,), 0, 1.0),
    ("sum", SumShortcut(a=IdentityShortcut(), b=ScaledShortcut(IdentityShortcut(), 2.0)), (2, 2, 2), 8, 3.0),
]


@pytest.mark.parametrize(
    ("shortcut", "shape", "rank", "value"), [case[1:] for case in SPECTRA], ids=[case[0] for case in SPECTRA]
)
def test_singular_values(shortcut: nn.Module, shape: tuple[int, ...], rank: int, value: float) -> None:
    values = singular_values(shortcut, *shape)
    expected = torch.zeros_like(values)
    expected[:rank] = value
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-13)


def test_the_convolution_shortcut_reads_one_pixel_in_s_squared_with_its_weight() -> None:
    shortcut = ConvolutionShortcut(2, 4, 2)
    values = singular_values(shortcut, 2, 4, 4)
    of_weight = torch.linalg.svdvals(shortcut.weight.detach().double()[:, :, 0, 0])
    torch.testing.assert_close(values[:8], of_weight.repeat_interleave(4))
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    unread = x.clone()
    unread[:, :, 1::2] += 1
    assert torch.equal(shortcut(x), shortcut(unread))


def test_the_pooled_identity_is_s_times_the_mean_of_each_patch_between_zero_channels() -> None:
    x = torch.arange(5 * 36.0).reshape(1, 5, 6, 6)
    y = PooledIdentityShortcut(5, 20, 3)(x)
    assert y.shape == (1, 20, 2, 2)
    assert not y[:, :7].any()
    assert not y[:, 12:].any()
    assert y[0, 7, 0, 1].item() == pytest.approx(3 * x[0, 0, :3, 3:].mean().item())
    given = PooledIdentityShortcut(5, 20, 3, padding=(0, 15))(x)
    torch.testing.assert_close(given[:, :5], y[:, 7:12])


def test_a_gain_scales_the_convolution_and_a_gain_of_zero_leaves_it_unused() -> None:
    full, half, off = (ConvolutionShortcut(3, 4, 3, bias=True, gain=gain) for gain in (1.0, 0.5, 0.0))
    half.load_state_dict(full.state_dict())
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(half(x), 0.5 * full(x))
    off.weight.data.fill_(torch.nan)
    assert torch.equal(off(x), torch.zeros_like(full(x)))


@pytest.mark.parametrize("make", [OrthogonalShortcut, lambda c, seed: PartialIsometryShortcut(c, 2 * c, 2, seed=seed)])
def test_fixed_maps_come_from_their_seed_and_from_nowhere_else(make, nothing_changes) -> None:
    with nothing_changes():
        first, again, other = make(4, seed=1), make(4, seed=1), make(4, seed=2)
    assert torch.equal(first.weight, again.weight)
    assert not torch.allclose(first.weight, other.weight)
    assert not first.state_dict()
    assert not list(first.parameters())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("factory", [NoShortcut, ConvolutionShortcut, PooledIdentityShortcut, PartialIsometryShortcut])
def test_all_factories_agree_on_the_output_shape_and_keep_the_dtype(factory, stride: int) -> None:
    for dtype in (torch.float32, torch.float64):
        y = factory(3, 8, stride).to(dtype)(torch.randn(2, 3, 6, 4, dtype=dtype))
        assert y.shape == (2, 8, 6 // stride, 4 // stride)
        assert y.dtype == dtype


@pytest.mark.parametrize("factory", [PooledIdentityShortcut, PartialIsometryShortcut])
def test_images_that_the_patches_do_not_tile_are_refused(factory) -> None:
    with pytest.raises(ValueError, match=r"multiples of 2, not 7×8"):
        factory(3, 8, 2)(torch.randn(2, 3, 7, 8))


def test_impossible_shortcuts_are_refused() -> None:
    with pytest.raises(ValueError, match="do not make 4 channels out of 8"):
        PooledIdentityShortcut(8, 4, 2)
    with pytest.raises(ValueError, match=r"\(1, 1\) do not make 8 channels out of 4"):
        PooledIdentityShortcut(4, 8, padding=(1, 1))
    with pytest.raises(ValueError, match="rank 5 is not between 0 and 4"):
        PartialIsometryShortcut(4, 4, rank=5)
    with pytest.raises(ValueError, match="at least one term"):
        SumShortcut()
