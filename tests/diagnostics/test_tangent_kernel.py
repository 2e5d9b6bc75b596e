"""The tangent kernel of networks that do unusual things, its options, and what it refuses."""

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diagnostics import kernel_rules, tangent_kernel
from diagnostics.errors import (
    InputError,
    LayerCallError,
    MemoryBudgetError,
    NonFiniteError,
    UnknownLayerError,
    UnsupportedModelError,
)
from diagnostics.kernel_batch import Batch

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """A network and its input.

    Attributes:
        build: Makes the network, after the random stream was seeded.
        shape: Shape of the input.
        tokens: Size of the vocabulary of an integer input; 0 for a real one.
        interact: Whether the samples of a batch do.
    """

    id: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 4)
    tokens: int = 0
    interact: bool = False

    def make(self):
        torch.manual_seed(sum(map(ord, self.id)))
        model = self.build().double()
        return model, torch.randint(self.tokens, self.shape) if self.tokens else torch.randn(self.shape, dtype=F64)


def trainable(model, block):
    """The trainable parameters of a module, or one of them, or all."""
    named = model.named_parameters(remove_duplicate=False)
    inside = (part for name, part in named if block == "total" or f"{name}.".startswith(f"{block}."))
    return list(dict.fromkeys(part for part in inside if part.requires_grad))


def logits_of(output):
    output = output["logits"] if isinstance(output, dict) else output
    return output[0] if isinstance(output, tuple) else output


def autograd_jacobian(model, x, block="total"):
    """Derivatives of the outputs in a block's parameters, a row at a time: ``(N·O, P)``."""
    torch.manual_seed(0)
    parameters = trainable(model, block)
    rows = [
        torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for entry in logits_of(model(x.clone())).flatten()
    ]
    return torch.stack([torch.cat([part.double().flatten() for part in row]) for row in rows])


def autograd_kernel(model, x, block="total"):
    rows = autograd_jacobian(model, x, block)
    return rows @ rows.T


def assert_near(found, expected, within=1e-11):
    torch.testing.assert_close(found, expected, rtol=0, atol=within * float(expected.abs().max()))


class Net(nn.Module):
    """Layers by name, and a forward pass written as a function of them and the input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


class Linears(Net):
    """Three linear layers of width 4."""

    def __init__(self, forward, **layers):
        super().__init__(forward, **{name: nn.Linear(4, 4) for name in "abc"} | layers)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def in_train_mode(**options):
    """A convolutional network with batch norm."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4, **options),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def shared():
    model = Linears(lambda m, x: m.c(m.b(m.a(x).tanh()).tanh()))
    model.b.weight = model.a.weight
    return model


class OwnForward(nn.Linear):
    """A linear layer only by name."""

    def forward(self, x):
        return super().forward(x) + (x @ self.weight.T).sin() * self.bias


class Doubles(nn.Linear):
    """Has its weight changed before it is used."""

    def forward(self, x):
        return functional.linear(x, 2 * self.weight, self.bias)


class TiedHead(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.mix(self.embedding(x)).tanh())


class HandMadeBatchNorm(nn.Module):
    """Batch norm that no one told torch of."""

    def __init__(self, std):
        super().__init__()
        self.gain, self.std = nn.Parameter(torch.randn(4)), std

    def forward(self, x):
        return (x - x.mean(0)) / self.std(x) * self.gain


def with_list(m, x):
    return m.c((m.a(x) * m.gains[0]).sin() + m.b(x) * m.gains[1])


def attention():
    return nn.MultiheadAttention(4, 2, batch_first=True)


def attend(module, x):
    return module(x, x, x)[0].tanh()


class Output(NamedTuple):
    logits: Tensor
    hidden: Tensor


def hooked():
    model = Linears(lambda m, x: m.c(m.b(m.a(x).tanh()).tanh()))
    model.a.register_forward_pre_hook(lambda module, args: (args[0] ** 3,))
    model.b.register_forward_hook(lambda module, args, output: output.sin() + args[0])
    model.c.register_forward_hook(lambda module, args, output: output * module.weight.sum())
    return model


def routed(m, x):
    """Some samples pass one layer, the others another."""
    first = torch.arange(len(x)) % 2 == 0
    hidden = torch.empty_like(x)
    hidden[first], hidden[~first] = m.a(x[first]), m.b(x[~first])
    return m.c(hidden.tanh())


def halves():
    model = Linears(lambda m, x: m.c(m.b(m.a(x.float()).tanh()).tanh().double()))
    model.double = lambda: model  # stays as it is made
    model.c = nn.Linear(4, 4).to(F64)
    return model


def reused(m, x):
    """The first weight again, but for the last output only."""
    hidden = m.a(x).tanh()
    return torch.cat([m.c(m.b(hidden))[:, :2], (hidden @ m.a.weight).sum(1, keepdim=True)], dim=1)


