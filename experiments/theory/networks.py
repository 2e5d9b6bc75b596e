"""The networks on which the statements are checked, and their training: full-batch gradient descent in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from skip_conditioning.experiments.data.datasets import load_data, to_float
from skip_conditioning.experiments.theory.setting import Setting
from skip_conditioning.experiments.training.networks import ONLY_ARM, build_network, check_network

#: Images at the quick size.
_QUICK_SAMPLES = 6
#: Learning rate of every network, fixed beforehand; the statements hold whatever it is.
LR = 0.1


@dataclass(frozen=True)
class Subject:
    """A network to check, with its data.

    Attributes:
        name: In words short enough for a table.
        build: Makes it, freshly initialised with the setting's seed, in train mode.
        x: Images, float64, shape ``(N, C, H, W)``.
        y: Their classes, shape ``(N,)``.
    """

    name: str
    build: Callable[[], nn.Module]
    x: Tensor
    y: Tensor


def subjects(setting: Setting) -> list[Subject]:
    """The user's network where one is given; otherwise residual MLPs with and without what the theory asks for.

    Images are averaged down to 7×7 for the MLPs, whose layers are as wide as is measured in seconds.
    """
    data = load_data(setting.dataset, setting.data_dir, limit_train=512, limit_test=1)
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(setting.seed))[: setting.samples]
    x, y = to_float(data.train.images[drawn], dtype=torch.float64), data.train.labels[drawn]
    if setting.model is not None:
        build = _builder(setting, setting.model, ONLY_ARM, x, *setting.model_options, classes=data.num_classes)
        check_network(setting.model, build(), x, data.num_classes)
        return [Subject(setting.model, build, x, y)]
    images = avg_pool2d(x, x.shape[-1] // 7)[: _QUICK_SAMPLES if setting.quick else None]
    size = ("width=10", "depth=2") if setting.quick else ("width=24", "depth=4")

    def mlp(name: str, arm: str, *options: str) -> Subject:
        return Subject(name, _builder(setting, "residual-mlp", arm, images, *size, *options), images, y[: len(images)])

    return [
        mlp("skip, weight norm, tanh", "residual", "normaliser=weight", "activation=tanh", "eps=0.1"),
        mlp("chain, weight norm, tanh", "chain", "normaliser=weight", "activation=tanh", "eps=0.1"),
        mlp("skip, batch norm, ReLU", "residual", "normaliser=batch"),
        mlp("chain, batch norm, ReLU", "chain", "normaliser=batch"),
        mlp("chain, no norm, ReLU", "chain"),
    ]


def paper_network(setting: Setting) -> Subject:
    """The paper's MNIST network, modified arm, on two images: all that its dense Jacobians leave time for."""
    x, y = _first_digits(2)
    return Subject("paper-mnist, modified", _builder(setting, "paper-mnist", "modified", x), x, y)


def contractive_network(setting: Setting) -> Subject:
    """The class whose skips are stronger than its branches by construction, with γ = 1/2, on images of 7×7."""
    x, y = _first_digits(8)
    x = avg_pool2d(x, 4)
    options = ("width=49", "depth=2", "gain=0.5")
    return Subject("skip, contractive, tanh", _builder(setting, "contractive-mlp", "residual", x, *options), x, y)


def _first_digits(count: int) -> tuple[Tensor, Tensor]:
    data = load_data("digits", limit_train=count, limit_test=1)
    return to_float(data.train.images, dtype=torch.float64), data.train.labels


def _builder(
    setting: Setting, model: str, arm: str, x: Tensor, *options: str, classes: int = 10
) -> Callable[[], nn.Module]:
    """Makes a network for some images, the same at every call."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            shape = tuple(x.shape[1:])
            return build_network(model, arm, options, num_classes=classes, input_shape=shape).double()

    return build


def train(subject: Subject, steps: int) -> Iterator[tuple[int, nn.Module]]:
    """Train by gradient descent on the probe's cross-entropy; yields the network before each step and at the end."""
    model = subject.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for step in range(steps + 1):
        yield step, model
        if step < steps:
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(subject.x), subject.y).backward()
            optimizer.step()
