"""What a skip guarantees, against numpy on dense Jacobians and branches of known norm."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian

from skip_conditioning.diagnostics.errors import InputError, LayerCallError, MemoryBudgetError, UnknownLayerError
from skip_conditioning.diagnostics.theory.skip_bound import skip_bound
from skip_conditioning.models import build_model

D = torch.float64


class Residual(nn.Module):
    """``αx + g(x)``."""

    def __init__(self, branch, gain=1.0):
        super().__init__()
        self.branch, self.gain = branch, gain

    def forward(self, x):
        return self.gain * x + self.branch(x)


def scaled(matrix):
    branch = nn.Linear(*matrix.shape[::-1], bias=False, dtype=matrix.dtype)
    branch.weight.data.copy_(matrix)
    return branch


def orthogonal(width, seed=0):
    return torch.linalg.qr(torch.randn(width, width, dtype=D, generator=torch.Generator().manual_seed(seed)))[0]


def only(statements):
    (measured,) = statements
    return measured


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_small_orthogonal_branch_has_the_range_its_angles_give(share, gain, samples):
    angle, size = torch.tensor([0.3, 1.1], dtype=D), share * gain
    turn = torch.block_diag(*[torch.stack([c.cos(), -c.sin(), c.sin(), c.cos()]).view(2, 2) for c in angle])
    model = nn.Sequential(Residual(scaled(size * turn), gain), nn.Linear(4, 2, dtype=D))
    measured = only(skip_bound(model, torch.randn(samples, 4, dtype=D), layers="0", gain=gain))
    # The singular values of αI + t·Q are |α + t·e^{iφ}|.
    expected = abs(gain + size * np.exp(1j * angle.numpy())).min()
    assert measured.verdict == "holds"
    assert measured.left == pytest.approx(expected, rel=1e-12)
    assert measured.right == pytest.approx(gain - size, rel=1e-12)
    assert measured.slack == pytest.approx(expected - gain + size, abs=1e-12)


@pytest.mark.parametrize("share", [1e-12, 0.25, 0.999])
@pytest.mark.parametrize("gain", [1e-150, 1e-3, 1.0, 1e150])
def test_a_branch_against_the_skip_reaches_the_bound(gain, share):
    model = nn.Sequential(Residual(scaled(-share * gain * torch.eye(3, dtype=D)), gain))
    measured = only(skip_bound(model, torch.randn(2, 3, dtype=D), layers="0", gain=gain))
    assert measured.verdict == "holds"
    assert measured.left == pytest.approx(gain * (1 - share), rel=1e-9)
    # A Jacobian that leaves float32's range is known to single precision only.
    known = 1e-12 if 1e-30 < gain < 1e30 else 1e-6
    assert abs(measured.slack) <= measured.error < known * gain
    turned = type(measured)(
        measured.name, measured.formula, measured.left, ">=", measured.right + 2 * known * gain, measured.error
    )
    assert turned.verdict == "violated", "the bound is sharp here: a larger one is found out"


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4), st.floats(-3, 1), st.floats(-2, 2), st.booleans(),
    st.sampled_from([nn.Tanh, nn.ReLU, nn.Identity]), st.sampled_from([D, torch.float32]),
)  # fmt: skip
def test_it_is_that_of_numpy_whatever_the_block(seed, width, samples, size, gain, skip, inner, dtype):
    torch.manual_seed(seed)
    gain, branch = 10**gain, nn.Sequential(nn.Linear(width, width), inner(), nn.Linear(width, width))
    for parameter in branch.parameters():
        parameter.data *= 10**size
    model = nn.Sequential(Residual(branch, gain if skip else 0.0), nn.Linear(width, 2))
    x = torch.randn(samples, width)
    measured = only(skip_bound(model, x, layers="0", gain=gain, dtype=dtype))
    block = jacobian(copy.deepcopy(model)[0].double(), x.double()).reshape(samples * width, -1).numpy()
    norm = np.linalg.norm(block - gain * np.eye(len(block)), 2)
    scale = np.linalg.norm(block) + gain
    close = 1e-9 if dtype is D else 1e-4
    assert measured.left == pytest.approx(np.linalg.svd(block)[1][-1], abs=close * scale)
    assert measured.right == pytest.approx(gain - norm, abs=close * scale)
    assert measured.verdict != "violated", str(measured)
    if abs(gain - norm) > close * scale:
        assert measured.verdict == ("holds" if norm < gain else "vacuous")


def network(normaliser=None, **options):
    torch.manual_seed(1)
    return build_model("residual-mlp", in_features=6, width=4, depth=2, num_classes=3, normaliser=normaliser, **options)


@pytest.mark.parametrize("normaliser", [None, "batch", "weight", "layer"])
def test_default_layers_are_the_blocks_that_keep_their_shape(normaliser, nothing_changes):
    model, x = network(normaliser), torch.randn(5, 6)
    with nothing_changes(model, x):
        measured = skip_bound(model, x)
    assert [one.layer for one in measured if one.layer.startswith("blocks")] == ["blocks.0", "blocks.1"]
    copied = copy.deepcopy(model).double()
    point = copied.stem(x.double()).detach()
    block = jacobian(lambda h: copied.blocks[0](h), point).reshape(20, 20).numpy()
    first = next(one for one in measured if one.layer == "blocks.0")
    assert first.left == pytest.approx(np.linalg.svd(block)[1][-1], abs=1e-9)
    assert first.right == pytest.approx(1 - np.linalg.norm(block - np.eye(20), 2), rel=1e-9)


def test_a_strong_branch_is_vacuous_and_says_how_strong():
    model = nn.Sequential(Residual(scaled(3 * orthogonal(4))), nn.Linear(4, 2, dtype=D))
    measured = only(skip_bound(model, torch.randn(2, 4, dtype=D), layers="0"))
    assert (measured.verdict, measured.cause) == ("vacuous", "‖Jg‖ = 3 is not less than α = 1")


def test_a_block_without_its_skip_is_vacuous_with_the_operation_that_loses_directions():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 2))
    model[0][0].bias.data.fill_(-50)
    measured = only(skip_bound(model, torch.randn(2, 4), layers="0"))
    assert measured.verdict == "vacuous"
    assert measured.cause == "‖Jg‖ = 1 is not less than α = 1; dead units: 0 of 8 units at 0.1 have a slope"


def test_gain_beside_the_blocks_own_counts_the_difference_to_the_branch():
    model = nn.Sequential(Residual(scaled(0.1 * torch.eye(3, dtype=D)), gain=2.0))
    measured = only(skip_bound(model, torch.randn(2, 3, dtype=D), layers="0", gain=1.5))
    assert (measured.left, measured.right) == (pytest.approx(2.1), pytest.approx(0.9))
    assert measured.note == "‖Jg‖ = 0.6, ‖αI + Jg‖ = 2.1"


def test_blocks_that_work_in_place_and_images():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            out = self.conv(x)
            out *= 0.01
            return out.add_(x).mul_(1)

    model, x = nn.Sequential(InPlace(), InPlace(), nn.Flatten(), nn.Linear(32, 2)).double(), torch.randn(2, 2, 4, 4)
    measured = skip_bound(model, x, layers=["0", "1"])
    assert [one.verdict for one in measured] == ["holds", "holds"]
    block = jacobian(copy.deepcopy(model)[0], x.double()).reshape(64, 64).numpy()
    assert measured[0].left == pytest.approx(np.linalg.svd(block)[1][-1], rel=1e-9)


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
ERRORS = [
    ({"layers": "stem"}, LayerCallError, "'stem' takes \\(3, 6\\) and returns \\(3, 4\\)"),
    ({"layers": "blocks.7"}, UnknownLayerError, "'blocks.7' is no module"),
    ({"gain": 0.0}, InputError, "gain of a skip must be a positive number; it is "),
    ({"gain": -1.0}, InputError, "gain of a skip must be a positive number; it is "),
    ({"gain": float("nan")}, InputError, "gain of a skip must be a positive number; it is "),
    ({"gain": float("inf")}, InputError, "gain of a skip must be a positive number; it is inf"),
    ({"dtype": torch.int64}, InputError, "checked in torch.float64 or torch.float32; dtype is torch.int64"),
    ({"dtype": None}, InputError, "checked in torch.float64 or torch.float32; dtype is None"),
    ({"memory_budget": 1}, MemoryBudgetError, "memory budget"),
]


@pytest.mark.parametrize(("options", "error", "message"), ERRORS)
def test_errors_name_the_layer_and_the_way_out(options, error, message):
    with pytest.raises(error, match=message):
        skip_bound(network(), X, **options)


def test_a_network_without_such_a_block_says_so():
    with pytest.raises(LayerCallError, match="no block whose output has the shape"):
        skip_bound(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), X)
