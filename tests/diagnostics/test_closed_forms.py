"""Every closed form against the singular values of the dense Jacobian."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diagnostics import jacobian
from diagnostics.closed_forms import (
    average_pooling,
    channel_padding,
    circular_convolution,
    patchwise,
    zero_padded_convolution,
)
from diagnostics.errors import InputError, MemoryBudgetError, NonFiniteError


def dense_values(module: nn.Module, *shape: int) -> np.ndarray:
    """All singular values of a module at one input, by SVD of its Jacobian from the library."""
    J = jacobian(nn.Sequential(module), torch.randn(1, *shape).double(), map="layer", layer="0", dtype=torch.float64)
    return torch.linalg.svdvals(J).numpy()


def check(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(expected[0], 1))


def convolution(*args, seed: int = 0, **options) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(*args, bias=False, dtype=torch.float64, **options)


ZERO_PADDED = {
    "ordinary": ((2, 3, 3), {"padding": 1}, (5, 6)),
    "more inputs than outputs": ((4, 2, 3), {"padding": 1}, (4, 3)),
    "no padding": ((2, 2, 3), {}, (6, 4)),
    "more padding than kernel": ((1, 2, 2), {"padding": 3}, (3, 2)),
    "even rectangular kernel": ((2, 2, (2, 3)), {"padding": (1, 0)}, (4, 5)),
    "1×1": ((3, 5, 1), {}, (3, 4)),
    "1×1 strided": ((3, 5, 1), {"stride": 2}, (6, 4)),
    "1×1 strided, odd sides": ((5, 3, 1), {"stride": (2, 3)}, (5, 7)),
    "1×1 padded": ((2, 3, 1), {"padding": 1, "stride": 2}, (4, 5)),
    "disjoint patches": ((2, 5, 2), {"stride": 2}, (6, 4)),
    "disjoint patches with gaps": ((2, 3, 2), {"stride": 3}, (8, 7)),
    "disjoint patches cut by the border": ((2, 3, 3), {"stride": 3, "padding": 1}, (7, 6)),
    "overlapping strided": ((2, 3, 3), {"stride": 2, "padding": 1}, (6, 5)),
    "disjoint one way only": ((2, 2, (3, 2)), {"stride": (1, 2)}, (5, 6)),
    "dilated": ((2, 2, 3), {"dilation": 2, "padding": 2}, (6, 5)),
    "dilated and strided": ((2, 3, 2), {"dilation": (3, 2), "stride": 2, "padding": 1}, (7, 6)),
    "grouped": ((4, 6, 3), {"groups": 2, "padding": 1}, (4, 3)),
    "depthwise": ((3, 3, 3), {"groups": 3, "padding": 1}, (5, 4)),
    "depthwise multiplied": ((2, 6, 3), {"groups": 2, "padding": 1, "stride": 2}, (5, 4)),
    "row kernel": ((2, 2, (1, 3)), {"padding": (0, 1)}, (4, 6)),
    "outputs that read padding only": ((1, 1, 1), {"padding": 2, "stride": 2}, (3, 3)),
}


@pytest.mark.parametrize(("args", "options", "size"), ZERO_PADDED.values(), ids=ZERO_PADDED)
def test_a_zero_padded_convolution(args, options, size) -> None:
    module = convolution(*args, **options)
    check(zero_padded_convolution(module.weight, size, **options), dense_values(module, args[0], *size))


SIDES = st.integers(1, 6)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 2),
    size=st.tuples(SIDES, SIDES),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 99),
)
def test_any_zero_padded_convolution(channels, groups, size, kernel, stride, padding, dilation, seed) -> None:
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    c_in, c_out = (groups * c for c in channels)
    module = convolution(c_in, c_out, kernel, seed=seed, **options)
    if any(d * (k - 1) >= n + 2 * p for d, k, n, p in zip(dilation, kernel, size, padding, strict=True)):
        with pytest.raises(InputError, match="larger than the padded image"):
            zero_padded_convolution(module.weight, size, **options)
        return
    check(zero_padded_convolution(module.weight, size, **options), dense_values(module, c_in, *size))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_that_is_a_product_needs_no_dense_matrix(stride: int) -> None:
    torch.manual_seed(0)
    mix, u, v = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 2), (3,), (4,)))
    module = convolution(2, 3, (3, 4), stride=stride, padding=1)
    module.weight.data = torch.einsum("oi,y,x->oiyx", mix, u, v)
    found = zero_padded_convolution(module.weight, (6, 7), stride=stride, padding=1, memory_budget=0)
    check(found, dense_values(module, 2, 6, 7))


def test_a_kernel_that_is_nearly_a_product_is_not_taken_for_one() -> None:
    module = convolution(2, 3, 3, padding=1)
    noise, u = module.weight.data, torch.randn(3, dtype=torch.float64)
    module.weight.data = torch.einsum("oi,y,x->oiyx", noise[:, :, 0, 0], u, u) + 1e-9 * noise
    check(zero_padded_convolution(module.weight, (4, 5), padding=1), dense_values(module, 2, 4, 5))


def test_a_delta_orthogonal_convolution_is_an_isometry_at_any_size() -> None:
    weight = torch.zeros(64, 64, 3, 3)
    weight[:, :, 1, 1] = nn.init.orthogonal_(torch.empty(64, 64))
    values = zero_padded_convolution(weight, (32, 32), padding=1)
    assert values.shape == (64 * 32 * 32,)
    np.testing.assert_allclose(values, 1, atol=1e-6)  # the float32 weight is orthogonal to 1e-7


def test_a_strided_1x1_convolution_has_the_values_of_its_weight_and_zeros() -> None:
    weight = torch.randn(8, 4, 1, 1, dtype=torch.float64)
    values = zero_padded_convolution(weight, (32, 32), stride=2)
    of_weight = np.repeat(torch.linalg.svdvals(weight[:, :, 0, 0]).numpy(), 16 * 16)
    np.testing.assert_allclose(values[: 4 * 256], of_weight, rtol=1e-12)
    assert values.shape == (8 * 256,)
    assert not values[4 * 256 :].any()


def test_equal_blocks_are_decomposed_once(monkeypatch) -> None:
    seen = []
    svdvals = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda A: seen.append(A.shape) or svdvals(A))
    zero_padded_convolution(torch.randn(5, 2, 3, 3), (30, 30), stride=3)
    assert len(seen) == 1


def test_a_convolution_without_structure_has_a_limit_and_says_what_else_there_is() -> None:
    with pytest.raises(MemoryBudgetError, match=r"65536×65536.*memory_budget.*method='lanczos'"):
        zero_padded_convolution(torch.randn(64, 64, 3, 3), (32, 32), padding=1)


CIRCULAR = {
    "square": ((2, 2, 3), (5, 4), {}),
    "more inputs than outputs": ((4, 2, 3), (3, 6), {}),
    "more outputs than inputs": ((2, 4, 3), (4, 4), {}),
    "kernel of the image's size": ((2, 3, (5, 3)), (5, 3), {}),
    "kernel wraps twice": ((2, 2, 7), (3, 2), {}),
    "one pixel": ((2, 3, 3), (1, 1), {}),
    "stride 2": ((2, 3, 3), (6, 4), {"stride": 2}),
    "stride 2 of few outputs": ((3, 2, 3), (4, 4), {"stride": 2}),
    "uneven stride": ((2, 3, (3, 5)), (6, 8), {"stride": (3, 2)}),
    "stride of the image": ((2, 3, 3), (3, 4), {"stride": (3, 4)}),
    "dilated": ((2, 2, 3), (5, 6), {"dilation": 2}),
    "dilated to wrap": ((2, 2, 3), (3, 4), {"dilation": (3, 2)}),
    "grouped": ((4, 6, 3), (4, 3), {"groups": 2}),
    "everything": ((4, 2, (3, 1)), (4, 6), {"groups": 2, "stride": 2, "dilation": (2, 1)}),
}


class Circular(nn.Module):
    """A circular convolution as a sum of shifted copies of the image, for kernels of any size."""

    def __init__(self, weight: torch.Tensor, stride=1, dilation=1, groups=1) -> None:
        super().__init__()
        self.weight, self.groups = nn.Parameter(weight), groups
        self.stride, self.dilation = (n if isinstance(n, tuple) else (n, n) for n in (stride, dilation))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = 0
        for a in range(self.weight.shape[2]):
            for b in range(self.weight.shape[3]):
                shifted = x.roll((-a * self.dilation[0], -b * self.dilation[1]), (2, 3))
                y = y + nn.functional.conv2d(shifted, self.weight[:, :, a : a + 1, b : b + 1], groups=self.groups)
        return y[:, :, :: self.stride[0], :: self.stride[1]]


@pytest.mark.parametrize(("args", "size", "options"), CIRCULAR.values(), ids=CIRCULAR)
def test_a_circular_convolution(args, size, options) -> None:
    weight = convolution(*args, groups=options.get("groups", 1)).weight.detach()
    check(circular_convolution(weight, size, **options), dense_values(Circular(weight, **options), args[0], *size))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_circular_convolution_of_pytorch(stride: int) -> None:
    module = convolution(2, 3, 3, stride=stride, padding=1, padding_mode="circular")
    check(circular_convolution(module.weight, (6, 4), stride=stride), dense_values(module, 2, 6, 4))


def test_the_blocks_of_a_circular_convolution_come_in_chunks_that_change_nothing(monkeypatch) -> None:
    weight = convolution(2, 3, 3).weight
    whole = circular_convolution(weight, (6, 10), stride=2)
    monkeypatch.setattr("diagnostics.closed_forms._BLOCK_ENTRIES", 50)
    np.testing.assert_allclose(circular_convolution(weight, (6, 10), stride=2), whole, atol=1e-14)


def test_zero_and_circular_padding_differ() -> None:
    weight = convolution(2, 2, 3).weight
    assert abs(circular_convolution(weight, (4, 4)) - zero_padded_convolution(weight, (4, 4), padding=1)).max() > 0.01


POOLS = {
    "disjoint": ((6, 4), 2, {}),
    "rectangular": ((6, 4), (3, 2), {}),
    "leftover pixels": ((7, 5), 2, {}),
    "overlapping": ((5, 6), 3, {"stride": 1}),
    "overlapping and padded": ((6, 5), 3, {"stride": 2, "padding": 1}),
    "gaps": ((8, 7), 2, {"stride": 3}),
    "global": ((4, 5), (4, 5), {}),
}


@pytest.mark.parametrize(("size", "kernel", "options"), POOLS.values(), ids=POOLS)
def test_average_pooling(size, kernel, options) -> None:
    found = average_pooling(size, kernel, channels=2, **options)
    check(found, dense_values(nn.AvgPool2d(kernel, **options), 2, *size))


def test_s_times_disjoint_average_pooling_of_s_has_only_ones() -> None:
    for s in (2, 3, 4):
        values = s * average_pooling((12, 24), s, channels=5)
        assert values.shape == (5 * 12 * 24 // s**2,)
        np.testing.assert_allclose(values, 1, rtol=1e-14)


def test_channel_padding() -> None:
    module = nn.ZeroPad3d((0, 0, 0, 0, 2, 1))
    check(channel_padding((2, 3), 2, (2, 1)), dense_values(module, 2, 2, 3))


def test_a_map_of_patches_with_outputs_and_inputs_in_none() -> None:
    matrix = torch.randn(3, 4, dtype=torch.float64)
    dense = torch.block_diag(matrix, matrix, torch.zeros(2, 5, dtype=torch.float64))
    check(patchwise(matrix, 2, rows=8, cols=13), torch.linalg.svdvals(dense).numpy())
    check(patchwise(matrix.T, 2), np.repeat(torch.linalg.svdvals(matrix).numpy(), 2))
    assert not patchwise(torch.zeros(2, 3), 2).any()


@pytest.mark.parametrize("shape", [(3, 70), (70, 3), (40, 40)])
def test_small_values_are_resolved_to_rounding_of_the_largest(shape) -> None:
    """Through the Gram matrix they would not be: 1e-10 squared is under the rounding of 1."""
    torch.manual_seed(0)
    k = min(shape)
    U, V = (torch.linalg.qr(torch.randn(n, k, dtype=torch.float64)).Q for n in shape)
    expected = torch.logspace(0, -10, k, dtype=torch.float64)
    found = patchwise(U * expected @ V.T, 1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=0)


def test_float32_weights_and_weights_that_require_gradients_are_taken_as_they_are() -> None:
    weight = nn.Conv2d(2, 3, 3).weight
    before = weight.detach().clone()
    expected = zero_padded_convolution(weight.detach().double(), (4, 4), padding=1)
    np.testing.assert_array_equal(zero_padded_convolution(weight, (4, 4), padding=1), expected)
    assert torch.equal(weight, before)
    assert weight.grad is None


def test_bad_input_is_named() -> None:
    weight = torch.randn(4, 2, 3, 3)
    with pytest.raises(InputError, match="stride 2×2 needs a size it divides, not 5×4"):
        circular_convolution(weight, (5, 4), stride=2)
    for function in (circular_convolution, zero_padded_convolution):
        with pytest.raises(InputError, match="3 groups do not divide 4 output channels"):
            function(weight, (4, 4), groups=3)
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            function(weight / 0, (4, 4))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        patchwise(torch.full((2, 2), math.nan), 3)
    with pytest.raises(InputError, match=r"\(-1, 3\) is no padding"):
        channel_padding((2, 2), 4, (-1, 3))
