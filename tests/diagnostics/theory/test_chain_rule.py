"""The chain rule holds for every network, and a wrong derivative or a layer left out is a violation."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skip_conditioning import diagnostics
from skip_conditioning.diagnostics.errors import InputError, MemoryBudgetError, UnsupportedModelError
from skip_conditioning.diagnostics.theory.chain_rule import chain_rule
from skip_conditioning.models import build_model
from tests.diagnostics.sample_networks import CASES

D = torch.float64
NO_CHAIN = ("tied", "called-thrice")
LARGE = ("preact-resnet18",)


@pytest.fixture(params=[one for one in CASES if one.id not in (*NO_CHAIN, *LARGE)], ids=lambda case: case.id)
def chain_case(request):
    return request.param


def of(model, x):
    """DF of a copy by plain autograd, parameters by name, each ``(N·O, p)``."""
    model = copy.deepcopy(model).double()
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    torch.manual_seed(0)
    rows = [torch.autograd.grad(one, named.values(), retain_graph=True) for one in model(x).flatten()]
    columns = zip(named, zip(*rows, strict=True), strict=True)
    return {name: torch.stack([part.flatten() for part in parts]) for name, parts in columns}


def verdicts(statements):
    return {one.layer or "kernel": one.verdict for one in statements}


def test_it_holds_for_every_network_that_is_a_chain(chain_case, nothing_changes):
    model, x = chain_case.make()
    with nothing_changes(model, x):
        measured = chain_rule(model, x)
    assert set(verdicts(measured).values()) == {"holds"}, [str(one) for one in measured]
    assert all((one.relation, one.right) == ("=", 0.0) for one in measured)


@pytest.mark.parametrize("name", NO_CHAIN)
def test_shared_parameters_are_refused(name, make):
    with pytest.raises(UnsupportedModelError, match="is used by both"):
        chain_rule(*make(name))


def mlp(width=5, normaliser=None, inner=nn.Tanh, depth=2, seed=0):
    torch.manual_seed(seed)
    hidden = [nn.Linear(width, width), *([nn.BatchNorm1d(width)] if normaliser else []), inner()]
    copies = [nn.Linear(width, width) if type(part) is nn.Linear else copy.deepcopy(part) for part in depth * hidden]
    return nn.Sequential(nn.Linear(4, width), *copies, nn.Linear(width, 3)).double()


X = torch.randn(4, 4, dtype=D, generator=torch.Generator().manual_seed(1))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 6), st.integers(0, 3), st.booleans(), st.floats(-3, 3), st.integers(1, 6),
    st.sampled_from([nn.Tanh, nn.ReLU, nn.Softplus, nn.Identity]),
)  # fmt: skip
def test_it_holds_whatever_the_weights(seed, width, depth, normalised, size, samples, inner):
    model = mlp(width, normalised, inner, depth, seed)
    for parameter in model.parameters():
        parameter.data *= 10 ** (size * torch.rand(()).item())
    measured = chain_rule(model, torch.randn(samples + normalised, 4, dtype=D))
    assert "violated" not in verdicts(measured).values(), [str(one) for one in measured]


@pytest.mark.parametrize(("width", "samples"), [(1, 2), (1, 6), (2, 2), (4, 2)])
def test_batch_norm_that_cancels_digits_violates_nothing(width, samples):
    for seed in range(5):
        measured = chain_rule(mlp(width, True, nn.Tanh, 1, seed), torch.randn(samples, 4, dtype=D))
        assert "violated" not in verdicts(measured).values(), [str(one) for one in measured]


def test_the_norms_in_the_notes_are_those_of_the_dense_matrices():
    model = mlp()
    parts = of(model, X)
    measured = chain_rule(model, X)
    assert [one.layer for one in measured] == ["0", "1", "3", "5", ""]
    for one in measured[:-1]:
        whole = torch.cat([parts[f"{one.layer}.{kind}"] for kind in ("weight", "bias")], dim=1)
        assert one.note == f"the norm of the matrix is {float(whole.norm()):.4g}"
        assert one.left <= 1e-13 * float(whole.norm()) < one.error
    kernel = sum(part @ part.T for part in parts.values())
    assert measured[-1].note == f"the norm of the matrix is {float(kernel.norm()):.4g}"


@pytest.mark.parametrize("normaliser", [None, "batch"])
def test_a_layer_left_out_is_a_violation(monkeypatch, normaliser):
    whole = diagnostics.theory.chain_rule._Layerwise.__init__

    def shortened(self, network, memory_budget):
        whole(self, network, memory_budget)
        # The Jacobian of the first of the square layers is taken to be the identity.
        self._layers = [(n, p, None if n == "1" else j) for n, p, j in self._layers]

    monkeypatch.setattr(diagnostics.theory.chain_rule._Layerwise, "__init__", shortened)
    measured = verdicts(chain_rule(mlp(normaliser=normaliser), X))
    assert measured["0"] == measured["kernel"] == "violated"
    assert {measured[name] for name in measured if name not in ("0", "kernel")} == {"holds"}


@pytest.mark.parametrize("share", [1e-9, 1e-3])
def test_a_factor_that_is_slightly_off_is_a_violation(monkeypatch, share):
    pull_back = diagnostics.theory.chain_rule._Layerwise.pull_back

    def skewed(self, rows):
        return {name: part * (1 + share * (name == "3")) for name, part in pull_back(self, rows).items()}

    monkeypatch.setattr(diagnostics.theory.chain_rule._Layerwise, "pull_back", skewed)
    measured = chain_rule(mlp(), X)
    assert verdicts(measured) == {"0": "holds", "1": "holds", "3": "violated", "5": "holds", "kernel": "violated"}
    assert float(str(measured[2]).split(" = 0: ")[1].split(" = ")[0]) == measured[2].left


@pytest.mark.parametrize("name", ["mlp", "residual-mlp-batch"])
def test_a_small_budget_means_more_blocks_and_the_same_numbers(name, make, monkeypatch):
    model, x = make(name)
    blocks, pull_back = [], diagnostics.theory.chain_rule._Layerwise.pull_back

    def counted(self, rows):
        blocks.append(rows.shape[1])
        return pull_back(self, rows)

    monkeypatch.setattr(diagnostics.theory.chain_rule._Layerwise, "pull_back", counted)
    large = chain_rule(model, x)
    rows, *rounding = blocks
    small = chain_rule(model, x, memory_budget=20_000)
    *several, first, second = blocks[3:]
    assert len(several) > 1
    assert sum(several) == rows
    assert rounding == [first, second] == [4, 4], "random vectors, in both precisions"
    assert verdicts(small) == verdicts(large)
    assert [one.note for one in small] == [one.note for one in large]


def test_a_kernel_that_does_not_fit_is_an_error():
    with pytest.raises(MemoryBudgetError):
        chain_rule(mlp(), X, memory_budget=100)


@pytest.mark.parametrize("normaliser", [None, "batch"])
def test_float32_has_an_error_of_its_own(normaliser):
    model = mlp(normaliser=normaliser).float()
    low, high = (chain_rule(model, X, dtype=dtype) for dtype in (torch.float32, D))
    assert set(verdicts(low).values()) == set(verdicts(high).values()) == {"holds"}
    assert all(2**28 < a.error / b.error < 2**30 for a, b in zip(low, high, strict=True))


def test_other_shapes_of_network():
    torch.manual_seed(0)
    lines = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    assert set(verdicts(chain_rule(lines, torch.randn(2, 3, 4))).values()) == {"holds"}, "logits of three dimensions"
    assert set(verdicts(chain_rule(nn.DataParallel(lines), X)).values()) == {"holds"}
    assert verdicts(chain_rule(nn.Sequential(nn.Linear(1, 1, bias=False)), torch.ones(1, 1))) == {
        "0": "holds", "kernel": "holds",
    }  # fmt: skip
    zero = chain_rule(lines, torch.zeros(2, 4))
    assert set(verdicts(zero).values()) == {"holds"}


@pytest.mark.parametrize("arm", ["chain", "residual", "modified"])
def test_the_layers_may_be_chosen(arm):
    torch.manual_seed(0)
    model = build_model("paper-mnist", arm=arm)
    measured = chain_rule(model, torch.rand(4, 1, 28, 28), layers=["block1"])
    assert [one.layer for one in measured] == ["block1", "logits", ""]
    assert set(verdicts(measured).values()) == {"holds"}


def test_input_that_is_refused():
    frozen = mlp().requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameters"):
        chain_rule(frozen, X)
    for dtype in (None, torch.int32, torch.bfloat16):
        with pytest.raises(InputError, match=f"checked in torch.float64 or torch.float32; dtype is {dtype}"):
            chain_rule(mlp().float(), X.float(), dtype=dtype)


@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-5])
def test_nearly_equal_samples_before_batch_norm_are_no_violation(gap):
    """The kernel's Gram matrices of activations and of cotangents then cancel all but a few digits of their product."""
    for seed in range(6, 18):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Softplus(), nn.Linear(3, 2))
        x = torch.randn(1, 5) + gap * torch.randn(4, 5)
        assert {one.verdict for one in chain_rule(model, x)} == {"holds"}
