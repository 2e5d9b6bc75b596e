"""Random products by plain autograd on the whole network, against the Jacobian of each map row by row."""

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.rounding_noise import RoundingNoise

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Twice(nn.Module):
    """A module that is called twice, one that works in place, and a skip around both."""

    def __init__(self):
        super().__init__()
        self.shared, self.act, self.head = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x + self.act(self.shared(self.shared(x).tanh())))


MODELS = {
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Tanh(), nn.Linear(4, 3)),
    "twice": Twice,
    "dropout": lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)),
}
LAYERS = {
    "nested": ["0", "0.0", "0.1", "2"],
    "twice": ["shared#1", "shared#2", "act", "head"],
    "dropout": ["0", "1", "2"],
}


@pytest.mark.parametrize("map", ["layer", "tail", "network", "param", "kernel"])
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_each_maps_jacobian(name, map):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    layers = [layer.split("#")[0] for layer in LAYERS[name]] if map == "kernel" else LAYERS[name]
    if map in ("param", "kernel"):
        layers = [layer for layer in dict.fromkeys(layers) if layer not in ("act", "1")]
    with measuring(model, X) as probed:
        for item in probed.maps(map, None if map == "network" else layers):
            point = item.point.detach().requires_grad_()
            output = item.function(point).flatten()
            rows = torch.stack([torch.autograd.grad(y, point, retain_graph=True)[0].flatten() for y in output])
            expected = item.reference.cotangents @ rows
            torch.testing.assert_close(item.reference.plain, expected, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(item.reference.exact, expected, rtol=1e-10, atol=1e-12)


def test_noise_moves_every_result_by_its_rounding_and_leaves_the_random_stream_alone():
    x = torch.rand(1000, dtype=torch.float64) + 1
    before = torch.get_rng_state()
    with RoundingNoise(torch.float64, wide=False):
        moved, narrow = x * 1, x.float()
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < float((moved / x - 1).abs().max()) <= 4 * torch.finfo(torch.float64).eps
    assert 0 < float((narrow / x.float() - 1).abs().max()) <= 4 * torch.finfo(torch.float32).eps
    with RoundingNoise(torch.float32, wide=True):
        assert torch.equal(x * 1, x)


def test_random_numbers_are_those_of_the_measurements_precision():
    torch.manual_seed(1)
    expected = torch.randn(7), torch.empty(7).uniform_()
    torch.manual_seed(1)
    with RoundingNoise(torch.float32, wide=True):
        drawn = torch.randn(7, dtype=torch.float64), torch.empty(7, dtype=torch.float64).uniform_()
    for one, other in zip(drawn, expected, strict=True):
        torch.testing.assert_close(one, other.double(), rtol=1e-12, atol=0)
