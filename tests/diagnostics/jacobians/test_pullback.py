"""Products by one kept graph against plain autograd, row by row: many functions, and what forward mode gets wrong."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.pullback import Pullback
from skip_conditioning.diagnostics.networks.maps import Map

REAL = torch.float64


def tensor(*shape, seed=0):
    return torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


POINT, WEIGHT = tensor(3, 4), tensor(4, 4, seed=2)


def in_place_after(first, *changes):
    """``changes`` applied one after another to the result of ``first``, for what they write."""

    def function(x):
        h = first(x)
        for change in changes:
            change(h, x)
        return h

    return function


def writes_through_a_view(x):
    h = x.sin()
    rows, flat = h[1:], h.view(-1)
    rows.mul_(x[1:])
    flat[:5].add_(x.view(-1)[3:8])
    return h * rows.sum()


def view_sees_later_writes(x):
    h = x.sin()
    transposed = h.T
    h.mul_(x)
    return transposed.exp()


def copy_of_a_view_written_to_later(x):
    h = x.sin()
    kept = h[:, 1:].to(x.dtype, copy=True)
    h.mul_(3)
    return kept * h[:, 1:]


def flat_copy_written_to_later(x):
    h = x.sin()
    kept = h.view(-1).to(x.dtype, copy=True)
    h.mul_(x)
    return kept + h.view(-1)


def view_plus_one_written_to_later(x):
    h = x.sin()
    kept = h[:, 1:] + 1
    h.mul_(3)
    return kept * h[:, 1:]


def copy_written_through_a_view(x):
    h = x.sin()
    copied = h.to(x.dtype, copy=True)
    copied[:, 1].mul_(2)
    return copied + h * copied


def expansion_written_to(x):
    h = x.sin()
    h.expand(3, 4).mul_(x)
    return h


def packed_copy_of_an_expansion(x):
    packed = x[:, None].expand(-1, 3, -1).to(memory_format=torch.contiguous_format, copy=True)
    return packed.view(3, -1)


def follows_the_data(x):
    while x.abs().max() < 20:
        x = x * 1.7 + x.sin()
    return x.sin() if x.sum() > 0 else x.cos()


def seeded(make):
    """A module in float64 whose weights are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


def attention(x):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(x[None, None], (x @ WEIGHT)[None, None], x[None, None], is_causal=True)


ATTENTION = seeded(lambda: nn.MultiheadAttention(4, 2, batch_first=True))


def scale_without_gradient(x):
    with torch.no_grad():
        scale = x.pow(2).mean(1, keepdim=True).rsqrt()
    return x * scale


def hooked(x):
    h = x.sin()
    if h.requires_grad:
        h.register_hook(lambda gradient: 3 * gradient)
    return h * x


def bordered(x):
    return torch.cat([x[:, :2], torch.zeros(3, 2, dtype=REAL)], dim=1)


