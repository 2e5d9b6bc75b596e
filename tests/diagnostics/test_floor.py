"""Is the floor honest, and not wasteful? Rounding in float32 Jacobians, measured against float64."""

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning import spectra
from skip_conditioning.diagnostics.networks.layer_names import default_layers
from skip_conditioning.models import build_model


def mlp(depth, width, activation=nn.Tanh, norm=None):
    layers = [nn.Linear(6, width)]
    for _ in range(depth):
        layers += [norm(width)] if norm else []
        layers += [activation(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def conv_net(depth, channels):
    layers = [nn.Conv2d(1, channels, 3, padding=1)]
    for _ in range(depth):
        layers += [nn.BatchNorm2d(channels), nn.Softplus(), nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(9 * channels, 4))


def residual_mlp(arm, normaliser, depth=12):
    options = {"in_features": 6, "width": 24, "num_classes": 4, "activation": "tanh"}
    return build_model("residual-mlp", arm=arm, depth=depth, normaliser=normaliser, **options)


def far_from_zero():
    """Pixels with a large mean, which batch norm takes away again: the worst that inputs are in practice."""
    model = mlp(4, 16, norm=nn.BatchNorm1d)
    model.register_forward_pre_hook(lambda module, args: (args[0] + 30,))
    return model


def bottleneck(depth, norm=None):
    """At most two of each sample's directions survive: many singular values are zero."""
    narrow = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 6))
    return nn.Sequential(mlp(depth, 24, norm=norm), narrow, mlp(depth, 24, norm=norm))


# Smooth activations: a float32 pre-activation on the other side of a ReLU's kink is another Jacobian, not rounding.
NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 50), nn.Linear(50, 4)),
    "mlp": lambda: mlp(3, 32),
    "deep mlp": lambda: mlp(40, 16),
    "deep gelu": lambda: mlp(20, 16, nn.GELU),
    "batch norm": lambda: mlp(6, 32, norm=nn.BatchNorm1d),
    "deep batch norm": lambda: mlp(30, 16, norm=nn.BatchNorm1d),
    "deep layer norm": lambda: mlp(30, 16, norm=nn.LayerNorm),
    "offset batch norm": far_from_zero,
    "convolutions": lambda: conv_net(4, 6),
    "deep convolutions": lambda: conv_net(16, 4),
    "chain": lambda: residual_mlp("chain", "batch"),
    "residual": lambda: residual_mlp("residual", "batch"),
    "weight norm": lambda: residual_mlp("residual", "weight"),
    "deep residual": lambda: residual_mlp("residual", "layer", depth=40),
    "transformer": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.Linear(2, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0), nn.Flatten()
    ),
    "bottleneck": lambda: bottleneck(4),
    "bottleneck batch norm": lambda: bottleneck(6, nn.BatchNorm1d),
    "deep bottleneck": lambda: bottleneck(16),
    "lstm": lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.LSTM(2, 8, batch_first=True)),
}


#: Far from ordinary: rounding is amplified layer by layer, or taken from inputs that it dominates.
VANISHING = {"deep gelu", "deep bottleneck"}  # kernels whose eigenvalues reach below eps of the largest, in float64
AMPLIFYING = {"deep batch norm", "offset batch norm", "deep layer norm"}


def measured(name, seed, **options):
    """Singular values in float32 and those in float64, with the floors of the former and whether all are resolved."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    x = torch.randn(8, 1, 6, 6) if isinstance(model[0], nn.Conv2d) else torch.randn(8, 6)
    single, double = spectra(model, x, **options), spectra(model, x, **options, dtype=torch.float64)
    for layer, result in single.items():
        values, exact = result.values, double[layer].values
        floor = result.floor
        if result.map == "kernel":
            values, exact, floor = np.sqrt(values), np.sqrt(exact), np.sqrt(floor)
        yield values, exact, floor, result.resolved


def options_of(name, seed):
    torch.manual_seed(seed)
    tails = default_layers(NETWORKS[name]())[:-1:6]
    options = [{"map": "network"}, {"map": "kernel", "layers": "total"}]
    return options + ([{"map": "tail", "layers": tails}] if tails else [])


@pytest.mark.parametrize("name", NETWORKS)
def test_values_above_the_floor_are_right_and_few_right_ones_lie_below(name):
    hidden, right = 0, 0
    for options in options_of(name, 0):
        for values, exact, floor, resolved in measured(name, 0, **options):
            near = np.abs(values - exact) <= 0.1 * exact
            assert near[values > floor].all(), options
            assert near.all() or not resolved
            hidden, right = hidden + np.sum(near & (values <= floor)), right + np.sum(near)
    assert hidden <= (0.5 if name in AMPLIFYING else 0.15 if name in VANISHING else 0.05) * right


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("bottleneck")])
def test_rank_through_a_bottleneck_is_told_in_float32(name):
    torch.manual_seed(3)
    model = NETWORKS[name]()
    result = spectra(model, torch.randn(8, 6), map="network")["network"]
    assert result.rank <= 16
    assert not result.resolved
