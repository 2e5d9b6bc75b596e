"""Recorded forward modes against ``torch.func.jvp``: many functions, what they write to, and what is refused."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

from skip_conditioning.diagnostics.jacobians.forward_mode import NotLinearizableError, linearize

REAL = torch.float64


def tensor(*shape, seed=0):
    return torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


POINT, VECTORS, WEIGHT = tensor(3, 4), tensor(5, 3, 4, seed=1), tensor(4, 4, seed=2)


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


def split_in_place(x):
    h = x.clone()
    first, second = h[:, :2], h[:, 2:]
    second.add_(first.sin())
    first.mul_(3)
    return torch.cat([second, first, h[:, 1:3]])


def seeded(make):
    """A module in float64 whose weights are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


def attention(x):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(x[None, None], (x @ WEIGHT)[None, None], x[None, None], is_causal=True)


ATTENTION = seeded(lambda: nn.MultiheadAttention(4, 2, batch_first=True))
RECURRENT = seeded(lambda: nn.LSTM(4, 3, batch_first=True))

FUNCTIONS = {
    "identity": lambda x: x,
    "view": lambda x: x.view(-1),
    "transposition": lambda x: x.T,
    "expansion": lambda x: x[:, None].expand(3, 2, 4),
    "adds zeros": lambda x: x + torch.zeros(4, dtype=REAL),
    "constant": lambda x: torch.ones(2, dtype=REAL),
    "constant from the point": lambda x: x.detach() * 2,
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
    "split in place": split_in_place,
    "dropout": lambda x: F.dropout(x.sin() @ WEIGHT, 0.5),
    "dropout module": seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))),
    "noise": lambda x: x * torch.randn(3, 4, dtype=REAL),
    "attention": attention,
    "multi-head attention": lambda x: ATTENTION(x[None], x[None], x[None])[0],
    "recurrent": lambda x: RECURRENT(x[None])[0],
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
#: Those that hand out their argument, write to what they made, or draw: what a second product could find changed.
WITH_MEMORY = (
    "identity",
    "view",
    "expansion",
    "constant",
    "in-place chain",
    "in-place modules",
    "column set",
    "written into zeros",
    "writes through a view",
    "view sees later writes",
    "copy of a view written to later",
    "expansion written to",
    "split in place",
    "dropout",
    "noise",
    "attention",
    "batch norm",
    "follows the data",
)


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


def linearized(function, point=POINT):
    torch.manual_seed(5)
    return linearize(function, point.clone())


def expected(function, vectors=VECTORS):
    """Products by a new forward mode each, dropout seeded alike."""
    products = []
    for vector in vectors:
        torch.manual_seed(5)
        products.append(jvp(function, (POINT.clone(),), (vector.clone(),))[1])
    return torch.stack(products)


def assert_close(found, true):
    torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-12)


def test_products_are_those_of_forward_mode(function):
    product, true = linearized(function), expected(function)
    with torch.no_grad():
        assert_close(torch.stack([product(vector) for vector in VECTORS]), true)
        assert_close(vmap(product)(VECTORS), true)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_product_changes_neither_its_vector_nor_the_one_before_nor_the_random_stream(name, nothing_changes):
    product, vectors = linearized(FUNCTIONS[name]), VECTORS.clone()
    with nothing_changes(x=vectors):
        first = product(vectors[0])
        kept = first.clone()
        product(vectors[1])
        assert torch.equal(first, kept)
        assert torch.equal(product(vectors[0]), kept)


@pytest.mark.parametrize(
    ("name", "scale"), [("split in place", 1e-10), ("dropout", 1e-10), ("single precision inside", 1e-6)]
)
def test_the_derivative_is_linear(name, scale):
    product = linearized(FUNCTIONS[name])
    one, two = VECTORS[:2]
    torch.testing.assert_close(product(2 * one - 3 * two), 2 * product(one) - 3 * product(two), rtol=scale, atol=scale)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.exp_(), lambda x: x.mul_(x + 1).sin(), lambda x: F.relu(x, inplace=True), lambda x: x.zero_() + 1],
    ids=["exp", "mul", "relu", "zero"],
)
def test_a_function_that_writes_its_argument_leaves_the_vector_alone(change):
    product, vectors = linearized(change), VECTORS.clone()
    true = expected(change)
    assert_close(torch.stack([product(vector) for vector in vectors]), true)
    assert torch.equal(vectors, VECTORS)


def test_dropout_has_one_mask_and_another_when_linearized_anew():
    dropped = lambda x: F.dropout(x, 0.5)  # noqa: E731
    product, ones = linearized(dropped), torch.ones(3, 4, dtype=REAL)
    mask = product(ones)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(product(3 * ones), 3 * mask)
    assert not torch.equal(linearize(dropped, POINT)(ones), mask)


def test_the_function_runs_once():
    calls = []

    def counted(x):
        calls.append(1)
        return x.sin()

    product = linearize(counted, POINT)
    product(VECTORS[0]), product(VECTORS[1])
    assert calls == [1]


def test_batch_norm_in_train_mode_needs_buffers_of_its_own():
    module = seeded(lambda: nn.BatchNorm1d(4))
    with pytest.raises(NotLinearizableError):  # its running statistics are not functorch's
        linearize(module, POINT)

    def pure(x):
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, buffers, (x,))

    product = linearized(pure)
    assert_close(torch.stack([product(vector) for vector in VECTORS]), expected(pure))


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def overwrites_what_it_needs(x):
    scale = torch.ones(4, dtype=REAL)
    y = x * scale
    scale.mul_(3)
    return y * scale


def overwrites_its_data(x):
    scale = torch.ones(4, dtype=REAL)
    y = x * scale
    scale.data.mul_(3)
    return y * scale


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (NoForwardMode.apply, "jvp"),
        (lambda x: torch.cdist(x, x + 1), "forward AD"),
        (lambda x: torch._weight_norm(x, torch.ones(3, 1, dtype=REAL), 0), "forward AD"),
        (overwrites_what_it_needs, "overwritten in place"),
        (overwrites_its_data, "overwritten in place"),
    ],
    ids=["custom", "operator", "weight norm", "overwritten", "overwritten data"],
)
def test_what_cannot_be_recorded_is_refused(function, message):
    with pytest.raises(NotLinearizableError, match=message):
        linearize(function, POINT)


def test_errors_of_the_function_itself_come_through():
    def broken(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        linearize(broken, POINT)
