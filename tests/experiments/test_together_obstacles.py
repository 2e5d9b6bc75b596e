"""What keeps networks from being trained together, and that nothing keeps those that can be."""

import pytest
import torch
from torch import nn

from experiments.together import obstacle
from tests.experiments.joint_networks import NETS, Net


class Item(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum().item() > 0 else x


class Plain(nn.Module):
    """Multiplies by a number of its own, which is no buffer."""

    def __init__(self):
        super().__init__()
        self.factor = torch.rand(()).item()

    def forward(self, x):
        return x * self.factor


class Counter(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Global(nn.Module):
    """A number that two networks of one structure do not share, and that is nowhere on them."""

    factors: dict = {}  # noqa: RUF012

    def forward(self, x):
        return x * self.factors.setdefault(id(self.weight), 1 + len(self.factors))


def hidden():
    made = Net(Global())
    made.inner[0].weight = made.first.weight
    return made


def raising():
    return Net(Raising())


class Raising(nn.Module):
    def forward(self, x):
        assert not torch._C._functorch.is_batchedtensor(x), "no luck"
        return x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Net(nn.Dropout(0.5)), "draws random numbers"),
        (lambda: Net(Item()), "cannot be vmapped (vmap: It looks like you're calling .item()"),
        (lambda: Net(nn.BatchNorm1d(8, momentum=None)), "cannot be vmapped"),
        (lambda: Net(Plain()), "differ in more than their weights"),
        (lambda: Net(Counter()), "changes attributes"),
        (raising, "cannot be vmapped (no luck)"),
        (hidden, "computes something else"),
    ],
)
def test_obstacle(make, words):
    models = [make().train(), make().train()]
    assert words in obstacle(models, torch.rand(4, 1, 4, 4))


@pytest.mark.parametrize("net", NETS)
def test_no_obstacle(net):
    assert obstacle([NETS[net]().train() for _ in range(2)], torch.rand(4, 1, 4, 4)) == ""