CASES = [
    Case("called-thrice", lambda: Linears(lambda m, x: m.b(m.a(m.a(m.a(x).tanh()).tanh()).tanh()) + m.c(x))),
    Case(
        "called-with-other-sizes",
        lambda: Net(
            lambda m, x: m.b(m.a(functional.avg_pool2d(m.a(x).tanh(), 2)).flatten(1)),
            a=nn.Conv2d(2, 2, 3, padding=1),
            b=nn.Linear(8, 2),
        ),
        (2, 2, 4, 4),
    ),
    Case(
        "called-with-other-dimensions",
        lambda: Linears(lambda m, x: m.b(m.a(x).mean(1)) + m.a(x.sum(1)) + m.c(x[:, 0])),
        (3, 2, 4),
    ),
    Case(
        "two-dilations",
        lambda: Net(
            lambda m, x: functional.conv1d(m.a(x).tanh(), m.a.weight, m.a.bias, padding="same", dilation=2).mean(2),
            a=nn.Conv1d(2, 2, 3),
        ),
        (3, 2, 7),
    ),
    Case("functional-reuse", lambda: Linears(lambda m, x: m.c(functional.linear(m.b(m.a(x).tanh()), m.a.weight)))),
    Case(
        "functional-reuse-with-bias",
        lambda: Linears(lambda m, x: m.c(functional.linear(m.b(m.a(x).tanh()), m.a.weight, m.a.bias))),
    ),
    Case("reuse-as-a-matrix", lambda: Linears(lambda m, x: m.c(m.b(m.a(x).tanh()) @ m.a.weight))),
    Case("reuse-of-bias", lambda: Linears(lambda m, x: m.c(m.b(m.a(x).tanh()) * m.a.bias))),
    Case("reuse-in-last-output", lambda: Linears(reused)),
    Case("weight-only", lambda: Linears(lambda m, x: m.c(functional.linear(x, m.a.weight).tanh()) + m.b(x))),
    Case("parameter-list", lambda: Linears(with_list, gains=nn.ParameterList([torch.randn(4), torch.randn(4)]))),
    Case(
        "parameters-of-a-module-never-called",
        lambda: Linears(lambda m, x: m.c(attend(m.a, m.b(x))), a=attention()),
        (3, 2, 4),
    ),
    Case("tied-head", TiedHead, (2, 3), tokens=5),
    Case("shared-parameter", shared),
    Case("own-forward", lambda: nn.Sequential(OwnForward(4, 4), nn.Tanh(), Doubles(4, 4))),
    Case(
        "in-place-activations",
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 2),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(3).eval(),
            nn.ELU(inplace=True),
            nn.Flatten(),
            nn.Linear(9, 3),
            nn.Hardtanh(inplace=True),
        ),
        (3, 2, 4),
    ),
    Case("in-place-addition", lambda: Linears(lambda m, x: m.c(m.a(x).add_(x).mul_(2).sin_()).add_(m.b(x)))),
    Case(
        "in-place-on-a-slice", lambda: Linears(lambda m, x: m.c(m.a(x).index_fill_(1, torch.tensor([0]), 1.0)) + m.b(x))
    ),
    Case("user-hooks", hooked),
    Case(
        "tokens-first",
        lambda: Linears(lambda m, x: m.b(m.n(m.a(x.transpose(0, 1)))).tanh().mean(0) + m.c(x[:, 0]), n=nn.LayerNorm(4)),
        (3, 2, 4),
    ),
    Case(
        "tokens-first-as-many",
        lambda: Linears(lambda m, x: m.b(m.n(m.a(x.transpose(0, 1)))).tanh().mean(0) + m.c(x[:, 0]), n=nn.LayerNorm(4)),
        (3, 3, 4),
    ),
    Case(
        "tokens-first-recurrent",
        lambda: Net(lambda m, x: m.b(m.a(x.transpose(0, 1))[0][-1]), a=nn.GRU(4, 3), b=nn.Linear(3, 2)),
        (3, 2, 4),
    ),
    Case(
        "tokens-first-embedding",
        lambda: Net(lambda m, x: m.b(m.a(x.T)).tanh().sum(0), a=nn.Embedding(5, 3), b=nn.Linear(3, 2)),
        (3, 2),
        tokens=5,
    ),
    Case(
        "frames-first", lambda: Linears(lambda m, x: m.c(m.b(m.a(x.movedim(2, 0))).tanh().mean((0, 2)))), (3, 2, 4, 4)
    ),
    Case(
        "merged-tokens",
        lambda: Linears(
            lambda m, x: m.b(m.n(m.a(x.flatten(0, 1)))).tanh().view_as(x).mean(1) + m.c(x[:, 0]), n=nn.LayerNorm(4)
        ),
        (3, 2, 4),
    ),
    Case(
        "merged-frames",
        lambda: Net(lambda m, x: m.a(x.flatten(0, 1)).tanh().view(3, -1)[:, ::5], a=nn.Conv1d(2, 3, 2)),
        (3, 2, 2, 4),
    ),
    Case(
        "merged-tokens-the-other-way",
        lambda: Linears(
            lambda m, x: m.b(m.a(x.transpose(0, 1).flatten(0, 1))).tanh().view(2, 3, 4).mean(0) + m.c(x[:, 0])
        ),
        (3, 2, 4),
    ),
    Case(
        "two-views-in-one-batch",
        lambda: Linears(
            lambda m, x: (
                m.c(m.b(m.a(torch.cat([x, x.sin()])).tanh())[: len(x)]) + m.a(torch.cat([x, x**2])).tanh()[len(x) :]
            )
        ),
    ),
    Case("samples-in-another-order", lambda: Linears(lambda m, x: m.c(m.b(m.a(x.flip(0)).tanh()).flip(0)))),
    Case(
        "samples-one-by-one",
        lambda: Linears(lambda m, x: torch.stack([m.c(m.b(m.a(row[None]).tanh())[0]) for row in x])),
    ),
    Case("routed-samples", lambda: Linears(routed), (4, 4)),
    Case("routed-samples-uneven", lambda: Linears(routed), (5, 4)),
    Case(
        "minus-the-mean", lambda: Linears(lambda m, x: m.c((m.b(m.a(x).tanh()) - m.a(x).mean(0)).tanh())), interact=True
    ),
    Case(
        "attention-among-samples", lambda: Linears(lambda m, x: m.c((m.a(x) @ m.b(x).T).softmax(1) @ x)), interact=True
    ),
    Case(
        "minus-the-mean-bare",
        lambda: Linears(lambda m, x: m.c(m.n(m.b(m.a(x)))), n=HandMadeBatchNorm(lambda x: 2)),
        interact=True,
    ),
    Case(
        "batch-norm-by-hand",
        lambda: Linears(lambda m, x: m.c(m.n(m.b(m.a(x)))), n=HandMadeBatchNorm(lambda x: x.std(0))),
        interact=True,
    ),
    Case(
        "batch-norm-functional",
        lambda: Linears(
            lambda m, x: m.c(functional.batch_norm(m.b(m.a(x)), None, None, training=True) * m.g),
            g=nn.Parameter(torch.randn(4)),
        ),
        interact=True,
    ),
    Case("batch-norm", in_train_mode, (3, 2, 3, 3), interact=True),
    Case(
        "batch-norm-no-statistics", lambda: in_train_mode(track_running_stats=False).eval(), (3, 2, 3, 3), interact=True
    ),
    Case(
        "batch-norm-then-bare",
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.PReLU(4)),
        (4, 4),
        interact=True,
    ),
    Case(
        "dropout",
        lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 6), nn.PReLU(6), nn.Dropout(0.5), nn.Linear(6, 3)),
        interact=True,
    ),
    Case("mixed-precision-of-parameters", halves),
    Case("one-number-each", lambda: Linears(lambda m, x: m.c(m.b(m.a(x).tanh())).sum(1))),
    Case(
        "one-number-each-squeezed",
        lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(3), nn.Linear(3, 1), Net(lambda m, x: x.squeeze())),
    ),
    Case("many-dimensions", lambda: nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4)), (2, 3), tokens=5),
    Case("dictionary", lambda: Linears(lambda m, x: {"hidden": m.a(x), "logits": m.c(m.b(m.a(x).tanh()))})),
    Case("named-tuple", lambda: Linears(lambda m, x: Output(m.c(m.b(m.a(x).tanh())), x))),
    Case("straight-through", lambda: Linears(lambda m, x: m.c((h := m.b(m.a(x))) + (h.sign() - h).detach()))),
    Case(
        "gradient-hook",
        lambda: Linears(lambda m, x: (h := m.b(m.a(x)), h.register_hook(lambda g: 3 * g), m.c(h.sin()))[2]),
    ),
    Case(
        "checkpointed",
        lambda: Linears(lambda m, x: m.c(checkpoint(lambda h: m.b(m.a(h).tanh()), x, use_reentrant=False))),
    ),
    Case("vmapped", lambda: Linears(lambda m, x: m.c(torch.vmap(lambda row: m.b(m.a(row).tanh()))(x)))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_structures_against_autograd(case):
    (model, x), (copy, _) = case.make(), case.make()
    within = 1e-6 if case.id == "mixed-precision-of-parameters" else 1e-11
    found = tangent_kernel(model, x)
    assert_near(found.total, autograd_kernel(copy, x), within)
    assert_near(sum(found.blocks.values()), found.total)
    layers = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    for name, block in tangent_kernel(model, x, layers=layers).blocks.items():
        assert_near(block, autograd_kernel(case.make()[0], x, name), within)


BY_ID = {case.id: case for case in CASES}


def make(id):
    return BY_ID[id].make()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrappers_are_seen_through(wrap):
    model, x = make("called-thrice")
    found, expected = tangent_kernel(wrap(model), x), tangent_kernel(model, x)
    assert list(found.blocks) == list(expected.blocks)
    assert torch.equal(found.total, expected.total)


IN_PLACE_OF_A_SAMPLE = ("merged-frames", "merged-tokens-the-other-way", "routed-samples", "routed-samples-uneven")
ALONE = [
    case for case in CASES if not case.interact and case.id not in (*IN_PLACE_OF_A_SAMPLE, "one-number-each-squeezed")
]


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.id)
def test_modes_agree_where_samples_do_not_interact(case):
    model, x = case.make()
    batch, sample = (tangent_kernel(model.eval(), x, batch_mode=mode) for mode in ("batch", "sample"))
    assert_near(sample.total, batch.total, 1e-6 if case.id == "mixed-precision-of-parameters" else 1e-10)
    assert sample.blocks.keys() == batch.blocks.keys()


