"""The networks on which the statements are checked, and their training: full-batch gradient descent in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from skip_conditioning.experiments.config.train_config import ONLY_ARM
from skip_conditioning.experiments.data.datasets import load_data, to_float
from skip_conditioning.experiments.theory.experiment import TheoryOptions
from skip_conditioning.experiments.training.networks import build_network, check_network

#: Images at the quick size.
_QUICK_IMAGES = 6
#: Learning rate of every network, fixed beforehand; the statements hold whatever it is.
LR = 0.1
#: The kind of network to which the theorem on regularity applies.
SMOOTH = "weight norm, tanh"


@dataclass(frozen=True)
class CheckedNetwork:
    """A network to check, and the data on which it is trained and checked.

    Attributes:
        name: A description short enough for a table.
        build: Makes it, newly initialised with the seed of the options, in train mode.
        x: Images, float64, shape ``(N, C, H, W)``.
        y: Their classes, shape ``(N,)``.
        kind: Normaliser and activation, whether it has skips or not.
        has_skips: Whether its blocks have identity skips.
    """

    name: str
    build: Callable[[], nn.Module]
    x: Tensor
    y: Tensor
    kind: str = ""
    has_skips: bool = False


def networks_to_check(options: TheoryOptions) -> list[CheckedNetwork]:
    """The user's network if there is one; otherwise residual MLPs that meet the conditions of the theory and others.

    Images are averaged down to 7×7 for the MLPs, whose layers are small enough to be measured in seconds.
    """
    data = load_data(options.dataset, options.data_dir, limit_train=512, limit_test=1)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(options.seed))
    chosen = order[: options.probe_size]
    x, y = to_float(data.train.images[chosen], dtype=torch.float64), data.train.labels[chosen]
    if options.model is not None:
        build = _builder(options, options.model, ONLY_ARM, x, *options.model_options, classes=data.num_classes)
        check_network(options.model, build(), x, data.num_classes)
        return [CheckedNetwork(options.model, build, x, y)]
    images = avg_pool2d(x, x.shape[-1] // 7)[: _QUICK_IMAGES if options.quick else None]
    size = ("width=10", "depth=2") if options.quick else ("width=24", "depth=4")

    def mlp(kind: str, arm: str, *arguments: str) -> CheckedNetwork:
        build = _builder(options, "residual-mlp", arm, images, *size, *arguments)
        name = f"{'skip' if arm == 'residual' else arm}, {kind}"
        return CheckedNetwork(name, build, images, y[: len(images)], kind, has_skips=arm == "residual")

    smooth = ("normaliser=weight", "activation=tanh", "eps=0.1")
    return [
        mlp(SMOOTH, "residual", *smooth),
        mlp(SMOOTH, "chain", *smooth),
        mlp("batch norm, ReLU", "residual", "normaliser=batch"),
        mlp("batch norm, ReLU", "chain", "normaliser=batch"),
        mlp("no norm, ReLU", "chain"),
    ]


def paper_network(options: TheoryOptions) -> CheckedNetwork:
    """The paper's MNIST network, modified arm, on two images, as its dense Jacobians take long."""
    x, y = _first_digits(2)
    return CheckedNetwork("paper-mnist, modified", _builder(options, "paper-mnist", "modified", x), x, y)


def contractive_network(options: TheoryOptions) -> CheckedNetwork:
    """The class whose skips are stronger than its branches by construction, with γ = 1/2, on images of 7×7."""
    x, y = _first_digits(8)
    x = avg_pool2d(x, 4)
    return CheckedNetwork(
        "skip, contractive, tanh",
        _builder(options, "contractive-mlp", "residual", x, "width=49", "depth=2", "gain=0.5"),
        x,
        y,
    )


def _first_digits(count: int) -> tuple[Tensor, Tensor]:
    data = load_data("digits", limit_train=count, limit_test=1)
    return to_float(data.train.images, dtype=torch.float64), data.train.labels


def _builder(
    options: TheoryOptions, model: str, arm: str, x: Tensor, *arguments: str, classes: int = 10
) -> Callable[[], nn.Module]:
    """A function that makes a network for these images, the same at every call."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            shape = tuple(x.shape[1:])
            return build_network(model, arm, arguments, num_classes=classes, input_shape=shape).double()

    return build


def train(network: CheckedNetwork, steps: int) -> Iterator[tuple[int, nn.Module]]:
    """Train by gradient descent on cross-entropy; yields the step and the network, before each step and at the end."""
    model = network.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for step in range(steps + 1):
        yield step, model
        if step < steps:
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(network.x), network.y).backward()
            optimizer.step()