FUNCTIONS = {
    # Forward mode has other derivatives of these than training has, or ends the process.
    "no gradient inside": scale_without_gradient,
    "hook on a tensor": hooked,
    "PReLU at zero": lambda x: F.prelu(bordered(x), torch.tensor([0.3], dtype=REAL)),
    "sum with a factor": lambda x: torch.add(x, WEIGHT[:3], alpha=0.5).sin(),
    "product with a factor": lambda x: torch.addmm(WEIGHT[:3], x, WEIGHT, alpha=0.3, beta=0.5),
    "batched product without a sum": lambda x: torch.baddbmm(WEIGHT[None, :3], x[None], WEIGHT[None], beta=0),
    "product of constants with a factor": lambda x: torch.addcmul(x, WEIGHT[:3], WEIGHT[1:], value=0.5),
    "power of two": lambda x: torch.ldexp(x, torch.tensor(2)),
    "padded embedding": lambda x: F.embedding(torch.tensor([0, 1, 0, 2]), x, padding_idx=0) ** 2,
    "identity": lambda x: x,
    "view": lambda x: x.view(-1),
    "transposition": lambda x: x.T,
    "expansion": lambda x: x[:, None].expand(3, 2, 4),
    "adds zeros": lambda x: x + torch.zeros(4, dtype=REAL),
    "without gradient": lambda x: x * x.detach().mean(),
    "in-place chain": in_place_after(torch.sin, lambda h, x: h.add_(x), lambda h, x: h.mul_(x)),
    "in-place modules": seeded(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 4), nn.SiLU(inplace=True))
    ),
    "row set": in_place_after(torch.clone, lambda h, x: h.__setitem__(0, 1.0), lambda h, x: h.mul_(h.clone())),
    "column set": in_place_after(torch.clone, lambda h, x: h.__setitem__((slice(None), 0), x[:, 1])),
    "entries set": in_place_after(
        torch.sin, lambda h, x: h.__setitem__((torch.tensor([0, 2]), torch.tensor([1, 1])), x[0, :2])
    ),
    "written into zeros": in_place_after(torch.zeros_like, lambda h, x: h[:, :2].copy_(x[:, 2:].sin())),
    "written into ones": in_place_after(torch.ones_like, lambda h, x: h.mul_(x), lambda h, x: h.add_(x.sin())),
    "diagonal filled": in_place_after(lambda x: x @ x.T, lambda h, x: h.fill_diagonal_(0.0)),
    "writes through a view": writes_through_a_view,
    "view sees later writes": view_sees_later_writes,
    "copy of a view written to later": copy_of_a_view_written_to_later,
    "flat copy written to later": flat_copy_written_to_later,
    "view plus one written to later": view_plus_one_written_to_later,
    "copy written through a view": copy_written_through_a_view,
    "expansion written to": expansion_written_to,
    "packed copy of an expansion": packed_copy_of_an_expansion,
    "dropout": lambda x: F.dropout(x.sin() @ WEIGHT, 0.5),
    "dropout module": seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))),
    "attention": attention,
    "multi-head attention": lambda x: ATTENTION(x[None], x[None], x[None])[0],
    "batch norm": seeded(lambda: nn.BatchNorm1d(4, track_running_stats=False)),
    "batch norm in eval mode": seeded(lambda: nn.BatchNorm1d(4).eval()),
    "layer and group norm": seeded(lambda: nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4))),
    "weight norm by parametrisation": seeded(lambda: parametrizations.weight_norm(nn.Linear(4, 3))),
    "convolution": lambda x: F.conv1d(x[:, None], tensor(2, 1, 3), tensor(2), padding=1),
    "pooling": lambda x: F.max_pool1d(x[None], 2) + F.avg_pool1d(x[None], 2),
    "follows the data": follows_the_data,
    "concatenation": lambda x: torch.cat([x, x.sin(), torch.ones(3, 1, dtype=REAL)], dim=1),
    "stack": lambda x: torch.stack([x.sin(), x, x.T.reshape(3, 4)]),
    "chunks": lambda x: torch.cat([part * part.sum() for part in x.chunk(3, dim=1)]),
    "fancy index": lambda x: x[torch.tensor([[0, 1], [2, 2]]), torch.tensor([1, 3])],
    "boolean index": lambda x: x[x > 0].exp(),
    "scatter": lambda x: torch.zeros(5, 4, dtype=REAL).index_add(0, torch.tensor([0, 0, 4]), x * x),
    "where": lambda x: torch.where(x > 0, x.sin(), 2 * x),
    "masked fill": lambda x: x.masked_fill(x > 0, -1.0),
    "cumulative": lambda x: x.cumsum(0) * x.cumprod(1),
    "einsum": lambda x: torch.einsum("ij,kj,ik->ik", x, x, x @ x.T),
    "fourier": lambda x: torch.fft.rfft(x).abs() + torch.fft.ifft(torch.fft.fft(x)[:, :3]).real,
    "complex": lambda x: torch.view_as_real(torch.complex(x, x.sin()).conj() ** 2),
    "normalised": lambda x: x / x.norm(dim=1, keepdim=True),
    "softmax": lambda x: x.softmax(1) * x.logsumexp(1, keepdim=True),
    "loss": lambda x: F.cross_entropy(x, torch.tensor([0, 1, 3]))[None],
    "sorted": lambda x: x.sort(1)[0] + x.max(1, keepdim=True)[0],
    "linear algebra": lambda x: torch.linalg.solve(x[:, :3], x) * torch.linalg.det(x @ x.T),
    "single precision inside": lambda x: x.float().sin().double(),
}


