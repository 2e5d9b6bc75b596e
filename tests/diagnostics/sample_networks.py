"""Networks that have broken diagnostics before, with the layers that each map is compared on."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils import parametrizations

from skip_conditioning.models import build_model


@dataclass(frozen=True)
class Case:
    """A network with a probe, and the layers that each map is compared on.

    Attributes:
        build: Makes the network, after the random stream was seeded.
        shape: Shape of the probe; entries are standard normal unless ``tokens``.
        maps: Layers by map; those of ``network`` are ignored.
        tokens: Size of the vocabulary of an integer probe; 0 for a real one.
    """

    id: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    maps: dict[str, list[str]] = field(default_factory=dict)
    tokens: int = 0

    def make(self) -> tuple[nn.Module, Tensor]:
        """The network and the probe, in float64."""
        torch.manual_seed(sum(map(ord, self.id)))
        model = self.build().double()
        if self.tokens:
            return model, torch.randint(self.tokens, self.shape)
        return model, torch.randn(self.shape, dtype=torch.float64)


class InPlaceBlock(nn.Module):
    """A residual block as torchvision's: in-place ReLU on its own input's copy, and ``+=``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Attention(nn.Module):
    """Causal self-attention with the fused kernel, and its mask as a buffer that holds infinities."""

    def __init__(self, width: int = 8, length: int = 4) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.full((length, length), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (2, -1)).transpose(1, 2).chunk(3, dim=-1)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Changes(nn.Module):
    """A block that works in place on its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        x *= 2
        return self.linear(x.tanh())


class Twice(nn.Module):
    """One cell called three times, and a bare parameter on the root."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.cell(x).tanh() * self.scale
        return self.head(x)


class Tied(nn.Module):
    """Two linear layers that share one weight, which is also bare on the root."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 4)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).tanh())


class ByKeyword(nn.Module):
    """Calls its blocks by keyword, and returns a dictionary whose first tensor is not the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = Mix(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden, _ = self.mix(values=x, gain=torch.tensor(2.0, dtype=x.dtype))
        logits = self.head(hidden)
        return {"penalty": hidden.square().sum(), "logits": logits}


class Mix(nn.Module):
    """Takes keywords, returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, *, values: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        hidden = (self.linear(values) * gain).tanh()
        return hidden, gain


class WeightStandardised(nn.Conv2d):
    """Views its weight as a matrix, which only a contiguous weight allows."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.view(self.out_channels, -1)
        weight = (rows / rows.std(dim=1, keepdim=True)).view_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias)


