"""Networks as chains: every layer against plain autograd on a copy that is cut by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.func import functional_call
from torch.nn import functional

from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.theory.layered_network import LayeredNetwork
from skip_conditioning.models import build_model
from tests.diagnostics.theory.chains import D, Forward, linear, repeated, seeded, transformer, two_names


def between():
    """Functional code between modules, and an in-place operation directly behind a cut."""
    convs = {"first": nn.Conv2d(1, 3, 3), "second": nn.Conv2d(3, 2, 3), "head": nn.Linear(18, 2)}
    return Forward(lambda m, x: m.head((m.second(m.first(x).mul_(2).relu_()) * 3).sin_().flatten(1)), **convs)


def returning(kind):
    wrap = {"tuple": lambda h: (h, None), "dict": lambda h: {"hidden": h, "other": 1}}[kind]
    get = {"tuple": lambda o: o[0], "dict": lambda o: o["hidden"]}[kind]
    first = Forward(lambda m, x: wrap(m.inner(x).tanh()), inner=nn.Linear(4, 5))
    return Forward(lambda m, x: {"logits": m.last(get(m.first(x)))}, first=first, last=nn.Linear(5, 3))


def partly_frozen():
    model = nn.Sequential(*linear(4, 5, 5, 3))
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    return model


def nested():
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    return nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 2))


def preact():
    return build_model("preact-resnet18", arm="modified", num_classes=2)


X, IMAGE = (3, 4), (2, 1, 7, 7)
# id, network, probe's shape, layers asked for, layers of the chain
CASES = [
    ("sequential", lambda: nn.Sequential(*linear(4, 5, 5, 3)), X, None, ["0", "1", "2"]),
    ("one layer", lambda: nn.Sequential(*linear(4, 5, 5, 3)), X, "1", ["1", "logits"]),
    ("only the last", lambda: nn.Sequential(*linear(4, 5, 3)), X, "1", ["1"]),
    ("out of order", lambda: nn.Sequential(*linear(4, 5, 5, 3)), X, ["2", "0"], ["0", "2"]),
    ("globs and names", nested, X, ["1.*", "2"], ["1.0", "1.1", "1.2", "2"]),
    ("nested, outer first", nested, X, ["1", "1.2", "1.0", "0"], ["0", "1.0", "1.2", "1", "logits"]),
    ("between", between, IMAGE, None, ["first", "second", "head"]),
    ("tuple", lambda: returning("tuple"), X, None, ["first", "last"]),
    ("dictionary", lambda: returning("dict"), X, None, ["first", "last"]),
    ("called thrice, two cuts", repeated, X, ["act#1", "act#2"], ["act#1", "act#2", "logits"]),
    ("called thrice, one cut", repeated, X, ["act#2"], ["act#2", "logits"]),
    ("third call", repeated, X, ["act#3"], ["act#3"]),
    ("batch norm", lambda: nn.Sequential(*linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (5, 4), "*", [*"012"]),
    ("dropout", lambda: nn.Sequential(*linear(4, 6), nn.Dropout(0.5), *linear(6, 6, 3)), X, None, ["0", "2", "3"]),
    ("embedding", lambda: nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 2)), None, None, [*"012"]),
    ("frozen", partly_frozen, X, None, ["0", "1", "2"]),
    ("transformer", lambda: transformer(0.0), (2, 3, 8), None, ["0", "1", "2"]),
    ("single module", lambda: nn.Linear(4, 2), X, None, ["logits"]),
    ("two names", two_names, X, "0", ["0", "logits"]),
    ("width one", lambda: nn.Sequential(*linear(1, 1, 1)), (1, 1), None, ["0", "1"]),
    ("data parallel", lambda: nn.DataParallel(nn.Sequential(*linear(4, 5, 3))), X, None, ["0", "1"]),
    (
        "residual mlp",
        lambda: build_model("residual-mlp", in_features=4, width=3, depth=2, num_classes=2, normaliser="batch"),
        X,
        ["stem", "blocks.*"],
        ["stem", "blocks.0", "blocks.1", "logits"],
    ),
]
LARGE = [
    *(
        (arm, lambda arm=arm: build_model("paper-mnist", arm=arm), (2, 1, 28, 28), None)
        for arm in ("chain", "residual", "modified")
    ),
    ("preact-resnet18", preact, (2, 3, 32, 32), ["stem", "layer1.*", "layer3.1", "layer4.*"]),
]


def first_of(output):
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else (output,)
    return next(part for part in parts if isinstance(part, torch.Tensor))


def changed(output, value):
    if isinstance(output, dict):
        return output | {next(key for key in output if output[key] is first_of(output)): value}
    return (value, *output[1:]) if isinstance(output, tuple) else value


def by_hand(model, x, start, end):
    """What a copy computes at one call of a module, from its weights and the value at another: plain hooks."""
    model, seen = copy.deepcopy(unwrap(model)), {}

    def evaluate(weights, point):
        handles = []
        for layer in {start, end} - {None, "logits"}:
            name, _, number = layer.partition("#")
            count = iter(range(1, 100))

            def after(module, args, output, layer=layer, number=int(number or 1), count=count):
                if next(count) != number:
                    return None
                if layer == start:
                    return changed(output, point.clone())
                seen["end"] = first_of(output).clone()
                return None

            handles.append(model.get_submodule(name).register_forward_hook(after))
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        torch.manual_seed(0)
        output = functional_call(model, {**weights, **buffers}, (x.clone() if start else point.clone(),))
        for handle in handles:
            handle.remove()
        return first_of(output) if end == "logits" else seen["end"]

    return evaluate


@pytest.mark.parametrize(("build", "shape", "asked", "names"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_every_layer_is_that_of_a_copy_cut_by_hand(build, shape, asked, names, nothing_changes):
    model, x = seeded(build, shape)
    with nothing_changes(model, x), measuring(model, x, dtype=D) as probed:
        network = LayeredNetwork(probed, asked)
        assert [layer.name for layer in network.layers] == names
        own = {parameter: name for name, parameter in unwrap(model).named_parameters()}
        weights = {name: one.detach() for name, one in unwrap(model).named_parameters()}
        for start, layer in zip([None, *names], network.layers, strict=False):
            evaluate = by_hand(model, x, start, layer.name)
            held, given = [own[parameter] for parameter in layer.trainable], layer.input.clone()

            def of_weights(flat, evaluate=evaluate, held=held, layer=layer):
                parts = flat.split([weights[name].numel() for name in held])
                pieces = {name: part.view_as(weights[name]) for name, part in zip(held, parts, strict=True)}
                return evaluate({**weights, **pieces}, layer.input)

            expected = evaluate(weights, layer.input)
            torch.testing.assert_close(layer.function(layer.parameters, layer.input), expected)
            assert torch.equal(layer.input, given), "what works in place behind a cut does not reach its input"
            if held:
                expected = jacobian(of_weights, layer.parameters).reshape(layer.parameter.rows, -1)
                measured = jacobian(layer.parameter.function, layer.parameter.point).reshape(expected.shape)
                torch.testing.assert_close(measured, expected, rtol=1e-9, atol=1e-11)
                assert (expected != 0).any(), "the copy depends on the weights"
            if layer.input.is_floating_point():
                expected = jacobian(lambda point: evaluate(weights, point), layer.input)  # noqa: B023
                measured = jacobian(layer.jacobian.function, layer.input)
                torch.testing.assert_close(measured, expected, rtol=1e-9, atol=1e-11)
        trainable = {own[one] for one in unwrap(model).parameters() if one.requires_grad}
        assert {own[one] for layer in network.layers for one in layer.trainable} == trainable


EVERY = [*((name, build, shape, asked) for name, build, shape, asked, _ in CASES), *LARGE]


@pytest.mark.parametrize(("build", "shape", "asked"), [c[1:] for c in EVERY], ids=[c[0] for c in EVERY])
def test_the_layers_one_after_another_are_the_network(build, shape, asked):
    model, x = seeded(build, shape)
    with measuring(model, x, dtype=D) as probed:
        network = LayeredNetwork(probed, asked)
        torch.manual_seed(0)
        expected = first_of(copy.deepcopy(unwrap(model))(x.clone()))
        value = network.probe.first
        for layer in network.layers:
            torch.testing.assert_close(value, layer.input)
            value = layer.function(layer.parameters, value)
            assert value.shape == layer.output_shape
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(network.logits, expected)


def test_dropout_of_a_transposed_tensor_draws_the_same_mask_when_differentiated():
    model, x = seeded(lambda: transformer(0.3), (2, 3, 8))
    with measuring(model, x, dtype=D) as probed:
        layer = LayeredNetwork(probed).layers[0]
        value = torch.func.vjp(lambda point: layer.function(point, layer.input), layer.parameters)[0]
        torch.testing.assert_close(value, layer.function(layer.parameters, layer.input))


def test_layers_whose_values_are_equal_by_chance_stay_apart():
    model, x = seeded(lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)), X)
    with measuring(model, x, dtype=D) as probed:
        assert [layer.name for layer in LayeredNetwork(probed, "0").layers] == ["0", "logits"]


def test_the_largest_tensor_of_a_layer_is_counted():
    wide = Forward(lambda m, x: functional.linear(m.a(x), m.w).sum(1, keepdim=True), a=nn.Linear(4, 2))
    wide.w = nn.Parameter(torch.randn(50, 2))
    model, x = seeded(lambda: nn.Sequential(wide, nn.Linear(1, 2)), X)
    with measuring(model, x, dtype=D) as probed:
        first, second = LayeredNetwork(probed).layers
        assert (first.widest, second.widest) == (150, 6)
