"""Networks of many structures, and their tangent kernels by plain autograd, which knows nothing of the library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

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
    return torch.stack([torch.cat([part.to_dense().double().flatten() for part in row]) for row in rows])


def autograd_kernel(model, x, block="total"):
    rows = autograd_jacobian(model, x, block)
    return rows @ rows.T


def assert_near(measured, expected, within=1e-11):
    torch.testing.assert_close(measured, expected, rtol=0, atol=within * float(expected.abs().max()))


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


BY_ID = {case.id: case for case in CASES}


def make(id):
    return BY_ID[id].make()
