"""The regularity bound: a dense oracle for every factor, closed forms with known slack, bounds made wrong by hand."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian
from torch.func import functional_call

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.kernel.result import contrasts
from skip_conditioning.diagnostics.theory.regularity import regularity
from skip_conditioning.models import build_model
from tests.diagnostics.theory.chains import D, everything, kept_apart, network, orthogonal


def smallest(matrix):
    """``λ(A)`` by numpy; from singular values, as a square of ``A`` would lose half of the digits."""
    rows, cols = matrix.shape
    return float(np.linalg.svd(matrix.numpy(), compute_uv=False)[-1]) ** 2 if rows <= cols else 0.0


def dense(model, x):
    """``DF`` by layer, ``Df_l`` by layer and ``Jf_l`` but the first, of a sequential network, by plain autograd."""
    layers = copy.deepcopy(model).double()
    own, steps, value = [], [], x.double()
    for place, layer in enumerate(layers):
        weights = dict(layer.named_parameters())
        if weights:
            given = lambda *w: functional_call(layer, dict(zip(weights, w, strict=True)), (value,))  # noqa: B023, E731
            parts = jacobian(given, tuple(weights.values()))
            own.append(torch.cat([part.flatten(value.dim()).flatten(0, value.dim() - 1) for part in parts], dim=1))
        else:
            own.append(None)
        steps.append(jacobian(layer, value).reshape(-1, value.numel()) if place else None)
        value = layer(value).detach()
    shares, later = [], torch.eye(value.numel(), dtype=D)
    for df, jf in zip(reversed(own), reversed(steps), strict=True):
        shares.append(None if df is None else later @ df)
        later = later if jf is None else later @ jf
    return shares[::-1], own, steps


def agrees(factor, value, scale):
    # The oracle rounds as much as what is checked.
    return factor.value == pytest.approx(value, abs=max(1e-10 * scale**2, 2 * factor.error), rel=1e-6)


def check(model, x, measured, scale_of=torch.linalg.matrix_norm):
    """Every number of a result on all outputs, against the dense oracle."""
    shares, own, steps = dense(model, x)
    whole = torch.cat([share for share in shares if share is not None], dim=1)
    assert agrees(measured.whole, smallest(whole), float(scale_of(whole)))
    places = {name: place for place, name in enumerate(everything(model))}
    for term in measured.terms:
        place = places[term.layer]
        assert agrees(term.share, smallest(shares[place]), float(scale_of(shares[place])))
        assert agrees(term.parameter, smallest(own[place]), float(scale_of(own[place])))
        if term.jacobian is not None:
            assert agrees(term.jacobian, smallest(steps[place]), float(scale_of(steps[place])))
        expected = smallest(own[place]) * math.prod(smallest(step) for step in steps[place + 1 :])
        if not term.cause:
            assert term.value == pytest.approx(expected, rel=1e-6, abs=2 * term.error)


X = torch.randn(3, 5, dtype=D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("widths", [(5, 4, 3), (5, 5, 4, 2), (5, 3), (5, 7, 6, 2)])
def test_every_factor_is_that_of_the_dense_matrices(widths, nothing_changes):
    model = network(widths)
    with nothing_changes(model, X):
        measured = regularity(model, X, layers=everything(model))
    check(model, X, measured)
    kept_apart([measured.statement, measured.restricted_statement, *(term.statement for term in measured.terms)])
    assert measured.statement.verdict == "holds"
    assert measured.terms[0].jacobian is None


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_deep_linear_network_of_scaled_orthogonal_weights(depth, size):
    d = 4
    model = nn.Sequential(*[orthogonal(d, d, size, seed) for seed in range(depth)])
    x = torch.randn(3, d, dtype=D, generator=torch.Generator().manual_seed(9))
    gram = smallest(x)
    measured = regularity(model, x)
    # Inputs of layer l are s^{l−1} times a rotated X, and each later layer passes s² on: all terms are equal.
    for depth_below, term in enumerate(measured.terms):
        assert term.parameter.value == pytest.approx(gram * size ** (2 * depth_below), rel=1e-9)
        assert term.value == pytest.approx(gram * size ** (2 * depth - 2), rel=1e-9)
        assert term.jacobian is None or term.jacobian.value == pytest.approx(size**2, rel=1e-12)
    # K = L s^{2(L−1)} XXᵀ ⊗ I: equality.
    assert measured.whole.value == pytest.approx(depth * gram * size ** (2 * depth - 2), rel=1e-9)
    assert measured.statement.verdict == measured.restricted_statement.verdict == "holds"
    assert abs(measured.statement.slack) <= measured.statement.error < 1e-9 * measured.whole.value
    if size < 1 < depth:
        _with_a_factor_left_out_it_is_violated(measured)


def _with_a_factor_left_out_it_is_violated(measured):
    values = {term.layer: term.jacobian.value for term in measured.terms if term.jacobian is not None}
    for gone in values:
        # Without λ(Jf) of one layer, a number under one, the earlier terms are too large.
        earlier = measured.terms[: [term.layer for term in measured.terms].index(gone)]
        terms = [replace(t, value=t.value / values[gone]) if t in earlier else t for t in measured.terms]
        assert replace(measured, terms=terms).statement.verdict == "violated"
        assert all(term.statement.verdict == "violated" for term in terms[: len(earlier)])


def test_slack_is_the_spread_of_the_later_weights():
    # One sample: K = |x|² A Aᵀ + |Wx|² I for F = A W x, so λ = |x|² σ_min(A)² + |Wx|²: equality, at any spread.
    head = nn.Linear(2, 2, bias=False, dtype=D)
    head.weight.data = torch.diag(torch.tensor([3.0, 0.5], dtype=D))
    model, x = nn.Sequential(orthogonal(2, 2), head), torch.ones(1, 2, dtype=D)
    measured = regularity(model, x)
    assert [term.value for term in measured.terms] == pytest.approx([2 * 0.25, 2])
    assert measured.whole.value == pytest.approx(2.5)
    # With the probe's two samples of different size the smallest directions no longer meet.
    x = torch.diag(torch.tensor([1.0, 2.0], dtype=D))
    first = nn.Linear(2, 2, bias=False, dtype=D)
    first.weight.data = torch.diag(torch.tensor([4.0, 1.0], dtype=D))
    measured = regularity(nn.Sequential(first, head), x)
    # K is diagonal: |x_n|² a_o² + |W x_n|² with |x|² = (1, 4), a² = (9, ¼), |Wx|² = (16, 4).
    assert measured.whole.value == pytest.approx(4 * 0.25 + 4)
    assert measured.statement.right == pytest.approx(1 * 0.25 + 4)
    assert measured.statement.slack == pytest.approx(0.75)


def test_single_linear_layer_is_an_equality():
    measured = regularity(nn.Sequential(nn.Linear(5, 2)).double(), X)
    with_ones = torch.cat([X, torch.ones(3, 1, dtype=D)], dim=1)
    assert measured.whole.value == pytest.approx(smallest(with_ones), rel=1e-9)
    assert measured.statement.right == pytest.approx(measured.whole.value, rel=1e-12)
    assert measured.restricted_statement.right == pytest.approx(measured.whole.value, rel=1e-12)


def test_a_reversed_bound_is_a_violation():
    measured = regularity(network((5, 4, 3)), X)
    for one in (measured.statement, measured.restricted_statement, *(term.statement for term in measured.terms[:-1])):
        assert one.verdict == "holds"
        assert one.slack > one.error, "it is strict here"
        assert replace(one, relation="<=").verdict == "violated"
        assert replace(one, left=one.right, right=one.left).verdict == "violated"


ACTIVATIONS = {"tanh": nn.Tanh, "softplus": nn.Softplus, "relu": nn.ReLU, "identity": nn.Identity}


class Skip(nn.Module):
    def __init__(self, width, inner, norm):
        super().__init__()
        self.branch = nn.Sequential(*[nn.BatchNorm1d(width)] * norm, inner(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.branch(x)


def drawn(seed, widths, inner, skip, normaliser):
    torch.manual_seed(seed)
    if normaliser == "weight":
        return build_model(
            "residual-mlp", arm="residual" if skip else "chain", in_features=5, width=widths[0], depth=len(widths),
            num_classes=2, activation=inner, normaliser="weight",
        )  # fmt: skip
    layers, before = [], 5
    for width in widths:
        layers.append(nn.Linear(before, width))
        norm = normaliser == "batch"
        plain = [*[nn.BatchNorm1d(width)] * norm, ACTIVATIONS[inner]()]
        layers += [Skip(width, ACTIVATIONS[inner], norm)] if skip else plain
        before = width
    return nn.Sequential(*layers, nn.Linear(before, 2))


SUBSPACES = ["all", "centred", "data", "given"]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**31), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.sampled_from(sorted(ACTIVATIONS)),
    st.booleans(), st.sampled_from([None, "batch", "weight"]), st.integers(1, 7), st.booleans(), st.floats(-3, 3),
    st.sampled_from(SUBSPACES), st.sampled_from([D, torch.float32]),
)  # fmt: skip
def test_no_draw_violates_it(seed, widths, inner, skip, normaliser, samples, twice, size, subspace, dtype):
    model = drawn(seed, widths, inner, skip, normaliser)
    for parameter in model.parameters():
        parameter.data *= 10 ** (size * torch.rand(()).item())
    x = torch.randn(samples + (normaliser == "batch"), 5)
    if twice:
        x[-1] = x[0]
    if subspace == "given":
        subspace = torch.linalg.qr(torch.randn(2 * len(x), 1 + seed % 3, dtype=D))[0]
    measured = regularity(model, x, subspace=subspace, dtype=dtype)
    plain, restricted = measured.statement, measured.restricted_statement
    every = [plain, restricted, *(term.statement for term in (*measured.terms, *measured.restricted))]
    assert "violated" not in [one.verdict for one in every], [str(one) for one in every]
    assert restricted.right >= plain.right - plain.error - restricted.error
    kept_apart(every)


def test_batch_norm_of_two_samples_violates_nothing():
    for seed in range(10):
        model, x = drawn(seed, [2], "identity", False, "batch"), torch.randn(2, 5)
        measured = regularity(model, x, subspace="centred")
        every = [term.statement for term in (*measured.terms, *measured.restricted)]
        assert "violated" not in [one.verdict for one in every], [str(one) for one in every]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.sampled_from(sorted(ACTIVATIONS)),
       st.booleans(), st.sampled_from([None, "batch"]), st.integers(2, 4))  # fmt: skip
def test_every_draw_has_the_factors_of_the_dense_matrices(seed, widths, inner, skip, normaliser, samples):
    model = drawn(seed, widths, inner, skip, normaliser)
    x = torch.randn(samples, 5)
    check(model, x, regularity(model, x, layers=everything(model)))


def explicit(subspace, x, outputs):
    """An orthonormal basis by other means than the package's: projections of random vectors."""
    many = torch.randn(len(x), outputs, len(x) * outputs, dtype=D)
    if subspace == "centred":
        many -= many.mean(1, keepdim=True)
    if subspace == "data":
        many = torch.einsum("nm,mok->nok", x @ torch.linalg.pinv(x), many)
    left, sizes, _ = torch.linalg.svd(many.flatten(0, 1))
    return left[:, : int((sizes > 1e-9 * sizes[0]).sum())]