class Dimmed(nn.Sequential):
    """Python's and numpy's random streams drawn from in the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * random.random() * np.random.rand()


def frozen_first() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].register_forward_pre_hook(lambda module, args: (args[0] ** 3,))
    model[1].register_forward_hook(lambda module, args, output: output.sin())
    return model


def conv_batch_norm() -> nn.Module:
    convolution = (nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(*convolution, nn.Flatten(), nn.Linear(36, 3))


EVERY = ("layer", "tail", "param", "kernel")


def on(*layers: str, maps: tuple[str, ...] = EVERY, **more: list[str]) -> dict[str, list[str]]:
    """The same layers for several maps."""
    return {**{name: list(layers) for name in maps}, **more}


CASES = [
    Case("mlp", lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (3, 4), on("0", "2", network=[])),
    Case("conv-batch-norm", conv_batch_norm, (4, 2, 6, 6), on("0", "1", network=[], kernel=["0", "total"])),
    Case("conv-batch-norm-eval", lambda: conv_batch_norm().eval(), (3, 2, 6, 6), on("0", "1", network=[])),
    Case(
        "in-place-residual",
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), InPlaceBlock(3), InPlaceBlock(3), nn.Flatten(), nn.Linear(27, 2)),
        (3, 1, 5, 5),
        on("1", "2", "2.conv2", kernel=["1", "total"]),
    ),
    Case(
        "changes-its-input", lambda: nn.Sequential(nn.Linear(4, 4), Changes(), Changes()), (3, 4), on("1", network=[])
    ),
    Case("changes-the-probe", Changes, (3, 4), {"network": [], "kernel": ["linear", "total"]}),
    *(
        Case(
            f"paper-mnist-{arm}",
            lambda arm=arm: build_model("paper-mnist", arm=arm),
            (2, 1, 28, 28),
            {"tail": ["stem", "block1"], "kernel": ["block2"], "param": ["head"]},
        )
        for arm in ("chain", "residual", "modified")
    ),
    Case(
        "preact-resnet18",
        lambda: build_model("preact-resnet18", arm="modified", num_classes=3),
        (2, 3, 32, 32),
        {"tail": ["layer4.0"], "param": ["head"]},
    ),
    *(
        Case(
            f"residual-mlp-{normaliser}",
            lambda normaliser=normaliser: build_model(
                "residual-mlp", in_features=6, width=4, depth=3, num_classes=2, normaliser=normaliser
            ),
            (3, 6),
            on("blocks.1", network=[], kernel=["stem", "blocks.1", "total"]),
        )
        for normaliser in ("batch", "weight", "layer")
    ),
    Case(
        "transformer",
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True), nn.Linear(8, 2)),
        (2, 3, 8),
        on("0", "0.self_attn", "0.norm1", network=[]),
    ),
    Case(
        "transformer-fast-path",
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 2)).eval(),
        (2, 3, 8),
        on("0", network=[]),
    ),
    Case(
        "fused-attention", lambda: nn.Sequential(Attention(), Attention(), nn.Linear(8, 2)), (2, 4, 8), on("0", "1.qkv")
    ),
    Case(
        "convolutions",
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, groups=2),
            nn.Conv2d(6, 4, 2, dilation=2, padding_mode="circular", padding=1),
            nn.ConvTranspose2d(4, 2, 3, stride=2),
            nn.Flatten(),
        ),
        (2, 4, 7, 7),
        on("0", "1", "2", network=[], kernel=["1"]),
    ),
    Case(
        "weight-standardised", lambda: nn.Sequential(WeightStandardised(2, 3, 3), nn.Flatten()), (2, 2, 4, 4), on("0")
    ),
    Case("called-thrice", Twice, (2, 4), on("cell#1", "cell#3", "head", kernel=["cell", "head", "total"])),
    Case("tied", Tied, (2, 4), on("down", "up", kernel=["down", "up", "total"])),
    Case("frozen", frozen_first, (2, 4), on("0", "2", kernel=["0", "total"])),
    Case(
        "embedding",
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
        (2, 5),
        {"layer": ["1", "2"], "tail": ["0", "1"], "param": ["0", "1"], "kernel": ["0", "total"]},
        tokens=9,
    ),
    Case("keywords", ByKeyword, (3, 4), on("mix", "head", network=[])),
    Case(
        "width-one",
        lambda: nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)),
        (1, 1),
        on("0", "2", network=[]),
    ),
    Case(
        "dropout",
        lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 6), nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))),
        (3, 6),
        on("1", "2", network=[]),
    ),
    Case(
        "parametrised",
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), parametrizations.spectral_norm(nn.Linear(5, 3))
        ),
        (3, 4),
        on("0", "2"),
    ),
    Case(
        "group-norm",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.GELU()),
        (2, 2, 3, 3),
        on("0", "1"),
    ),
    Case(
        "lstm",
        lambda: nn.Sequential(nn.LSTM(3, 4, num_layers=2, batch_first=True)),
        (2, 3, 3),
        on("0", kernel=["total"]),
    ),
    Case("user-hooks", hooked, (3, 4), on("0", "1", network=[])),
    Case("python-random", lambda: Dimmed(nn.Linear(4, 4), nn.Linear(4, 2)), (3, 4), on("0", network=[])),
]
