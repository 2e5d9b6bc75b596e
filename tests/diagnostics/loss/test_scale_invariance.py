"""Euler's theorem on networks that are known to be scale-invariant, and on those known not to be."""

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import UnknownLayerError
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator
from skip_conditioning.diagnostics.loss.hessian import HessianOperator
from skip_conditioning.diagnostics.loss.scale_invariance import INVARIANT, Rescaled, effective_scales, scale_invariance
from skip_conditioning.models.residual_mlp import build_residual_mlp

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers).double()


def test_weights_before_batch_norm_are_invariant_and_the_others_not():
    model = network(nn.Linear(5, 4), nn.BatchNorm1d(4, eps=1e-12), nn.Tanh(), nn.Linear(4, 3))
    shares = scale_invariance(model, X)
    assert shares["0.weight"] < 1e-9
    assert shares["0.bias"] == 0  # batch norm takes the mean off: no influence at all
    assert min(shares[name] for name in ("1.weight", "3.weight")) > 0.05
    model.eval()
    assert scale_invariance(model, X)["0.weight"] > 0.05


def test_a_linear_map_feels_its_length_as_the_closed_form_says():
    model = network(nn.Linear(5, 2, bias=False))
    weight = model[0].weight.detach()
    expected = torch.linalg.norm(X @ weight.T) / (torch.linalg.matrix_norm(X, 2) * torch.linalg.norm(weight))
    assert scale_invariance(model, X)["0.weight"] == pytest.approx(float(expected), rel=1e-12)


def test_weights_can_be_invariant_only_together():
    torch.manual_seed(0)
    model = build_residual_mlp(in_features=5, width=4, depth=2, num_classes=3, normaliser="batch").double()
    hidden = [
        f"{layer}.{kind}" for layer in ("stem.1", "blocks.0.branch", "blocks.1.branch") for kind in ("weight", "bias")
    ]
    shares = scale_invariance(model, X, {**{name: [name] for name in hidden}, "together": hidden})
    assert shares["together"] < INVARIANT < 0.01 < shares["stem.1.weight"]


def test_a_name_that_is_no_parameter_is_an_error():
    with pytest.raises(UnknownLayerError, match=r"Did you mean '0\.weight'"):
        scale_invariance(network(nn.Linear(5, 2)), X, {"first": ["0.weigth"]})


def test_the_model_is_left_as_it_was(make, nothing_changes):
    model, x = make("conv-batch-norm")
    with nothing_changes(model, x):
        scale_invariance(model, x)


def test_rescaling_is_a_product_with_a_diagonal_from_both_sides():
    torch.manual_seed(0)
    matrix, scales = torch.randn(4, 4).double(), torch.rand(4).double()
    rescaled = Rescaled(MatrixOperator(matrix), scales)
    torch.testing.assert_close(rescaled.dense(), torch.diag(scales) @ matrix @ torch.diag(scales))
    torch.testing.assert_close(rescaled.T.dense(), rescaled.dense().T)


def test_the_effective_hessian_does_not_fall_with_the_length():
    model = network(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, eps=1e-12), nn.Tanh(), nn.Linear(4, 3))
    y, measured = torch.arange(8) % 3, []
    for _ in range(2):
        hessian = HessianOperator(model, X, y)
        scales = effective_scales(model, hessian.columns, {"first": ["0.weight"]})
        measured.append((hessian.dense(), Rescaled(hessian, scales).dense()))
        with torch.no_grad():
            model[0].weight.mul_(100)
    (raw, effective), (raw_later, effective_later) = measured
    torch.testing.assert_close(effective_later, effective, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(raw_later[:20, :20], raw[:20, :20] / 100**2, rtol=1e-7, atol=1e-12)
