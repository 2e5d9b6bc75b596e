"""What is no chain of layers is refused, with the way out."""

import re

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError, LayerCallError, UnknownLayerError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.theory.layered_network import LayeredNetwork
from skip_conditioning.diagnostics.theory.regularity import regularity
from tests.diagnostics.theory.chains import D, Forward, linear, repeated, seeded


def residual():
    parts = dict(zip("abc", linear(4, 4, 4, 3), strict=True))

    def forward(m, x):
        hidden = m.a(x)
        return m.c(hidden + m.b(hidden).tanh())

    return Forward(forward, **parts)


def unet():
    parts = {"down": nn.Linear(4, 3), "middle": nn.Linear(3, 3), "up": nn.Linear(6, 4)}

    def forward(m, x):
        down = m.down(x)
        return m.up(torch.cat([m.middle(down.relu()), down], dim=1))

    return Forward(forward, **parts)


def second_output():
    first = Forward(lambda m, x: (m.inner(x), m.side(x)), inner=nn.Linear(4, 4), side=nn.Linear(4, 4))

    def forward(m, x):
        return m.head(m.second(m.first(m.stem(x)))[0])

    def pass_on(m, pair):
        return m.inner(pair[0]) + pair[1], pair[1]

    second = Forward(pass_on, inner=nn.Linear(4, 4))
    return Forward(forward, stem=nn.Linear(4, 4), first=first, second=second, head=nn.Linear(4, 2))


def tied():
    model = nn.Sequential(*linear(4, 4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    return model


def odd(output):
    """A module whose output is no real tensor, between two that are."""
    middle = Forward(lambda m, x: output(x))
    return Forward(lambda m, x: (h := m.a(x), m.odd(h), m.b(h))[2], a=nn.Linear(4, 4), odd=middle, b=nn.Linear(4, 2))


def unused():
    model = nn.Sequential(*linear(4, 4, 2))
    return Forward(lambda m, x: m.used(x), used=model, never=nn.Linear(4, 4))


MLP = lambda: nn.Sequential(*linear(4, 5, 3))  # noqa: E731
ERRORS = [
    ("skip", residual, ["a", "b"], UnsupportedModelError, "'logits' depends on 'a' around 'b'.*name blocks"),
    ("u-net", unet, None, UnsupportedModelError, "'up' depends on 'down' around 'middle'"),
    ("data", lambda: Forward(lambda m, x: m.a(x) + x, a=nn.Linear(4, 4)), "a", UnsupportedModelError, "'the input'"),
    ("second output", second_output, None, UnsupportedModelError, "'second' depends on 'stem' around 'first'"),
    ("tied", tied, None, UnsupportedModelError, "'0.weight' is used by both '0' and '1'"),
    ("tied calls", lambda: Forward(lambda m, x: m.a(m.a(x)), a=nn.Linear(4, 4)), None, UnsupportedModelError, "'a#1'"),
    ("unknown", MLP, ["0", "O"], UnknownLayerError, "'O' is no module"),
    ("glob", MLP, "x*", UnknownLayerError, re.escape("'x*' is no module")),
    ("nothing", MLP, [], InputError, "layers is empty"),
    ("never called", unused, ["used", "never"], LayerCallError, "'never' is never called"),
    ("call not named", repeated, ["act"], LayerCallError, "called 3 times.*'act#1' to 'act#3'"),
    ("call too many", repeated, ["act#4"], LayerCallError, "called only 3"),
]
UNREAL = [("integer", lambda x: x.argmax(1)), ("none", lambda x: None), ("complex", lambda x: torch.complex(x, x))]


@pytest.mark.parametrize(("build", "layers", "error", "message"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_what_is_no_chain_is_refused_with_the_way_out(build, layers, error, message, nothing_changes):
    model, x = seeded(build, (3, 4))
    with nothing_changes(model, x), pytest.raises(error, match=message), measuring(model, x, dtype=D) as probed:
        LayeredNetwork(probed, layers)


@pytest.mark.parametrize("output", [one[1] for one in UNREAL], ids=[one[0] for one in UNREAL])
def test_a_layer_without_a_real_output_is_named(output):
    model, x = seeded(lambda: odd(output), (3, 4))
    with (
        pytest.raises(UnsupportedModelError, match="'odd' returns no real tensor"),
        measuring(model, x, dtype=D) as probed,
    ):
        LayeredNetwork(probed, ["a", "odd"])


def test_default_blocks_that_are_never_called_are_left_out():
    model, x = seeded(unused, (3, 4))
    with measuring(model, x, dtype=D) as probed:
        assert [layer.name for layer in LayeredNetwork(probed).layers] == ["used"]


@pytest.mark.parametrize("layers", [[None], 3, {"0": 1}, [["0"]]])
def test_layers_that_are_no_names(layers):
    with pytest.raises(InputError, match="layers must be names or globs"):
        regularity(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(2, 3), layers=layers)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Forward(lambda self, x: self.a(x).mean(), a=nn.Linear(3, 3)), r"a tensor of shape \(\) for 2 samples"),
        (nn.Sequential(nn.LazyLinear(3)), "has no shape yet; run the model once"),
    ],
)
def test_models_without_rows_of_outputs_or_without_shapes(model, message):
    with pytest.raises(InputError, match=message):
        regularity(model, torch.randn(2, 3, dtype=torch.float64))