def rows_of(function):
    """The Jacobian by plain autograd, one row at a time."""
    torch.manual_seed(5)
    point = POINT.clone().requires_grad_()
    output = function(point).flatten()
    zeros = torch.zeros_like(point)
    rows = [torch.autograd.grad(value, point, retain_graph=True, allow_unused=True)[0] for value in output]
    return torch.stack([(zeros if row is None else row).flatten() for row in rows])


def pullback(function, budget=2**20):
    torch.manual_seed(5)
    shape = function(POINT.clone()).shape
    torch.manual_seed(5)
    return Pullback(Map("network", "network", function, POINT.clone(), shape, 64), budget, twice=True)


@pytest.mark.parametrize("budget", [1, 2**20], ids=["one at a time", "in blocks"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_are_those_of_plain_autograd(name, budget):
    expected, product = rows_of(FUNCTIONS[name]), pullback(FUNCTIONS[name], budget)
    u, v = tensor(3, len(expected), seed=3), tensor(2, expected.shape[1], seed=4)
    tolerance = {"rtol": 1e-10, "atol": 1e-6 if name == "single precision inside" else 1e-12}
    torch.testing.assert_close(product(u), u @ expected, **tolerance)
    torch.testing.assert_close(product.forward(v), v @ expected.T, **tolerance)


def test_a_product_changes_neither_its_vectors_nor_the_ones_after(nothing_changes):
    product = pullback(FUNCTIONS["writes through a view"])
    u, v = tensor(2, 12, seed=3), tensor(2, 12, seed=4)
    kept = u.clone(), v.clone()
    first = product(u), product.forward(v)
    assert all(torch.equal(one, other) for one, other in zip(first, (product(u), product.forward(v)), strict=True))
    assert torch.equal(u, kept[0])
    assert torch.equal(v, kept[1])


CONVOLUTIONS = {
    "1d": (F.conv1d, (2, 4, 9), (6, 4, 3), {"padding": 1}),
    "strided": (F.conv2d, (2, 3, 7, 6), (4, 3, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    "dilated groups": (F.conv2d, (2, 4, 8, 8), (6, 2, 3, 3), {"dilation": 2, "groups": 2}),
    "depthwise": (F.conv2d, (2, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, "padding": "same"}),
    "3d": (F.conv3d, (1, 2, 4, 4, 4), (3, 2, 2, 2, 2), {}),
}


def in_all(function, *arguments):
    """The map of all arguments at once, as a vector, and its point."""
    sizes, point = [given.numel() for given in arguments], torch.cat([given.flatten() for given in arguments])

    def flat(point):
        parts = point.split(sizes)
        return function(*(part.view(given.shape) for part, given in zip(parts, arguments, strict=True)))

    return flat, point


def assert_products(function, point):
    point.requires_grad_()
    output = function(point)
    expected = torch.stack([torch.autograd.grad(y, point, retain_graph=True)[0] for y in output.flatten()])
    product = Pullback(Map("param", "all", function, point.detach(), output.shape, point.numel()), 2**24, twice=True)
    u, v = tensor(2, len(expected), seed=3), tensor(2, len(point), seed=4)
    torch.testing.assert_close(product(u), u @ expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(product.forward(v), v @ expected.T, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_in_input_weight_and_bias(case):
    convolve, x, weight, options = CONVOLUTIONS[case]
    given = tensor(*x), tensor(*weight, seed=1), tensor(weight[0], seed=2)
    assert_products(*in_all(lambda x, w, b: convolve(x, w, b, **options), *given))
    assert_products(*in_all(lambda b: convolve(given[0], given[1], b, **options), given[2]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2)])
def test_batch_norm_in_input_gain_and_shift(shape, training):
    statistics = tensor(3, seed=1), tensor(3, seed=2).abs() + 0.5
    norm = lambda *given: F.batch_norm(given[0], *(s.clone() for s in statistics), *given[1:], training=training)  # noqa: E731
    assert_products(*in_all(norm, tensor(*shape), tensor(3, seed=3), tensor(3, seed=4)))
    assert_products(*in_all(norm, tensor(*shape)))


@pytest.mark.parametrize("function", [lambda x: torch.ones(2, dtype=REAL), lambda x: x.detach() * 2])
def test_a_constant_is_refused_by_name(function):
    with pytest.raises(UnsupportedModelError, match="the network map of 'network' is constant"):
        pullback(function)
