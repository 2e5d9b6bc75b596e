"""The residual MLP: its formula for every normaliser, and its weight norm."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.func import functional_call, jacrev, vjp, vmap

from skip_conditioning.models import ModelOptionError, WeightNormLinear, build_model

EPS = 1e-2


def linear(x: Tensor, layer: torch.nn.Linear, normaliser: str | None) -> Tensor:
    W = layer.weight
    if normaliser == "weight":
        W = torch.stack([w / torch.sqrt(EPS + w @ w) for w in W])
    return x @ W.T + layer.bias


def preactivate(x: Tensor, normaliser: str | None) -> Tensor:
    if normaliser == "batch":
        x = (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + EPS)
    if normaliser == "layer":
        x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, correction=0, keepdim=True) + EPS)
    return torch.tanh(x)


@pytest.mark.parametrize("arm", ["chain", "residual"])
@pytest.mark.parametrize("normaliser", [None, "batch", "weight", "layer"])
def test_logits_are_those_of_the_formula(arm: str, normaliser: str | None) -> None:
    options = {
        "in_features": 12,
        "width": 8,
        "depth": 3,
        "num_classes": 4,
        "activation": "tanh",
        "skip_gain": 0.5,
    }
    model = build_model("residual-mlp", arm=arm, normaliser=normaliser, eps=EPS, **options).double()
    images = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    x = linear(images.flatten(1), model.stem[1], normaliser)
    assert len(model.blocks) == 3
    for block in model.blocks:
        skip = 0.5 * x if arm == "residual" else 0.0
        x = linear(preactivate(x, normaliser), block.branch, normaliser) + skip
    expected = linear(preactivate(x, normaliser), model.head[1], None)
    torch.testing.assert_close(model(images), expected)


def test_a_gain_of_zero_is_the_chain() -> None:
    x = torch.randn(5, 784)
    torch.manual_seed(0)
    chain = build_model("residual-mlp", arm="chain")
    torch.manual_seed(0)
    assert torch.equal(build_model("residual-mlp", skip_gain=0)(x), chain(x))
    torch.manual_seed(0)
    assert not torch.allclose(build_model("residual-mlp", skip_gain=0.25)(x), chain(x))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6])
def test_weight_norm_bounds_the_rows_and_their_derivative(scale: float) -> None:
    layer = WeightNormLinear(6, 3, eps=EPS).double()
    layer.weight.data.mul_(scale)
    w = layer.weight.detach()

    def effective(w: Tensor) -> Tensor:
        return functional_call(layer, {"weight": w}, (torch.eye(6, dtype=w.dtype),)) - layer.bias

    assert effective(w).norm(dim=0).max() <= 1
    derivative = jacrev(effective)(w).flatten(2).flatten(0, 1)
    assert torch.linalg.svdvals(derivative)[0] <= EPS**-0.5 * (1 + 1e-12)
    if scale == 0:
        assert torch.linalg.svdvals(derivative)[0].item() == pytest.approx(EPS**-0.5)


@pytest.mark.parametrize("normaliser", [None, "batch", "weight", "layer"])
def test_vmapped_pullbacks_agree_with_autograd(normaliser: str | None) -> None:
    model = build_model("residual-mlp", in_features=5, width=6, depth=2, num_classes=3, normaliser=normaliser)
    model = model.double().train()
    x = torch.randn(4, 5, dtype=torch.float64)

    def logits_from(x: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return functional_call(model, buffers, (x,)).flatten()

    _, pull = vjp(logits_from, x)
    J = vmap(lambda v: pull(v)[0])(torch.eye(12, dtype=torch.float64))
    expected = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(J, expected.flatten(0, 1))


def test_per_sample_jacobians_with_running_statistics() -> None:
    model = build_model("residual-mlp", in_features=5, width=6, depth=2, num_classes=3, normaliser="batch")
    model = model.double().eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    J = vmap(jacrev(lambda sample: model(sample[None])[0]))(x)
    expected = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(J, torch.stack([expected[i, :, i] for i in range(4)]))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "softplus", "identity"])
def test_activations(activation: str) -> None:
    model = build_model("residual-mlp", in_features=4, width=6, activation=activation)
    x = torch.randn(3, 6)
    expected = x if activation == "identity" else getattr(F, activation, torch.tanh)(x)
    torch.testing.assert_close(model.head[0](x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "rely"}, r"unknown activation: 'rely' \(did you mean relu\?\); valid: relu, tanh"),
        ({"normaliser": "none"}, r"'none' \(did you mean None\?\); valid: None, batch, weight, layer"),
        ({"initialisation": "dirak"}, r"did you mean dirac\?"),
        ({"depth": 0}, "option depth: 0 is not a whole number of at least 1"),
        ({"width": True}, "option width: True"),
        ({"eps": 0.0}, "option eps: 0.0 is not a positive number"),
        ({"eps": "small"}, "option eps: 'small'"),
        ({"skip_gain": float("nan")}, "option skip_gain: nan is not a finite number"),
    ],
)
def test_bad_values_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelOptionError, match=message):
        build_model("residual-mlp", **options)