@pytest.mark.parametrize("subspace", ["all", "centred", "data"])
@pytest.mark.parametrize("x", [X, X[[0, 1, 0]], torch.cat([X, X + X[:1]])], ids=["", "twice", "dependent"])
def test_on_a_subspace_it_is_the_kernel_between_its_basis(subspace, x):
    model = network((5, 12, 3))
    basis = explicit(subspace, x, 3)
    measured = regularity(model, x, subspace=subspace)
    DF = torch.cat([share for share in dense(model, x)[0] if share is not None], dim=1)
    K = basis.T @ DF @ DF.T @ basis
    assert measured.whole.rows == basis.shape[1]
    assert measured.whole.value == pytest.approx(float(np.linalg.eigvalsh(K.numpy())[0]), abs=1e-10 * float(K.norm()))
    given = regularity(model, x, subspace=basis)
    assert given.whole.value == pytest.approx(measured.whole.value, rel=1e-6, abs=1e-10 * float(K.norm()))
    assert given.restricted_statement.right == pytest.approx(measured.restricted_statement.right, rel=1e-6, abs=1e-12)
    assert (measured.subspace, given.subspace) == (subspace, "given")


def test_restricted_factors_are_the_smallest_over_what_is_passed_on():
    model, basis = network((5, 7, 3)), torch.kron(torch.eye(3, dtype=D), contrasts(3))
    measured = regularity(model, X, layers=everything(model), subspace="centred")
    _, own, steps = dense(model, X)
    for term, place in zip(reversed(measured.restricted), (2, 0), strict=True):
        moved = basis
        for step in reversed(steps[place + 1 :]):
            moved = torch.linalg.qr(step.T @ moved)[0]
        assert term.parameter.value == pytest.approx(smallest(moved.T @ own[place]), rel=1e-9)
    assert measured.restricted[-1].jacobian.value == pytest.approx(smallest(basis.T @ steps[2]), rel=1e-9)
    assert measured.restricted_statement.right > measured.statement.right > 0


