"""Networks that have broken diagnostics before, and an oracle made of plain autograd on a deep copy."""

import copy
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils import parametrizations

from models import build_model

Oracle = Callable[..., Tensor]


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


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=[case for case in CASES if "kernel" in case.maps], ids=lambda case: case.id)
def kernel_case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="session")
def make() -> Callable[[str], tuple[nn.Module, Tensor]]:
    """The network and probe of a case by its id."""
    by_id = {case.id: case for case in CASES}
    return lambda name: by_id[name].make()


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """A dense Jacobian from plain autograd, a row at a time."""

    def jacobian(model: nn.Module, x: Tensor, map: str, layer: str | None, batch_mode: str = "batch") -> Tensor:
        if batch_mode == "sample":
            model = copy.deepcopy(model).eval()
            return torch.stack([jacobian(model, one, map, layer) for one in x.split(1)])
        rows = _plain_jacobian(copy.deepcopy(model), x.clone(), map, layer)
        return rows @ rows.T if map == "kernel" else rows

    return jacobian


def _plain_jacobian(model: nn.Module, x: Tensor, map: str, layer: str | None) -> Tensor:
    name, _, number = (layer or "").partition("#")
    module = model if layer in (None, "total") else model.get_submodule(name)
    wanted, calls, seen = int(number or 1), 0, {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if map == "tail" or calls != wanted:
            return None
        value = args[0] if args else kwargs["values"]
        point = value.detach().clone().requires_grad_(map == "layer")
        seen.update({"point": point} if map == "layer" else {})
        cut = point.clone()
        args = tuple(cut if arg is value else arg for arg in args)
        return args, {key: cut if arg is value else arg for key, arg in kwargs.items()}

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        if calls != wanted:
            return None
        value = output[0] if isinstance(output, tuple) else output
        if map in ("layer", "param"):
            seen["value"] = value.clone()
        if map != "tail":
            return None
        seen["point"] = value.detach().clone().requires_grad_()
        cut = seen["point"].clone()
        return (cut, *output[1:]) if isinstance(output, tuple) else cut

    if map in ("layer", "tail", "param"):
        module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        module.register_forward_hook(after)
    if map == "network":
        seen["point"] = x.requires_grad_()
        x = x.clone()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    logits = model(x)
    logits = logits["logits"] if isinstance(logits, dict) else logits[0] if isinstance(logits, tuple) else logits
    value = seen["value"] if map in ("layer", "param") else logits
    points = [seen["point"]] if "point" in seen else [p for p in module.parameters() if p.requires_grad]
    rows = [
        torch.autograd.grad(entry, points, retain_graph=True, allow_unused=True, materialize_grads=True)
        for entry in value.flatten()
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.fixture
def snapshot() -> Callable[[nn.Module, Tensor], dict[str, Any]]:
    """Everything that a diagnostic must leave as it was, in a form that can be compared with ``same``."""
    return _snapshot


def _snapshot(model: nn.Module, x: Tensor) -> dict[str, Any]:
    backends = torch.backends
    return {
        "tensors": {
            name: (tensor.detach().clone(), tensor.requires_grad, tensor._version, id(tensor))
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        },
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "probe": (x.detach().clone(), x.requires_grad, x.grad),
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [len(vars(module)[kind]) for kind in sorted(vars(module)) if kind.endswith("_hooks")]
            for name, module in model.named_modules()
        },
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch._C._functorch.maybe_get_level(torch.zeros(())),
            torch._C._functorch.peek_interpreter_stack(),
        ),
        "switches": (
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
            _precision(),
        ),
    }


def _precision() -> Any:
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    mkldnn, cudnn = backends.mkldnn, backends.cudnn
    operators = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return backends.fp32_precision, *(operator.fp32_precision for operator in operators)


@pytest.fixture
def unchanged() -> Callable[[Any, Any], bool]:
    """Whether two snapshots are the same, bit for bit."""
    return _same


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Small matrices are faster on one thread, and tests should not fight over the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def agree_in_two_processes(tmp_path: Path) -> Callable[..., None]:
    """Runs a program in two processes; it gets its rank, the file to meet through, and what else it is given."""

    def run(program: str, *arguments: str) -> None:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(rank), str(tmp_path / "meeting"), *arguments],
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            for process in processes:
                output = process.communicate(timeout=120)[0]
                assert (process.returncode, output.strip()[-10:]) == (0, "both agree"), output
        finally:
            for process in processes:
                process.kill()

    return run