def test_sample_mode_uses_running_statistics(snapshot, unchanged):
    model, x = make("batch-norm")
    model(2 * x + 1)
    model[1].weight.grad = torch.ones(4, dtype=F64)
    before = snapshot(model, x)
    found = tangent_kernel(model, x, batch_mode="sample")
    assert unchanged(before, snapshot(model, x))
    assert_near(found.total, autograd_kernel(model.eval(), x))
    assert found.batch_mode == "sample"


@pytest.mark.parametrize("id", ["minus-the-mean", "minus-the-mean-bare", "attention-among-samples"])
def test_sample_mode_refuses_samples_that_interact(id):
    model, x = make(id)
    with pytest.raises(UnsupportedModelError, match=r"do samples interact\? Measure batch_mode=.batch"):
        tangent_kernel(model, x, batch_mode="sample")


REDUCED = ["called-thrice", "batch-norm", "minus-the-mean", "tied-head", "reuse-in-last-output", "dropout"]


@pytest.mark.parametrize("id", REDUCED)
@pytest.mark.parametrize("outputs", ["trace", "sum", "centred"])
def test_outputs_reduce_the_whole_kernel(outputs, id):
    model, x = make(id)
    whole, found = tangent_kernel(model, x), tangent_kernel(model, x, outputs=outputs)
    size, each = len(x), len(whole.total) // len(x)
    equation = {"trace": "iojo->ij", "sum": "iojp->ij", "centred": "iojp,oq,pr->iqjr"}[outputs]
    centring = [torch.eye(each, dtype=F64) - 1 / each] * 2 if outputs == "centred" else []
    assert found.blocks.keys() == whole.blocks.keys()
    assert found.num_outputs == (each if outputs == "centred" else 1)
    for name in [*whole.blocks, "total"]:
        expected = torch.einsum(equation, whole.block(name).view(size, each, size, each), *centring)
        assert_near(found.block(name), expected.reshape(found.total.shape), 1e-10)


