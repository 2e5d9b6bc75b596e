import sys
import types

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.experiments.training.networks import (
    ONLY_ARM,
    build_network,
    check_arms,
    check_network,
    parse_model_options,
)
from skip_conditioning.models import ModelOptionError


@pytest.fixture
def factories(monkeypatch):
    """A user's module of factories."""
    module = types.ModuleType("factories")
    monkeypatch.setitem(sys.modules, "factories", module)
    return module


def build(name, arm, *options, num_classes=10, shape=(3, 32, 32)):
    return build_network(name, arm, options, num_classes=num_classes, input_shape=shape)


def test_sizes_come_from_the_data():
    model = build("residual-mlp", "chain", "depth=2", num_classes=7, shape=(1, 6, 5))
    assert model(torch.rand(4, 1, 6, 5)).shape == (4, 7)
    assert model.training
    small, large = (build("preact-resnet18", "original", shape=(3, size, size)) for size in (32, 224))
    kernels = [next(p for p in model.parameters() if p.dim() == 4).shape[-1] for model in (small, large)]
    assert kernels == [3, 7]


def test_options_of_the_user_come_before_the_datas():
    model = build("preact-resnet18", "original", "num_classes=20", "stem=imagenet")
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 20)


def test_a_factory_gets_arm_and_options_only(factories):
    asked = []
    factories.make = lambda **options: asked.append(options) or nn.Linear(2, 2)
    build("factories:make", ONLY_ARM, "width=3")
    build("factories:make", "wide")
    assert asked == [{"width": 3}, {"arm": "wide"}]


def test_model_options():
    options = ["a=1", "b=2.5", "c=batch", "d=None", "e=(1, 2)", "f=x=y", "g=True", "h="]
    expected = {"a": 1, "b": 2.5, "c": "batch", "d": None, "e": (1, 2), "f": "x=y", "g": True, "h": ""}
    assert parse_model_options(options) == expected
    for wrong in ("depth", "=3", "a b=3"):
        with pytest.raises(InputError, match="not of the form name=value"):
            parse_model_options([wrong])


def test_arms(factories):
    factories.make = lambda arm: nn.Linear(2, 2)
    factories.make.arms = ("good", "../evil", ".hidden")
    factories.plain = lambda: nn.Linear(2, 2)
    check_arms("factories:make", ["good"])
    check_arms("factories:plain", [ONLY_ARM])
    for arm in ("../evil", ".hidden"):
        with pytest.raises(InputError, match="cannot be part of a directory's name"):
            check_arms("factories:make", [arm])
    with pytest.raises(InputError, match=r"unknown arm 'residul' of paper-mnist.*Did you mean 'residual'"):
        check_arms("paper-mnist", ["chain", "residul"])
    with pytest.raises(InputError, match=r"unknown arm 'chain'.*it has default"):
        check_arms("factories:plain", ["chain"])


@pytest.mark.parametrize("error", [RuntimeError("no luck"), KeyError("a"), OSError(2, "no file"), ZeroDivisionError()])
def test_an_error_in_the_users_factory_is_named(factories, error):
    def make():
        raise error

    factories.make = make
    with pytest.raises(ModelOptionError, match=f"factories:make.*{type(error).__name__}"):
        build("factories:make", ONLY_ARM)


@pytest.mark.parametrize("content", ["import nothing_of_that_name", "1 +", "raise RuntimeError('no')", "1 / 0"])
def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch, content):
    (tmp_path / "broken_factories.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises((InputError, ModelOptionError), match="broken_factories"):
        check_arms("broken_factories:make", [ONLY_ARM])


# Trying a network on the first images


class Give(nn.Module):
    """A network that returns what it is told."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output


def refusal(model, images=None, error=InputError):
    with pytest.raises(error) as caught:
        check_network("mine", model, torch.zeros(4, 1, 2, 2) if images is None else images, 10)
    assert str(caught.value).startswith("mine")
    return str(caught.value)


def test_logits_may_be_more_than_the_classes_but_not_fewer():
    check_network("mine", Give(torch.zeros(4, 12)), torch.zeros(4, 1, 2, 2), 10)
    assert "a logit for each of the 10 classes; it returns a tensor of shape (4, 7)" in refusal(Give(torch.zeros(4, 7)))


@pytest.mark.parametrize(
    ("output", "measured"),
    [
        (torch.zeros(40), "shape (40,)"),
        (torch.zeros(4, 10, 1), "shape (4, 10, 1)"),
        (torch.zeros(2, 10), "shape (2, 10)"),
        ((torch.zeros(4, 10),), "tuple"),
        (None, "NoneType"),
    ],
)
def test_output_that_is_no_table_of_logits(output, measured):
    message = refusal(Give(output))
    assert "logits of shape (4, 10)" in message
    assert measured in message


def test_network_for_other_images():
    assert "a batch of 4 × 1 × 2 × 2" in refusal(nn.Sequential(nn.Flatten(), nn.Linear(5, 10)))


def test_batch_norm_that_cannot_be_trained_on_one_image():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 10))
    assert "more than 1 value per channel" in refusal(model, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_and_buffers_that_are_not_finite(bad):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 10))
    model[1].running_mean[2] = bad
    assert "'1.running_mean'" in refusal(model, error=NonFiniteError)
    model[1].running_mean[2] = 0
    model[2].weight.data[0, 0] = bad
    assert "'2.weight'" in refusal(model, error=NonFiniteError)
