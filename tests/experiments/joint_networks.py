"""Networks that may be trained together: between them, all kinds of parameters and buffers."""

import torch
from torch import nn


class Net(nn.Module):
    """Two layers in float64 with parts between them; the layer ``first`` is measured."""

    def __init__(self, *inner):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(16, 8), nn.Sequential(*inner), nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.inner(self.first(x.flatten(1).double()))))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 3)
        self.double()

    def forward(self, x):
        return self.last(self.norm(self.first(x.double())).relu().flatten(1))


class Scalars(nn.Module):
    """A learnt gain without dimensions, a parameter that is never used, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.gain, self.unused = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.rand(8), requires_grad=False)

    def forward(self, x):
        return x * self.gain + self.frozen


class Counting(nn.Module):
    """Buffers that are integers or flags, and one that is replaced rather than changed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mask", torch.rand(8) > 0.3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.calls += 1
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return torch.where(self.mask, x - self.mean, x) / (1 + 0.1 * self.calls)


class Remembering(nn.Module):
    """A running mean in a buffer that another module may have too."""

    def __init__(self, buffer):
        super().__init__()
        self.register_buffer("mean", buffer)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.mean


def tied():
    made = Net(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    made.inner[2].weight = made.inner[0].weight
    return made


def used_twice():
    layer = nn.Linear(8, 8)
    return Net(layer, nn.Tanh(), layer)


def shared_buffer():
    buffer = torch.zeros(8, dtype=torch.float64)
    return Net(Remembering(buffer), nn.Tanh(), Remembering(buffer))


NETS = {
    "no-buffers": Net,
    "batch-norm": lambda: Net(nn.BatchNorm1d(8)),
    "convolution": Convolutional,
    "tied": tied,
    "used-twice": used_twice,
    "scalar-unused-frozen": lambda: Net(Scalars()),
    "other-buffers": lambda: Net(Counting()),
    "shared-buffer": shared_buffer,
}