class Heads(nn.Module):
    """An output from each of two heads, one of which does more than it seems."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.extra = nn.Linear(4, 1), nn.Linear(4, 1), nn.Parameter(torch.randn(4))

    def forward(self, x):
        second = self.two(x) + (x - x.mean(0)) @ self.two.weight.T.tanh()
        return torch.cat([self.one(x), second * self.extra.sum()], dim=1)


@pytest.mark.parametrize("outputs", ["all", "trace"])
def test_what_only_the_last_output_depends_on(outputs):
    torch.manual_seed(0)
    model, x = Heads().double(), torch.randn(3, 4, dtype=F64)
    found = tangent_kernel(model, x, outputs=outputs)
    for name in ("one", "two", "extra", "total"):
        expected = autograd_kernel(model, x, name)
        if outputs == "trace":
            expected = torch.einsum("iojo->ij", expected.view(3, 2, 3, 2))
        assert_near(found.block(name), expected)


CORNERS = [
    ("called-with-other-sizes", "all"),
    ("called-thrice", "trace"),
    ("user-hooks", "centred"),
    ("tied-head", "sum"),
    ("tokens-first-recurrent", "all"),
]


@pytest.mark.parametrize(("id", "outputs"), CORNERS)
@pytest.mark.parametrize("sizes", [(2, 4), (3, 3), (5, 1)])
def test_two_batches_are_a_corner_of_the_kernel_of_both(id, outputs, sizes):
    model, _ = make(id)
    case = BY_ID[id]
    shape = (sum(sizes), *case.shape[1:])
    x = torch.randint(case.tokens, shape) if case.tokens else torch.randn(shape, dtype=F64)
    whole = tangent_kernel(model, x, outputs=outputs)
    found = tangent_kernel(model, *x.split(sizes), outputs=outputs)
    rows = sizes[0] * whole.num_outputs
    assert not found.symmetric
    for name in [*whole.blocks, "total"]:
        assert_near(found.block(name), whole.block(name)[:rows, rows:])


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("id", ["batch-norm", "minus-the-mean", "minus-the-mean-bare"])
def test_two_batches_of_samples_that_interact(id, size):
    model, x = make(id)
    other = torch.randn(size, *x.shape[1:], dtype=F64)
    expected = autograd_jacobian(make(id)[0], x) @ autograd_jacobian(make(id)[0], other).T
    assert_near(tangent_kernel(model, x, other).total, expected)


@pytest.mark.parametrize("size", [2, 5])
def test_two_batches_of_other_shapes(size):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv1d(2, 3, 3), nn.GroupNorm(3, 3), nn.ReLU(), nn.Conv1d(3, 3, 2, groups=3))
    model = nn.Sequential(body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.PReLU(3)).double()
    x, other = torch.randn(2, 2, 9, dtype=F64), torch.randn(size, 2, 6, dtype=F64)
    expected = autograd_jacobian(model, x) @ autograd_jacobian(model, other).T
    assert_near(tangent_kernel(model, x, other).total, expected)
    assert_near(tangent_kernel(model, other, x, batch_mode="sample").total, expected.T)


def test_a_layer_that_only_one_of_two_batches_uses():
    torch.manual_seed(0)
    model = Linears(lambda m, x: m.c(m.a(x) if x.sum() > 0 else m.b(x.tanh()))).double()
    x = torch.rand(3, 4, dtype=F64)
    expected = autograd_jacobian(model, x) @ autograd_jacobian(model, -x).T
    assert_near(tangent_kernel(model, x, -x).total, expected)


EVALUATED = ["called-thrice", "batch-norm", "dropout", "tied-head", "tokens-first", "in-place-activations"]


@pytest.mark.parametrize("id", EVALUATED)
def test_symmetric_and_positive_semidefinite(id):
    model, x = make(id)
    found = tangent_kernel(model, x)
    for name in [*found.blocks, "total"]:
        block = found.block(name)
        assert block.dtype == F64
        assert_near(block, block.T, 1e-14)
        assert torch.linalg.eigvalsh(block)[0] > -1e-13 * block.trace()


@settings(max_examples=10, deadline=None)
@given(
    id=st.sampled_from(["called-thrice", "batch-norm", "tied-head", "tokens-first"]), order=st.permutations(range(4))
)
def test_permuted_samples_permute_rows(id, order):
    case = BY_ID[id]
    model, _ = case.make()
    shape = (4, *case.shape[1:])
    x = torch.randint(case.tokens, shape) if case.tokens else torch.randn(shape, dtype=F64)
    whole, found = tangent_kernel(model, x).total, tangent_kernel(model, x[order]).total
    each = len(whole) // 4
    expected = whole.view(4, each, 4, each)[order][:, :, order].reshape(whole.shape)
    assert_near(found, expected)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["batch-norm", "tied-head", "minus-the-mean-bare"]), st.floats(1e-3, 1e3), st.booleans())
def test_scaled_outputs_scale_the_kernel_by_the_square(id, scale, negative):
    scale = -scale if negative else scale
    model, x = make(id)
    found = tangent_kernel(Net(lambda m, x: scale * m.model(x), model=model), x)
    assert_near(found.total, scale**2 * tangent_kernel(model, x).total)


@settings(max_examples=10, deadline=None)
@given(
    samples=st.integers(1, 4),
    tokens=st.integers(1, 4),
    width=st.integers(1, 5),
    outputs=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_network_of_tokens(samples, tokens, width, outputs, bias, seed):
    torch.manual_seed(seed)
    layers = nn.Linear(3, width, bias=bias), nn.LayerNorm(width, bias=bias), nn.GELU(), nn.Linear(width, outputs)
    model = nn.Sequential(*layers, Net(lambda m, x: x.prod(1))).double()
    x = torch.randn(samples, tokens, 3, dtype=F64)
    assert_near(tangent_kernel(model, x).total, autograd_kernel(model, x), 1e-10)


def test_layers_by_name_glob_and_total():
    model, x = nn.Sequential(mlp(), mlp()[::2], nn.Linear(3, 2)).double(), torch.randn(3, 4, dtype=F64)
    model[1][0] = nn.Linear(3, 5, dtype=F64)
    named = tangent_kernel(model, x, layers=["0.[02]", "1", "0.0"])
    assert list(named.blocks) == ["0.0", "0.2", "1"]
    assert_near(named.total, sum(named.blocks.values()))
    with_total = tangent_kernel(model, x, layers=["0.0", "total"])
    assert list(with_total.blocks) == ["0.0"]
    assert_near(with_total.total, autograd_kernel(model, x))
    only = tangent_kernel(model, x, layers="total")
    assert not only.blocks
    assert torch.equal(only.total, with_total.total)


def test_parameters_in_two_blocks_count_once_in_the_total():
    model, x = nn.Sequential(mlp(), nn.Linear(3, 2)).double(), torch.randn(3, 4, dtype=F64)
    found = tangent_kernel(model, x, layers=["0", "0.2"])
    assert_near(found.total, autograd_kernel(model, x, "0"))
    assert_near(found.blocks["0.2"], autograd_kernel(model, x, "0.2"))
    model, x = make("shared-parameter")
    found = tangent_kernel(model, x, layers=["a", "b"])
    weight, biases = (tangent_kernel(model, x, layers="a").total, tangent_kernel(model, x, layers="b").total)
    assert_near(found.total, weight + biases - autograd_kernel(model, x, "a.weight"))


def test_layers_that_are_never_called_are_left_out_and_named():
    model = Linears(lambda m, x: m.c(x)).double()
    x = torch.randn(3, 4, dtype=F64)
    found = tangent_kernel(model, x)
    assert list(found.blocks) == ["c"]
    assert re.search(r"\ba\b.*\bb\b", found.note)
    assert_near(found.total, autograd_kernel(model, x))
    for name in "ab":
        with pytest.raises(LayerCallError, match=f"'{name}'"):
            tangent_kernel(model, x, layers=["c", name])


def test_a_layer_used_by_the_second_batch_only_is_not_left_out():
    torch.manual_seed(0)
    model = Linears(lambda m, x: m.c(m.a(x)) if x.sum() > 0 else m.c(m.a(x) + m.b(x))).double()
    x = torch.rand(3, 4, dtype=F64)
    found = tangent_kernel(model, x, -x)
    assert_near(found.total, autograd_jacobian(model, x) @ autograd_jacobian(model, -x).T)
    assert_near(sum(found.blocks.values()), found.total)


def test_a_dead_layer_has_a_block_of_zeros():
    model = Linears(lambda m, x: m.c(x) + 0 * m.a(x) + m.b(x).detach()).double()
    found = tangent_kernel(model, torch.randn(3, 4, dtype=F64))
    assert not found.blocks["a"].any()
    assert not found.blocks["b"].any()


def test_precision_of_the_measurement_is_asked_for_or_the_models():
    model, x = make("batch-norm")
    model, x = model.float(), x.float()
    single, double = tangent_kernel(model, x), tangent_kernel(model, x, dtype=F64)
    assert (single.dtype, double.dtype) == ("float32", "float64")
    assert single.total.dtype == F64
    assert_near(double.total, autograd_kernel(model.double(), x.double()))
    assert_near(single.total, double.total, 1e-5)


def test_a_wide_body_in_single_precision_and_a_head_in_double():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(50, 300), nn.LayerNorm(300), nn.ReLU(), nn.Linear(300, 100), nn.PReLU())
    model = Net(lambda m, x: m.head(m.body(x.float()).double()), body=body, head=nn.Linear(100, 3, dtype=F64))
    x = torch.randn(5, 50)
    assert_near(tangent_kernel(model, x).total, autograd_kernel(model, x), 1e-5)


def cast_within(m, x):
    """Mixed precision by the model itself."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = m.body(x)
    return hidden.float()


