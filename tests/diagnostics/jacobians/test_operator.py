"""Products with the Jacobian: every network and map against the dense matrix, and a snapshot that stays."""

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning import JacobianOperator, jacobian
from skip_conditioning.diagnostics.errors import InputError, LayerCallError, NonFiniteError, UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.operator import operator_of
from skip_conditioning.diagnostics.networks.measuring import measuring
from tests.diagnostics.sample_networks import CASES


def assert_same_matrix(operator, dense, about):
    """Equal products with vectors and blocks, from both sides."""
    assert operator.shape == tuple(dense.shape), about
    V, U = (torch.randn(side, 3, dtype=dense.dtype) for side in reversed(dense.shape))
    size = 1e-10 * dense.abs().max() * sum(dense.shape)
    for measured, expected in (
        (operator.matmat(V), dense @ V),
        (operator.rmatmat(U), dense.T @ U),
        (operator.matvec(V[:, 0]), dense @ V[:, 0]),
        (operator.rmatvec(U[:, 0]), dense.T @ U[:, 0]),
        (operator.gram_matvec(V[:, 0]), dense.T @ (dense @ V[:, 0])),
    ):
        assert (measured - expected).abs().max() <= size * max(1, dense.abs().max()), about


def assert_products(case, batch_mode):
    """Check the products of each map, with the last of a case's layers."""
    model, x = case.make()
    for name, layers in case.maps.items():
        layer = layers[-1] if layers else None
        dense = jacobian(model, x, map=name, layer=layer, batch_mode=batch_mode)
        dense = torch.block_diag(*dense) if batch_mode == "sample" else dense
        operator = JacobianOperator(model, x, map=name, layer=layer, batch_mode=batch_mode)
        assert_same_matrix(operator, dense, f"{name} of {layer}")


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.id.startswith("preact-resnet")], ids=lambda case: case.id
)
def test_products_are_those_with_the_dense_jacobian(case):
    assert_products(case, "batch")


@pytest.mark.parametrize("name", ["mlp", "changes-its-input", "called-thrice", "dropout", "python-random"])
def test_products_sample_by_sample_are_those_with_the_dense_jacobian(name):
    assert_products(next(case for case in CASES if case.id == name), "sample")


def test_composition_is_the_chain_rule(make):
    model, x = make("in-place-residual")
    first, *others = (JacobianOperator(model, x, map="layer", layer=name) for name, _ in model.named_children())
    product = first
    for operator in others:
        product = operator @ product
    assert_same_matrix(product, jacobian(model, x, map="network"), "network")
    assert_same_matrix(product.T, jacobian(model, x, map="network").T, "its adjoint")


@pytest.mark.parametrize("name", ["in-place-residual", "transformer-fast-path", "parametrised", "dropout"])
@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
def test_building_and_using_one_changes_nothing(name, batch_mode, make, nothing_changes):
    model, x = make(name)
    with nothing_changes(model, x):
        operator = JacobianOperator(model, x, map="network", batch_mode=batch_mode)
        operator.gram_matvec(torch.ones(operator.shape[1], dtype=torch.float64))


def test_it_is_a_snapshot(make):
    model, x = make("conv-batch-norm")
    operator, vector = JacobianOperator(model, x, map="network"), torch.ones(x.numel(), dtype=torch.float64)
    before = operator.gram_matvec(vector)
    model(x)  # moves the running statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    x.zero_()
    assert torch.equal(operator.gram_matvec(vector), before)


def test_dropout_keeps_its_mask_and_the_random_stream(make, nothing_changes):
    model, x = make("dropout")
    operator, vector = JacobianOperator(model, x, map="network"), torch.ones(x.numel(), dtype=torch.float64)
    with nothing_changes(model, x):
        assert torch.equal(operator.matvec(vector), operator.matvec(vector))


def test_blocks_are_carried_in_chunks_that_change_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5)).double()
    x, V = torch.randn(4, 6, dtype=torch.float64), torch.randn(24, 7, dtype=torch.float64)
    wide, narrow = (JacobianOperator(model, x, map="network", memory_budget=budget) for budget in (2**30, 1))
    torch.testing.assert_close(wide.matmat(V), narrow.matmat(V), rtol=1e-12, atol=1e-12)