@pytest.mark.parametrize(
    ("subspace", "message"),
    [
        ("center", "unknown subspace 'center'; known are all, centred, data. Did you mean 'centred'"),
        (torch.eye(5), r"shape \(6, r\)"),
        (torch.ones(6, 2), "must be orthonormal"),
        (torch.zeros(6, 0), r"shape \(6, r\)"),
    ],
)
def test_subspaces_that_are_refused(subspace, message):
    with pytest.raises(InputError, match=message):
        regularity(network((5, 2)), X, subspace=subspace)


def test_a_single_output_has_nothing_centred():
    with pytest.raises(InputError, match="single output are all zero"):
        regularity(network((5, 1)), X, subspace="centred")


def test_other_shapes_of_network():
    torch.manual_seed(0)
    lines = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    for model, x in [(lines, torch.randn(2, 2, 4)), (nn.DataParallel(lines), torch.randn(3, 4))]:
        for subspace in ("all", "centred", "data"):
            measured = regularity(model, x, subspace=subspace)
            assert measured.statement.verdict == "holds"
    one = regularity(nn.Sequential(nn.Linear(1, 1)), torch.ones(1, 1))
    assert one.whole.value == one.statement.right == pytest.approx(2)
    tokens = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 2))
    assert regularity(tokens, torch.arange(6).view(2, 3)).statement.verdict == "holds"
    single = regularity(nn.Linear(4, 2), torch.randn(3, 4))
    assert [term.layer for term in single.terms] == ["logits"]
    assert single.statement.right == pytest.approx(single.whole.value, rel=1e-9)