def test_a_model_that_casts_within_its_forward_pass():
    torch.manual_seed(0)
    model, x = Net(cast_within, body=nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(3, 3))), torch.randn(5, 4)
    assert_near(tangent_kernel(model, x).total, autograd_kernel(model, x), 0.03)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_hides_parameters_is_not_taken_for_zero():
    model = Net(lambda m, x: checkpoint(m.body, x.requires_grad_(), use_reentrant=True), body=mlp()).double()
    x = torch.randn(3, 4, dtype=F64)
    rows = []
    for sample, output in itertools.product(range(3), range(3)):
        model.zero_grad()
        model(x.clone())[sample, output].backward()
        rows.append(torch.cat([part.grad.flatten() for part in model.body.parameters()]))
    rows = torch.stack(rows)
    try:
        found = tangent_kernel(model, x, layers="body").total
    except InputError:  # torch itself cannot differentiate it in part
        return
    assert_near(found, rows @ rows.T)


def test_twice_the_same_bit_for_bit_whatever_the_callers_streams():
    model, x = make("dropout")
    first = tangent_kernel(model, x).total
    torch.manual_seed(99)
    assert torch.equal(tangent_kernel(model, x, progress=True).total, first)
    with torch.no_grad():
        assert torch.equal(tangent_kernel(model, x).total, first)


