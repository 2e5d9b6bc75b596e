"""Rank limits: every cause on a network built to show it, and never under the rank of the dense Jacobian."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn import functional

from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.theory.rank_limits import rank_limit
from tests.diagnostics.theory.chains import D, Forward


def limit_and_rank(block, x, name="layer", layer="0"):
    """The limit of a block (or a layer in it), the rank by torch, and the rows of its Jacobian."""
    model = nn.Sequential(block).double()
    with measuring(model, x, dtype=D) as probed:
        map = probed.maps(name, [layer])[0]
        dense = jacobian(map.function, map.point).reshape(map.rows, map.cols)
        return rank_limit(model, map), int(torch.linalg.matrix_rank(dense)), map.rows


def zeroed(module, name="weight", entries=slice(None)):
    getattr(module, name).data[entries] = 0
    return module


def thin(cols, rows, rank):
    """A linear layer whose weight has a given rank."""
    layer = nn.Linear(cols, rows)
    layer.weight.data = torch.randn(rows, rank, dtype=D) @ torch.randn(rank, cols, dtype=D)
    return layer


def drawn(*shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(0))


X, IMAGE = drawn(3, 4), drawn(2, 4, 4, 4)
SIGNS = torch.tensor([[1.0, -1, 2, -2], [3, -3, -1, -2]], dtype=D)
last_norm = lambda: nn.Sequential(nn.Linear(4, 5), zeroed(nn.BatchNorm1d(5)))  # noqa: E731


def pooled():
    return nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2))


def half():
    """In place on a view: only half of the entries go through the activation."""
    return Forward(lambda m, x: (y := x.clone(), y[:, :2].sub_(9).relu_(), y)[2])


# id, block, probe, map, cause, limit, rank, explanation; the limit is None where there is none
CASES = [
    ("expansion", lambda: nn.Linear(4, 6), X, "layer", "expansion", 12, 12, "18 outputs of 12 inputs"),
    ("few parameters", lambda: nn.Linear(2, 3), drawn(5, 2), "param", "few parameters", 9, 9, "9 parameters for 15"),
    ("few scales", lambda: nn.LayerNorm(4), X, "param", "few parameters", 8, 8, "8 parameters for 12 outputs"),
    ("bottleneck", lambda: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4)), X, "layer", "bottleneck", 6, 6, "0.0"),
    ("sum", lambda: Forward(lambda m, x: x.sum(1)[:, None] * x.detach()), X, "layer", "bottleneck", 3, 3, "3 entries"),
    ("pool", pooled, IMAGE, "layer", "bottleneck", 32, 32, ""),
    ("relu", lambda: nn.ReLU(), SIGNS, "layer", "dead units", 3, 3, "3 of 8 units at 0 have a slope"),
    ("in place", lambda: nn.ReLU(inplace=True), SIGNS, "layer", "dead units", 3, 3, "3 of 8"),
    ("functional", lambda: Forward(lambda m, x: functional.relu(x)), SIGNS, "layer", "dead units", 3, 3, "3 of 8"),
    ("keyword", lambda: Forward(lambda m, x: functional.relu(input=x)), SIGNS, "layer", "dead units", 3, 3, "3 of 8"),
    ("method", lambda: Forward(lambda m, x: x.relu()), SIGNS, "layer", "dead units", 3, 3, "3 of 8"),
    ("method in place", lambda: Forward(lambda m, x: x.mul(2).relu_()), SIGNS, "layer", "dead units", 3, 3, "3 of 8"),
    ("clamp", lambda: Forward(lambda m, x: x.clamp(min=-1.5, max=1.5)), SIGNS, "layer", "dead units", 3, 3, "3 of 8"),
    ("hardtanh", lambda: nn.Hardtanh(), 100 * SIGNS, "layer", "dead units", 0, 0, "0 of 8"),
    ("relu6", lambda: nn.ReLU6(), 4 * SIGNS, "layer", "dead units", 1, 1, "1 of 8"),
    ("at zero", lambda: nn.ReLU(), 0 * SIGNS, "layer", "dead units", 0, 0, "0 of 8"),
    ("batch norm", lambda: nn.BatchNorm1d(4, eps=1), X, "layer", "batch norm", 8, 8, "train mode sum to a constant"),
    ("norm of images", lambda: nn.BatchNorm2d(4, eps=1), IMAGE, "layer", "batch norm", 124, 124, "each of 4 channels"),
    ("zero norm", last_norm, X, "layer", "batch norm", 0, 0, "5 channels, 5 of which are off"),
    (
        "one channel off",
        lambda: zeroed(nn.BatchNorm1d(4, eps=1), entries=slice(1)), X, "layer", "batch norm", 6, 6, "1 of which are",
    ),
    ("norm in eval mode", lambda: nn.BatchNorm1d(4).eval(), X, "layer", None, None, 12, ""),
    ("thin weight", lambda: thin(4, 4, 2), X, "layer", "weight", 6, 6, "the weight of 0 has rank 2, for \\(4, 4\\)"),
    ("zero weight", lambda: zeroed(nn.Linear(4, 4)), X, "layer", "weight", 0, 0, "has rank 0"),
    (
        "strided",
        lambda: nn.Conv2d(4, 16, 1, stride=2), IMAGE, "layer", "strided 1×1 convolution", 32, 32,
        "0 sees 4 values under each of 8 pixels of 16 channels",
    ),
    ("strided, fewer", lambda: nn.Conv2d(4, 3, 1, stride=2), IMAGE, "layer", None, None, 24, ""),
    (
        "groups", lambda: nn.Conv2d(4, 8, 1, stride=2, groups=2), IMAGE, "layer", "strided 1×1 convolution", 32, 32,
        "sees 4 values",
    ),
    (
        "zero convolution",
        lambda: zeroed(nn.Conv2d(4, 4, 1)), IMAGE, "layer", "1×1 convolution", 0, 0, "0 sees 0 values",
    ),
    ("1×1 in one dimension", lambda: nn.Conv1d(2, 3, 1), drawn(2, 2, 5), "layer", "expansion", 20, 20, "30 outputs"),
    ("twice the same input", lambda: nn.Linear(4, 3, bias=False), X[[0, 0, 1]], "param", "inputs", 6, 6, "span 2 dim"),
    ("all the same", lambda: nn.Linear(4, 3), X[[0, 0, 0]], "param", "inputs", 3, 3, "3 inputs of 0 span 1 dim"),
    ("zero probe", lambda: nn.Linear(4, 3, bias=False), 0 * X, "param", "inputs", 0, 0, "span 0 dimensions"),
    ("constant", lambda: Forward(lambda m, x: torch.ones_like(x)), X, "layer", "constant", 0, 0, "does not depend"),
    ("detached", lambda: Forward(lambda m, x: 2 * x.detach()), X, "layer", "constant", 0, 0, "does not depend"),
    ("identity", lambda: nn.Identity(), X, "layer", None, None, 12, ""),
    ("skip", lambda: Forward(lambda m, x: x + functional.relu(x - 9)), X, "layer", None, None, 12, ""),
    ("skip in place", lambda: Forward(lambda m, x: (x - 9).relu_().mul(2).add_(x)), X, "layer", None, None, 12, ""),
    ("half of it", half, X, "layer", None, None, 6, ""),
]  # fmt: skip


FIELDS = ("build", "x", "name", "cause", "limit", "rank", "said")


@pytest.mark.parametrize(FIELDS, [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_cause(build, x, name, cause, limit, rank, said):
    torch.manual_seed(0)
    measured, true, rows = limit_and_rank(build(), x, name)
    assert true == rank
    if limit is None:
        assert measured is None
    else:
        assert (measured.cause, measured.rank) == (cause, limit)
        assert str(measured).startswith(f"{cause}: ")
        assert re.search(said, measured.explanation)
        assert true <= measured.rank < rows


def frozen(module):
    module.weight.requires_grad_(False)
    return module


def norm_at_zero():
    return nn.Sequential(nn.Linear(4, 3), zeroed(nn.BatchNorm1d(3)))


AROUND = [
    ("bias of a norm", lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), X, "param"),
    ("weight of a norm", norm_at_zero, X, "param"),
    ("bias of a frozen layer", lambda: nn.Sequential(nn.Linear(4, 4), frozen(zeroed(nn.Linear(4, 4)))), X, "param"),
    ("bias of a frozen convolution", lambda: frozen(zeroed(nn.Conv2d(4, 4, 1))), IMAGE, "param"),
    ("complex", lambda: Forward(lambda m, x: torch.fft.irfft(torch.fft.rfft(x), n=4)), X, "layer"),
    ("clamped from below", lambda: Forward(lambda m, x: torch.clamp(x - 99, min=2 * x)), X, "layer"),
    ("no batch", lambda: Forward(lambda m, x: m.c(x[0])[None], c=nn.Conv2d(2, 2, 1)), drawn(1, 2, 6, 2), "layer"),
    ("weight of one dimension", lambda: Forward(lambda m, x: functional.linear(x, x[0].detach())[:, None]), X, "layer"),
]


@pytest.mark.parametrize(("build", "x", "name"), [c[1:] for c in AROUND], ids=[c[0] for c in AROUND])
def test_a_path_around_through_another_argument_is_seen(build, x, name):
    torch.manual_seed(0)
    measured, true, _ = limit_and_rank(build(), x, name)
    assert measured is None or measured.rank >= true


def test_the_place_is_the_module_that_loses_the_directions():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))
    block[0].bias.data.fill_(-99)
    measured, *_ = limit_and_rank(block, X)
    assert str(measured) == "dead units: 0 of 12 units at 0.1.0 have a slope"


LAYERS = {
    "relu": lambda width: nn.ReLU(),
    "in place": lambda width: nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(inplace=True)),
    "tanh": lambda width: nn.Tanh(),
    "hardtanh": lambda width: nn.Hardtanh(),
    "batch norm": lambda width: nn.BatchNorm2d(width),
    "convolution": lambda width: nn.Conv2d(width, width, 3, padding=1),
    "1×1": lambda width: nn.Conv2d(width, width, 1, bias=False),
    "zero": lambda width: zeroed(nn.Conv2d(width, width, 1), entries=slice(1)),
    "pool": lambda width: nn.AvgPool2d(3, 1, 1),
    "max pool": lambda width: nn.MaxPool2d(3, 1, 1),
    "linear": lambda width: nn.Linear(3, 3),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4), st.integers(0, 2**31), st.integers(1, 3),
       st.integers(1, 3), st.booleans(), st.floats(-2, 2))  # fmt: skip
def test_no_limit_is_under_the_rank_and_none_where_a_skip_leads_around(kinds, seed, width, samples, skip, shift):
    torch.manual_seed(seed)
    branch = nn.Sequential(*[LAYERS[kind](width) for kind in kinds])
    block = Forward(lambda m, x: m.branch(x) + x if skip else m.branch(x), branch=branch.double())
    measured, rank, rows = limit_and_rank(block, torch.randn(samples, width, 3, 3, dtype=D) + shift)
    if skip:
        assert measured is None
    elif measured is not None:
        assert rank <= measured.rank < rows
