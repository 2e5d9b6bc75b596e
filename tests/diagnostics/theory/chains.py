"""Networks that are chains of layers, and their measurement, for the tests of the theory."""

from itertools import pairwise

import torch
from torch import nn

D = torch.float64


class Forward(nn.Module):
    """A forward pass as a function of the module, so that a network fits in a line."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args):
        return self.function(self, *args)


def linear(*sizes):
    return [nn.Linear(*pair) for pair in pairwise(sizes)]


def network(widths, inner=nn.Tanh, bias=True, seed=0):
    torch.manual_seed(seed)
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair, bias=bias), inner())][:-1]
    return nn.Sequential(*layers).double()


def orthogonal(rows, cols, size=1.0, seed=0):
    """A linear layer whose singular values are all equal."""
    square = torch.randn(max(rows, cols), max(rows, cols), dtype=D, generator=torch.Generator().manual_seed(seed))
    layer = nn.Linear(cols, rows, bias=False, dtype=D)
    layer.weight.data = size * torch.linalg.qr(square)[0][:rows, :cols]
    return layer


def repeated():
    """One activation module called thrice between layers that have weights of their own."""
    parts = {"a": nn.Linear(4, 5), "b": nn.Linear(5, 4), "c": nn.Linear(4, 3), "act": nn.Tanh()}
    return Forward(lambda m, x: m.act(m.c(m.act(m.b(m.act(m.a(x)))))), **parts)


def transformer(dropout):
    layers = [nn.TransformerEncoderLayer(8, 2, 12, dropout, batch_first=True) for _ in range(2)]
    return nn.Sequential(*layers, nn.Linear(8, 2))


def two_names():
    """One layer in two places, under two names."""
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), shared, nn.Tanh(), shared, nn.Linear(4, 2))


def seeded(build, shape):
    """A network in float64 and a probe; of tokens, where there is no shape."""
    torch.manual_seed(3)
    model = build().double()
    return model, torch.randint(9, (2, 3)) if shape is None else torch.randn(shape, dtype=D)


def everything(model):
    """Every module of a sequential network is a layer of its chain."""
    return [name for name, _ in model.named_children()]


def kept_apart(statements):
    """A statement is vacuous where its right side is zero or its left side unknown, and holds everywhere else."""
    for one in statements:
        unknown = "cannot be told from zero" in one.cause
        assert one.verdict == ("vacuous" if one.right == 0 or unknown else "holds"), str(one)
        assert bool(one.cause) == (one.right == 0 or unknown)
        assert not unknown or one.right <= one.error