BUDGETS = {
    "conv": (lambda: nn.Sequential(nn.Conv1d(2, 16, 3), nn.ReLU(), nn.Conv1d(16, 2, 3)), (2, 2, 100)),
    "depthwise": (lambda: nn.Sequential(nn.Conv1d(12, 12, 3, groups=12), nn.GroupNorm(3, 12)), (2, 12, 60)),
    "grouped": (lambda: nn.Sequential(nn.Conv1d(8, 8, 9, groups=2), nn.Tanh()), (2, 8, 30)),
    "tokens": (lambda: nn.Sequential(nn.Embedding(20, 30), nn.Linear(30, 40), nn.LayerNorm(40)), (2, 20)),
    "bare": (lambda: nn.Sequential(nn.Linear(4, 200), nn.PReLU(200), nn.Linear(200, 3)), (3, 4)),
    "recurrent": (lambda: Net(lambda m, x: m.cells(x)[0], cells=nn.GRU(4, 8, batch_first=True)), (2, 5, 4)),
    "coupled": (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.PReLU(8), nn.Conv1d(8, 2, 5)),
        (3, 2, 40),
    ),
}


def least_budget(measure):
    """The smallest memory budget that is not refused, by bisection."""
    low, high = 0, 2**24
    while high - low > 1 + low // 20:
        middle = (low + high) // 2
        try:
            measure(middle)
            high = middle
        except MemoryBudgetError:
            low = middle
    return high


@pytest.mark.parametrize("id", BUDGETS)
def test_memory_budget_changes_the_number_of_sweeps_and_nothing_else(id, monkeypatch):
    torch.manual_seed(0)
    build, shape = BUDGETS[id]
    model = Net(
        lambda m, x: torch.stack([part.sin().sum((1, 2)) for part in m.body(x).chunk(2, dim=1)], dim=1), body=build()
    )
    model = (build() if id == "bare" else model).double()
    x = torch.randint(20, shape) if id == "tokens" else torch.randn(shape, dtype=F64)
    sweeps, sweep = [], Batch.sweep
    monkeypatch.setattr(Batch, "sweep", lambda side, parts, coupled: sweeps.append(1) or sweep(side, parts, coupled))

    def measure(budget):
        sweeps.clear()
        found = tangent_kernel(model, x, layers=["body", "total"] if id != "bare" else None, memory_budget=budget)
        return found, len(sweeps)

    whole, few = measure(2**30)
    assert_near(whole.total, autograd_kernel(model, x), 1e-10)
    least = least_budget(lambda budget: measure(budget))
    counts = []
    for factor in (1, 1.2, 1.7, 3, 6):
        found, count = measure(least * factor)
        counts.append(count)
        assert_near(found.total, whole.total, 1e-10)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > few
    with pytest.raises(MemoryBudgetError, match=r"use fewer .*samples.* larger memory_budget"):
        measure(least // 4)


@pytest.mark.parametrize("outputs", ["trace", "sum", "centred"])
def test_memory_budget_of_other_outputs_and_two_batches(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 16, 3), nn.PReLU(16), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(32, 3))
    x, other = torch.randn(2, 2, 50, dtype=F64), torch.randn(2, 2, 50, dtype=F64)

    def measure(budget):
        return tangent_kernel(model.double(), x, other, outputs=outputs, memory_budget=budget).total

    whole = measure(2**30)
    assert_near(measure(least_budget(measure)), whole, 1e-10)


