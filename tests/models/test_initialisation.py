"""Each initialisation by the property it is there for."""

import pytest
import torch
from torch import nn
from torch.func import jacrev

from skip_conditioning.models import ModelOptionError, build_model, initialise


@pytest.mark.parametrize("channels", [(4, 4), (4, 6), (6, 4)])
def test_orthogonal_makes_a_padded_convolution_an_isometry(channels: tuple[int, int]) -> None:
    convolution = nn.Conv2d(*channels, 3, padding=1).double()
    initialise(convolution, "orthogonal")
    x = torch.randn(1, channels[0], 4, 4, dtype=torch.float64)
    values = torch.linalg.svdvals(jacrev(convolution)(x).flatten(4).flatten(0, 3))
    torch.testing.assert_close(values, torch.ones(16 * min(channels), dtype=torch.float64))


def test_dirac_makes_a_padded_convolution_and_a_linear_layer_the_identity() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 5, padding=2), nn.Flatten(), nn.Linear(18, 18))
    initialise(model, "dirac")
    x = torch.randn(3, 2, 3, 3)
    assert torch.equal(model(x), x.flatten(1))


@pytest.mark.parametrize("arm", ["chain", "residual"])
@pytest.mark.parametrize("normaliser", [None, "batch"])
def test_looks_linear_makes_a_relu_network_linear(arm: str, normaliser: str | None) -> None:
    options = {"in_features": 6, "width": 8, "depth": 3, "initialisation": "looks-linear"}
    model = build_model("residual-mlp", arm=arm, normaliser=normaliser, **options).double().eval()
    x, y = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x + 2 * y), model(x) + 2 * model(y))
    plain = build_model("residual-mlp", arm=arm, normaliser=normaliser, in_features=6, width=8, depth=3)
    x, y = x.float(), y.float()
    assert not torch.allclose(plain.eval()(x + 2 * y), plain(x) + 2 * plain(y), atol=1e-3)


def test_looks_linear_makes_a_resnet_linear() -> None:
    model = build_model("preact-resnet18")
    initialise(model, "looks-linear")
    model = model.double().eval()
    x, y = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(x + 2 * y), model(x) + 2 * model(y))


def test_looks_linear_needs_pairs_of_channels() -> None:
    with pytest.raises(ModelOptionError, match=r"layer stem.0 has 1 → 5"):
        initialise(build_model("paper-mnist"), "looks-linear")


def test_default_changes_nothing_and_the_others_repeat_with_the_seed(nothing_changes) -> None:
    model = build_model("paper-mnist")
    default = torch.cat([p.detach().flatten() for p in model.parameters()])
    with nothing_changes(model):
        initialise(model, "default")
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        initialise(model, "orthogonal")
        drawn.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], default)


def test_what_cannot_be_initialised_is_refused() -> None:
    with pytest.raises(ModelOptionError, match=r"'orthogonl' \(did you mean orthogonal\?\)"):
        initialise(nn.Linear(2, 2), "orthogonl")
    with pytest.raises(ModelOptionError, match="grouped convolutions, such as layer 0"):
        initialise(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), "orthogonal")
