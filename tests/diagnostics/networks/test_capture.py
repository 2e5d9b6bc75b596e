"""Which layers there are, how often they are called, and errors that name the way out."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning import jacobian, spectra
from skip_conditioning.diagnostics.errors import InputError, LayerCallError, UnknownLayerError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.capture import forward_pass
from skip_conditioning.diagnostics.networks.isolation import State, quiet
from skip_conditioning.diagnostics.networks.layer_names import default_layers, select_layers
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.models import build_model


class Net(nn.Module):
    """One block used once, one used twice, one never, one that is no map of reals."""

    def __init__(self):
        super().__init__()
        self.embed, self.block1, self.shared = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.unused, self.flag, self.head = nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 2)

    def forward(self, tokens):
        self.flag(tokens)
        x = self.block1(self.embed(tokens))
        return self.head(self.shared(self.shared(x)))


TOKENS = torch.tensor([[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("map", "layers", "error", "message"),
    [
        ("tail", "blok1", UnknownLayerError, "layer 'blok1' is no module of Net. Did you mean 'block1'"),
        ("tail", "zzz", UnknownLayerError, "It has embed, block1, shared, unused, flag, head."),
        ("tail", "zzz*", UnknownLayerError, r"layer 'zzz\*' is no module of Net"),
        ("tail", "", UnknownLayerError, "layer '' is no module"),
        ("tail", [], InputError, "layers is empty"),
        ("kernel", [], InputError, "layers is empty"),
        ("tail", "shared", LayerCallError, "called 2 times .* say which call is meant, as 'shared#1' to 'shared#2'"),
        ("tail", "shared#3", LayerCallError, r"'shared' is called only 2 time\(s\)"),
        ("tail", "shared#0", UnknownLayerError, "must be a number from 1, as in 'shared#1'"),
        ("tail", "shared#x", UnknownLayerError, "must be a number from 1"),
        ("tail", "shared#²", UnknownLayerError, "must be a number from 1"),
        ("tail", "shared#-1", UnknownLayerError, "must be a number from 1"),
        ("layer", "unused", LayerCallError, "layer 'unused' is never called in the forward pass"),
        ("kernel", "unused", LayerCallError, "layer 'unused' is never called"),
        ("layer", "embed", UnsupportedModelError, "input of torch.int64, .* measure its 'tail' map instead"),
        ("tail", "flag", UnsupportedModelError, "layer 'flag' returns no real tensor"),
        ("param", "flag", LayerCallError, "layer 'flag' has no trainable parameters"),
        ("network", None, UnsupportedModelError, "the network map has an input of torch.int64"),
    ],
)
def test_layers_that_cannot_be_measured(map, layers, error, message):
    with pytest.raises(error, match=message) as caught:
        spectra(Net(), TOKENS, map=map, layers=layers)
    assert "\n" not in str(caught.value)


def test_the_call_that_is_meant_is_measured():
    model = Net().double()
    first, second = (jacobian(model, TOKENS, map="tail", layer=f"shared#{call}") for call in (1, 2))
    head, shared = (torch.block_diag(*[layer.weight] * 4) for layer in (model.head, model.shared))
    torch.testing.assert_close(second, head.detach(), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(first, (head @ shared).detach(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("map", ["layer", "tail", "param"])
def test_calls_asked_for_together_are_those_asked_for_alone(map, make, oracle):
    model, x = make("called-thrice")
    layers = [f"cell#{number}" for number in (2, 3, 1)]
    together = spectra(model, x, map=map, layers=layers)
    assert list(together) == layers
    for layer in layers:
        alone = spectra(model, x, map=map, layers=layer)[layer]
        np.testing.assert_array_equal(together[layer].values, alone.values)
        expected = np.linalg.svd(oracle(model, x, map, layer).numpy())[1]
        np.testing.assert_allclose(alone.values, expected, rtol=1e-12, atol=1e-12)
    for pair in (layers[:2], layers[1:], layers[::-1]):
        for layer, one in spectra(model, x, map=map, layers=pair).items():
            np.testing.assert_array_equal(one.values, together[layer].values)


def test_a_call_is_recorded_once_however_often_its_module_is_named(make):
    model, x = make("called-thrice")
    with quiet(model, batch_mode="batch"):
        state = State(model, torch.float64)
        once, twice = (forward_pass(model, state, Probe(x), names) for names in (["cell"], ["cell", "head", "cell"]))
    assert [call.number for call in once.calls["cell"]] == [call.number for call in twice.calls["cell"]] == [1, 2, 3]
    assert [call.number for call in twice.calls["head"]] == [1]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_defaults_leave_out_what_has_no_map_and_name_every_call():
    assert list(spectra(Net(), TOKENS)) == ["block1", "shared#1", "shared#2", "head"]
    assert list(spectra(Net(), TOKENS, map="kernel")) == ["embed", "block1", "shared", "head", "total"]


def test_globs_and_names_give_each_layer_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    assert select_layers(model, ["0", "[0-2]"]) == ["0", "1", "2"]
    assert select_layers(model, "1.*") == ["1.0", "1.1"]
    assert select_layers(model, ["2", "0"]) == ["2", "0"]


def test_default_layers_are_the_blocks():
    assert default_layers(build_model("paper-mnist")) == ["stem", "block1", "block2", "head"]
    stages = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))), nn.ReLU())
    assert default_layers(stages) == ["0.0", "0.1"]
    assert default_layers(nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)]), nn.Linear(1, 1)])) == ["0.0", "1"]


def test_a_network_without_blocks_says_so():
    with pytest.raises(InputError, match="Linear has no blocks with a layer map; name the layers"):
        spectra(nn.Linear(2, 2), torch.randn(1, 2))


@pytest.mark.parametrize("probe", [torch.randn(2, 4), torch.randint(3, (2, 3)), torch.randn(2, 3, 3, 3, 4)])
def test_a_probe_that_the_model_cannot_take_is_named_with_the_models_own_words_and_leaves_no_hook(probe):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    shape = re.escape(str(tuple(probe.shape)))
    with pytest.raises(
        InputError, match=rf"Sequential cannot be applied to a probe of shape {shape} and .*mat1 and mat2"
    ):
        spectra(model, probe)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_users_own_hooks_still_run_and_leave_no_trace():
    model, x, seen = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(2, 3), []
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(len(args)) or 2 * output)
    hooked = spectra(model, x, map="tail", layers="0")["0"].sigma_max
    assert seen == []
    assert list(model[1]._forward_hooks) == [handle.id]
    handle.remove()
    assert hooked == pytest.approx(2 * spectra(model, x, map="tail", layers="0")["0"].sigma_max)


class UsesAgain(nn.Module):
    """An in-place activation, whose input is used again in some ways."""

    def __init__(self, way):
        super().__init__()
        self.linear, self.act, self.way = nn.Linear(3, 3), nn.ReLU(inplace=True), way

    def forward(self, x):
        x = self.linear(x)
        if self.way == "only":
            return self.act(x) * 2
        y = self.act(x)
        return x * 2 if self.way == "unassigned" else y * 2 + x


@pytest.mark.parametrize("way", ["unassigned", "beside"])
def test_a_tail_that_bypasses_what_is_replaced_is_refused(way):
    with pytest.raises(UnsupportedModelError, match="layer 'act' works in place on a tensor that is used again; set"):
        spectra(UsesAgain(way), torch.randn(2, 3), map="tail", layers="act")
    model = UsesAgain("only")
    assert torch.equal(jacobian(model, torch.randn(2, 3), map="tail", layer="act"), 2 * torch.eye(6))


def test_self_attention_is_differentiated_in_all_its_arguments(make, oracle):
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, dropout=0, batch_first=True)).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    measured = jacobian(model, x, map="layer", layer="0.self_attn")
    plain = torch.autograd.functional.jacobian(lambda x: model[0].self_attn(x, x, x)[0], x).reshape(24, 24)
    torch.testing.assert_close(measured, plain, rtol=1e-12, atol=1e-13)