SIDE_EFFECTS = {
    "train-mode": lambda: make("batch-norm"),
    "dropout": lambda: make("dropout"),
    "hooks": lambda: make("user-hooks"),
    "tied": lambda: make("tied-head"),
    "recurrent": lambda: make("tokens-first-recurrent"),
    "changes-its-input": lambda: (
        Net(lambda m, x: m.a(x.mul_(2)), a=nn.Linear(4, 4)).double(),
        torch.randn(3, 4, dtype=F64),
    ),
    "max-norm": lambda: (nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, 2)), torch.arange(4)),
    "max-norm-frozen": lambda: (
        nn.Sequential(nn.Embedding.from_pretrained(torch.randn(5, 4), max_norm=0.1), nn.Linear(4, 2)),
        torch.arange(4),
    ),
    "spectral-norm": lambda: (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), torch.randn(3, 4)),
    "streams": lambda: (
        Net(lambda m, x: m.a(x) * random.random() * np.random.rand() * torch.rand(()), a=mlp()),
        torch.randn(3, 4),
    ),
    "checkpointed": lambda: (
        Net(lambda m, x: checkpoint(m.a, x, use_reentrant=False), a=nn.Sequential(mlp(), nn.BatchNorm1d(3))).double(),
        torch.randn(3, 4, dtype=F64),
    ),
}


@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
@pytest.mark.parametrize("id", SIDE_EFFECTS)
def test_measuring_changes_nothing(id, batch_mode, snapshot, unchanged):
    model, x = SIDE_EFFECTS[id]()
    parameter = next(part for part in model.parameters() if part.requires_grad)
    parameter.grad = torch.ones_like(parameter)
    before = snapshot(model, x)
    tangent_kernel(model, x, batch_mode=batch_mode, outputs="trace")
    tangent_kernel(model, x, x.flip(0), batch_mode=batch_mode)
    after = snapshot(model, x)
    assert [key for key in before if not unchanged(before[key], after[key])] == []