def test_products_repeat_no_forward_pass():
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(1)
            return super().forward(x)

    model, x = nn.Sequential(Counted(4, 4), nn.Tanh(), Counted(4, 3)), torch.randn(2, 4)
    operator = JacobianOperator(model, x, map="network")
    calls.clear()
    operator.matvec(torch.ones(8)), operator.rmatvec(torch.ones(6)), operator.matmat(torch.ones(8, 3))
    assert calls == []


def test_control_flow_that_depends_on_the_data_is_followed():
    class Branches(nn.Module):
        def forward(self, x):
            return x.sin() if x.sum() > 0 else x.cos()

    x = torch.ones(2, 3, dtype=torch.float64)
    operator = JacobianOperator(Branches(), x, map="network")
    torch.testing.assert_close(operator.dense(), torch.diag(x.cos().flatten()))


def test_scipy_solvers_take_it(make):
    from scipy.sparse.linalg import svds

    model, x = make("mlp")
    operator = JacobianOperator(model, x, map="network")
    largest = svds(operator.to_scipy(), k=2, return_singular_vectors=False)
    expected = torch.linalg.svdvals(jacobian(model, x, map="network"))[:2]
    np.testing.assert_allclose(sorted(largest, reverse=True), expected, rtol=1e-8)


class NoDerivative(nn.Module):
    """A custom operator without a backward pass."""

    class Rounds(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.round()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no derivative known")

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.Rounds.apply(self.inner(x))


class BackwardOnly(nn.Module):
    """An operator with a backward pass only, as of most people's own."""

    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * gradient

    def forward(self, x):
        return self.Cube.apply(x).flip(1)


def test_without_a_forward_mode_the_double_backward_pass_serves():
    x = torch.randn(2, 3, dtype=torch.float64)
    operator = JacobianOperator(BackwardOnly(), x, map="network")
    assert_same_matrix(operator, jacobian(BackwardOnly(), x, map="network"), "cube")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, InputError, "the layer map needs a layer"),
        ({"map": "tial"}, InputError, "Did you mean 'tail'"),
        ({"layer": "inne"}, InputError, "Did you mean 'inner'"),
        ({"layer": "inn*", "map": "network"}, UnsupportedModelError, "the network map of 'network' cannot be diff"),
    ],
)
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        JacobianOperator(NoDerivative(), torch.randn(2, 3), **options).rmatvec(torch.ones(6))


def test_a_glob_for_several_layers_and_a_call_not_named_are_refused(make):
    model, x = make("called-thrice")
    with pytest.raises(LayerCallError, match="say which call is meant, as 'cell#1' to 'cell#3'"):
        JacobianOperator(model, x, layer="cell")
    assert JacobianOperator(model, x, layer="cell#2").shape == (x.numel(), x.numel())
    with pytest.raises(InputError, match="stands for 2 layers; name one of them"):
        JacobianOperator(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.randn(2, 3), layer="*")


def test_products_that_are_not_finite_name_the_layer():
    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    with pytest.raises(NonFiniteError, match="a product with the network map of 'network' holds NaN"):
        JacobianOperator(Root(), torch.zeros(2, 3), map="network").matvec(torch.ones(6))


def test_a_channels_last_or_mixed_model_has_flat_row_major_vectors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    dense = jacobian(model, x, map="network")
    channels_last = model.to(memory_format=torch.channels_last)
    operator = JacobianOperator(channels_last, x.to(memory_format=torch.channels_last), map="network")
    assert_same_matrix(operator, dense, "channels last")


def test_operators_inside_a_measurement_share_the_maps_errors(make):
    model, x = make("mlp")
    with measuring(model, x) as probed:
        (one,) = probed.maps("tail", ["0"])
        assert_same_matrix(operator_of(one, 2**30), jacobian(model, x, map="tail", layer="0"), "tail")