class Broken(torch.autograd.Function):
    """Fails on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise KeyboardInterrupt


def fails(m, x):
    """After batch norm, dropout and every stream were used."""
    random.random(), np.random.rand()
    raise RuntimeError("half way")


BREAKS = {
    "forward": (fails, RuntimeError),
    "backward": (lambda m, x: Broken.apply(x), KeyboardInterrupt),
    "infinite": (lambda m, x: x / 0, NonFiniteError),
    "scalar": (lambda m, x: x.sum(), UnsupportedModelError),
    "detached": (lambda m, x: x.detach(), UnsupportedModelError),
}


@pytest.mark.parametrize("id", BREAKS)
@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
def test_an_error_changes_nothing_either(id, batch_mode, snapshot, unchanged):
    broken, error = BREAKS[id]
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Net(broken)).double()
    model[0].eval()
    x = torch.randn(3, 4, dtype=F64)
    before = snapshot(model, x)
    with pytest.raises(error):
        tangent_kernel(model, x, batch_mode=batch_mode)
    assert unchanged(before, snapshot(model, x))


def test_precision_switches_are_put_back(snapshot, unchanged):
    model, x = make("batch-norm")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        seen = snapshot(model, x)
        tangent_kernel(model, x)
        assert unchanged(seen, snapshot(model, x))
    finally:
        torch.set_float32_matmul_precision(before)


RULES = {
    "linear": (kernel_rules.LinearRule, "activations", lambda: mlp(), (3, 4)),
    "conv": (
        kernel_rules.ConvolutionRule,
        "cotangents",
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten()),
        (3, 2, 4),
    ),
    "embedding": (
        kernel_rules.EmbeddingRule,
        "similarities",
        lambda: nn.Sequential(nn.Embedding(5, 3), nn.Tanh()),
        (3, 2),
    ),
    "gain": (kernel_rules.GainRule, "activations", lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh()), (3, 4)),
}


@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
@pytest.mark.parametrize("id", RULES)
def test_a_wrong_rule_is_found_out_and_not_used(id, batch_mode, monkeypatch):
    torch.manual_seed(0)
    rule, method, build, shape = RULES[id]
    model = build().double()
    x = torch.randint(5, shape) if id == "embedding" else torch.randn(shape, dtype=F64)
    right = tangent_kernel(model, x, batch_mode=batch_mode)
    assert "autograd" not in right.methods["0"]
    original = getattr(rule, method)
    monkeypatch.setattr(rule, method, lambda *args: 1.01 * original(*args))
    found = tangent_kernel(model, x, batch_mode=batch_mode)
    assert set(found.methods.values()) == {"autograd"}
    assert_near(found.total, right.total)


class Noisy(nn.Module):
    """Draws from a generator of its own, which nobody can put back."""

    def __init__(self):
        super().__init__()
        self.linear, self.gain = nn.Linear(4, 4), nn.Parameter(torch.randn(4))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.linear(x * torch.rand(x.shape, generator=self.generator)) * self.gain


def test_a_forward_pass_that_differs_from_call_to_call_is_refused():
    with pytest.raises(UnsupportedModelError, match="at each call"):
        tangent_kernel(Noisy(), torch.randn(3, 4), batch_mode="sample")


def test_a_forward_pass_that_differs_from_call_to_call_is_measured_as_it_was_the_first_time():
    torch.manual_seed(0)
    model, x = Noisy().double(), torch.randn(3, 4, dtype=F64)
    found = tangent_kernel(model, x)
    model.generator.manual_seed(0)
    assert_near(found.total, autograd_kernel(model, x))


class Complex(nn.Module):
    """A complex parameter with a real output."""

    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.phase.dtype) @ self.phase).abs()


def with_weight(model, value):
    model[0].weight.data[0, 0] = value
    return model


def without_gradients(model, *names):
    for name in names or [""]:
        model.get_submodule(name).requires_grad_(False)
    return model


NAN = float("nan")
REFUSED = {
    "no module": (lambda: torch.sin, {}, InputError, "must be a torch.nn.Module"),
    "unknown layer": (mlp, {"layers": "00"}, UnknownLayerError, "'00' is no module.*Did you mean '0'"),
    "unknown among known": (mlp, {"layers": ["0", "3"]}, UnknownLayerError, "'3' is no module"),
    "no layer": (mlp, {"layers": []}, InputError, "layers is empty"),
    "no parameters": (mlp, {"layers": ["1"]}, LayerCallError, "'1' has no trainable parameters"),
    "frozen": (lambda: without_gradients(mlp(), "0"), {"layers": ["0"]}, LayerCallError, "'0' has no .*unfreeze it"),
    "all frozen": (lambda: without_gradients(mlp()), {}, InputError, "no trainable parameters; unfreeze"),
    "complex": (Complex, {}, UnsupportedModelError, "'phase' is complex.*two parameters"),
    "scalar": (lambda: Net(lambda m, x: m.a(x).sum(), a=mlp()), {}, UnsupportedModelError, r"shape \(\) for 3 samples"),
    "one row": (lambda: Net(lambda m, x: m.a(x).sum(0), a=nn.Linear(4, 5)), {}, UnsupportedModelError, r"\(5,\) for 3"),
    "rows lost": (lambda: Net(lambda m, x: m.a(x)[:2], a=mlp()), {}, UnsupportedModelError, "one row .* each sample"),
    "integers": (lambda: Net(lambda m, x: m.a(x).argmax(1), a=mlp()), {}, UnsupportedModelError, "real tensor"),
    "nothing": (lambda: Net(lambda m, x: None, a=mlp()), {}, UnsupportedModelError, "returns NoneType"),
    "detached": (lambda: Net(lambda m, x: m.a(x).detach(), a=mlp()), {}, UnsupportedModelError, "not depend on any"),
    "no_grad": (lambda: Net(torch.no_grad()(lambda m, x: m.a(x)), a=mlp()), {}, UnsupportedModelError, "not depend on"),
    "NaN weight": (lambda: with_weight(mlp(), NAN), {}, NonFiniteError, "0.weight holds 1 NaN"),
    "infinite weight": (lambda: with_weight(mlp(), float("inf")), {}, NonFiniteError, "0.weight holds 1 NaN"),
    "NaN output": (lambda: Net(lambda m, x: m.a(x) * NAN, a=mlp()), {}, NonFiniteError, "output holds NaN"),
    "NaN derivative": (lambda: Net(lambda m, x: (m.a(x) * 0).sqrt(), a=mlp()), {}, NonFiniteError, "NaN or inf"),
    "unknown outputs": (mlp, {"outputs": "traces"}, InputError, "'traces'; known are .* Did you mean 'trace'"),
    "unknown batch mode": (mlp, {"batch_mode": "samples"}, InputError, "'samples'; known are .* Did you mean 'sample'"),
    "integer dtype": (mlp, {"dtype": torch.int64}, InputError, "must be a floating"),
    "one output": (lambda: nn.Linear(4, 1), {"outputs": "centred"}, InputError, "centred.*single output.*use outputs="),
    "no memory": (mlp, {"memory_budget": 0}, MemoryBudgetError, "use fewer samples.*=.trace.*larger memory_budget"),
    "little memory": (mlp, {"memory_budget": 5_000}, MemoryBudgetError, "budget is 0.00477 MiB; use fewer samples"),
}


@pytest.mark.parametrize("id", REFUSED)
def test_bad_models_and_options_are_refused_with_a_way_out(id):
    build, options, error, message = REFUSED[id]
    with pytest.raises(error, match=message):
        tangent_kernel(build(), torch.rand(3, 4), **options)


@pytest.mark.parametrize("bad", [torch.tensor([[0.0, 1, NAN, 1]]), torch.zeros(0, 4), torch.tensor(1.0), [[1.0] * 4]])
def test_bad_probes_are_refused(bad):
    with pytest.raises(InputError, match=r"the probe (must be|holds 1 NaN)"):
        tangent_kernel(mlp(), bad)
    with pytest.raises(InputError, match=r"the probe (must be|holds 1 NaN)"):
        tangent_kernel(mlp(), torch.ones(2, 4), bad)


def test_two_batches_with_other_outputs_are_refused():
    model = Net(lambda m, x: m.a(x).flatten(1), a=nn.Linear(4, 2))
    with pytest.raises(InputError, match="outputs"):
        tangent_kernel(model, torch.ones(2, 3, 4), torch.ones(2, 5, 4))
